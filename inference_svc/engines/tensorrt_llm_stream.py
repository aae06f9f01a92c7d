"""One request inside the TensorRT-LLM engine: its choices, from slot to last token.

Each choice is a request of its own to the engine. TensorRT-LLM's own ``n`` refuses
greedy decoding, gives one seed to all and shows the newest tokens of a choice again
whenever another one moves on; the prompt's KV blocks are shared either way.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Protocol

from inference_svc.choice import Choice, TextDecoder
from inference_svc.engine import FinishReason, GenerationRequest, TokenDelta, TokenLogprob
from inference_svc.engines.tensorrt_llm_sampling import token_logprobs
from inference_svc.slots import Slot, Slots
from sidecache.errors import EngineFailed, InvalidRequest, SidecacheError

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class Batch(Protocol):
    """What a stream needs of its engine."""

    request_error: type[Exception]
    """What the engine raises when it refuses one request and lives on."""

    def generate(self, request: GenerationRequest, done: int, seed: int) -> Any:
        """Begin one choice; TensorRT-LLM's RequestOutput."""

    def filled(self, request: GenerationRequest, cached_tokens: int) -> None:
        """The prompt's KV blocks are there."""

    def alive(self) -> None:
        """The engine has said something."""

    def die(self, failure: EngineFailed) -> None:
        """The engine is dead."""


class TensorRtLlmStream:
    """The deltas of one request, in the order its engine makes them.

    Args:
        decoder: makes a text decoder for a choice.
        end_token_ids: any of them ends a choice.
        abort_timeout_s: an abort that takes longer is a hang.
        may_abort: false: a request that nobody reads any more runs to its end.

    Raises:
        Overloaded: no slot, and no room in the queue for one.
        InvalidRequest: the continuation contradicts itself.
    """

    def __init__(
        self,
        request: GenerationRequest,
        decoder: Callable[[], TextDecoder],
        end_token_ids: tuple[int, ...],
        batch: Batch,
        slots: Slots,
        *,
        abort_timeout_s: float,
        may_abort: bool,
    ) -> None:
        self._request = request
        self._batch = batch
        self._slots = slots
        self._abort_timeout_s = abort_timeout_s
        self._may_abort = may_abort
        self._ready: deque[TokenDelta] = deque()
        self._news = asyncio.Event()
        self._error: SidecacheError | None = None
        choices = [Choice(index, decoder(), request.stop) for index in range(request.n)]
        self._to_begin = deque(choices)
        self._runs: dict[Choice, asyncio.Task[None]] = {}
        self._limits: dict[Choice, asyncio.Timeout] = {}
        self._results: dict[Choice, Any] = {}
        self._aborted: set[Choice] = set()
        self._begun = False
        self._cached_told = False
        self._filled = False
        self._unfinished = request.n
        seed = request.sampling.seed
        self._seed = secrets.randbits(32) if seed is None else seed
        if request.continuation is not None:
            self._resume(choices[0], end_token_ids)
        self._slot: Slot = slots.request(request.n, len(request.prompt_token_ids))

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        if not self._begun and self._unfinished:
            await self._begin()
        while not self._ready:
            self._raise_if_failed()
            if not self._unfinished:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._ready.popleft()

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What still runs for this stream, after its reader has left too."""
        return list(self._runs.values())

    def engine_died(self, error: SidecacheError) -> None:
        """End the request; the batch is no more."""
        self._may_abort = False
        for task in self._runs.values():
            task.cancel()
        self._end(error)

    def abandon(self) -> None:
        """Nobody reads any more: leave the batch. Safe to call twice."""
        self._to_begin.clear()
        for choice in list(self._runs):
            self._abort(choice)
        self._release_if_idle()

    def _resume(self, choice: Choice, end_token_ids: tuple[int, ...]) -> None:
        """Take the choice over; it may have been complete already."""
        continuation = self._request.continuation
        if continuation is None:
            return
        choice.resume(continuation)
        ended = None
        if continuation.token_ids and continuation.token_ids[-1] in end_token_ids:
            ended = FinishReason.STOP
        elif len(continuation.token_ids) >= self._request.max_tokens:
            ended = FinishReason.LENGTH
        if ended is not None or choice.finished is not None:
            self._put(choice.push((), ended=ended))
            self._to_begin.clear()

    async def _begin(self) -> None:
        """Wait for a slot, then begin the first choice."""
        while not self._slot.granted.done():
            self._news.clear()
            self._slot.granted.add_done_callback(self._wake)
            await self._news.wait()
            self._raise_if_failed()
        self._raise_if_failed()
        self._begun = True
        self._start_next()

    def _start_next(self) -> None:
        choice = self._to_begin.popleft()
        self._runs[choice] = asyncio.create_task(self._run(choice))

    async def _run(self, choice: Choice) -> None:
        """Everything that happens to one choice in the engine."""
        try:
            async with asyncio.timeout(None) as limit:
                self._limits[choice] = limit
                await self._follow(choice)
        except TimeoutError:
            self._batch.die(
                EngineFailed(f"an aborted request did not end within {self._abort_timeout_s:g} s")
            )
        except SidecacheError as error:
            self._end(error)
        except (self._batch.request_error, ValueError) as error:
            self._end(InvalidRequest(f"the engine refuses it: {error}"))
        except Exception as error:  # noqa: BLE001 - whatever else it raises, it is lost
            self._batch.die(EngineFailed(f"TensorRT-LLM failed: {error!r}"))
        finally:
            for table in (self._runs, self._limits, self._results):
                table.pop(choice, None)
            self._release_if_idle()

    async def _follow(self, choice: Choice) -> None:
        result = self._batch.generate(self._request, choice.num_tokens, self._seed + choice.index)
        self._results[choice] = result
        async for output in result:
            self._batch.alive()
            if choice not in self._aborted:
                self._received(choice, output)
            if not self._filled:
                self._filled = True
                self._batch.filled(self._request, output.cached_tokens)
            # The prompt's blocks are there now, so the other choices find them.
            while self._to_begin:
                self._start_next()

    def _received(self, choice: Choice, output: Any) -> None:
        """Take the tokens of one step."""
        if choice.finished is not None:
            return  # it met a stop string where requests are not aborted
        completion = output.outputs[0]
        ids = list(completion.token_ids_diff)
        ended = self._reason(completion.finish_reason) if output.finished else None
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._request.logprobs is not None:
            logprobs = token_logprobs(ids, completion.logprobs_diff, self._request.logprobs)
        delta = choice.push(ids, logprobs, ended)
        if not (delta.token_ids or delta.text or delta.finish_reason):
            return
        if not self._cached_told:
            self._cached_told = True
            cached = min(output.cached_tokens, len(self._request.prompt_token_ids))
            delta = replace(delta, cached_prompt_tokens=cached)
        self._put(delta)
        if delta.finish_reason is not None and not output.finished:
            self._abort(choice)

    def _reason(self, reason: str | None) -> FinishReason:
        if reason not in _REASONS:
            raise EngineFailed(f"the engine ended the request by itself: {reason}")
        return _REASONS[reason]

    def _abort(self, choice: Choice) -> None:
        """Ask the engine to drop a choice; it stays in its batch until the engine says so."""
        if choice in self._aborted:
            return
        self._aborted.add(choice)
        result = self._results.get(choice)
        if result is None:  # it has not taken its first step, and now never will
            self._runs.pop(choice).cancel()
        elif self._may_abort:
            result.abort()
            self._limits[choice].reschedule(
                asyncio.get_running_loop().time() + self._abort_timeout_s
            )

    def _end(self, error: SidecacheError) -> None:
        """End the stream after what is ready, and give everything back."""
        if self._unfinished and self._error is None:
            self._error = error
        self._news.set()
        self.abandon()

    def _release_if_idle(self) -> None:
        if not self._runs and not self._to_begin:
            self._slots.release(self._slot)

    def _raise_if_failed(self) -> None:
        if self._error is not None:
            raise self._error

    def _wake(self, _granted: asyncio.Future[None]) -> None:
        self._news.set()

    def _put(self, delta: TokenDelta) -> None:
        self._ready.append(delta)
        if delta.finish_reason is not None:
            self._unfinished -= 1
        self._news.set()
