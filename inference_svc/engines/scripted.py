"""A deterministic engine: token = f(seed, position), at any pace, with faults on order.

It serves tests, benchmarks and chaos: from a client's log alone it can be
proved that a stream is whole, since every token is known beforehand. It keeps
the contract of a real engine: slots, a waiting queue, cancel, continuation.

A prompt is one token per UTF-8 byte. A generated token is a word; ids of
prompts and of words share the range, not the meaning.

Its KV cache is a model (paged_cache.py), but a truthful one: what it calls cached needs
no prefill, what it evicts does, and prefill takes the time that the settings say.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inference_svc.engine import (
    Chat,
    EngineCapabilities,
    EngineLoad,
    GenerationRequest,
    ModelFacts,
    TokenDelta,
)
from inference_svc.engines.paged_cache import PagedCache
from inference_svc.engines.script import (
    SCRIPT_VERSION,
    SCRIPTED_VOCABULARY,
    prompt_seed,
    scripted_text,
    scripted_token,
)
from inference_svc.engines.scripted_blocks import SequenceBlocks
from inference_svc.engines.scripted_stream import ScriptedStream
from inference_svc.kv_events import KvListener, ignore
from inference_svc.settings import ScriptedSettings
from inference_svc.slots import Slot, Slots
from sidecache.errors import EngineFailed, InvalidRequest, NotFound

__all__ = ["ScriptedEngine", "prompt_seed", "scripted_text", "scripted_token"]

MAX_CHOICES = 8
MODEL_NAME = "scripted"

# So that others can tokenize as this engine does: tokenize() below.
_CHAT_TEMPLATE = "role: content"
_TOKENIZER_FILE = "sidecache-byte-tokenizer.json"
_TOKENIZER = json.dumps({"kind": "utf8-bytes", "chat": _CHAT_TEMPLATE}).encode()


class ScriptedEngine:
    """The engine; see :mod:`inference_svc.engine` for what each method promises."""

    def __init__(self, settings: ScriptedSettings, slots: Slots, model_name: str = "") -> None:
        self._settings = settings
        self._slots = slots
        self._model_name = model_name or MODEL_NAME
        self._tell_kv: KvListener = ignore
        self._cache = PagedCache(settings.kv_blocks, time.monotonic)
        # One prompt is prefilled at a time; of those with a slot all may wait.
        self._prefills = Slots(1, slots.max_sequences)
        self._failure: asyncio.Future[EngineFailed] | None = None
        self._hung_since: float | None = None

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(
            name=self._model_name,
            revision=_revision(self._settings),
            engine="scripted",
            build=str(SCRIPT_VERSION),
            context_length=self._settings.context_length,
            vocabulary_size=SCRIPTED_VOCABULARY,
            block_size=self._settings.block_size,
            tokenizer_fingerprint=hashlib.sha256(_TOKENIZER).hexdigest(),
            chat_template_fingerprint=_sha256(_CHAT_TEMPLATE),
            tokenizer_files={_TOKENIZER_FILE: _TOKENIZER},
            capabilities=EngineCapabilities(
                guided_decoding=False,
                logprobs=True,
                seeded_sampling=True,
                priorities=False,
                tools=False,
                max_choices=min(MAX_CHOICES, self._slots.max_sequences),
                max_top_logprobs=0,
                exact_continuation=True,
                kv_events=True,
                cache_salt=True,
                retention=True,
            ),
            adapters=self._settings.adapters,
        )

    def listen_kv(self, listener: KvListener) -> None:
        self._tell_kv = listener

    async def load(self) -> None:
        self._failure = asyncio.get_running_loop().create_future()

    async def aclose(self) -> None:
        self._die("the engine was closed")

    async def tokenize(self, prompt: str | Chat) -> list[int]:
        if isinstance(prompt, Chat):
            turns = [f"{turn.role}: {turn.content}\n" for turn in prompt.messages]
            prompt = "".join([*turns, "assistant:"])
        return list(prompt.encode())

    @asynccontextmanager
    async def submit(self, request: GenerationRequest) -> AsyncIterator[AsyncIterator[TokenDelta]]:
        self._check(request)
        slot = self._slots.request(request.n, len(request.prompt_token_ids))
        try:
            stream = ScriptedStream(self, self._settings, request, slot)
        except BaseException:
            self._slots.release(slot)
            raise
        try:
            yield stream
        finally:
            stream.leave()

    def load_figures(self) -> EngineLoad:
        return EngineLoad(
            running_sequences=self._slots.running,
            waiting_sequences=self._slots.waiting,
            max_sequences=self._slots.max_sequences,
            waiting_prompt_tokens=(
                self._slots.waiting_prompt_tokens + self._prefills.waiting_prompt_tokens
            ),
            kv_cache_usage=self._cache.pinned / self._cache.capacity,
            kv_blocks=self._cache.capacity,
        )

    def silent_s(self) -> float:
        if self._hung_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._hung_since

    async def wait_failed(self) -> EngineFailed:
        return await asyncio.shield(self._loaded())

    async def granted(self, slot: Slot) -> None:
        """Return when the slot is granted; raise EngineFailed when the engine dies first."""
        await asyncio.wait((slot.granted, self._loaded()), return_when=asyncio.FIRST_COMPLETED)
        self.raise_if_dead()

    async def sleep(self, seconds: float | None) -> None:
        """Sleep (None: for ever); raise EngineFailed when the engine dies meanwhile."""
        await asyncio.wait((self._loaded(),), timeout=seconds)
        self.raise_if_dead()

    async def live_through(self, position: int, *, is_poison: bool = False) -> None:
        """Let the ordered faults strike a stream that has this many tokens."""
        if is_poison and position >= self._settings.poison_after_tokens:
            self._die(f"scripted poison after {position} tokens")
        if position == self._settings.die_after_tokens:
            self._die(f"scripted death after {position} tokens")
        if position == self._settings.hang_after_tokens and self._hung_since is None:
            self._hung_since = asyncio.get_running_loop().time()
        self.raise_if_dead()
        if self._hung_since is not None:
            await self.sleep(None)

    def blocks_of(self, request: GenerationRequest) -> SequenceBlocks:
        """The request's KV blocks, those pinned that are cached."""
        return SequenceBlocks(self._cache, self._settings.block_size, request, self._tell_kv)

    def forget_prefixes(self) -> bool:
        """Empty the KV cache, unless a request uses it; whether it did."""
        return self._cache.clear(self._tell_kv)

    def prefill_turn(self, tokens: int) -> Slot:
        """A place in the row of prompts that are prefilled one after another."""
        return self._prefills.request(1, tokens)

    def end_prefill(self, turn: Slot) -> None:
        """Let the next prompt be prefilled. Safe to call twice."""
        self._prefills.release(turn)

    def finish(self, slot: Slot) -> None:
        """The stream is complete or left: its slot is free. Safe to call twice."""
        self._slots.release(slot)

    def raise_if_dead(self) -> None:
        """Raise why the engine died, if it did."""
        failure = self._loaded()
        if failure.done():
            raise EngineFailed(failure.result().text)

    def _loaded(self) -> asyncio.Future[EngineFailed]:
        if self._failure is None:
            raise EngineFailed("the engine was not loaded")
        return self._failure

    def _die(self, reason: str) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(EngineFailed(reason))

    def _check(self, request: GenerationRequest) -> None:
        self.raise_if_dead()
        adapters = self._settings.adapters
        if request.adapter and request.adapter not in adapters:
            raise NotFound(
                f"adapter {request.adapter!r} is not known; "
                f"this worker has {', '.join(adapters) or 'none'}",
                kind="adapter",
                name=request.adapter,
            )
        if request.guided is not None:
            raise InvalidRequest("the scripted engine cannot follow a grammar", field="guided")


def _revision(settings: ScriptedSettings) -> str:
    kind = "" if settings.vocabulary == "words" else f" {settings.vocabulary}"
    return _sha256(f"{MODEL_NAME} {SCRIPT_VERSION}{kind}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
