"""The client edge: trace context out, one span and one duration for each call."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import perf_counter
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from observability import names
from observability.interceptors.calls import (
    CLIENT_FAULTS,
    CODE_BY_NUMBER,
    Method,
    duration_histogram,
    end_span,
)
from observability.telemetry import Telemetry
from observability.tracing import trace_headers


class ClientEdge:
    """What every call of one channel shares.

    Args:
        telemetry: records the calls.
        target: the address dialled, for server.address.
        system: what carries the calls.
    """

    def __init__(
        self, telemetry: Telemetry, target: str | None = None, system: str = names.GRPC
    ) -> None:
        self.calls = telemetry.calls
        self.duration = duration_histogram(
            telemetry.meter, names.RPC_CLIENT_CALL_DURATION, "Duration of calls made"
        )
        self._target = target
        self._system = system
        self._methods: dict[str, Method] = {}

    def method(self, path: str) -> Method:
        """The method's names, made on first use; a channel's stubs name few."""
        found = self._methods.get(path)
        if found is None:
            found = self._methods[path] = Method(path, self._target, self._system)
        return found


class ClientCall:
    """The record of one call: the headers it carries, and its end."""

    __slots__ = ("_duration", "_method", "_raw", "_span", "_started", "headers")

    def __init__(self, edge: ClientEdge, method: Method) -> None:
        parent = trace.get_current_span().get_span_context()
        self._span = edge.calls.start(
            method.name,
            SpanKind.CLIENT,
            parent if parent.trace_id else None,
            method.span_attributes,
        )
        self.headers: Sequence[tuple[str, str]] = trace_headers(self._span.get_span_context())
        self._duration = edge.duration
        self._method = method
        self._raw: Any = None
        self._started = perf_counter()

    def follow(self, call: Any) -> None:
        """Finish when the call does, without keeping it alive.

        The public `call.add_done_callback` binds the call itself into a cycle:
        one that was abandoned would then be cancelled by the next full garbage
        collection instead of at once, and its engine slot stay taken.
        """
        self._raw = call._cython_call  # noqa: SLF001 - see above
        self._raw.add_done_callback(self._done)

    def _done(self) -> None:
        status = result_of(self._raw.status())
        self._raw = None  # it holds this callback
        self.finish(CODE_BY_NUMBER[status.code()])

    def finish(self, code: grpc.StatusCode) -> None:
        """Record the call's end."""
        self._duration.record(perf_counter() - self._started, self._method.outcome(code))
        if self._span.is_recording():
            end_span(self._span, code, CLIENT_FAULTS)


def result_of(finished: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing left to wait for.

    A call's status is behind a coroutine; once the call is done it returns
    without suspending, so one step inside the done callback is enough.
    """
    try:
        finished.send(None)
    except StopIteration as stop:
        return stop.value
    finished.close()
    raise RuntimeError("the call was not done")


class _Interceptor:
    """Observes a call through grpc.aio's own interceptor seam."""

    def __init__(self, edge: ClientEdge) -> None:
        self._edge = edge

    async def _observe(
        self, continuation: Callable[..., Awaitable[Any]], details: Any, request: Any
    ) -> Any:
        path = details.method
        method = self._edge.method(path.decode() if isinstance(path, bytes) else path)
        observed = ClientCall(self._edge, method)
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *observed.headers)
        try:
            call = await continuation(details._replace(metadata=metadata), request)
        except BaseException:
            observed.finish(grpc.StatusCode.CANCELLED)
            raise
        call.add_done_callback(lambda done: observed.finish(result_of(done.code())))
        return call


class UnaryUnaryInterceptor(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):
    """For unary calls on any grpc.aio channel."""

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await self._observe(continuation, client_call_details, request)


class UnaryStreamInterceptor(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):
    """For server-streaming calls on any grpc.aio channel."""

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await self._observe(continuation, client_call_details, request)


def client_interceptors(
    telemetry: Telemetry, target: str | None = None
) -> list[grpc.aio.ClientInterceptor]:
    """The client edge as grpc.aio interceptors, for channels that others open.

    `open_channel` gives the same record at a fraction of the cost.
    """
    edge = ClientEdge(telemetry, target)
    return [UnaryUnaryInterceptor(edge), UnaryStreamInterceptor(edge)]
