"""One request inside the OpenVINO engine: its sequences, from slot to last token."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from inference_svc.choice import Choice, TextDecoder
from inference_svc.engine import FinishReason, GenerationRequest, TokenDelta, TokenLogprob
from inference_svc.prefix_gate import Prefill, PrefixGate
from inference_svc.slots import Slot, Slots
from sidecache.errors import SidecacheError

_REASONS = {"NONE": None, "STOP": FinishReason.STOP, "LENGTH": FinishReason.LENGTH}


class Batch(Protocol):
    """What a stream needs of its engine."""

    def join(self, stream: "OpenVinoStream", prompt: list[int], config: dict[str, Any]) -> int:
        """Put a sequence into the batch; its key."""

    def leave(self, key: int) -> None:
        """Take a sequence out of the batch at the next step."""


class OpenVinoStream:
    """The deltas of one request, in the order its engine makes them.

    Args:
        decoder: makes a fresh one for each choice.
        end_token_ids: the model's ends of sequence.

    Raises:
        Overloaded: no slot, and no room in the queue for one.
        InvalidRequest: the continuation contradicts itself.
    """

    def __init__(
        self,
        request: GenerationRequest,
        decoder: Callable[[], TextDecoder],
        end_token_ids: frozenset[int],
        batch: Batch,
        slots: Slots,
        gate: PrefixGate,
    ) -> None:
        self._request = request
        self._batch = batch
        self._slots = slots
        self._gate = gate
        self._ready: deque[TokenDelta] = deque()
        self._news = asyncio.Event()
        self._error: SidecacheError | None = None
        # Told once, with the first delta.
        self._cached_tokens: int | None = None
        self._told_cached = False
        choices = [Choice(index, decoder(), request.stop) for index in range(request.n)]
        self._to_join = deque(choices)
        self._in_batch: dict[int, Choice] = {}
        self._unfinished = request.n
        seed = request.sampling.seed
        # The engine's own default is one fixed seed for everybody.
        self._seed = secrets.randbits(32) if seed is None else seed
        if request.continuation is not None:
            self._resume(choices[0], request.continuation.token_ids, end_token_ids)
        self._prefill: Prefill | None = None
        self._slot: Slot = slots.request(request.n, len(request.prompt_token_ids))

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._prefill is None and self._unfinished:
            await self._begin()
        while not self._ready:
            self._raise_if_failed()
            if not self._unfinished:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._ready.popleft()

    def prompt_cached(self, tokens: int) -> None:
        """Learn how much of a choice's prompt needed no prefill; the first choice's counts."""
        if self._cached_tokens is None:
            self._cached_tokens = min(tokens, len(self._request.prompt_token_ids))

    def received(self, key: int, ids: list[int], logprobs: list[float], reason: str) -> None:
        """Take the tokens of one step."""
        choice = self._in_batch[key]
        if choice.finished is not None:
            return  # it met a stop string, and this step was already under way
        wanted = self._request.logprobs is not None
        delta = choice.push(
            ids, [TokenLogprob(each) for each in logprobs] if wanted else (), _REASONS[reason]
        )
        self._put(delta)
        if delta.finish_reason is not None and reason == "NONE":
            self._batch.leave(key)
        if self._prefill is not None:
            self._prefill.done()
        self._join_rest()

    def gone(self, key: int) -> None:
        """A sequence is out of the batch; with the last one the slot is free."""
        del self._in_batch[key]
        if not self._in_batch and not self._to_join:
            self._slots.release(self._slot)

    def refused(self, key: int, error: SidecacheError) -> None:
        """The engine will not run this sequence: end the whole request."""
        del self._in_batch[key]
        self._end(error)

    def engine_died(self, error: SidecacheError) -> None:
        """End the request; the batch is no more."""
        self._in_batch.clear()
        self._end(error)

    def abandon(self) -> None:
        """Nobody reads any more: leave the batch. Safe to call twice."""
        self._to_join.clear()
        if self._prefill is not None:
            self._prefill.abandoned()
        for key in self._in_batch:
            self._batch.leave(key)
        if not self._in_batch:
            self._slots.release(self._slot)

    def _resume(self, choice: Choice, delivered: Sequence[int], ends: frozenset[int]) -> None:
        """Take the choice over; it may have been complete already."""
        if self._request.continuation is not None:
            choice.resume(self._request.continuation)
        ended = None
        if delivered and delivered[-1] in ends:
            ended = FinishReason.STOP
        elif len(delivered) >= self._request.max_tokens:
            ended = FinishReason.LENGTH
        if ended is not None or choice.finished is not None:
            self._put(choice.push((), ended=ended))
            self._to_join.clear()

    async def _begin(self) -> None:
        """Wait for a slot, then for a prefill that is worth waiting for, then join."""
        while not self._slot.granted.done():
            self._news.clear()
            self._slot.granted.add_done_callback(self._wake)
            await self._news.wait()
            self._raise_if_failed()
        prefill = await self._gate.enter(self._request.prompt_token_ids)
        self._prefill = prefill
        if self._error is not None:
            prefill.abandoned()
        self._raise_if_failed()
        self._join(self._to_join.popleft())

    def _end(self, error: SidecacheError) -> None:
        """End the stream after what is ready, and give everything back."""
        if self._unfinished and self._error is None:
            self._error = error
        self._news.set()
        self.abandon()

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    def _wake(self, _granted: asyncio.Future[None]) -> None:
        self._news.set()

    def _join_rest(self) -> None:
        """The other choices of the prompt, now that its prefill is done."""
        while self._to_join:
            self._join(self._to_join.popleft())

    def _join(self, choice: Choice) -> None:
        request = self._request
        prompt = [*request.prompt_token_ids]
        if request.continuation is not None:
            prompt += request.continuation.token_ids
        config = _generation_config(request, choice.num_tokens, self._seed + choice.index)
        self._in_batch[self._batch.join(self, prompt, config)] = choice

    def _put(self, delta: TokenDelta) -> None:
        if self._cached_tokens is not None and not self._told_cached:
            self._told_cached = True
            delta = replace(delta, cached_prompt_tokens=self._cached_tokens)
        self._ready.append(delta)
        if delta.finish_reason is not None:
            self._unfinished -= 1
        self._news.set()


def _generation_config(request: GenerationRequest, done: int, seed: int) -> dict[str, Any]:
    """The request in the engine's words; stop strings are ours to find."""
    sampling = request.sampling
    config: dict[str, Any] = {
        "max_new_tokens": request.max_tokens - done,
        "do_sample": sampling.temperature > 0,
        "logprobs": 0 if request.logprobs is None else 1,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
    }
    if sampling.temperature > 0:
        config |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        config["rng_seed"] = seed % 2**64
        if sampling.top_k:
            config["top_k"] = sampling.top_k
    if request.guided is not None:
        config["structured_output_config"] = {request.guided.kind: request.guided.grammar}
    return config
