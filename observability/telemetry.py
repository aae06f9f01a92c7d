"""One service's tracer, meter and logs, with a shutdown that cannot hang."""

from dataclasses import dataclass

from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Tracer

from observability.settings import TelemetrySettings
from observability.tracing import CallTracer

_SCOPE = "sidecache"


@dataclass(frozen=True)
class Telemetry:
    """What a service is handed to speak about itself; no global provider is set.

    Attributes:
        service: e.g. sidecache-router.
        tracer: for spans inside a call; roots are sampled by the settings' ratio.
        calls: makes the span of each call at an edge.
        meter: for instruments.
    """

    service: str
    tracer: Tracer
    calls: CallTracer
    meter: Meter

    @classmethod
    def start(
        cls,
        service: str,
        settings: TelemetrySettings,
        *,
        span_exporter: SpanExporter | None = None,
        metric_reader: MetricReader | None = None,
    ) -> "Telemetry":
        """Start what the settings ask for; exporter and reader override them in tests."""
        resource = Resource.create({"service.name": service})
        processor = SimpleSpanProcessor(span_exporter) if span_exporter else None

        def tracer(root: Sampler) -> Tracer:
            provider = TracerProvider(
                sampler=ParentBased(root), resource=resource, shutdown_on_exit=False
            )
            if processor is not None:
                provider.add_span_processor(processor)
            return provider.get_tracer(_SCOPE)

        meters = MeterProvider(
            [metric_reader] if metric_reader else [],
            resource=resource,
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
        )
        return cls(
            service,
            tracer(TraceIdRatioBased(settings.trace_sample_ratio)),
            CallTracer(
                # It asks only for spans it has decided to record.
                tracer(ALWAYS_ON),
                settings.trace_sample_ratio,
                recording=processor is not None,
                trust_caller=settings.trust_caller_sampling,
            ),
            meters.get_meter(_SCOPE),
        )

    async def aclose(self) -> None:
        """Export what is left, for at most shutdown_timeout_s."""
