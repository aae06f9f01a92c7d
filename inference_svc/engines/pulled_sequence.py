"""One request of one choice whose engine merges what nobody has taken: read when wanted.

:mod:`inference_svc.engines.sequence_stream` reads each token as it comes. With hundreds of
streams that costs more than everything else a worker does: a token wakes two tasks, becomes
text and two objects, and then waits for the message that is due. Here a token wakes nobody;
docs/decisions/0025-pulled-streams.md has the figures.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from inference_svc.choice import Choice
from inference_svc.engine import GenerationRequest, TokenDelta
from inference_svc.engines.sequence_stream import Step
from inference_svc.slots import Slot, Slots
from sidecache.errors import SidecacheError

# Whoever reads token by token waits in turns of so long.
_TURN_S = 3600.0


class Outputs(Protocol):
    """What one sequence has given and nobody has taken yet."""

    def take(self) -> Any | None:
        """All of it as one output; None if there is nothing. Raises what ended the sequence."""

    async def abort(self) -> None:
        """Leave the batch, unless the engine has ended the sequence."""


class MergingBatch(Protocol):
    """What a stream needs of its engine."""

    async def add(
        self,
        request: GenerationRequest,
        prompt: list[int],
        done: int,
        seed: int,
        tell: Callable[[bool], None],
    ) -> Outputs:
        """One sequence joins; ``tell`` is called for each output, with True for the last."""

    def read(self, output: Any, wanted: int | None) -> Step:
        """What an output says.

        Raises:
            EngineFailed: the engine gave the sequence up.
        """

    def failed(self, error: Exception) -> SidecacheError:
        """What the engine raised, as one of our errors."""


class PulledSequence:
    """The deltas of one request; see :class:`inference_svc.engine.MergingStream`.

    Args:
        choice: a fresh one, without stop strings.
        end_token_ids: the model's ends of sequence.

    Raises:
        Overloaded: no slot, and no room in the queue for one.
        InvalidRequest: the continuation contradicts itself.
    """

    def __init__(
        self,
        request: GenerationRequest,
        choice: Choice,
        end_token_ids: frozenset[int],
        batch: MergingBatch,
        slots: Slots,
    ) -> None:
        self._request = request
        self._choice = choice
        self._batch = batch
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._outputs: Outputs | None = None
        self._steps: deque[Step] = deque()
        self._last: TokenDelta | None = None
        self._error: SidecacheError | None = None
        self._settled = False  # nothing more will come
        self._cached_told = False
        self._wants_any = False
        self._wake = asyncio.Event()
        self._joining: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self.over = False
        if request.continuation is not None:
            self._last = choice.take_over(request.continuation, request.max_tokens, end_token_ids)
        self._slot: Slot = slots.request(1, len(request.prompt_token_ids), request.priority)
        if self._last is not None:
            self._settled = True
            self._slots.release(self._slot)
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
        """What there is; None if there is nothing in time, or no more at all."""
        if self.over:
            return None
        if self._last is not None:
            self.over = True
            return self._last
        if not self._has_some() and self._error is None:
            self._wants_any = True
            try:
                await self._woken(self._loop.time() + timeout_s)
            finally:
                self._wants_any = False
        if self._has_some():
            return self._cut(max_tokens)
        if self._error is not None:
            raise self._error
        return None

    async def rest(self, until: float) -> None:
        """Return at this time of the loop's clock, or once nothing more will come."""
        if not self._settled and until > self._loop.time():
            await self._woken(until)

    def end(self, error: SidecacheError) -> None:
        """End the stream after what is ready, and give everything back."""
        if not self._settled:
            self._has_some()
            self._error = self._error or error
            self._settled = True
        self._wake.set()
        self._leave()

    async def aclose(self) -> None:
        """Nobody reads any more: leave the batch. Returns once the engine was told."""
        self._leave()
        if self._leaving is not None:
            await asyncio.wait((self._leaving,))

    async def _woken(self, until: float) -> None:
        """Wait to be woken. A timer that wakes is far cheaper than a timeout that raises."""
        self._wake.clear()
        timer = self._loop.call_at(until, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _has_some(self) -> bool:
        """Whether there is a step to cut from, fetched now if need be."""
        if not self._steps and self._error is None and self._outputs is not None:
            try:
                output = self._outputs.take()
                if output is not None:
                    self._steps.append(self._batch.read(output, self._request.logprobs))
            except Exception as error:  # noqa: BLE001 - raised again where the stream is read
                self._error = self._batch.failed(error)
                self._settled = True
                self._leave()
        return bool(self._steps)

    def _cut(self, max_tokens: int) -> TokenDelta:
        """The first tokens of what is ready."""
        step = self._steps.popleft()
        if len(step.token_ids) > max_tokens:
            ids, logprobs = step.token_ids, step.logprobs
            rest = replace(step, token_ids=ids[max_tokens:], logprobs=logprobs[max_tokens:])
            self._steps.appendleft(rest)
            step = replace(
                step, token_ids=ids[:max_tokens], logprobs=logprobs[:max_tokens], ended=None
            )
        delta = self._choice.push(step.token_ids, step.logprobs, step.ended)
        if not self._cached_told and step.cached_tokens is not None:
            self._cached_told = True
            cached = min(step.cached_tokens, len(self._request.prompt_token_ids))
            delta = replace(delta, cached_prompt_tokens=cached)
        self.over = delta.finish_reason is not None
        return delta

    def _join(self, granted: asyncio.Future[None]) -> None:
        """The slot is ours."""
        if not granted.cancelled():
            self._joining = asyncio.create_task(self._add())

    async def _add(self) -> None:
        prompt = [*self._request.prompt_token_ids]
        if self._request.continuation is not None:
            prompt += self._request.continuation.token_ids
        seed = self._request.sampling.seed
        seed = secrets.randbits(32) if seed is None else seed
        try:
            self._outputs = await self._batch.add(
                self._request, prompt, self._choice.num_tokens, seed, self._hear
            )
        except Exception as error:  # noqa: BLE001 - raised again where the stream is read
            self.end(self._batch.failed(error))

    def _hear(self, last: bool) -> None:
        """An output came."""
        if last:
            self._settled = True
            if self._leaving is None:
                self._slots.release(self._slot)
        if last or self._wants_any:
            self._wake.set()

    def _leave(self) -> None:
        if self._joining is None:
            self._slots.release(self._slot)
        elif self._leaving is None:
            self._leaving = asyncio.create_task(self._abort(self._joining))

    async def _abort(self, joining: asyncio.Task[None]) -> None:
        """A sequence that is being added can only be aborted once it was."""
        await asyncio.wait((joining,))
        if self._outputs is not None:
            with suppress(Exception):  # a dead engine is told of elsewhere
                await self._outputs.abort()
        self._slots.release(self._slot)
