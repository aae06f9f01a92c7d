"""What a scope's index becomes when it outgrows a flat search."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Literal

from cache_svc.gpu.device import Gpu
from cache_svc.gpu.shortlists import GpuShortlister, build_cagra, build_flat, build_ivf
from cache_svc.ivf_index import IvfIndex
from cache_svc.shortlist_index import HalfMatrix, MakeShortlister, ShortlistIndex
from cache_svc.vector_index import DeviceFailed, VectorSource

_log = logging.getLogger(__name__)

LargeIndex = IvfIndex | ShortlistIndex
CheckStop = Callable[[], None]
# Makes an index of a source's vectors, of this dimension; raises BuildStopped where
# the given function does.
BuildLarge = Callable[[int, VectorSource, CheckStop], LargeIndex]
GpuKind = Literal["gpu_flat", "gpu_ivf", "gpu_cagra"]

_MAKERS: dict[GpuKind, Callable[[Gpu, HalfMatrix, CheckStop], GpuShortlister]] = {
    "gpu_flat": build_flat,
    "gpu_ivf": build_ivf,
    "gpu_cagra": build_cagra,
}


def on_cpu(dimension: int, source: VectorSource, check_stop: CheckStop) -> LargeIndex:
    """Inverted lists on the CPU."""
    return IvfIndex.build(dimension, source, check_stop=check_stop)


def on_gpu(kind: GpuKind, gpu: Gpu, least_rows: int) -> BuildLarge:
    """Indexes of this kind on the GPU, for sources of at least so many vectors."""
    return partial(on_device, partial(_MAKERS[kind], gpu), least_rows)


def on_device(
    make_shortlister: MakeShortlister,
    least_rows: int,
    dimension: int,
    source: VectorSource,
    check_stop: CheckStop,
) -> LargeIndex:
    """An index on a device, or on the CPU where the scope is small or the device fails.

    A scope whose index failed while it was searched is built on the CPU. The device is
    tried again when the scope has outgrown that.
    """
    failed = isinstance(source, ShortlistIndex) and source.failed
    if failed or len(source) < least_rows:
        return on_cpu(dimension, source, check_stop)
    try:
        return ShortlistIndex.build(source, make_shortlister, check_stop=check_stop)
    except DeviceFailed as error:
        _log.warning("an index of %d vectors is built on the CPU: %s", len(source), error.text)
        return on_cpu(dimension, source, check_stop)
