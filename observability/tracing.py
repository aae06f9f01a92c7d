"""Trace context on the wire, the sampling decision, and cheap child spans.

The decision comes before the SDK is asked for anything: a call that is not
recorded never creates an SDK span. It carries its caller's span context on
unchanged, so its trace id is there for logs and the next hop gets a valid
`traceparent`, for about a microsecond.
"""

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
)
from opentelemetry.util.types import AttributeValue

from observability import names

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

NOT_SAMPLED: Final = TraceFlags(TraceFlags.DEFAULT)
SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_NO_STATE: Final = TraceState()
_NO_PARENT: Final = Context()

# W3C Trace Context: version-traceid-parentid-flags. Version ff and all-zero ids
# are invalid; only a later version may append more fields.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
# What OpenTelemetry's TraceIdRatioBased looks at: services with one ratio take
# one decision about a trace.
_LOW_64: Final = (1 << 64) - 1


def parse_traceparent(header: str, state: str = "") -> SpanContext | None:
    """The caller's span, or None when the header is not a valid traceparent."""
    match = _TRACEPARENT.fullmatch(header)
    if match is None or (match[4] and header.startswith("00")):
        return None
    return SpanContext(
        int(match[1], 16),
        int(match[2], 16),
        is_remote=True,
        trace_flags=SAMPLED if int(match[3], 16) & SAMPLED else NOT_SAMPLED,
        trace_state=TraceState.from_header([state]) if state else _NO_STATE,
    )


def format_traceparent(context: SpanContext) -> str:
    """The header that makes this span the next hop's parent."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def remote_parent(metadata: Iterable[tuple[str, str | bytes]]) -> SpanContext | None:
    """The caller's span from a call's metadata, if it sent a valid one."""
    header = state = ""
    for key, value in metadata:
        if key == TRACEPARENT and isinstance(value, str):
            header = value
        elif key == TRACESTATE and isinstance(value, str):
            state = value
    return parse_traceparent(header, state) if header else None


def trace_headers(context: SpanContext) -> list[tuple[str, str]]:
    """The metadata entries that carry this span to the next hop."""
    headers = [(TRACEPARENT, format_traceparent(context))]
    if context.trace_state:
        headers.append((TRACESTATE, context.trace_state.to_header()))
    return headers


class CallTracer:
    """Makes the span of each call at an edge, recorded or not.

    Parent-based: a caller's decision is followed, and a trace that starts here is
    recorded with the given probability.

    Args:
        tracer: records whatever it is asked for.
        ratio: share of new traces recorded, in [0, 1].
        recording: False when nothing is exported; then no SDK span is ever made,
            and a caller's flag goes on to the next hop as it came.
        trust_caller: follow the caller's flag; else decide by its trace id.
    """

    def __init__(
        self, tracer: Tracer, ratio: float, *, recording: bool, trust_caller: bool = True
    ) -> None:
        self._tracer = tracer
        self._ratio = ratio
        self._recording = recording
        self._trust_caller = trust_caller

    def start(
        self,
        name: str,
        kind: SpanKind,
        parent: SpanContext | None,
        attributes: Mapping[str, AttributeValue],
    ) -> Span:
        """A new span below `parent` when the call is recorded.

        Otherwise a NonRecordingSpan that holds the parent's own context, or a
        new trace id when there is no parent.
        """
        if parent is None:
            if not self._recording or random.random() >= self._ratio:  # noqa: S311 - a sample
                return NonRecordingSpan(_new_root())
            context = _NO_PARENT
        elif self._recording and parent.trace_flags & SAMPLED:
            context = trace.set_span_in_context(NonRecordingSpan(parent), _NO_PARENT)
        else:
            return NonRecordingSpan(parent)
        return self._tracer.start_span(name, context, kind, attributes)

    def accept(self, caller: SpanContext | None) -> SpanContext | None:
        """The caller's context, with our own decision where it is not trusted."""
        if caller is None or self._trust_caller or not self._recording:
            return caller
        sampled = (caller.trace_id & _LOW_64) < self._ratio * (1 << 64)
        return SpanContext(
            caller.trace_id,
            caller.span_id,
            is_remote=True,
            trace_flags=SAMPLED if sampled else NOT_SAMPLED,
            trace_state=caller.trace_state,
        )


def _new_root() -> SpanContext:
    """A trace that nobody records: ids for logs and for a valid traceparent."""
    return SpanContext(
        random.getrandbits(128) or 1,
        random.getrandbits(64) or 1,
        is_remote=False,
        trace_flags=NOT_SAMPLED,
    )


def current_span_context() -> SpanContext:
    """The span that this code runs under; all zero outside any call."""
    return trace.get_current_span().get_span_context()


def current_trace_id() -> str:
    """The trace id of this call in 32 hex digits, or "" outside any call."""
    trace_id = current_span_context().trace_id
    return f"{trace_id:032x}" if trace_id else ""


@contextmanager
def child_span(
    tracer: Tracer,
    name: str,
    attributes: Mapping[str, AttributeValue] | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> Iterator[Span]:
    """A span inside a call: free when the call is not recorded.

    Unlike the SDK's own it never records an exception's text, which may quote a
    prompt; it keeps the exception's type. Build costly attributes only when the
    yielded span's ``is_recording()`` says so.

    Not for use across tasks: it is the current span of the block.
    """
    parent = trace.get_current_span()
    context = parent.get_span_context()
    if context is not INVALID_SPAN_CONTEXT and not parent.is_recording():
        yield parent
        return
    with tracer.start_as_current_span(
        name,
        kind=kind,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except BaseException as error:
            span.set_attribute(names.ERROR_TYPE, type(error).__qualname__)
            if isinstance(error, Exception):
                span.set_status(Status(StatusCode.ERROR))
            raise
