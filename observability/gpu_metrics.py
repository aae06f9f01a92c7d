"""How full and how busy a worker's GPUs are, as gauges."""

from collections.abc import Callable, Iterable
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

GPU_MEMORY_USED: Final = "sidecache.gpu.memory.used"
GPU_MEMORY_TOTAL: Final = "sidecache.gpu.memory.total"
GPU_UTILIZATION: Final = "sidecache.gpu.utilization"


class GpuMetrics:
    """Gauges that are read when metrics are exported.

    Args:
        read: bytes in use, bytes in all, and the busy share from 0 to 1; None: no GPU now.
    """

    def __init__(self, meter: Meter, read: Callable[[], tuple[int, int, float] | None]) -> None:
        for place, (name, unit, description) in enumerate(
            (
                (GPU_MEMORY_USED, "By", "GPU memory in use"),
                (GPU_MEMORY_TOTAL, "By", "GPU memory in all"),
                (GPU_UTILIZATION, "1", "Share of time in which a GPU computed"),
            )
        ):
            meter.create_observable_gauge(
                name, [_reader(read, place)], unit=unit, description=description
            )


def _reader(
    read: Callable[[], tuple[int, int, float] | None], place: int
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        figures = read()
        return [] if figures is None else [Observation(figures[place])]

    return observe
