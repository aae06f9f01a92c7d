"""OpenVINO GenAI's continuous batching behind the Engine protocol.

In-flight batching (Orca), paged KV cache and prefix reuse are the library's;
this side decides who joins and leaves, and turns ids into text. The library
steps in a process of its own, see docs/decisions/0003-engine-process.md.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inference_svc.engine import (
    Chat,
    EngineCapabilities,
    EngineLoad,
    GenerationRequest,
    ModelFacts,
    TokenDelta,
)
from inference_svc.engines.openvino_blocks import OpenVinoBlocks
from inference_svc.engines.openvino_link import EngineLink
from inference_svc.engines.openvino_model import OpenVinoModel, not_loaded, read_model
from inference_svc.engines.openvino_stream import OpenVinoStream
from inference_svc.grammar import check_grammar
from inference_svc.kv_events import KvListener, ignore
from inference_svc.openvino_settings import OpenVinoSettings
from inference_svc.prefix_gate import PrefixGate
from inference_svc.slots import Slots
from inference_svc.tokenizing import encode
from sidecache.errors import EngineFailed, InvalidRequest, NotFound

# Tokens in one KV block of OpenVINO's paged attention on a CPU.
BLOCK_SIZE = 32
MAX_CHOICES = 8


class OpenVinoEngine:
    """The engine; see :mod:`inference_svc.engine` for what each method promises.

    Args:
        model_path: a GGUF file, or a folder with an OpenVINO model.
        model_name: what requests call it.
    """

    def __init__(
        self, model_path: Path, model_name: str, settings: OpenVinoSettings, slots: Slots
    ) -> None:
        self._model_path = model_path
        self._model_name = model_name
        self._settings = settings
        self._slots = slots
        self._gate = PrefixGate(settings.prefix_min_tokens, settings.prefix_max_hold_s)
        self._streams: set[OpenVinoStream] = set()
        self._by_key: dict[int, OpenVinoStream] = {}
        self._keys = itertools.count(1)
        self._kv_cache_usage = 0.0
        # None where the library's cache cannot be modelled: guesses, or another device.
        self._blocks: OpenVinoBlocks | None = None
        self._prompts: dict[int, list[int]] = {}
        self._tell_kv: KvListener = ignore
        self._last_sign = 0.0
        self._link: EngineLink
        self._model: OpenVinoModel
        self._facts: ModelFacts
        self._failure: asyncio.Future[EngineFailed]
        self._reader: asyncio.Task[None] | None = None

    @property
    def facts(self) -> ModelFacts:
        return self._facts

    @property
    def pid(self) -> int:
        """Of the stepping process."""
        return self._link.pid

    def listen_kv(self, listener: KvListener) -> None:
        self._tell_kv = listener

    async def load(self) -> None:
        self._model = await asyncio.to_thread(read_model, self._model_path)
        try:
            self._link = await EngineLink.open(self._config(), self._settings.load_timeout_s)
        except EngineFailed as error:
            raise not_loaded(self._model_path, error.text) from error
        if self._settings.device == "CPU" and self._settings.speculative is None:
            self._blocks = self._model_blocks()
        self._facts = self._describe()
        self._failure = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read())

    async def aclose(self) -> None:
        if self._reader is None:
            return
        self._die(EngineFailed("the engine was closed"))
        self._reader.cancel()
        await asyncio.wait((self._reader,))
        await self._link.aclose()
        self._reader = None

    async def tokenize(self, prompt: str | Chat) -> list[int]:
        return await encode(self._model.tokenizer, prompt)

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[TokenDelta]]:
        self._check(request)
        stream = OpenVinoStream(
            request,
            self._model.tokenizer.decoder,
            self._model.tokenizer.end_token_ids,
            self,
            self._slots,
            self._gate,
        )
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)
            stream.abandon()

    def load_figures(self) -> EngineLoad:
        return EngineLoad(
            running_sequences=self._slots.running,
            waiting_sequences=self._slots.waiting,
            max_sequences=self._slots.max_sequences,
            waiting_prompt_tokens=self._slots.waiting_prompt_tokens,
            # The last step's; nothing steps while nothing runs.
            kv_cache_usage=self._kv_cache_usage if self._by_key else 0.0,
            kv_blocks=self._blocks.capacity if self._blocks else None,
        )

    def silent_s(self) -> float:
        if not self._by_key:
            return 0.0
        return asyncio.get_running_loop().time() - self._last_sign

    async def wait_failed(self) -> EngineFailed:
        return await asyncio.shield(self._failure)

    def join(self, stream: OpenVinoStream, prompt: list[int], config: dict[str, Any]) -> int:
        """Put a sequence into the batch; its key."""
        if not self._by_key:
            self._last_sign = asyncio.get_running_loop().time()
        key = next(self._keys)
        self._by_key[key] = stream
        if self._blocks is not None:
            self._prompts[key] = prompt
        self._link.send({"add": key, "prompt": prompt, "config": config})
        return key

    def leave(self, key: int) -> None:
        """Take a sequence out of the batch at the next step."""
        self._link.send({"cancel": key})

    async def _read(self) -> None:
        """Hand what the stepping process says to the streams, until it dies."""
        try:
            async for event in self._link.events():
                self._last_sign = asyncio.get_running_loop().time()
                if "refused" in event:
                    self._refuse(event["refused"], event["text"])
                else:
                    self._stepped(event)
        except EngineFailed as error:
            self._die(error)

    def _stepped(self, event: dict[str, Any]) -> None:
        self._kv_cache_usage = event["kv_cache_usage"]
        if self._blocks is not None:
            self._model_step(self._blocks, event)
        for key, ids, logprobs, reason in event["tokens"]:
            self._by_key[key].received(key, ids, logprobs, reason)
        for key in event["gone"]:
            self._by_key.pop(key).gone(key)

    def _model_step(self, blocks: OpenVinoBlocks, event: dict[str, Any]) -> None:
        for key in event["joined"]:
            cached_tokens = blocks.joined(key, self._prompts.pop(key))
            if key in self._by_key:
                self._by_key[key].prompt_cached(cached_tokens)
        if event["stepped"]:
            sampled = {key: ids for key, ids, _, _ in event["tokens"]}
            blocks.stepped(sampled, event["gone"])
        else:
            for key in event["gone"]:
                blocks.cancelled(key)

    def _refuse(self, key: int, text: str) -> None:
        self._prompts.pop(key, None)
        self._by_key.pop(key).refused(key, InvalidRequest(f"the engine refuses it: {text}"))

    def _die(self, failure: EngineFailed) -> None:
        """Every running request learns of it; later ones are refused."""
        if not self._failure.done():
            self._failure.set_result(failure)
        self._by_key.clear()
        self._prompts.clear()
        for stream in list(self._streams):
            stream.engine_died(EngineFailed(failure.text))

    def _check(self, request: GenerationRequest) -> None:
        if self._failure.done():
            raise EngineFailed(self._failure.result().text)
        if request.adapter:
            raise NotFound(
                f"adapter {request.adapter!r} is not known; this worker has none",
                kind="adapter",
                name=request.adapter,
            )
        if request.guided is not None:
            if not self._facts.capabilities.guided_decoding:
                raise InvalidRequest("this worker's engine follows no grammar", field="guided")
            check_grammar(request.guided)

    def _config(self) -> dict[str, Any]:
        settings, speculation = self._settings, self._settings.speculative
        generation: dict[str, Any] = {
            # The library knows them of a GGUF file, not of every folder.
            "stop_token_ids": sorted(self._model.tokenizer.end_token_ids)
        }
        if speculation is not None:
            generation["num_assistant_tokens"] = speculation.num_tokens
            if speculation.method == "prompt_lookup":
                generation["max_ngram_size"] = speculation.max_ngram_size
        draft = speculation.draft_model if speculation else None
        return {
            "model_path": str(self._model_path),
            "device": settings.device,
            "properties": settings.properties(),
            "cache_gib": settings.cache_gib,
            "kv_blocks": settings.kv_blocks,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "max_num_seqs": self._slots.max_sequences,
            "generation": generation,
            "prompt_lookup": speculation is not None and draft is None,
            "draft_model": str(draft) if draft else None,
        }

    def _describe(self) -> ModelFacts:
        tokenizer, settings = self._model.tokenizer, self._settings
        build = ", ".join([self._link.ready["build"], *settings.deviations()])
        return ModelFacts(
            name=self._model_name,
            revision=self._model.revision,
            engine="openvino",
            build=build,
            context_length=self._model.context_length,
            vocabulary_size=tokenizer.size,
            block_size=BLOCK_SIZE if self._blocks else 0,
            tokenizer_fingerprint=tokenizer.fingerprint,
            chat_template_fingerprint=tokenizer.template_fingerprint,
            tokenizer_files=tokenizer.files,
            capabilities=EngineCapabilities(
                guided_decoding=self._model.has_tokenizer and settings.speculative is None,
                logprobs=True,
                seeded_sampling=True,
                priorities=False,
                tools=tokenizer.knows_tools,
                max_choices=min(MAX_CHOICES, self._slots.max_sequences),
                max_top_logprobs=0,
                exact_continuation=settings.exact,
                cached_tokens_estimated=self._blocks is not None,
                kv_events=self._blocks is not None,
            ),
        )

    def _model_blocks(self) -> OpenVinoBlocks:
        """The library's KV cache as it stands after warm-up."""
        ready = self._link.ready["warm_up"]
        prompt, ids = ready["prompt"], ready["ids"]
        # Of the last token the library computes neither keys nor values.
        used = -(-(len(prompt) + len(ids) - 1) // BLOCK_SIZE)
        capacity = round(used / ready["kv_cache_usage"])
        blocks = OpenVinoBlocks(
            capacity, BLOCK_SIZE, self._settings.max_num_batched_tokens, self._tell_kv
        )
        warm_up = 0
        blocks.joined(warm_up, prompt)
        for number, token_id in enumerate(ids, 1):
            blocks.stepped({warm_up: [token_id]}, [warm_up] if number == len(ids) else [])
        return blocks
