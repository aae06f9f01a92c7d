"""How full and how busy the GPUs are, as NVIDIA's management library says (NVML).

Optional: without nvidia-ml-py, without its driver, or without a GPU there are no figures.
"""

from collections.abc import Sequence
from typing import Any

from inference_svc.engine import GpuFigures


class GpuMeter:
    """Asks the driver; cheap enough for every call of GetLoad (some 20 µs a GPU).

    Args:
        indices: the GPUs to look at; None: all of them.
    """

    def __init__(self, indices: Sequence[int] | None = None) -> None:
        self._nvml, self._handles = _open(indices)

    def read(self) -> GpuFigures | None:
        """The figures now; None where there is nothing to ask."""
        if not self._handles:
            return None
        try:
            memory = [self._nvml.nvmlDeviceGetMemoryInfo(each) for each in self._handles]
            rates = [self._nvml.nvmlDeviceGetUtilizationRates(each).gpu for each in self._handles]
        except self._nvml.NVMLError:
            return None
        return GpuFigures(
            used_bytes=sum(int(each.used) for each in memory),
            total_bytes=sum(int(each.total) for each in memory),
            utilization=sum(rates) / len(rates) / 100,
        )

    def close(self) -> None:
        """Let go of the driver. Safe to call twice."""
        if self._handles:
            self._handles = []
            self._nvml.nvmlShutdown()


def _open(indices: Sequence[int] | None) -> tuple[Any, list[Any]]:
    try:
        import pynvml  # noqa: PLC0415 - optional
    except ImportError:
        return None, []
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        chosen = range(count) if indices is None else [each for each in indices if each < count]
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(each) for each in chosen]
    except pynvml.NVMLError:
        return pynvml, []
