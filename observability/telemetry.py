"""One service's tracer and meter, with a shutdown that cannot hang."""

import asyncio
import logging
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from time import monotonic
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import CallbackOptions, Meter, NoOpMeterProvider, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Tracer

from observability import names
from observability.export import CollectorState, CountingMetricExporter, SpanQueue
from observability.settings import TelemetrySettings
from observability.tally import TallyMeter, read_by
from observability.tracing import CallTracer
from sidecache.errors import SetupError

logger = logging.getLogger(__name__)

_SCOPE = "sidecache"
_ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Telemetry:
    """What a service is handed to speak about itself; no global provider is set.

    Use :meth:`start`.

    Attributes:
        service: e.g. sidecache-router.
        tracer: for spans inside a call (see tracing.child_span); a root span of it
            is sampled by the settings' ratio.
        calls: makes the span of each call at an edge.
        meter: for instruments.
    """

    def __init__(
        self,
        service: str,
        settings: TelemetrySettings,
        processor: SpanProcessor | None,
        reader: MetricReader | None,
        metric_exporter: CountingMetricExporter | None = None,
    ) -> None:
        self.service = service
        self._processor = processor
        self._metric_exporter = metric_exporter
        self._shutdown_timeout_s = settings.shutdown_timeout_s
        resource = Resource.create(
            {"service.name": service, "service.instance.id": str(uuid.uuid4())}
        )
        self.tracer = _tracer(resource, processor, TraceIdRatioBased(settings.trace_sample_ratio))
        self.calls = CallTracer(
            # It asks only for spans it has decided to record.
            _tracer(resource, processor, ALWAYS_ON),
            settings.trace_sample_ratio,
            recording=processor is not None,
            trust_caller=settings.trust_caller_sampling,
        )
        self._meters = MeterProvider(
            [reader] if reader is not None else [],
            resource=resource,
            # An exemplar costs each measurement more than it tells beside traces.
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
        )
        self.meter: Meter = self._meter(reader)
        self.meter.create_observable_counter(
            names.TELEMETRY_DROPPED,
            [self._observe_dropped],
            description="Spans and metric exports that no collector took",
        )

    @classmethod
    def start(
        cls,
        service: str,
        settings: TelemetrySettings,
        *,
        span_exporter: SpanExporter | None = None,
        metric_reader: MetricReader | None = None,
    ) -> "Telemetry":
        """Start what the settings ask for; without a collector nothing is exported.

        Args:
            service: the resource's service.name.
            settings: where to and how much.
            span_exporter: given each span as it ends, instead of a collector.
            metric_reader: reads the metrics, instead of a collector.

        Raises:
            SetupError: the endpoint is no http(s) URL.
        """
        endpoint = settings.otlp_endpoint or os.environ.get(_ENDPOINT_VARIABLE)
        processor: SpanProcessor | None = None
        metric_exporter = None
        if span_exporter is not None:
            processor = SimpleSpanProcessor(span_exporter)
        elif endpoint:
            processor = _span_queue(_checked(endpoint))
        if metric_reader is None and endpoint:
            metric_exporter = _metric_exporter(_checked(endpoint))
            metric_reader = PeriodicExportingMetricReader(
                metric_exporter, export_interval_millis=settings.metrics_interval_s * 1000
            )
        return cls(service, settings, processor, metric_reader, metric_exporter)

    @property
    def dropped_spans(self) -> int:
        """Spans that never reached the collector."""
        return self._processor.dropped if isinstance(self._processor, SpanQueue) else 0

    @property
    def failed_metric_exports(self) -> int:
        """Exports of metrics that the collector did not take."""
        return self._metric_exporter.failed if self._metric_exporter is not None else 0

    async def aclose(self) -> None:
        """Export what is left, for at most shutdown_timeout_s in all."""
        # A quarter is kept for breaking off what did not end in time.
        budget_s = self._shutdown_timeout_s * 0.75
        await _run_within(
            self._shutdown_timeout_s,
            [
                lambda: self._close_spans(budget_s),
                lambda: self._meters.shutdown(timeout_millis=budget_s * 1000),
            ],
        )
        if self.dropped_spans or self.failed_metric_exports:
            logger.info(
                "telemetry dropped: %d spans, %d metric exports",
                self.dropped_spans,
                self.failed_metric_exports,
            )

    def _meter(self, reader: MetricReader | None) -> Meter:
        if reader is None:
            return NoOpMeterProvider().get_meter(_SCOPE)
        meter = TallyMeter(_SCOPE, self._meters.get_meter(_SCOPE))
        read_by(reader, meter)
        return meter

    def _close_spans(self, timeout_s: float) -> None:
        if isinstance(self._processor, SpanQueue):
            self._processor.close(timeout_s)
        elif self._processor is not None:
            self._processor.shutdown()

    def _observe_dropped(self, _options: CallbackOptions) -> Sequence[Observation]:
        return [
            Observation(self.dropped_spans, {names.TELEMETRY_SIGNAL: "spans"}),
            Observation(self.failed_metric_exports, {names.TELEMETRY_SIGNAL: "metrics"}),
        ]


def _tracer(resource: Resource, processor: SpanProcessor | None, root: Sampler) -> Tracer:
    provider = TracerProvider(sampler=ParentBased(root), resource=resource, shutdown_on_exit=False)
    if processor is not None:
        provider.add_span_processor(processor)
    return provider.get_tracer(_SCOPE)


def _checked(endpoint: str) -> str:
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise SetupError(f"OTLP endpoint {endpoint!r}: give a URL such as http://localhost:4317")
    return endpoint


def _span_queue(endpoint: str) -> SpanQueue:
    _silence_exporters()
    return SpanQueue(OTLPSpanExporter(endpoint=endpoint), CollectorState(endpoint, "spans"))


def _metric_exporter(endpoint: str) -> CountingMetricExporter:
    _silence_exporters()
    return CountingMetricExporter(
        OTLPMetricExporter(endpoint=endpoint), CollectorState(endpoint, "metrics")
    )


def _silence_exporters() -> None:
    """A dead collector is counted, and said once; the exporters say it at every try."""
    logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)


async def _run_within(timeout_s: float, steps: Sequence[Callable[[], object]]) -> None:
    """Run blocking steps side by side, and leave behind what takes too long.

    Daemon threads, since an executor's would be joined when the process ends.
    """
    loop = asyncio.get_running_loop()
    deadline = monotonic() + timeout_s
    pending = []
    for step in steps:
        done = asyncio.Event()

        def work(step: Callable[[], object] = step, done: asyncio.Event = done) -> None:
            try:
                step()
            finally:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(done.set)

        threading.Thread(target=work, name="telemetry-close", daemon=True).start()
        pending.append(done)
    try:
        async with asyncio.timeout(max(0.0, deadline - monotonic())):
            for done in pending:
                await done.wait()
    except TimeoutError:
        logger.info("telemetry did not close within %.1f s", timeout_s)
