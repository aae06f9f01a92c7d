"""The link: what routers ask their sidecar all day long, over a Unix socket without gRPC.

A call of grpc.aio costs each side about 150 µs and wakes three threads on its way; the same
messages in frames on a socket of the event loop cost a tenth (decision 0026). This is what
both ends share: the frames, where the socket lies, and the record of a question answered.
"""

from time import perf_counter
from typing import Final

import grpc
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from observability import names
from observability.interceptors.calls import (
    SERVER_FAULTS,
    Method,
    duration_histogram,
    end_span,
)
from observability.listening import fits_unix_path
from observability.telemetry import Telemetry
from observability.tracing import SAMPLED, parse_traceparent
from sidecache.errors import InvalidRequest

_UNIX: Final = "unix:"
_SUFFIX: Final = ".link"
_LENGTH_BYTES: Final = 4


def link_path(target: str) -> str | None:
    """Where the link of a sidecar with this address lies; None: it can have none."""
    if not target.startswith(_UNIX):
        return None
    path = target.removeprefix(_UNIX).removeprefix("//") + _SUFFIX
    return path if fits_unix_path(path) else None


def frame(message: bytes) -> bytes:
    """A message as it goes over the link."""
    return len(message).to_bytes(_LENGTH_BYTES, "little") + message


class Frames:
    """Cuts what comes over a link into messages.

    Args:
        max_bytes: of one message.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take in what came; the messages that are whole now.

        Raises:
            InvalidRequest: a message is too long; nothing after it can be read.
        """
        rest = self._rest
        rest += data
        messages: list[bytes] = []
        start, end = _LENGTH_BYTES, len(rest)
        while start <= end:
            size = int.from_bytes(rest[start - _LENGTH_BYTES : start], "little")
            if size > self._max_bytes:
                raise InvalidRequest(f"a message of {size} bytes; may have {self._max_bytes}")
            if start + size > end:
                break
            messages.append(bytes(rest[start : start + size]))
            start += size + _LENGTH_BYTES
        del rest[: start - _LENGTH_BYTES]
        return messages


class LinkEdge:
    """Records what is answered over a link, as the server edge records calls.

    Args:
        telemetry: records the questions.
        service: full name of the service whose methods are asked.
    """

    def __init__(self, telemetry: Telemetry, service: str) -> None:
        self._calls = telemetry.calls
        self._duration = duration_histogram(
            telemetry.meter, names.RPC_SERVER_CALL_DURATION, "Duration of calls served"
        )
        self._service = service
        self._methods: dict[str, Method] = {}

    def has_span(self, traceparent: str) -> bool:
        """Whether the question may get a span; another needs no context to be answered in."""
        caller = self._calls.accept(parse_traceparent(traceparent))
        return caller is None or bool(caller.trace_flags & SAMPLED)

    def answered(self, method: str, started: float, code: grpc.StatusCode) -> None:
        """Record a question without a span; ``started``: perf_counter's time of it."""
        self._duration.record(perf_counter() - started, self._method(method).outcome(code))

    def begin(self, method: str, traceparent: str, tracestate: str) -> "Question":
        """Start the record of one question, inside the task that answers it."""
        found = self._method(method)
        parent = parse_traceparent(traceparent, tracestate) if traceparent else None
        caller = self._calls.accept(parent)
        span = self._calls.start(found.name, SpanKind.SERVER, caller, found.span_attributes)
        # Never detached: the context ends with the task.
        otel_context.attach(trace.set_span_in_context(span))
        return Question(self, found, span)

    def _method(self, name: str) -> Method:
        found = self._methods.get(name)
        if found is None:
            path = f"/{self._service}/{name}"
            found = self._methods[name] = Method(path, system=names.LINK)
        return found

    def ended(self, question: "Question", code: grpc.StatusCode, reason: str) -> None:
        """Record its end."""
        taken_s = perf_counter() - question.started
        self._duration.record(taken_s, question.method.outcome(code))
        if question.span.is_recording():
            end_span(question.span, code, SERVER_FAULTS, reason)


class Question:
    """One question under way."""

    __slots__ = ("_edge", "method", "span", "started")

    def __init__(self, edge: LinkEdge, method: Method, span: trace.Span) -> None:
        self._edge = edge
        self.method = method
        self.span = span
        self.started = perf_counter()

    def ended(self, code: grpc.StatusCode = grpc.StatusCode.OK, reason: str = "") -> None:
        """It was answered, or failed with this code."""
        self._edge.ended(self, code, reason)
