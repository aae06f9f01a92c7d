import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from observability import names
from observability.tracing import (
    SAMPLED,
    CallTracer,
    child_span,
    current_trace_id,
    format_traceparent,
    parse_traceparent,
    remote_parent,
    trace_headers,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_a_traceparent_survives_the_wire(trace_id: int, span_id: int, sampled: bool) -> None:
    """What one hop formats the next one parses, and OpenTelemetry's own propagator agrees."""
    flags = TraceFlags(SAMPLED if sampled else 0)
    sent = SpanContext(trace_id, span_id, is_remote=False, trace_flags=flags)
    header = format_traceparent(sent)
    got = parse_traceparent(header)
    assert got is not None
    assert (got.trace_id, got.span_id, got.trace_flags) == (trace_id, span_id, flags)
    assert got.is_remote
    theirs = TraceContextTextMapPropagator().extract({"traceparent": header})
    assert trace.get_current_span(theirs).get_span_context() == got


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-+{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}_{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01more",
    ],
)
def test_a_bad_traceparent_is_no_parent(header: str) -> None:
    """What is not W3C Trace Context starts a new trace instead of a broken one."""
    assert parse_traceparent(header) is None


def test_a_later_version_is_read_as_far_as_we_know_it() -> None:
    """W3C: a parser takes the four fields it knows from a higher version."""
    got = parse_traceparent(f"01-{TRACE}-{SPAN}-03-more")
    assert got is not None
    assert got.trace_flags == SAMPLED


def test_tracestate_travels_along() -> None:
    """A vendor's state goes on to the next hop unchanged."""
    metadata = (("tracestate", "a=1,b=2"), ("traceparent", f"00-{TRACE}-{SPAN}-00"))
    got = remote_parent(metadata)
    assert got is not None
    assert dict(trace_headers(got)) == dict(metadata)


def call_tracer(ratio: float, **options: bool) -> tuple[CallTracer, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    options = {"recording": True, **options}
    return CallTracer(provider.get_tracer("test"), ratio, **options), exporter


def caller(*, sampled: bool) -> SpanContext:
    got = parse_traceparent(f"00-{TRACE}-{SPAN}-0{int(sampled)}")
    assert got is not None
    return got


def test_a_callers_decision_is_followed() -> None:
    """Parent-based: a sampled call is recorded at ratio 0, an unsampled one not at ratio 1."""
    never, _ = call_tracer(0)
    always, _ = call_tracer(1)
    span = never.start("x", SpanKind.SERVER, caller(sampled=True), {})
    assert span.is_recording()
    assert f"{span.get_span_context().trace_id:032x}" == TRACE
    quiet = always.start("x", SpanKind.SERVER, caller(sampled=False), {})
    assert not quiet.is_recording()
    assert quiet.get_span_context() == caller(sampled=False)


def test_new_traces_are_sampled_by_ratio() -> None:
    """Of the traces that start here about the given share is recorded; all have ids."""
    tracer, _ = call_tracer(0.25)
    spans = [tracer.start("x", SpanKind.SERVER, None, {}) for _ in range(4000)]
    recorded = sum(span.is_recording() for span in spans)
    assert 800 < recorded < 1200  # five standard deviations
    assert len({span.get_span_context().trace_id for span in spans}) == 4000
    assert all(bool(s.get_span_context().trace_flags & SAMPLED) == s.is_recording() for s in spans)


def test_a_quiet_service_passes_the_flag_on() -> None:
    """Without a collector no span is made, and a sampled caller's next hop is still sampled."""
    tracer, _ = call_tracer(1, recording=False)
    span = tracer.start("x", SpanKind.SERVER, caller(sampled=True), {})
    assert not span.is_recording()
    assert span.get_span_context() == caller(sampled=True)
    assert not tracer.start("x", SpanKind.SERVER, None, {}).is_recording()


def test_a_child_span_keeps_an_exceptions_text_out() -> None:
    """A failing block leaves the type of its error, and nothing that it said."""
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with (
        pytest.raises(ValueError, match="canary"),
        child_span(provider.get_tracer("test"), "work", {"a": 1}),
    ):
        raise ValueError("canary")
    [span] = exporter.get_finished_spans()
    assert span.attributes == {"a": 1, names.ERROR_TYPE: "ValueError"}
    assert span.status.status_code is StatusCode.ERROR
    assert "canary" not in span.to_json()


def test_a_child_of_an_unrecorded_call_is_that_call() -> None:
    """Inside an unsampled call no SDK span is made, and the trace id stays visible."""
    provider, exporter = TracerProvider(shutdown_on_exit=False), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with (
        trace.use_span(NonRecordingSpan(caller(sampled=False))),
        child_span(provider.get_tracer("test"), "work") as span,
    ):
        assert not span.is_recording()
        assert current_trace_id() == TRACE
    assert exporter.get_finished_spans() == ()
    assert current_trace_id() == ""
