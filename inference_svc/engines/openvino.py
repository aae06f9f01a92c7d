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
from inference_svc.engines.gguf import GgufFile, read_gguf
from inference_svc.engines.gguf_tokenizer import GgufTokenizer
from inference_svc.engines.openvino_blocks import OpenVinoBlocks
from inference_svc.engines.openvino_link import EngineLink
from inference_svc.engines.openvino_stream import OpenVinoStream
from inference_svc.grammar import check_grammar
from inference_svc.kv_events import KvListener, ignore
from inference_svc.prefix_gate import PrefixGate
from inference_svc.settings import OpenVinoSettings
from inference_svc.slots import Slots
from sidecache.errors import EngineFailed, InvalidRequest, NotFound, SetupError

# Tokens in one KV block of OpenVINO's paged attention on a CPU.
BLOCK_SIZE = 32
MAX_CHOICES = 8
# Shorter texts are tokenized faster than a thread can be woken for them.
_INLINE_CHARACTERS = 4096


class OpenVinoEngine:
    """The engine; see :mod:`inference_svc.engine` for what each method promises.

    Args:
        model_path: a GGUF file.
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
        self._blocks: OpenVinoBlocks
        self._prompts: dict[int, list[int]] = {}
        self._tell_kv: KvListener = ignore
        self._last_sign = 0.0
        self._link: EngineLink
        self._tokenizer: GgufTokenizer
        self._end_token_id: int
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
        model = await asyncio.to_thread(read_gguf, self._model_path)
        self._end_token_id = model.get("tokenizer.ggml.eos_token_id", int)
        self._tokenizer = await asyncio.to_thread(GgufTokenizer, model)
        try:
            self._link = await EngineLink.open(self._config(), self._settings.load_timeout_s)
        except EngineFailed as error:
            raise SetupError(
                f"model file {self._model_path} could not be loaded ({error.text}); check that it "
                "is a model OpenVINO GenAI can run and that memory suffices, or fetch it again "
                "with `sidecache pull`"
            ) from error
        self._blocks = self._model_blocks(model)
        self._facts = self._describe(model)
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
        length = (
            len(prompt)
            if isinstance(prompt, str)
            else sum(len(turn.content) for turn in prompt.messages)
        )
        if length <= _INLINE_CHARACTERS:
            return self._tokenizer.encode(prompt)
        return await asyncio.to_thread(self._tokenizer.encode, prompt)

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[TokenDelta]]:
        self._check(request)
        stream = OpenVinoStream(
            request, self._tokenizer.vocabulary, self._end_token_id, self, self._slots, self._gate
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
            kv_blocks=self._blocks.capacity,
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
        for key in event["joined"]:
            cached_tokens = self._blocks.joined(key, self._prompts.pop(key))
            if key in self._by_key:
                self._by_key[key].prompt_cached(cached_tokens)
        if event["stepped"]:
            sampled = {key: ids for key, ids, _, _ in event["tokens"]}
            self._blocks.stepped(sampled, event["gone"])
        else:
            for key in event["gone"]:
                self._blocks.cancelled(key)
        for key, ids, logprobs, reason in event["tokens"]:
            self._by_key[key].received(key, ids, logprobs, reason)
        for key in event["gone"]:
            self._by_key.pop(key).gone(key)

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
            check_grammar(request.guided)

    def _config(self) -> dict[str, Any]:
        return {
            "model_path": str(self._model_path),
            "cache_gib": self._settings.cache_gib,
            "kv_blocks": self._settings.kv_blocks,
            "inference_threads": self._settings.inference_threads,
            "max_num_batched_tokens": self._settings.max_num_batched_tokens,
            "max_num_seqs": self._slots.max_sequences,
        }

    def _describe(self, model: GgufFile) -> ModelFacts:
        architecture = model.get("general.architecture", str)
        return ModelFacts(
            name=self._model_name,
            revision=model.revision,
            engine="openvino",
            build=self._link.ready["build"],
            context_length=model.get(f"{architecture}.context_length", int),
            vocabulary_size=len(self._tokenizer.vocabulary),
            block_size=BLOCK_SIZE,
            tokenizer_fingerprint=self._tokenizer.fingerprint,
            chat_template_fingerprint=self._tokenizer.template_fingerprint,
            tokenizer_files=self._tokenizer.files,
            capabilities=EngineCapabilities(
                guided_decoding=True,
                logprobs=True,
                seeded_sampling=True,
                priorities=False,
                tools=self._tokenizer.knows_tools,
                max_choices=min(MAX_CHOICES, self._slots.max_sequences),
                max_top_logprobs=0,
                cached_tokens_estimated=True,
                kv_events=True,
            ),
        )

    def _model_blocks(self, model: GgufFile) -> OpenVinoBlocks:
        """The library's KV cache as it stands after warm-up."""
        ready = self._link.ready
        capacity = ready["kv_cache_bytes"] // block_bytes(model)
        step_tokens = self._settings.max_num_batched_tokens
        blocks = OpenVinoBlocks(capacity, BLOCK_SIZE, step_tokens, self._tell_kv)
        warm_up, ids = 0, ready["warm_up"]["ids"]
        blocks.joined(warm_up, ready["warm_up"]["prompt"])
        for number, token_id in enumerate(ids, 1):
            blocks.stepped({warm_up: [token_id]}, [warm_up] if number == len(ids) else [])
        return blocks


def block_bytes(model: GgufFile) -> int:
    """Memory of one KV block: keys and values of every layer, in f32."""
    architecture = model.get("general.architecture", str)
    heads = model.get(f"{architecture}.attention.head_count", int)
    width = model.get(f"{architecture}.embedding_length", int) // heads
    # Heads may be of another width than the embedding's share; then the header says so.
    widths = [
        model.metadata.get(f"{architecture}.attention.{each}_length") for each in ("key", "value")
    ]
    head_values = sum(each if isinstance(each, int) else width for each in widths)
    layers = model.get(f"{architecture}.block_count", int)
    kv_heads = model.get(f"{architecture}.attention.head_count_kv", int)
    return BLOCK_SIZE * layers * kv_heads * head_values * 4
