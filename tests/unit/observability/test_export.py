import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2 as metrics_pb,
)
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2_grpc as metrics_rpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_rpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from observability import export, names
from observability.export import MAX_BATCH, CollectorState, SpanQueue
from observability.settings import TelemetrySettings
from observability.telemetry import Telemetry
from sidecache.errors import SetupError

SHUTDOWN_S = 2.0
# What a busy machine may add to a bound kept by threads and timers.
SLACK_S = 0.5


class Collector:
    """Keeps the names it is sent; stalls while `answering` is not set."""

    def __init__(self) -> None:
        self.answering = asyncio.Event()
        self.answering.set()
        self.spans: list[str] = []
        self.metrics: set[str] = set()

    async def take_spans(self, request: Any, _context: Any) -> Any:
        await self.answering.wait()
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += [span.name for span in scope.spans]
        return trace_pb.ExportTraceServiceResponse()

    async def take_metrics(self, request: Any, _context: Any) -> Any:
        await self.answering.wait()
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                self.metrics |= {metric.name for metric in scope.metrics}
        return metrics_pb.ExportMetricsServiceResponse()


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    kept = Collector()
    traces, metrics = trace_rpc.TraceServiceServicer(), metrics_rpc.MetricsServiceServicer()
    traces.Export, metrics.Export = kept.take_spans, kept.take_metrics  # type: ignore[method-assign]
    server = grpc.aio.server()
    trace_rpc.add_TraceServiceServicer_to_server(traces, server)  # type: ignore[no-untyped-call]
    metrics_rpc.add_MetricsServiceServicer_to_server(metrics, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield kept, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextmanager
def silent_listener() -> Iterator[str]:
    """Accepts connections and never says a word, as a stopped process does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def nobody() -> Iterator[str]:
    with silent_listener() as endpoint:
        pass
    yield endpoint


def start(endpoint: str | None) -> Telemetry:
    settings = TelemetrySettings(otlp_endpoint=endpoint, shutdown_timeout_s=SHUTDOWN_S)
    return Telemetry.start("sidecache-test", settings)


def end_spans(telemetry: Telemetry, count: int) -> None:
    for number in range(count):
        telemetry.tracer.start_span(f"span {number}").end()


async def closed_in(telemetry: Telemetry) -> float:
    begin = monotonic()
    await telemetry.aclose()
    return monotonic() - begin


async def test_everything_reaches_a_living_collector() -> None:
    """On close the last spans and metrics are exported, none is dropped."""
    async with collector() as (kept, endpoint):
        telemetry = start(endpoint)
        telemetry.meter.create_counter("test.count").add(1)
        end_spans(telemetry, 700)
        assert await closed_in(telemetry) < SHUTDOWN_S
        assert sorted(kept.spans) == sorted(f"span {n}" for n in range(700))
        assert {"test.count", names.TELEMETRY_DROPPED} <= kept.metrics
        assert (telemetry.dropped_spans, telemetry.failed_metric_exports) == (0, 0)


@pytest.mark.parametrize("place", [nobody, silent_listener])
async def test_a_dead_collector_costs_two_seconds_at_most(
    place: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Dead or stopped: close is bounded, every span is counted as dropped, no warning is logged."""
    with place() as endpoint:
        telemetry = start(endpoint)
        end_spans(telemetry, 100)
        assert await closed_in(telemetry) < SHUTDOWN_S + SLACK_S
    assert telemetry.dropped_spans == 100
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "export" not in capfd.readouterr().err


async def test_a_stalled_collector_costs_two_seconds_at_most() -> None:
    """A collector that takes the call and never answers does not hold the process up."""
    async with collector() as (kept, endpoint):
        kept.answering.clear()
        telemetry = start(endpoint)
        end_spans(telemetry, 100)
        assert await closed_in(telemetry) < SHUTDOWN_S + SLACK_S
        assert telemetry.dropped_spans == 100
        assert telemetry.failed_metric_exports == 1
        assert kept.spans == []


async def test_a_full_queue_drops_and_counts() -> None:
    """Spans beyond the queue are dropped at once: ending one never waits for a collector."""
    async with collector() as (kept, endpoint):
        kept.answering.clear()
        telemetry = start(endpoint)
        begin = monotonic()
        end_spans(telemetry, 3 * export.MAX_QUEUED_SPANS)
        assert monotonic() - begin < 5
        most_kept = export.MAX_QUEUED_SPANS + export.MAX_BATCH
        assert telemetry.dropped_spans >= 3 * export.MAX_QUEUED_SPANS - most_kept
        kept.answering.set()
        await telemetry.aclose()
        assert len(kept.spans) + telemetry.dropped_spans == 3 * export.MAX_QUEUED_SPANS


async def test_the_change_of_a_collectors_state_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line when exports begin to fail and one when they succeed again, however many."""
    caplog.set_level(logging.INFO, logger="observability.export")
    state = export.CollectorState("http://collector", "spans")
    for ok in (True, True, False, False, False, True, True):
        state.report(ok=ok)
    assert [r.getMessage() for r in caplog.records] == [
        "collector http://collector does not take spans; counting what is dropped",
        "collector http://collector takes spans again",
    ]


async def test_without_an_endpoint_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet by default: no exporter, no thread, and spans are not even recorded."""
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    before = set(threading.enumerate())
    telemetry = start(None)
    assert set(threading.enumerate()) <= before
    assert await closed_in(telemetry) < 0.5


async def test_the_environments_endpoint_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_EXPORTER_OTLP_ENDPOINT works as everywhere."""
    async with collector() as (kept, endpoint):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        telemetry = start(None)
        end_spans(telemetry, 1)
        await telemetry.aclose()
        assert kept.spans == ["span 0"]


@pytest.mark.parametrize("endpoint", ["localhost:4317", "ftp://collector", "http://"])
def test_an_endpoint_must_be_a_url(endpoint: str) -> None:
    """An endpoint that could not work is refused at the start, by name."""
    with pytest.raises(SetupError, match="give a URL such as"):
        start(endpoint)


class StuckExporter(SpanExporter):
    """Takes a batch and lets go of it only when told to, whatever shutdown says."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.release.wait(30)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        pass


def test_a_batch_that_close_gave_up_is_counted_once() -> None:
    """Spans in flight when the time is up are dropped, and not again when the export ends."""
    exporter = StuckExporter()
    queue = SpanQueue(exporter, CollectorState("http://nowhere", "spans"))
    provider = TracerProvider()
    provider.add_span_processor(queue)
    for number in range(MAX_BATCH):
        provider.get_tracer("test").start_span(f"span {number}").end()
    assert exporter.entered.wait(10)
    queue.close(0.05)
    assert queue.dropped == MAX_BATCH
    exporter.release.set()
    queue._thread.join(10)
    assert queue.dropped == MAX_BATCH
