"""GPU figures where there is no GPU, and how they become metrics."""

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from inference_svc.engines.gpu_memory import GpuMeter
from observability.gpu_metrics import GPU_MEMORY_USED, GPU_UTILIZATION, GpuMetrics


def test_without_a_gpu_there_are_no_figures() -> None:
    """Neither a missing package nor a missing driver is an error."""
    meter = GpuMeter()
    figures = meter.read()
    assert figures is None or figures.used_bytes <= figures.total_bytes
    meter.close()
    meter.close()
    assert meter.read() is None


def test_figures_become_gauges() -> None:
    """Bytes and shares as read at export, and nothing where there is no GPU."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    figures: list[tuple[int, int, float] | None] = [(3, 8, 0.5)]
    GpuMetrics(provider.get_meter("test"), lambda: figures[0])
    assert _values(reader)[GPU_MEMORY_USED] == 3
    assert _values(reader)[GPU_UTILIZATION] == 0.5
    figures[0] = None
    assert not _values(reader)
    provider.shutdown()


def _values(reader: InMemoryMetricReader) -> dict[str, float]:
    data = reader.get_metrics_data()
    return {
        metric.name: point.value
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    }
