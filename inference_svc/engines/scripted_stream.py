"""One request inside the scripted engine, from its slot to its last token."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Protocol

from inference_svc.choice import Choice
from inference_svc.engine import FinishReason, GenerationRequest, TokenDelta, TokenLogprob
from inference_svc.engines.script import Script, prompt_seed
from inference_svc.engines.scripted_blocks import SequenceBlocks
from inference_svc.settings import ScriptedSettings
from inference_svc.slots import Slot

# At full speed a stream must still let others run.
_YIELD_EVERY = 64


class ScriptedHost(Protocol):
    """What a stream needs of its engine."""

    async def granted(self, slot: Slot) -> None:
        """Return when the slot is granted; raise EngineFailed when the engine dies first."""

    async def sleep(self, seconds: float | None) -> None:
        """Sleep (None: for ever); raise EngineFailed when the engine dies meanwhile."""

    async def live_through(self, position: int, *, is_poison: bool) -> None:
        """Let the ordered faults strike a stream that has this many tokens."""

    def blocks_of(self, request: GenerationRequest) -> SequenceBlocks:
        """The request's KV blocks, those pinned that are cached."""

    def prefill_turn(self, tokens: int) -> Slot:
        """A place in the row of prompts that are prefilled one after another."""

    def end_prefill(self, turn: Slot) -> None:
        """Let the next prompt be prefilled. Safe to call twice."""

    def finish(self, slot: Slot) -> None:
        """The stream is complete or left: its slot is free. Safe to call twice."""

    def raise_if_dead(self) -> None:
        """Raise why the engine died, if it did."""


class ScriptedStream:
    """One request's deltas, made when they are asked for; so a cancelled read loses none."""

    def __init__(
        self,
        engine: ScriptedHost,
        settings: ScriptedSettings,
        request: GenerationRequest,
        slot: Slot,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._request = request
        self._slot = slot
        self._paced = bool(
            settings.ttft_s or settings.tokens_per_s or settings.prefill_tokens_per_s
        )
        self._is_poison = _holds(request.prompt_token_ids, settings.poison)
        self._with_logprobs = request.logprobs is not None
        # As for any engine: greedy decoding has nothing to seed.
        seed = request.sampling.seed if request.sampling.temperature > 0 else None
        ids = request.prompt_token_ids
        self._seed = prompt_seed(ids, request.adapter) if seed is None else seed
        self._script = script = Script(in_bytes=settings.vocabulary == "bytes")
        self._choices = deque(
            Choice(index, script.decoder(), request.stop) for index in range(request.n)
        )
        if request.continuation is not None:
            self._choices[0].resume(request.continuation)
        self._length, self._reason = request.max_tokens, FinishReason.LENGTH
        if settings.answer_tokens is not None and settings.answer_tokens < request.max_tokens:
            self._length, self._reason = settings.answer_tokens, FinishReason.STOP
        self._answers: list[list[int]] = [[] for _ in range(request.n)]
        self._blocks: SequenceBlocks | None = None
        # To be told with the first delta.
        self._cached_tokens: int | None = None
        self._turn: Slot | None = None
        self._prefill: asyncio.TimerHandle | None = None
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
            await self._begin()
        await self._engine.live_through(first, is_poison=self._is_poison)
        await self._keep_pace(first + count)
        # No await from here on, so a cancelled read cannot fall between.
        delta = self._next(choice, first, count)
        self._choices.popleft()
        if choice.finished is None:
            self._choices.append(choice)
        if not self._choices:
            self.leave()
        if self._cached_tokens is not None:
            delta = replace(delta, cached_prompt_tokens=self._cached_tokens)
            self._cached_tokens = None
        return delta

    def leave(self) -> None:
        """Complete, or nobody reads any more: give everything back. Safe to call twice."""
        if self._prefill is not None:
            self._prefill.cancel()
        if self._turn is not None:
            self._engine.end_prefill(self._turn)
        if self._blocks is not None:
            self._blocks.ended(self._answers)
        self._engine.finish(self._slot)

    async def _begin(self) -> None:
        """Wait for a slot, and for the prompts before; then begin the prefill."""
        await self._engine.granted(self._slot)
        pace = self._settings.prefill_tokens_per_s
        if pace:
            if self._turn is None:
                self._turn = self._engine.prefill_turn(len(self._request.prompt_token_ids))
            await self._engine.granted(self._turn)
        # No await from here on: a cancelled read begins again above.
        loop = asyncio.get_running_loop()
        blocks = self._blocks = self._engine.blocks_of(self._request)
        self._cached_tokens = min(blocks.cached_tokens, len(self._request.prompt_token_ids))
        prefill_s = blocks.uncached_tokens / pace if pace else 0.0
        self._first_due = loop.time() + self._settings.ttft_s + prefill_s
        if prefill_s:
            # Not left to the reader: those who wait for their turn do not depend on it.
            self._prefill = loop.call_later(prefill_s, self._prefilled)
        else:
            self._prefilled()

    def _prefilled(self) -> None:
        if self._blocks is not None:
            self._blocks.prefilled()
        if self._turn is not None:
            self._engine.end_prefill(self._turn)

    def _next(self, choice: Choice, first: int, count: int) -> TokenDelta:
        seed = self._seed + choice.index
        ids = [self._script.token(seed, position) for position in range(first, first + count)]
        ended = self._reason if first + count >= self._length else None
        # The script leaves no doubt: each token has probability 1.
        logprobs = [TokenLogprob(0.0)] * count if self._with_logprobs else ()
        delta = choice.push(ids, logprobs, ended)
        self._answers[choice.index] += delta.token_ids
        return delta

    async def _keep_pace(self, position: int) -> None:
        """Return when tokens up to ``position`` of a choice are due."""
        wait_s = 0.0
        if self._paced:
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


def _holds(prompt: Sequence[int], text: str) -> bool:
    """Whether a prompt of one token for each byte holds this text."""
    return bool(text) and text.encode() in bytes(token & 0xFF for token in prompt)
