"""A deterministic engine: token = f(seed, position), at any pace, with faults on order.

It serves tests, benchmarks and chaos: from a client's log alone it can be
proved that a stream is whole, since every token is known beforehand. It keeps
the contract of a real engine: slots, a waiting queue, cancel, continuation.

A prompt is one token per UTF-8 byte. A generated token is a word; ids of
prompts and of words share the range, not the meaning.
"""

import asyncio
import hashlib
import struct
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from inference_svc.choice import Choice
from inference_svc.engine import (
    Chat,
    EngineCapabilities,
    EngineLoad,
    FinishReason,
    GenerationRequest,
    ModelFacts,
    TokenDelta,
    TokenLogprob,
)
from inference_svc.kv_events import KvListener, ignore
from inference_svc.settings import ScriptedSettings
from inference_svc.slots import Slot, Slots
from sidecache.errors import EngineFailed, InvalidRequest, NotFound

SCRIPTED_VOCABULARY = 4096
MAX_CHOICES = 8
MODEL_NAME = "scripted"
# Raise it when scripted_token or scripted_text changes: it is the revision.
_SCRIPT_VERSION = 1
_MASK = 2**64 - 1
# At full speed a stream must still let others run.
_YIELD_EVERY = 64

_CONSONANTS = "bdfghjklmnprstvz"
_VOWELS = "aeiu"
_SYLLABLES = tuple(consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS)
_WORDS = tuple(f" {first}{second}" for first in _SYLLABLES for second in _SYLLABLES)


def scripted_token(seed: int, position: int) -> int:
    """The token at ``position``, counted from 0, in [0, SCRIPTED_VOCABULARY).

    SplitMix64 (Steele, Lea and Flood, 2014) of both numbers: any two seeds give
    unrelated streams, and a token says nothing about the next.
    """
    mixed = (seed * 0xD1342543DE82EF95 + position * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) % SCRIPTED_VOCABULARY


def scripted_text(token: int) -> str:
    """The token's text: a space and two syllables, another for each token."""
    return _WORDS[token]


def prompt_seed(prompt_token_ids: Sequence[int]) -> int:
    """The seed of a request that brings none.

    The first 8 bytes, big endian, of the BLAKE2b of the ids as little-endian uint32.
    """
    packed = struct.pack(f"<{len(prompt_token_ids)}I", *prompt_token_ids)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest())


class _Words:
    """Every scripted token is readable at once."""

    def push(self, token_ids: Sequence[int]) -> str:
        return "".join([_WORDS[token_id] for token_id in token_ids])

    def flush(self) -> str:
        return ""


class ScriptedEngine:
    """The engine; see :mod:`inference_svc.engine` for what each method promises."""

    def __init__(self, settings: ScriptedSettings, slots: Slots, model_name: str = "") -> None:
        self._settings = settings
        self._slots = slots
        self._model_name = model_name or MODEL_NAME
        self._tell_kv: KvListener = ignore
        self._failure: asyncio.Future[EngineFailed] | None = None
        self._hung_since: float | None = None

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(
            name=self._model_name,
            revision=_sha256(f"{MODEL_NAME} {_SCRIPT_VERSION}"),
            engine="scripted",
            build=str(_SCRIPT_VERSION),
            context_length=self._settings.context_length,
            vocabulary_size=SCRIPTED_VOCABULARY,
            block_size=0,
            tokenizer_fingerprint=_sha256("one token per UTF-8 byte"),
            chat_template_fingerprint=_sha256("role: content"),
            tokenizer_files={},
            capabilities=EngineCapabilities(
                guided_decoding=False,
                logprobs=True,
                seeded_sampling=True,
                priorities=False,
                tools=False,
                max_choices=min(MAX_CHOICES, self._slots.max_sequences),
                max_top_logprobs=0,
                exact_continuation=True,
            ),
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
            yield _ScriptedStream(self, self._settings, request, slot)
        finally:
            self._slots.release(slot)

    def load_figures(self) -> EngineLoad:
        return EngineLoad(
            running_sequences=self._slots.running,
            waiting_sequences=self._slots.waiting,
            max_sequences=self._slots.max_sequences,
            waiting_prompt_tokens=self._slots.waiting_prompt_tokens,
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

    async def live_through(self, position: int) -> None:
        """Let the ordered faults strike a stream that has this many tokens."""
        if position == self._settings.die_after_tokens:
            self._die(f"scripted death after {position} tokens")
        if position == self._settings.hang_after_tokens and self._hung_since is None:
            self._hung_since = asyncio.get_running_loop().time()
        self.raise_if_dead()
        if self._hung_since is not None:
            await self.sleep(None)

    def finish(self, slot: Slot) -> None:
        """The stream is complete: its slot is free, even before its reader has left."""
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
        if request.adapter:
            raise NotFound(
                f"adapter {request.adapter!r} is not known; this worker has none",
                kind="adapter",
                name=request.adapter,
            )
        if request.guided is not None:
            raise InvalidRequest("the scripted engine cannot follow a grammar", field="guided")


class _ScriptedStream:
    """One request's deltas, made when they are asked for; so a cancelled read loses none."""

    def __init__(
        self,
        engine: ScriptedEngine,
        settings: ScriptedSettings,
        request: GenerationRequest,
        slot: Slot,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._slot = slot
        self._with_logprobs = request.logprobs is not None
        # As for any engine: greedy decoding has nothing to seed.
        seed = request.sampling.seed if request.sampling.temperature > 0 else None
        self._seed = prompt_seed(request.prompt_token_ids) if seed is None else seed
        self._choices = deque(Choice(index, _Words(), request.stop) for index in range(request.n))
        if request.continuation is not None:
            self._choices[0].resume(request.continuation)
        self._length, self._reason = request.max_tokens, FinishReason.LENGTH
        if settings.answer_tokens is not None and settings.answer_tokens < request.max_tokens:
            self._length, self._reason = settings.answer_tokens, FinishReason.STOP
        # When the first token of all is due, and which one that is.
        self._first_due: float | None = None
        self._first = self._choices[0].num_tokens
        self._in_a_row = 0

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        if not self._choices:
            raise StopAsyncIteration
        choice = self._choices[0]
        first = choice.num_tokens
        count = max(0, min(self._settings.burst, self._length - first))
        if self._first_due is None:
            await self._engine.granted(self._slot)
            self._first_due = asyncio.get_running_loop().time() + self._settings.ttft_s
        await self._engine.live_through(first)
        await self._keep_pace(first + count)
        # No await from here on, so a cancelled read cannot fall between.
        delta = self._next(choice, first, count)
        self._choices.popleft()
        if choice.finished is None:
            self._choices.append(choice)
        if not self._choices:
            self._engine.finish(self._slot)
        return delta

    def _next(self, choice: Choice, first: int, count: int) -> TokenDelta:
        seed = self._seed + choice.index
        ids = [scripted_token(seed, position) for position in range(first, first + count)]
        ended = self._reason if first + count >= self._length else None
        # The script leaves no doubt: each token has probability 1.
        logprobs = [TokenLogprob(0.0)] * count if self._with_logprobs else ()
        return choice.push(ids, logprobs, ended)

    async def _keep_pace(self, position: int) -> None:
        """Return when tokens up to ``position`` of a choice are due."""
        wait_s = 0.0
        if self._settings.ttft_s or self._settings.tokens_per_s:
            pace = self._settings.tokens_per_s
            later_s = max(0, position - self._first - 1) / pace if pace else 0.0
            wait_s = (self._first_due or 0.0) + later_s - asyncio.get_running_loop().time()
        if wait_s > 0:
            await self._engine.sleep(wait_s)
            return
        self._engine.raise_if_dead()
        self._in_a_row += 1
        if self._in_a_row % _YIELD_EVERY == 0:
            await asyncio.sleep(0)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
