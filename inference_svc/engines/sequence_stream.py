"""One request whose engine streams each sequence by itself: from slot to last token."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from inference_svc.choice import Choice
from inference_svc.engine import FinishReason, GenerationRequest, TokenDelta, TokenLogprob
from inference_svc.slots import Slot, Slots
from sidecache.errors import SidecacheError


@dataclass(frozen=True, slots=True)
class Step:
    """What became known of one sequence.

    Attributes:
        cached_tokens: how much of the prompt was in the KV cache; None: not known.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob]
    ended: FinishReason | None
    cached_tokens: int | None


class Batch(Protocol):
    """What a stream needs of its engine."""

    def generate(
        self, request: GenerationRequest, prompt: list[int], done: int, seed: int
    ) -> AsyncGenerator[Any, None]:
        """Outputs of one sequence; closing the generator aborts it."""

    def read(self, output: Any, wanted: int | None) -> Step:
        """What an output says.

        Raises:
            EngineFailed: the engine gave the sequence up.
        """

    def failed(self, error: Exception) -> SidecacheError:
        """What the engine raised, as one of our errors."""


class SequenceStream:
    """The deltas of one request, in the order its engine makes them.

    Each choice is a sequence of its own, read by a task of its own: so a cancelled read
    loses nothing, and a choice that met a stop string leaves the batch alone.

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
        batch: Batch,
        slots: Slots,
    ) -> None:
        self._request = request
        self._batch = batch
        self._slots = slots
        self._ready: deque[TokenDelta] = deque()
        self._news = asyncio.Event()
        self._error: SidecacheError | None = None
        self._to_join = choices
        self._unfinished = request.n
        self._readers: set[asyncio.Task[None]] = set()
        self._cached_tokens: int | None = None
        seed = request.sampling.seed
        self._seed = secrets.randbits(32) if seed is None else seed
        if request.continuation is not None:
            last = choices[0].take_over(request.continuation, request.max_tokens, end_token_ids)
            if last is not None:
                self._put(last)
                self._to_join = []
        self._slot: Slot = slots.request(request.n, len(request.prompt_token_ids), request.priority)
        if self._to_join:
            self._slot.granted.add_done_callback(self._join)
        else:
            self._slots.release(self._slot)

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        while not self._ready:
            if self._error is not None:
                raise self._error
            if not self._unfinished:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._ready.popleft()

    def end(self, error: SidecacheError) -> None:
        """End the stream after what is ready, and give everything back."""
        if self._unfinished and self._error is None:
            self._error = error
        self._news.set()
        self._leave()

    async def aclose(self) -> None:
        """Nobody reads any more: leave the batch. Returns once the engine was told."""
        self._leave()
        if self._readers:
            await asyncio.wait(self._readers)

    def _leave(self) -> None:
        self._to_join = []
        for reader in self._readers:
            reader.cancel()
        if not self._readers:
            self._slots.release(self._slot)

    def _join(self, granted: asyncio.Future[None]) -> None:
        """The slot is ours: every choice joins the batch."""
        if granted.cancelled():
            return
        for choice in self._to_join:
            reader = asyncio.create_task(self._read(choice))
            self._readers.add(reader)
            reader.add_done_callback(self._read_out)
        self._to_join = []

    def _read_out(self, reader: asyncio.Task[None]) -> None:
        """A sequence is out of the batch; with the last one the slot is free."""
        self._readers.discard(reader)
        if not self._readers:
            self._slots.release(self._slot)

    async def _read(self, choice: Choice) -> None:
        """Everything the engine makes of one choice."""
        prompt = [*self._request.prompt_token_ids]
        if self._request.continuation is not None:
            prompt += self._request.continuation.token_ids
        seed = self._seed + choice.index
        try:
            outputs = self._batch.generate(self._request, prompt, choice.num_tokens, seed)
            async with aclosing(outputs):
                async for output in outputs:
                    step = self._batch.read(output, self._request.logprobs)
                    self._note_cached(step.cached_tokens)
                    self._put(choice.push(step.token_ids, step.logprobs, step.ended))
                    if choice.finished is not None:
                        return
        except Exception as error:  # noqa: BLE001 - raised again where the stream is read
            self.end(self._batch.failed(error))

    def _note_cached(self, cached_tokens: int | None) -> None:
        if self._cached_tokens is None and cached_tokens is not None:
            self._cached_tokens = min(cached_tokens, len(self._request.prompt_token_ids))

    def _put(self, delta: TokenDelta) -> None:
        if self._cached_tokens is not None and self._cached_tokens >= 0:
            delta = replace(delta, cached_prompt_tokens=self._cached_tokens)
            self._cached_tokens = -1  # said once, with the first tokens
        self._ready.append(delta)
        if delta.finish_reason is not None:
            self._unfinished -= 1
        self._news.set()
