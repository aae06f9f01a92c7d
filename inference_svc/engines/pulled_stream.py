"""One request whose engine merges what nobody has taken: read when a message is due.

:mod:`inference_svc.engines.sequence_stream` reads each token as it comes. With hundreds of
streams that costs more than everything else a worker does: a token wakes two tasks, becomes
text and two objects, and then waits for the message that is due. Here a token wakes nobody;
docs/decisions/0025-pulled-streams.md has the figures.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace

from inference_svc.choice import Choice
from inference_svc.engine import GenerationRequest, TokenDelta
from inference_svc.engines.pulled_sequence import MergingBatch, PulledSequence
from inference_svc.slots import Slot, Slots
from sidecache.errors import SidecacheError

# Whoever reads token by token waits in turns of so long.
_TURN_S = 3600.0


class PulledStream:
    """The deltas of one request; see :class:`inference_svc.engine.MergingStream`.

    Each choice is a sequence of its own; those that have something are taken in turns.

    Args:
        choices: fresh ones, one for each of ``request.n``.
        end_token_ids: the model's ends of sequence.

    Raises:
        Overloaded: no slot, and no room in the queue for one.
        InvalidRequest: the continuation contradicts itself.
    """

    def __init__(
        self,
        request: GenerationRequest,
        choices: list[Choice],
        end_token_ids: frozenset[int],
        batch: MergingBatch,
        slots: Slots,
    ) -> None:
        self.over = False
        self._request = request
        self._batch = batch
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._error: SidecacheError | None = None
        self._last: TokenDelta | None = None
        self._cached_told = False
        self._wants_any = False
        self._wake = asyncio.Event()
        if request.continuation is not None:
            self._last = choices[0].take_over(
                request.continuation, request.max_tokens, end_token_ids
            )
        if self._last is not None:
            choices = []
        self._sequences = [PulledSequence(request, each, batch, self) for each in choices]
        self._untaken = deque(self._sequences)
        self._in_batch = len(choices)
        self._slot: Slot = slots.request(request.n, len(request.prompt_token_ids), request.priority)
        if not choices:
            slots.release(self._slot)
        elif self._slot.granted.done():
            self._join(self._slot.granted)
        else:
            self._slot.granted.add_done_callback(self._join)

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        while (delta := await self.take(self._request.max_tokens, _TURN_S)) is None:
            if self.over:
                raise StopAsyncIteration
        return delta

    async def take(self, max_tokens: int, timeout_s: float) -> TokenDelta | None:
        """What there is of one choice; None if there is nothing in time, or no more at all."""
        if self.over:
            return None
        if self._last is not None:
            self.over = True
            return self._last
        sequence = self._next()
        if sequence is None and self._error is None:
            self._wants_any = True
            try:
                await self._woken(self._loop.time() + timeout_s)
            finally:
                self._wants_any = False
            sequence = self._next()
        if sequence is not None:
            return self._cut(sequence, max_tokens)
        if self._error is not None:
            raise self._error
        return None

    async def rest(self, until: float) -> None:
        """Return at this time of the loop's clock, or once nothing more will come."""
        if until > self._loop.time() and not self._is_settled():
            await self._woken(until)

    def end(self, error: SidecacheError) -> None:
        """End the stream after what is ready, and give everything back."""
        if not self._is_settled():
            for sequence in self._sequences:
                sequence.has_some()
            self._error = self._error or error
        self._wake.set()
        for sequence in self._sequences:
            sequence.leave()

    async def aclose(self) -> None:
        """Nobody reads any more: leave the batch. Returns once the engine was told."""
        for sequence in self._sequences:
            sequence.leave()
        for sequence in self._sequences:
            await sequence.aclose()

    def heard(self, *, ended: bool) -> None:
        """A sequence has something, or has ended: whoever waits for that is woken."""
        if self._wants_any or (ended and self._is_settled()):
            self._wake.set()

    def failed(self, error: Exception) -> None:
        """A sequence's engine raised this: it is the end of the whole stream."""
        self.end(self._batch.failed(error))

    def left(self) -> None:
        """A sequence is out of the batch; with the last one the slot is free."""
        self._in_batch -= 1
        if not self._in_batch:
            self._slots.release(self._slot)

    def _is_settled(self) -> bool:
        """Whether nothing more will come."""
        return self._error is not None or all(each.ended for each in self._sequences)

    async def _woken(self, until: float) -> None:
        """Wait to be woken. A timer that wakes is far cheaper than a timeout that raises."""
        self._wake.clear()
        timer = self._loop.call_at(until, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _next(self) -> PulledSequence | None:
        """The next one in turn that has something."""
        for _ in range(len(self._untaken)):
            sequence = self._untaken[0]
            self._untaken.rotate(-1)
            if sequence.has_some():
                return sequence
        return None

    def _cut(self, sequence: PulledSequence, max_tokens: int) -> TokenDelta:
        delta = sequence.cut(max_tokens)
        if not self._cached_told and sequence.cached_tokens is not None:
            self._cached_told = True
            cached = min(sequence.cached_tokens, len(self._request.prompt_token_ids))
            delta = replace(delta, cached_prompt_tokens=cached)
        if delta.finish_reason is not None:
            self._untaken.remove(sequence)
            self.over = not self._untaken
        return delta

    def _join(self, granted: asyncio.Future[None]) -> None:
        """The slot is ours: every choice joins the batch."""
        if granted.cancelled():
            return
        prompt = [*self._request.prompt_token_ids]
        if self._request.continuation is not None:
            prompt += self._request.continuation.token_ids
        seed = self._request.sampling.seed
        seed = secrets.randbits(32) if seed is None else seed
        for number, sequence in enumerate(self._sequences):
            sequence.join([*prompt], seed + number)
