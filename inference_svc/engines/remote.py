"""A model on somebody else's server, behind the Engine protocol.

Any server of OpenAI's completions interface. Prompts go out as token ids of our own
tokenizer, so that chat templates, the cache's keys and a takeover in the middle of an
answer are the same as on every engine; text, stop strings and slots are ours too.
docs/decisions/0024-optimization.md has the reasons.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference_svc.choice import Choice
from inference_svc.engine import (
    Chat,
    EngineCapabilities,
    EngineLoad,
    GenerationRequest,
    ModelFacts,
    TokenDelta,
)
from inference_svc.engines.adapters import check_adapter
from inference_svc.engines.engine_life import EngineLife
from inference_svc.engines.local_tokenizer import LocalTokenizer, read_tokenizer
from inference_svc.engines.remote_dialect import (
    Dialect,
    choose_dialect,
    completion_body,
    read_step,
)
from inference_svc.engines.remote_http import Event, RemoteServer
from inference_svc.engines.sequence_stream import SequenceStream, Step
from inference_svc.grammar import check_grammar
from inference_svc.kv_events import KvListener
from inference_svc.remote_settings import RemoteSettings
from inference_svc.slots import Slots
from inference_svc.tokenizing import encode
from sidecache.errors import EngineFailed, SetupError, SidecacheError

MAX_CHOICES = 8
_LOAD_RETRY_S = 0.5
_PROBE_TEXT = "One, two, three, four, five, six: déjà vu! 日本"
_PROBE_TOKENS = 8
_MORE_TOKENS = 64
_USAGE_WAIT_S = 0.05

logger = logging.getLogger(__name__)


class RemoteEngine:
    """The engine; see :mod:`inference_svc.engine` for what each method promises.

    Args:
        tokenizer_path: a GGUF file or checkpoint folder of the model; weights are not needed.
        model_name: what requests call it.
    """

    def __init__(
        self, tokenizer_path: Path, model_name: str, settings: RemoteSettings, slots: Slots
    ) -> None:
        self._tokenizer_path = tokenizer_path
        self._model_name = model_name
        self._model = settings.model or model_name
        self._settings = settings
        self._slots = slots
        self._life = EngineLife(slots)
        self._suspect = asyncio.Event()
        self._prober: asyncio.Task[None] | None = None
        self._server: RemoteServer | None = None
        self._tokenizer: LocalTokenizer
        self._dialect: Dialect
        self._facts: ModelFacts

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    def listen_kv(self, listener: KvListener) -> None:
        """Nothing is heard of a remote KV cache."""

    async def load(self) -> None:
        self._life.begin()
        if not self._settings.base_url:
            raise SetupError(
                "engine remote needs remote.base_url (SIDECACHE_WORKER_REMOTE__BASE_URL), such as "
                "http://10.0.0.7:8000/v1"
            )
        self._tokenizer = await asyncio.to_thread(read_tokenizer, self._tokenizer_path)
        self._server = RemoteServer(self._settings, self._slots.max_sequences)
        listed = await self._wait_for_model(self._server)
        owner = str(listed.get("owned_by", ""))
        self._dialect = choose_dialect(
            self._settings.dialect, owner, self._tokenizer, priorities=self._settings.priorities
        )
        self._facts = self._describe(listed, owner)
        await self._warm_up()
        self._prober = asyncio.create_task(self._probe(self._server))

    async def aclose(self) -> None:
        self._life.die(EngineFailed("the engine was closed"))
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.wait((self._prober,))
            self._prober = None
        await self._life.close_streams()
        if self._server is not None:
            server, self._server = self._server, None
            await server.aclose()

    async def tokenize(self, prompt: str | Chat) -> list[int]:
        return await encode(self._tokenizer, prompt)

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[TokenDelta]]:
        self._check(request)
        choices = [
            Choice(index, self._tokenizer.decoder(), request.stop) for index in range(request.n)
        ]
        stream = SequenceStream(request, choices, self._tokenizer.end_token_ids, self, self._slots)
        async with self._life.running(stream):
            yield stream

    def load_figures(self) -> EngineLoad:
        return self._life.load_figures()

    def silent_s(self) -> float:
        return self._life.silent_s()

    async def wait_failed(self) -> EngineFailed:
        return await self._life.wait_failed()

    async def generate(
        self, request: GenerationRequest, prompt: list[int], done: int, seed: int
    ) -> AsyncGenerator[Any, None]:
        """Events of one choice, each with whether it is the first; closing it aborts."""
        if self._server is None:
            raise EngineFailed("the engine was closed")
        model = self._settings.adapters.get(request.adapter, self._model)
        body = completion_body(self._dialect, model, request, prompt, done, seed)
        # What was re-encoded may be more tokens than the server counts, and an event may have
        # none, but neither goes on without end.
        room = 2 * request.max_tokens + _MORE_TOKENS
        async with aclosing(self._server.completions(body)) as events:
            async for event in events:
                self._life.show_sign()
                self._check_model(event, model)
                step = self._checked(read_step(self._dialect, event, request.logprobs is not None))
                room -= max(1, len(step.token_ids))
                if room < 0:
                    raise EngineFailed("the remote server does not stop at max_tokens")
                if step.ended is not None:
                    yield await self._with_usage(step, events)
                    return
                if step.token_ids:
                    yield step
        raise EngineFailed("the remote server ended the stream without a finish reason")

    async def _with_usage(self, last: Step, events: AsyncGenerator[Event, None]) -> Step:
        """The last step, with what the server says only after it, if that comes at once."""
        if last.cached_tokens is not None or not self._dialect.usage_comes_last:
            return last
        with suppress(TimeoutError, SidecacheError):
            async with asyncio.timeout(_USAGE_WAIT_S):
                async for event in events:
                    usage = read_step(self._dialect, event, logprobs=False)
                    return replace(last, cached_tokens=usage.cached_tokens)
        return last

    def read(self, output: Any, wanted: int | None) -> Step:
        """What an output says: it was read where its dialect is known."""
        step: Step = output
        return step

    def failed(self, error: Exception) -> SidecacheError:
        """One of our errors; one that is about the server makes it suspect."""
        if isinstance(error, EngineFailed):
            self._suspect.set()
        if isinstance(error, SidecacheError):
            return error
        logger.error("remote stream failed: %s", type(error).__name__)
        return EngineFailed(f"the remote stream failed: {type(error).__name__}")

    async def _wait_for_model(self, server: RemoteServer) -> Event:
        """What /models says of our model, once the server is up."""
        problem = "no answer yet"
        try:
            async with asyncio.timeout(self._settings.load_timeout_s):
                while True:
                    try:
                        models = await server.models(self._settings.probe_timeout_s)
                        return self._pick(models)
                    except EngineFailed as error:
                        problem = error.text
                    await asyncio.sleep(_LOAD_RETRY_S)
        except TimeoutError:
            raise SetupError(
                f"no remote server within {self._settings.load_timeout_s:g} s: {problem}; check "
                "remote.base_url"
            ) from None

    def _pick(self, models: list[Event]) -> Event:
        by_name = {each["id"]: each for each in models}
        missing = [
            name for name in (self._model, *self._settings.adapters.values()) if name not in by_name
        ]
        if missing:
            raise SetupError(
                f"{self._settings.base_url} has no model {missing[0]!r}, only "
                f"{', '.join(sorted(by_name)) or 'none'}; set remote.model"
            )
        return by_name[self._model]

    async def _warm_up(self) -> None:
        """One short answer, whose ids must be the server's own text in our tokenizer."""
        prompt = tuple(self._tokenizer.encode(_PROBE_TEXT))
        request = GenerationRequest("warm-up", prompt, _PROBE_TOKENS)
        server, heard, text = self._server, [], ""
        if server is None:
            return
        body = completion_body(self._dialect, self._model, request, [*prompt], 0, 0)
        try:
            async with aclosing(server.completions(body)) as events:
                async for event in events:
                    self._check_model(event, self._model)
                    heard += self._checked(
                        read_step(self._dialect, event, logprobs=False)
                    ).token_ids
                    text += "".join(
                        str(each.get("text") or "") for each in event.get("choices", ())
                    )
        except SidecacheError as error:
            raise SetupError(
                f"the remote server cannot serve {self._model}: {error.text}"
            ) from error
        self._check_tokenizer(heard, text)

    def _check_tokenizer(self, ids: list[int], text: str) -> None:
        if text and not ids:
            raise SetupError(
                f"the remote server tells no token ids, which dialect {self._dialect.name} needs; "
                'set remote.dialect to "openai"'
            )
        ours = self._tokenizer.decode(ids)
        # Half characters are written differently, and some servers drop what leads or trails.
        if ours.strip().rstrip("\ufffd") != text.strip().rstrip("\ufffd"):
            raise SetupError(
                f"the tokenizer of {self._tokenizer_path} is not the one of model {self._model} "
                f"on {self._settings.base_url}: its tokens read differently"
            )

    def _check_model(self, event: Event, model: str) -> None:
        told = event.get("model")
        if isinstance(told, str) and told and told != model:
            raise EngineFailed(f"the remote server answered as model {told[:80]!r}, not {model!r}")

    def _checked(self, step: Step) -> Step:
        for token_id in step.token_ids:
            if not 0 <= token_id < self._tokenizer.size:
                raise EngineFailed(
                    f"the remote server sent token {token_id}, of {self._tokenizer.size}"
                )
        return step

    async def _probe(self, server: RemoteServer) -> None:
        """Ask a silent or suspect server for its models, until it has failed too often."""
        failures, problem = 0, ""
        while failures < self._settings.max_failed_probes:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.probe_interval_s):
                    await self._suspect.wait()
            silent_s = asyncio.get_running_loop().time() - self._life.last_sign
            if not self._suspect.is_set() and silent_s < self._settings.probe_interval_s:
                failures = 0
                continue
            self._suspect.clear()
            asked = asyncio.get_running_loop().time()
            try:
                self._pick(await server.models(self._settings.probe_timeout_s))
            except EngineFailed as error:
                # Tokens that came meanwhile are better news.
                failures = failures + 1 if self._life.last_sign < asked else 0
                problem = error.text
            except SetupError as error:
                self._life.die(EngineFailed(error.text))
                return
            else:
                failures = 0
                self._life.show_sign()
        self._life.die(EngineFailed(f"{problem} ({failures} times in a row)"))

    def _check(self, request: GenerationRequest) -> None:
        self._life.check()
        check_adapter(request.adapter, self._settings.adapters)
        if request.guided is not None:
            check_grammar(request.guided)
        self._dialect.more_fields(request)

    def _describe(self, listed: Event, owner: str) -> ModelFacts:
        dialect, settings = self._dialect, self._settings
        meta = listed.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        told = [listed.get("max_model_len"), meta.get("n_ctx"), meta.get("n_ctx_train")]
        context = settings.context_length or next((x for x in told if isinstance(x, int)), None)
        if context is None:
            raise SetupError(
                f"{settings.base_url} does not tell the context length of {self._model}; "
                "set remote.context_length"
            )
        revision = f"{settings.revision}\n{self._model}\n{self._tokenizer.fingerprint}"
        return ModelFacts(
            name=self._model_name,
            revision=hashlib.sha256(revision.encode()).hexdigest(),
            engine="remote",
            build=f"{dialect.name} server of {owner[:40] or 'unknown owner'}",
            context_length=context,
            vocabulary_size=self._tokenizer.size,
            block_size=0,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            chat_template_fingerprint=self._tokenizer.template_fingerprint,
            tokenizer_files=self._tokenizer.files,
            capabilities=EngineCapabilities(
                guided_decoding=dialect.knows_guided,
                logprobs=dialect.knows_logprobs,
                seeded_sampling=True,
                priorities=dialect.knows_priority,
                tools=self._tokenizer.knows_tools,
                max_choices=min(MAX_CHOICES, self._slots.max_sequences),
                max_top_logprobs=0,
                cache_salt=dialect.knows_salt,
                exact_continuation=settings.exact_continuation and dialect.tells_ids,
            ),
            adapters=tuple(settings.adapters),
        )
