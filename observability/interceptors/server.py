"""The server edge: trace context in, one span and one duration, errors to status.

One wrapper does all of it, because each further interceptor costs the request
path microseconds.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import grpc
from google.protobuf import descriptor_pool
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind

from observability import names
from observability.interceptors.calls import (
    CODE_BY_NUMBER,
    SERVER_FAULTS,
    Method,
    duration_histogram,
    end_span,
)
from observability.telemetry import Telemetry
from observability.tracing import current_trace_id, remote_parent
from sidecache.errors import (
    BrokenInvariant,
    Draining,
    InvalidRequest,
    SidecacheError,
    to_status,
)

logger = logging.getLogger(__name__)

Behavior = Callable[[Any, Any], Awaitable[Any]]
if TYPE_CHECKING:  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]

# Standard services: polled all day long, and no part of anybody's request.
_UNOBSERVED: Final = ("/grpc.health.", "/grpc.reflection.")
_STATUS_DETAILS: Final = "grpc-status-details-bin"


class _Call:
    """One running call."""

    __slots__ = ("finished", "method", "span", "started")

    def __init__(self, method: Method, span: Span, started: float) -> None:
        self.method = method
        self.span = span
        self.started = started
        self.finished = False


# Set by intercept_service, read by the handler: gRPC runs both in one context,
# which belongs to this call alone.
_running: ContextVar[_Call] = ContextVar("sidecache_server_call")


class _Malformed:
    """Stands for a request whose bytes are no message of its type.

    A deserializer that raises would end in UNKNOWN with the decoder's own text,
    and write a traceback for every bad client.
    """

    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def refuse(self) -> NoReturn:
        found = "a string that is not UTF-8" if "UTF-8" in str(self.error) else "malformed bytes"
        raise InvalidRequest(f"the request holds {found}; it must be this method's message")


class ServerEdge(grpc.aio.ServerInterceptor):
    """Observes every call and turns every error into its status.

    Comes first, so that the interceptors behind it run inside the trace and may
    raise SidecacheError as handlers do.

    Args:
        telemetry: records the calls.
        services: full names of the services served. Calls of any other method are
            recorded under one name, or strangers could make metrics without end.
        cut_off: what a call ends with that a drain does not wait for any longer.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        services: Sequence[str],
        cut_off: type[SidecacheError] = Draining,
    ) -> None:
        self._cut_off = cut_off
        self._calls = telemetry.calls
        self._duration = duration_histogram(
            telemetry.meter, names.RPC_SERVER_CALL_DURATION, "Duration of calls served"
        )
        self._methods = {path: Method(path) for path in _paths(services)}
        self._other = Method(names.OTHER_METHOD)
        # By path; bounded by the methods served.
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._idle: asyncio.Event | None = None
        self._is_over = False

    def refuse_new(self) -> asyncio.Event:
        """Refuse every new call from now on; the event says when the running ones are over.

        A call that is refused here is told so: DRAINING says that nothing was done.
        One that crosses gRPC's own goodbye may be told CANCELLED instead.
        """
        if self._idle is None:
            self._idle = asyncio.Event()
            if not self._running:
                self._idle.set()
        return self._idle

    def end_running(self) -> None:
        """End what still runs, with a status that says why; gRPC itself would say CANCELLED."""
        self._is_over = True
        for task in self._running:
            task.cancel()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        path: str = handler_call_details.method
        if path.startswith(_UNOBSERVED):
            return await continuation(handler_call_details)
        call = self._begin(path, handler_call_details.invocation_metadata)
        if self._idle is not None:
            return self._wrap(_refusal(Draining("this server drains; ask another one")))
        try:
            handler = await continuation(handler_call_details)
        except Exception as error:  # noqa: BLE001 - answered as if the handler had raised it
            return self._wrap(_refusal(error))
        if handler is None:  # gRPC itself refuses unknown methods
            self._finish(call, grpc.StatusCode.UNIMPLEMENTED)
            return None
        known = self._wrapped.get(path)
        if known is None or known[0] is not handler:
            known = self._wrapped[path] = (handler, self._wrap(handler))
        return known[1]

    def _begin(self, path: str, metadata: Any) -> _Call:
        method = self._methods.get(path, self._other)
        started = perf_counter()
        caller = self._calls.accept(remote_parent(metadata))
        span = self._calls.start(method.name, SpanKind.SERVER, caller, method.span_attributes)
        # Never detached: the context ends with the call.
        otel_context.attach(trace.set_span_in_context(span))
        call = _Call(method, span, started)
        _running.set(call)
        task = asyncio.current_task()
        if task is not None and span.is_recording():
            # The handler never runs when the request does not arrive whole, or an
            # interceptor behind is cancelled; the span must end all the same.
            task.add_done_callback(lambda _task: self._finish(call, grpc.StatusCode.CANCELLED))
        return call

    def _wrap(self, handler: Handler) -> Handler:
        if handler.request_streaming:
            raise NotImplementedError("no method of the contract streams requests")
        deserializer = _tolerant(handler.request_deserializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._observe(_as_coroutine(handler.unary_stream)),
                deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._observe(cast("Behavior", handler.unary_unary)),
            deserializer,
            handler.response_serializer,
        )

    def _observe(self, behavior: Behavior) -> Behavior:
        async def observed(request: Any, context: Any) -> Any:
            call = _running.get()
            # gRPC runs each handler in a task.
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            self._running.add(task)
            try:
                if type(request) is _Malformed:
                    request.refuse()
                response = await behavior(request, context)
            except BaseException as error:  # noqa: BLE001 - each way to end is recorded
                await self._fail(call, self._why_ended(error, context), context)
            finally:
                self._running.discard(task)
                if self._idle is not None and not self._running:
                    self._idle.set()
            self._finish(call, _code_set_by_handler(context))
            return response

        return observed

    def _why_ended(self, error: BaseException, context: Any) -> BaseException:
        """The error itself, or that the drain's grace is over."""
        if not self._is_over or context.cancelled():
            return error
        if not isinstance(_gist(error), asyncio.CancelledError):
            return error
        return self._cut_off("this server drains and its grace is over")

    async def _fail(self, call: _Call, error: BaseException, context: Any) -> NoReturn:
        """End the call as its error demands; always raises."""
        match _gist(error):
            case SidecacheError() as ours:
                self._finish(call, ours.code, ours.reason)
                await _abort(context, ours)
            # gRPC knows these two only outside a group.
            case grpc.aio.AbortError() as aborted:
                self._finish(call, _code_set_by_handler(context))
                raise aborted
            case asyncio.CancelledError() as cancelled:
                self._finish(call, _why_cancelled(call, context))
                raise cancelled
            case grpc.aio.InternalError():
                self._finish(call, grpc.StatusCode.CANCELLED)
                # Nobody is left to answer; gRPC takes this as the quiet end of a call.
                raise asyncio.CancelledError from error
            case Exception() as bug:
                logger.error("%s failed: a bug", call.method.name, exc_info=bug)
                ours = BrokenInvariant(f"a bug in the service; report trace {current_trace_id()}")
                call.span.set_attribute(names.EXCEPTION_TYPE, type(bug).__qualname__)
                self._finish(call, ours.code, ours.reason)
                await _abort(context, ours)
            case other:  # KeyboardInterrupt, SystemExit
                self._finish(call, grpc.StatusCode.INTERNAL)
                raise other

    def _finish(self, call: _Call, code: grpc.StatusCode, reason: str = "") -> None:
        if call.finished:
            return
        call.finished = True
        self._duration.record(perf_counter() - call.started, call.method.outcome(code))
        if call.span.is_recording():
            end_span(call.span, code, SERVER_FAULTS, reason)


def _paths(services: Sequence[str]) -> Iterator[str]:
    """The paths of the services' methods, as gRPC writes them."""
    pool = descriptor_pool.Default()
    for service in services:
        for method in pool.FindServiceByName(service).methods:
            yield f"/{service}/{method.name}"


def is_client_gone(error: BaseException) -> bool:
    """Whether this error says no more than that the caller vanished or cancelled.

    A vanished caller shows as an InternalError from `context.write`, with
    `context.cancelled()` still False; a TaskGroup wraps it in a group.
    """
    return isinstance(_gist(error), grpc.aio.InternalError | asyncio.CancelledError)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _gist(error: BaseException) -> BaseException:
    """The one error of a group that decides its status: bugs first, cancels last."""
    return min(_leaves(error), key=_rank)


def _rank(error: BaseException) -> int:
    match error:
        case asyncio.CancelledError():
            return 4
        case grpc.aio.InternalError():
            return 3
        case SidecacheError():
            return 2
        case Exception():
            return 1
        case _:
            return 0


def _code_set_by_handler(context: Any) -> grpc.StatusCode:
    """What set_code or abort left behind; grpc.aio keeps it as it was given."""
    code = context.code()
    if not code:
        return grpc.StatusCode.OK
    return code if isinstance(code, grpc.StatusCode) else CODE_BY_NUMBER[code]


def _why_cancelled(call: _Call, context: Any) -> grpc.StatusCode:
    """DEADLINE_EXCEEDED when the time was used up, else CANCELLED."""
    remaining = context.time_remaining()
    if remaining is None:
        return grpc.StatusCode.CANCELLED
    # The wire rounds a timeout up by up to 1 %, so the caller's expires first
    # and arrives here as a cancel.
    total = perf_counter() - call.started + remaining
    expired = remaining <= 0.02 * total + 0.005
    return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED


async def _abort(context: Any, error: SidecacheError) -> NoReturn:
    """Send the error's google.rpc.Status; raises to leave the handler."""
    details = to_status(error).SerializeToString()
    trailing = (*(context.trailing_metadata() or ()), (_STATUS_DETAILS, details))
    try:
        await context.abort(error.code, error.text, trailing)
    except grpc.aio.InternalError as gone:
        raise asyncio.CancelledError from gone
    raise AssertionError  # pragma: no cover - abort always raises


def _refusal(error: Exception) -> Handler:
    """Answers one call with an error that an interceptor behind the edge raised."""

    async def refuse(_request: Any, _context: Any) -> NoReturn:
        raise error

    return grpc.unary_unary_rpc_method_handler(refuse)


def _tolerant(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Hand on what cannot be parsed, for the handler's wrapper to refuse."""
    if deserializer is None:
        return None

    def deserialize(raw: bytes) -> Any:
        try:
            return deserializer(raw)
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises means bad bytes
            return _Malformed(error)

    return deserialize


def _as_coroutine(behavior: Any) -> Behavior:
    """A generator handler as a coroutine, so that it is closed in its own task."""
    if not inspect.isasyncgenfunction(behavior):
        return cast("Behavior", behavior)

    async def write_all(request: Any, context: Any) -> None:
        async with aclosing(behavior(request, context)) as messages:
            async for message in messages:
                await context.write(message)

    return write_all
