"""One generation, as its client sees it: a checked stream, or a whole answer."""

import asyncio
import enum
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
from opentelemetry import trace

from sidecache.errors import (
    BrokenInvariant,
    Cancelled,
    SidecacheError,
    from_rpc_error,
)
from sidecache.generation_span import GenerationSpan
from sidecache.resumption import Call, Resumption
from sidecache.stream_events import single_events
from sidecache.stream_order import StreamOrder
from sidecache.v1 import inference_pb2 as pb

MAX_ANSWER_BYTES = 64 << 20
"""A whole answer larger than this is refused rather than gathered in memory."""


class _OpenEnum(enum.IntEnum):
    """A proto enum; a value that a newer server invented reads as UNSPECIFIED."""

    @classmethod
    def _missing_(cls, value: object) -> Self:  # noqa: ARG003  the enum protocol's signature
        return cls(0)


class Source(_OpenEnum):
    """Where an answer came from; equal to the contract's numbers."""

    UNSPECIFIED = pb.SOURCE_UNSPECIFIED
    ENGINE = pb.SOURCE_ENGINE
    EXACT = pb.SOURCE_EXACT
    SEMANTIC = pb.SOURCE_SEMANTIC
    COALESCED = pb.SOURCE_COALESCED


class FinishReason(_OpenEnum):
    """Why a choice ended; equal to the contract's numbers."""

    UNSPECIFIED = pb.FINISH_REASON_UNSPECIFIED
    STOP = pb.FINISH_REASON_STOP
    LENGTH = pb.FINISH_REASON_LENGTH
    FILTERED = pb.FINISH_REASON_FILTERED


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to one prompt.

    Attributes:
        text: the whole text.
        token_ids: the ids it was made of.
        finish_reason: why it ended.
        usage: prompt and completion tokens, as the server counted them.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    usage: pb.Usage


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer; ``text`` and its companions are those of the first choice.

    Attributes:
        choices: one for each of the ``n`` that were asked for.
        source: the engine, one of the cache's tiers, or another caller's stream.
        request_id: the router's name for this request.
        worker: who generated it; empty for an answer from the cache.
        model: the model that answered.
        trace_id: hex; empty where the server has telemetry off.
        ttft_s: seconds from the call to the first token; None if there was none.
        duration_s: seconds from the call to the end of the stream.
        cache_entry_id: the cache entry that answered; empty otherwise.
    """

    choices: list[Choice]
    source: Source
    request_id: str
    worker: str
    model: str
    trace_id: str
    ttft_s: float | None
    duration_s: float
    cache_entry_id: str

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        """The first choice's token ids."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.choices[0].finish_reason

    @property
    def usage(self) -> pb.Usage:
        """Token counts of the first choice."""
        return self.choices[0].usage


def raise_if_only_the_call_was_cancelled() -> None:
    """Tell a cancelled call from a cancelled task, after a CancelledError.

    grpc.aio raises CancelledError for both: where the caller cancelled the call,
    or closed the client, the task that waits for it has to live on.
    """
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise Cancelled("the call was cancelled, or its client was closed") from None


class GenerationStream:
    """The events of one generation; leaving its ``async with`` block cancels the rest.

    Iterate over it for ``GenerateResponse`` events, over :meth:`text` for the
    first choice's text as it grows, or await :meth:`complete` for what is left as
    a whole. Every event's order and offset was checked before it is handed out.

    Attributes:
        started: the first event, once it came: source, worker, request and trace id.
        ttft_s: seconds from the call to the first token, once it came.
    """

    def __init__(
        self,
        method: Callable[..., Call],
        request: pb.GenerateRequest,
        *,
        metadata: Sequence[tuple[str, str]],
        timeout_s: float,
        tracer: trace.Tracer,
        address: str,
        siblings: "set[GenerationStream]",
        resumption: Resumption | None = None,
        first_offset: int = 0,
    ) -> None:
        self.started: pb.Started | None = None
        self.ttft_s: float | None = None
        self._method = method
        self._unread: deque[pb.GenerateResponse] = deque()
        self._request = request
        self._metadata = metadata
        self._timeout_s = timeout_s
        self._tracer = tracer
        self._address = address
        self._siblings = siblings
        self._resumption = resumption
        self._order = StreamOrder(request.n or 1, first_offset)
        self._call: Call | None = None
        self._span: GenerationSpan | None = None
        self._ended = False
        self._gave_up = False
        self._started_at = 0.0

    async def __aenter__(self) -> Self:
        if self._call is not None:
            raise RuntimeError("a generation runs once; call generate() again for another")
        self._span = GenerationSpan(self._tracer, self._request, self._address)
        self._started_at = time.perf_counter()
        self._call = self._method(
            self._request,
            timeout=self._timeout_s,
            metadata=(*self._metadata, *self._span.metadata()),
        )
        self._siblings.add(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._ended:
            self._end(Cancelled("the caller left before the end"))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.GenerateResponse:
        if self._ended:
            raise StopAsyncIteration
        try:
            event = await self._read()
            if event is None:
                self._order.check_end()
            else:
                self._order.check(event)
        except SidecacheError as error:
            self._end(error)
            raise
        if event is None:
            self._end(None)
            raise StopAsyncIteration
        self._note(event)
        return event

    async def text(self, choice: int = 0) -> AsyncIterator[str]:
        """The pieces of one choice's text, each as soon as it is readable."""
        async for event in self:
            if event.HasField("delta") and event.delta.choice == choice and event.delta.text:
                yield event.delta.text

    @property
    def num_tokens(self) -> int:
        """Tokens received so far, all choices together."""
        return self._order.num_tokens

    @property
    def next_offset(self) -> int:
        """The offset of the first choice's next token: where ``client.attach`` goes on."""
        return self._order.next_offset

    @property
    def resumptions(self) -> int:
        """How often the connection was lost and the stream went on."""
        return self._resumption.count if self._resumption else 0

    def cancel(self) -> None:
        """Give up from another task: whoever iterates gets ``errors.Cancelled``."""
        self._gave_up = True
        if self._call is not None:
            self._call.cancel()

    async def complete(self) -> Completion:
        """Gather everything that is still to come.

        Called before anything was iterated, this is the whole answer.

        Raises:
            SidecacheError: the generation failed, or is beyond MAX_ANSWER_BYTES.
        """
        num_choices = self._request.n or 1
        pieces: list[list[str]] = [[] for _ in range(num_choices)]
        ids: list[list[int]] = [[] for _ in range(num_choices)]
        finished = [pb.Finished() for _ in range(num_choices)]
        size = 0
        async for event in self:
            if event.HasField("delta"):
                pieces[event.delta.choice].append(event.delta.text)
                ids[event.delta.choice].extend(event.delta.token_ids)
                size += event.ByteSize()
            elif event.HasField("finished"):
                finished[event.finished.choice] = event.finished
            if size > MAX_ANSWER_BYTES:
                raise BrokenInvariant(f"the answer is beyond {MAX_ANSWER_BYTES} bytes")
        return self._completion(
            [
                Choice("".join(p), i, FinishReason(f.reason), f.usage)
                for p, i, f in zip(pieces, ids, finished, strict=True)
            ]
        )

    def _completion(self, choices: list[Choice]) -> Completion:
        started = self.started or pb.Started()
        return Completion(
            choices=choices,
            source=Source(started.source),
            request_id=started.request_id,
            worker=started.worker,
            model=started.model,
            trace_id=started.trace_id,
            ttft_s=self.ttft_s,
            duration_s=time.perf_counter() - self._started_at,
            cache_entry_id=started.cache_entry_id,
        )

    async def _read(self) -> pb.GenerateResponse | None:
        """The next event, or None at the end of a stream that went well."""
        if self._call is None:
            raise RuntimeError("enter the generation first: `async with client.generate(…)`")
        if self._unread:
            return self._unread.popleft()
        message = await self._next_message(self._call)
        if not isinstance(message, pb.GenerateResponse):
            return None
        self._unread.extend(single_events(message))
        return self._unread.popleft()

    async def _next_message(self, call: Call) -> object:
        while not self._unread:
            try:
                return await call.read()
            except grpc.aio.AioRpcError as error:
                call = self._call = await self._resume(from_rpc_error(error))
            except asyncio.CancelledError:
                raise_if_only_the_call_was_cancelled()
                raise
        return self._unread.popleft()

    async def _resume(self, lost: SidecacheError) -> Call:
        """Attach to the stream again, from the first token that did not come.

        Raises:
            SidecacheError: it is not to be had.
        """
        if self._resumption is None or self._was_given_up():
            raise lost
        left_s = self._timeout_s - (time.perf_counter() - self._started_at)
        try:
            call, started = await self._resumption.resume(lost, self.next_offset, left_s)
        except asyncio.CancelledError:
            raise_if_only_the_call_was_cancelled()
            raise
        if self._was_given_up():
            call.cancel()
            raise lost
        if self.started is None:
            self._unread.append(started)
        if self._span is not None:
            self._span.record_resumed(self.next_offset)
        return call

    def _was_given_up(self) -> bool:
        # Another task may say so at any time.
        return self._gave_up

    def _note(self, event: pb.GenerateResponse) -> None:
        if event.HasField("delta"):
            if self.ttft_s is None:
                self.ttft_s = time.perf_counter() - self._started_at
                if self._span is not None:
                    self._span.record_first_token(self.ttft_s)
            return
        if event.HasField("started"):
            self.started = event.started
            if self._resumption is not None:
                self._resumption.request_id = event.started.request_id
        if self._span is not None:
            self._span.record(event)

    def _end(self, error: SidecacheError | None) -> None:
        """Free the call and end the span; nothing of this generation lives on."""
        self._ended = True
        self._siblings.discard(self)
        if self._call is not None:
            # A no-op on a call that is done; an abandoned one would hold the engine.
            self._call.cancel()
        if self._span is not None:
            if error is not None:
                self._span.fail(error)
            self._span.end()
