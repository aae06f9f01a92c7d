"""Near rows found on a GPU; skipped where there is none."""

import threading
from functools import partial

import numpy as np
import pytest

from cache_svc.faiss_index import FaissIndex
from cache_svc.gpu.device import FIXED_BYTES, Gpu
from cache_svc.gpu.shortlists import GRAPH_LEAST_ROWS
from cache_svc.large_index import _MAKERS, GpuKind
from cache_svc.shortlist_index import ShortlistIndex
from cache_svc.vector_index import SIMILARITY_TOLERANCE, DeviceFailed
from sidecache.errors import SetupError
from tests.fixtures.shortlists import GIB, NO_GPU, shared_gpu
from tests.unit.cache_svc.test_growing_index import DIMENSION, clustered, filled, queries_near

needs_gpu = pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)
KINDS: list[GpuKind] = ["gpu_flat", "gpu_ivf", "gpu_cagra"]
ROWS = 20_000
assert ROWS > GRAPH_LEAST_ROWS


def build(kind: GpuKind, source: FaissIndex, gpu: Gpu | None = None) -> ShortlistIndex:
    return ShortlistIndex.build(source, partial(_MAKERS[kind], gpu or shared_gpu()))


@pytest.fixture(scope="module")
def flat() -> FaissIndex:
    index = FaissIndex(DIMENSION)
    filled(index, clustered(ROWS))
    return index


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_recall(kind: GpuKind, flat: FaissIndex) -> None:
    """Of 400 paraphrase-like queries 99 % find their nearest of 20,000, with its cosine."""
    index = build(kind, flat)
    queries = queries_near(clustered(ROWS)[:400])
    pairs = [(flat.search(q, 1)[0], index.search(q, 1)[0]) for q in queries]
    assert np.mean([truth.id == found.id for truth, found in pairs]) >= 0.99
    for truth, found in pairs:
        if truth.id == found.id:
            assert found.similarity == pytest.approx(truth.similarity, abs=SIMILARITY_TOLERANCE)
    many = index.search_many(queries[:32], 4)
    assert [found[0].id for found in many] == [index.search(q, 4)[0].id for q in queries[:32]]


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_removed_rows_are_never_found(kind: GpuKind, flat: FaissIndex) -> None:
    """What was removed since the build is skipped, what arrived is found."""
    vectors = clustered(ROWS)
    index = build(kind, flat)
    near = [neighbor.id for neighbor in index.search(vectors[5], 100)]
    assert index.remove(near) == len(near)
    assert not set(near) & {neighbor.id for neighbor in index.search(vectors[5], 100)}
    index.add(ROWS, vectors[5])
    assert index.search(vectors[5], 1)[0].id == ROWS


@needs_gpu
def test_one_index_is_searched_while_others_are_built(flat: FaissIndex) -> None:
    """Every index has resources of its own: a build beside searches breaks neither."""
    vectors = clustered(ROWS)
    serving = build("gpu_flat", flat)
    done = threading.Event()
    wrong: list[int] = []

    def search() -> None:
        number = 0
        while not done.is_set():
            number = (number + 1) % ROWS
            if serving.search(vectors[number], 1)[0].id != number:
                wrong.append(number)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    built = [build(kind, flat) for kind in KINDS for _ in range(2)]
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(index.search(vectors[9], 1)[0].id == 9 for index in built)


@needs_gpu
def test_the_bound_on_gpu_memory_holds(flat: FaissIndex) -> None:
    """An index past the operator's bound is not built; a dropped one gives its part back."""
    gpu = Gpu.open(0, FIXED_BYTES + 2 * DIMENSION * ROWS)
    first = build("gpu_flat", flat, gpu)
    with pytest.raises(DeviceFailed, match="max_bytes"):
        build("gpu_flat", flat, gpu)
    assert len(first) == ROWS
    del first
    assert gpu.taken_bytes == 0
    assert len(build("gpu_flat", flat, gpu)) == ROWS


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_without_memory_is_an_error_that_can_be_caught(
    kind: GpuKind, flat: FaissIndex
) -> None:
    """Somebody else took the GPU's memory: the build is not begun, and the process lives on.

    FAISS would end the process here.
    """
    torch = pytest.importorskip("torch")
    held = []
    try:
        with pytest.raises(torch.OutOfMemoryError):
            while True:
                held.append(torch.empty(GIB // 2, dtype=torch.uint8, device="cuda"))
        with pytest.raises(DeviceFailed, match="has left"):
            build(kind, flat)
    finally:
        held.clear()
        torch.cuda.empty_cache()
    assert len(build(kind, flat)) == ROWS


def test_room_is_asked_for_before_anything_is_made() -> None:
    """Without enough free memory nothing is reserved; with it, the owner's life counts."""

    class Owner:
        pass

    free = [GIB]
    gpu = Gpu(0, 8 * GIB, free_bytes=lambda _device: free[0])
    owner = Owner()
    with pytest.raises(DeviceFailed, match=f"the {GIB} bytes that GPU 0 has left"):
        gpu.reserve(owner, 1)
    assert gpu.taken_bytes == 0
    free[0] = 100 * GIB
    gpu.reserve(owner, 5 * GIB)
    with pytest.raises(DeviceFailed, match="max_bytes"):
        gpu.reserve(Owner(), 4 * GIB)
    assert gpu.taken_bytes == 5 * GIB
    del owner
    assert gpu.taken_bytes == 0


@needs_gpu
def test_a_gpu_that_is_not_there() -> None:
    """A device number beyond what CUDA sees is a clear error at the start."""
    with pytest.raises(SetupError, match=r"gpu\.device is 40"):
        Gpu.open(40, GIB)


@pytest.mark.skipif(not NO_GPU, reason="there is a GPU")
def test_without_a_gpu_the_setting_is_refused() -> None:
    """Asking for a GPU index where there is none says what to install or set instead."""
    with pytest.raises(SetupError, match=r"semantic\.index to ivf or flat"):
        Gpu.open(0, GIB)
