"""One GPU and what indexes may take of it."""

import ctypes
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import faiss
import numpy as np

from cache_svc.vector_index import DeviceFailed
from sidecache.errors import SetupError

_log = logging.getLogger(__name__)

# Scratch memory of one index; beyond it FAISS allocates and frees, which is slower.
_TEMP_BYTES = 32 << 20
# What one index takes before its first vector: scratch memory, streams, and the
# workspaces of its handles (measured on an H100).
FIXED_BYTES = 112 << 20
# What must be free beyond the index itself before it is built. Where CUDA cannot make a
# handle or a stream, FAISS ends the process instead of raising, so it must not get there.
_HEADROOM_BYTES = 1 << 30
_TRIAL_DIMENSION = 32


class Gpu:
    """One GPU, shared by all indexes of a sidecar. Open it with :meth:`open`.

    FAISS on a GPU is unsafe even for searches side by side. Every index therefore
    has resources (streams, handles, scratch memory) and a lock of its own, so that
    one can be searched while another is built.

    Args:
        device: as CUDA counts them.
        max_bytes: bound on what all indexes together hold there, as estimated
            before each is built.
        free_bytes: how much of the GPU's memory nobody has.
    """

    def __init__(
        self, device: int, max_bytes: int, free_bytes: Callable[[int], int] | None = None
    ) -> None:
        self.device = device
        self.max_bytes = max_bytes
        self._free_bytes = free_bytes or free_bytes_of
        self._taken = 0
        self._lock = Lock()

    @classmethod
    def open(cls, device: int, max_bytes: int, *, graph: bool = False) -> "Gpu":
        """Take the GPU into use, once it has answered a search.

        Args:
            device: as CUDA counts them.
            max_bytes: bound on what indexes hold there.
            graph: whether CAGRA is wanted, which needs a FAISS with cuVS.

        Raises:
            SetupError: FAISS has no GPU part, or there is no such GPU, or it does not work.
        """
        needed = "GpuIndexCagra" if graph else "GpuIndexFlat"
        if not hasattr(faiss, needed):
            raise SetupError(
                f"the installed faiss has no {needed}; in an environment without faiss-cpu run: "
                "pip install 'sidecache[gpu]' (Python 3.12), or set semantic.index to ivf or flat"
            )
        found = faiss.get_num_gpus()
        if device >= found:
            raise SetupError(
                f"semantic.gpu.device is {device}, CUDA sees {found} GPUs; check nvidia-smi and "
                "CUDA_VISIBLE_DEVICES, or set semantic.index to ivf or flat"
            )
        gpu = cls(device, max_bytes)
        gpu._try_out()
        return gpu

    @property
    def taken_bytes(self) -> int:
        """What living indexes reserved."""
        return self._taken

    def reserve(self, owner: object, size: int) -> None:
        """Count ``size`` bytes for as long as the owner lives.

        Raises:
            DeviceFailed: they would pass the bound, or the GPU has not so many left.
        """
        self.check_room(size)
        with self._lock:
            if self._taken + size > self.max_bytes:
                raise DeviceFailed(
                    f"an index of {size} bytes would pass semantic.gpu.max_bytes {self.max_bytes}, "
                    f"of which {self._taken} are taken"
                )
            self._taken += size
        weakref.finalize(owner, self._give_back, size)

    def check_room(self, size: int) -> None:
        """Whether so many bytes can be taken without coming near the end of the memory.

        Raises:
            DeviceFailed: they cannot.
        """
        free = self._free_bytes(self.device)
        if free < size + _HEADROOM_BYTES:
            raise DeviceFailed(
                f"an index of {size} bytes and {_HEADROOM_BYTES} to spare do not fit the "
                f"{free} bytes that GPU {self.device} has left"
            )

    def resources(self) -> Any:
        """FAISS's resources for one index: scratch memory is taken, pinned memory is not.

        Raises:
            DeviceFailed: the GPU has no memory for them.
        """
        with failures_told():
            resources = faiss.StandardGpuResources()
            resources.setTempMemory(_TEMP_BYTES)
            resources.setPinnedMemory(0)
            return resources

    def configured(self, config: Any) -> Any:
        """The configuration of an index, pointed at this GPU."""
        config.device = self.device
        return config

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._taken -= size

    def _try_out(self) -> None:
        vectors = np.eye(_TRIAL_DIMENSION, dtype=np.float32)
        try:
            self.check_room(FIXED_BYTES)
            config = self.configured(faiss.GpuIndexFlatConfig())
            index = faiss.GpuIndexFlatIP(self.resources(), _TRIAL_DIMENSION, config)
            with failures_told():
                index.add(vectors)
                found = index.search(vectors, 1)[1][:, 0]
        except DeviceFailed as error:
            raise SetupError(f"GPU {self.device} does not work: {error.text}") from error
        if found.tolist() != list(range(_TRIAL_DIMENSION)):
            raise SetupError(f"GPU {self.device} returned wrong results of a trial search")
        _log.info("GPU %d is used for large scopes", self.device)


def free_bytes_of(device: int) -> int:
    """Memory of a GPU that no process has; FAISS itself does not tell.

    Raises:
        DeviceFailed: CUDA does not answer.
    """
    try:
        # The library that FAISS has loaded.
        cuda = ctypes.CDLL("libcudart.so.13")
    except OSError as error:
        raise DeviceFailed(f"CUDA's runtime cannot be asked: {error}") from error
    before, free, total = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t()
    failed = cuda.cudaGetDevice(ctypes.byref(before)) or cuda.cudaSetDevice(device)
    failed = failed or cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    cuda.cudaSetDevice(before)
    if failed:
        raise DeviceFailed(f"CUDA answers with error {failed} when asked for free memory")
    return free.value


@contextmanager
def failures_told() -> Iterator[None]:
    """FAISS tells everything, no memory above all, as a RuntimeError.

    Raises:
        DeviceFailed: in its place.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # The first line has the reason; the rest is where in FAISS it was noticed.
        reason = next(iter(str(error).splitlines()), "")[:300]
        raise DeviceFailed(f"the GPU failed: {reason}") from error
