"""Three ways to find near rows on a GPU: all of them, inverted lists, a graph.

FAISS (Douze et al., 2024) on CUDA; the graph is CAGRA (Ootomo et al., 2024) of NVIDIA's
cuVS. All keep the vectors in half precision, which halves memory and time; what it
loses is made good where the similarities are computed (shortlist_index.py).
"""

from collections.abc import Callable, Iterator
from functools import partial
from threading import Lock
from typing import Any

import faiss
import numpy as np

from cache_svc.gpu.device import FIXED_BYTES, Gpu, failures_told
from cache_svc.ivf_index import (
    QUERIES,
    TRAINING_ROWS_PER_LIST,
    RecallMeasure,
    lists_to_try,
    searching,
    suitable_lists,
)
from cache_svc.shortlist_index import HalfMatrix, Positions
from cache_svc.vector_index import Batch, Matrix

# FAISS's stubs are those of its CPU build.
cuda: Any = faiss

# Largest k of FAISS's searches on a GPU, and of lists searched at once.
_MOST = 2048
# What is handed over at once; well under what the GPU must have free before a build.
_BLOCK_BYTES = 256 << 20
_TRAINING_ROUNDS = 10
# What inverted lists take beyond their vectors: 64-bit ids, lists that are not full.
_LISTS_SLACK = 1.8
# Neighbours of a row in the graph that is searched, and in the one it is pruned from.
_GRAPH_DEGREE = 32
_FIRST_GRAPH_DEGREE = 64
# Under so many rows a graph is not worth building: all are searched.
GRAPH_LEAST_ROWS = 1024
# Results that a walk through the graph keeps while it searches, from few to many.
_GRAPH_EFFORTS = (64, 96, 128, 192, 256, 384, 512)
_SINGLE_BYTES = 4
_ID_BYTES = 8
_LINK_BYTES = 4


class GpuShortlister:
    """A Shortlister on a GPU; one search at a time.

    Args:
        gpu: where it is; counts its bytes.
        size: about what it will hold there.
        most: the largest ``k``.
    """

    def __init__(self, gpu: Gpu, size: int, most: int = _MOST) -> None:
        gpu.reserve(self, size + FIXED_BYTES)
        self.most = most
        self.effort = 0
        self.resources = gpu.resources()
        self._search: Callable[[Matrix, int, int], Positions] | None = None
        self._lock = Lock()

    def searched_by(self, search: Callable[[Matrix, int, int], Positions], effort: int) -> None:
        """From now on this answers: a function of queries, k and effort."""
        self._search, self.effort = search, effort

    def shortlist(self, queries: Matrix, k: int) -> Positions:
        search = self._search
        if search is None:
            raise RuntimeError("the shortlister is not built yet")
        with self._lock, failures_told():
            return search(queries, k, self.effort)


def build_flat(gpu: Gpu, rows: HalfMatrix, check_stop: Callable[[], None]) -> GpuShortlister:
    """Compare with every row: exact but for the half precision.

    Raises:
        DeviceFailed: there is no memory for it.
    """
    shortlister = GpuShortlister(gpu, rows.nbytes)
    config = gpu.configured(cuda.GpuIndexFlatConfig())
    config.useFloat16 = True
    with failures_told():
        index = cuda.GpuIndexFlatIP(shortlister.resources, rows.shape[1], config)
        for batch in _blocks(rows, check_stop):
            index.add(batch.vectors)
    shortlister.searched_by(lambda queries, k, _effort: index.search(queries, k)[1], 0)
    return shortlister


def build_ivf(gpu: Gpu, rows: HalfMatrix, check_stop: Callable[[], None]) -> GpuShortlister:
    """Compare with the rows of the nearest lists; how many is measured, as on the CPU.

    Raises:
        DeviceFailed: there is no memory for it.
    """
    lists = suitable_lists(len(rows))
    shortlister = GpuShortlister(gpu, round(rows.nbytes * _LISTS_SLACK) + _ID_BYTES * len(rows))
    random = np.random.default_rng(0)
    with failures_told():
        index = cuda.GpuIndexIVFScalarQuantizer(
            shortlister.resources,
            rows.shape[1],
            lists,
            faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT,
            False,  # residuals would gain nothing: half precision is not learnt
            gpu.configured(cuda.GpuIndexIVFScalarQuantizerConfig()),
        )
        index.cp.niter, index.cp.spherical = _TRAINING_ROUNDS, True
        index.cp.min_points_per_centroid = 1  # keeps FAISS from printing a warning
        index.train(_sample(rows, TRAINING_ROWS_PER_LIST * lists, random))
        measure = _measure(gpu, shortlister, rows, random)
        for batch in _blocks(rows, check_stop):
            index.add(batch.vectors)
            measure.see(batch)

        def search(queries: Matrix, k: int, effort: int) -> Positions:
            found: Positions = index.search(queries, k, params=searching(effort))[1]
            return found

        efforts = lists_to_try(min(lists, _MOST))
        effort = measure.least_effort(lambda queries, lists: search(queries, 1, lists), efforts)
    shortlister.searched_by(search, effort)
    return shortlister


def build_cagra(gpu: Gpu, rows: HalfMatrix, check_stop: Callable[[], None]) -> GpuShortlister:
    """Walk a graph of neighbours; how far is measured. It cannot be stopped while built.

    Raises:
        DeviceFailed: there is no memory for it.
    """
    if len(rows) < GRAPH_LEAST_ROWS:
        return build_flat(gpu, rows, check_stop)
    links = _LINK_BYTES * (_GRAPH_DEGREE + _FIRST_GRAPH_DEGREE)
    most = _GRAPH_EFFORTS[-1]
    shortlister = GpuShortlister(gpu, rows.nbytes + links * len(rows), most)
    random = np.random.default_rng(0)
    config = gpu.configured(cuda.GpuIndexCagraConfig())
    config.graph_degree = _GRAPH_DEGREE
    config.intermediate_graph_degree = _FIRST_GRAPH_DEGREE
    config.build_algo = cuda.graph_build_algo_NN_DESCENT
    with failures_told():
        # The distance of unit vectors falls as their cosine rises.
        metric = faiss.METRIC_L2
        index = cuda.GpuIndexCagra(shortlister.resources, rows.shape[1], metric, config)
        index.train(rows, numeric_type=cuda.Float16)
        measure = _measure(gpu, shortlister, rows, random)
        for batch in _blocks(rows, check_stop):
            measure.see(batch)

        def search(queries: Matrix, k: int, effort: int) -> Positions:
            parameters = cuda.SearchParametersCagra()
            parameters.itopk_size = max(effort, k)
            halved = queries.astype(np.float16)
            found: Positions = index.search(
                halved, k, params=parameters, numeric_type=cuda.Float16
            )[1]
            return found

        effort = measure.least_effort(
            lambda queries, kept: search(queries, 1, kept), _GRAPH_EFFORTS
        )
    shortlister.searched_by(search, effort)
    return shortlister


def _measure(
    gpu: Gpu, shortlister: GpuShortlister, rows: HalfMatrix, random: np.random.Generator
) -> RecallMeasure:
    """A measure of recall whose truth the GPU finds."""
    knn: Any = partial(cuda.knn_gpu, shortlister.resources, device=gpu.device)
    return RecallMeasure(_sample(rows, QUERIES, random), random, knn)


def _sample(rows: HalfMatrix, count: int, random: np.random.Generator) -> Matrix:
    """So many rows at most, drawn evenly."""
    drawn = random.choice(len(rows), min(count, len(rows)), replace=False)
    return _unit(rows[np.sort(drawn)])


def _blocks(rows: HalfMatrix, check_stop: Callable[[], None]) -> Iterator[Batch]:
    """All rows, a block at a time, under their positions."""
    at_once = max(1, _BLOCK_BYTES // (_SINGLE_BYTES * rows.shape[1]))
    for start in range(0, len(rows), at_once):
        check_stop()
        block = rows[start : start + at_once]
        yield Batch(np.arange(start, start + len(block)), _unit(block))


def _unit(rows: HalfMatrix) -> Matrix:
    vectors = rows.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
