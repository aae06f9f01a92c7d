"""The index of a large scope: inverted lists of half-precision vectors.

A search computes the cosine to the vectors of the few lists nearest to the query
(inverted file: Sivic and Zisserman, 2003; FAISS: Douze et al., 2024). How many
lists those must be depends on the data, so it is measured when the index is
built, on displaced vectors of its own, and not guessed.

Half precision keeps a cosine to within 5e-4 and takes half the memory, and half
the time, of float32 (docs/decisions/0010-large-scopes.md has the table).
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from cache_svc.entry import DuplicateId
from cache_svc.faiss_index import use_one_thread
from cache_svc.rw_lock import ReadersWriterLock
from cache_svc.vector_index import (
    Batch,
    Matrix,
    Neighbor,
    Vector,
    VectorSource,
    check_id,
    check_vector,
    checked_neighbors,
)

# Lists for n vectors: this times the square root of n, so that finding the nearest
# lists and scanning them cost about the same.
_LISTS_PER_ROOT = 4
# Training vectors a list; FAISS warns below 39, and more moved recall by nothing.
TRAINING_ROWS_PER_LIST = 40
_TRAINING_ROUNDS = 6
# Recall@1 that the number of lists searched is chosen for. The measurement is of
# QUERIES queries, so the target lies above the .99 that is promised.
TARGET_RECALL = 0.997
QUERIES = 1024
# Cosines of those queries to the vectors they are displaced from: where paraphrases lie.
_QUERY_COSINES = (0.85, 0.97)
# Below it a build on noisy vectors takes its own easy queries for all there are.
LEAST_LISTS_SEARCHED = 48


# Finds the place of an id, so that removing costs a microsecond and not a walk.
HASHTABLE = faiss.DirectMap.Hashtable  # type: ignore[attr-defined]  # its stubs miss it


class BuildStopped(Exception):
    """The build was told to stop."""


class IvfIndex:
    """A VectorIndex that looks where the neighbours are, and nowhere else.

    Made by :meth:`build` or from a snapshot; it cannot start empty, because its
    lists are learnt from vectors.

    Args:
        ivf: trained, with a hashtable as its direct map.
        ids: the ids in it; kept and changed.
        lists_searched: how many lists one search looks into.
    """

    __slots__ = ("_ids", "_ivf", "_lock", "_parameters", "dimension", "lists_searched")

    def __init__(self, ivf: Any, ids: set[int], lists_searched: int) -> None:
        self.dimension: int = ivf.d
        self.lists_searched = lists_searched
        self._ivf = ivf
        self._ids = ids
        self._lock = ReadersWriterLock()
        self._parameters = searching(lists_searched)

    @classmethod
    def build(
        cls,
        dimension: int,
        source: VectorSource,
        *,
        check_stop: Callable[[], None] = lambda: None,
    ) -> "IvfIndex":
        """Learn the lists from a sample of the source, fill them, measure how many to search.

        Takes one core for about a minute a million vectors. Deterministic for a source.

        Args:
            dimension: length of every vector.
            source: at least one vector, and nothing added meanwhile; what is removed
                meanwhile may or may not be in the result.
            check_stop: raises BuildStopped when the build is no longer wanted; called
                every second or so.
        """
        use_one_thread()
        random = np.random.default_rng(0)
        ivf = _trained(dimension, source, random, check_stop)
        measure = RecallMeasure(sampled(source, QUERIES, random), random)
        ids: set[int] = set()
        for batch in source.batches():
            check_stop()
            ivf.add_with_ids(batch.vectors, batch.ids)
            measure.see(batch)
            ids.update(batch.ids.tolist())  # bit by bit: searches need the interpreter too
        searched = measure.least_effort(
            lambda queries, lists: ivf.search(queries, 1, params=searching(lists))[1],
            lists_to_try(ivf.nlist),
        )
        return cls(ivf, ids, searched)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._ids

    def ids(self) -> set[int]:
        """A copy of the ids in the index."""
        with self._lock.reading():
            return set(self._ids)

    @contextmanager
    def unchanging(self) -> Iterator[Any]:
        """The FAISS index itself, while searches go on and changes wait."""
        with self._lock.reading():
            yield self._ivf

    def add(self, entry_id: int, vector: Vector) -> None:
        row = check_vector(vector, self.dimension)
        check_id(entry_id)
        with self._lock.writing():
            if entry_id in self._ids:
                raise DuplicateId(f"id {entry_id} is in the index already")
            use_one_thread()
            self._ivf.add_with_ids(row, np.array([entry_id], np.int64))
            self._ids.add(entry_id)

    def search(self, vector: Vector, k: int) -> list[Neighbor]:
        row = check_vector(vector, self.dimension)
        with self._lock.reading():
            if not self._ids:
                return []
            use_one_thread()
            scores, ids = self._ivf.search(row, min(k, len(self._ids)), params=self._parameters)
        return checked_neighbors(ids[0], scores[0])

    def remove(self, entry_ids: Collection[int]) -> int:
        with self._lock.writing():
            known = self._ids.intersection(entry_ids)
            if known:
                chosen = np.fromiter(known, np.int64, len(known))
                # The hashtable finds each id's place; other selectors walk all lists.
                self._ivf.remove_ids(faiss.IDSelectorArray(chosen))
                self._ids -= known
            return len(known)

    def batches(self) -> Iterator[Batch]:
        lists = self._ivf.invlists
        for number in range(self._ivf.nlist):
            with self._lock.reading():
                size = lists.list_size(number)
                if not size:
                    continue
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * self._ivf.code_size)
                vectors = codes.view(np.float16).reshape(size, self.dimension).astype(np.float32)
            # Rounding to half precision moved the norm; the next index checks it.
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            yield Batch(ids, vectors)


def _trained(
    dimension: int,
    source: VectorSource,
    random: np.random.Generator,
    check_stop: Callable[[], None],
) -> Any:
    """An empty IVF index whose lists are learnt from a sample of the source."""
    lists = suitable_lists(len(source))
    sample = sampled(source, TRAINING_ROWS_PER_LIST * lists, random)
    quantizer = faiss.IndexFlatIP(dimension)
    quantizer.add(_centroids(sample, lists, check_stop))
    ivf = faiss.IndexIVFScalarQuantizer(
        quantizer,
        dimension,
        quantizer.ntotal,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
        False,  # residuals would cost a decoding of their own for each list
    )
    ivf.train(sample[:1])  # it has its lists, and half precision nothing to learn
    ivf.set_direct_map_type(HASHTABLE)
    return ivf


def suitable_lists(rows: int) -> int:
    """How many lists so many vectors are spread over; at least one."""
    return max(1, round(min(_LISTS_PER_ROOT * math.sqrt(rows), rows / TRAINING_ROWS_PER_LIST)))


def sampled(source: VectorSource, rows: int, random: np.random.Generator) -> Matrix:
    """About ``rows`` vectors at most, drawn evenly, in the order of the source."""
    share = min(1.0, rows / len(source))
    drawn = [b.vectors[random.random(len(b.ids)) < share] for b in source.batches()]
    sample = np.concatenate(drawn) if drawn else np.empty((0, 0), np.float32)
    if not len(sample):  # so few that the dice left none
        sample = next(source.batches()).vectors
    return sample[:rows]


def _centroids(sample: Matrix, lists: int, check_stop: Callable[[], None]) -> Matrix:
    """Centres of about ``lists`` lists, by spherical k-means in two levels.

    Clusters first, then clusters within each in proportion to its size: seconds
    where one level takes minutes, at the same recall (decision 0010), and in steps
    short enough to stop between.
    """
    coarse = max(1, round(math.sqrt(lists)))
    index, _ = _k_means(sample, coarse)
    home = index.search(sample, 1)[1][:, 0]
    parts = []
    for cluster in range(coarse):
        check_stop()
        members = sample[home == cluster]
        if len(members):
            share = max(1, round(lists * len(members) / len(sample)))
            parts.append(_k_means(members, min(share, len(members)))[1])
    return np.concatenate(parts)


def _k_means(sample: Matrix, clusters: int) -> tuple[Any, Matrix]:
    """An index of the centres, and the centres, shape (clusters, dim)."""
    k_means = faiss.Kmeans(
        sample.shape[1],
        clusters,
        niter=_TRAINING_ROUNDS,
        spherical=True,
        seed=1,
        min_points_per_centroid=1,  # keeps FAISS from printing a warning
        max_points_per_centroid=4 * TRAINING_ROWS_PER_LIST,
    )
    k_means.train(sample)
    return k_means.index, np.asarray(k_means.centroids, np.float32)


Knn = Callable[..., tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]


class RecallMeasure:
    """How much must be searched to find the nearest neighbour.

    Its queries are vectors of the index, displaced: half of them in a random
    direction, half towards another vector. While the index is filled, every batch
    is compared with all of them, which tells each one's true nearest neighbour.

    Args:
        vectors: that the queries are made of.
        random: makes them.
        knn: compares, as faiss.knn does.
    """

    def __init__(self, vectors: Matrix, random: np.random.Generator, knn: Knn = faiss.knn) -> None:
        directions = random.standard_normal(vectors.shape).astype(np.float32)
        directions[::2] = vectors[random.permutation(len(vectors))][::2]
        cosines = random.uniform(*_QUERY_COSINES, size=(len(vectors), 1))
        self._queries = displaced(vectors, directions, cosines.astype(np.float32))
        self._knn = knn
        self._nearest = np.full(len(vectors), -1, np.int64)
        self._scores = np.full(len(vectors), -2.0, np.float32)

    def see(self, batch: Batch) -> None:
        """Compare every query with every vector of the batch."""
        metric = faiss.METRIC_INNER_PRODUCT
        scores, rows = self._knn(self._queries, batch.vectors, 1, metric=metric)
        nearer = scores[:, 0] > self._scores
        self._scores[nearer] = scores[nearer, 0]
        self._nearest[nearer] = batch.ids[rows[nearer, 0]]

    def least_effort(
        self, search: Callable[[Matrix, int], npt.NDArray[np.int64]], efforts: Iterable[int]
    ) -> int:
        """The first effort that reaches the target; the last one if none does.

        Args:
            search: the ids found for each query with an effort, shape (n, any).
            efforts: at least one, rising.
        """
        chosen = 0
        for chosen in efforts:
            found = search(self._queries, chosen)
            if np.mean((found == self._nearest[:, None]).any(axis=1)) >= TARGET_RECALL:
                break
        return chosen


def lists_to_try(lists: int) -> Iterator[int]:
    """How many of so many lists to search, from the fewest to all of them."""
    searched = min(LEAST_LISTS_SEARCHED, lists)
    while searched < lists:
        yield searched
        searched = min(searched * 3 // 2, lists)
    yield lists


def searching(lists: int) -> Any:
    """What tells FAISS to search so many lists."""
    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = lists
    return parameters


def displaced(vectors: Matrix, directions: Matrix, cosines: float | Matrix) -> Matrix:
    """Each vector turned towards its direction until it has this cosine to itself as it was.

    Args:
        vectors: unit norm by row, shape (n, dim).
        directions: of any length, shape (n, dim).
        cosines: one for all, or shape (n, 1).
    """
    along = np.sum(vectors * directions, axis=1, keepdims=True)
    aside = directions - along * vectors
    norms = np.linalg.norm(aside, axis=1, keepdims=True)
    aside = np.divide(aside, norms, out=np.zeros_like(aside), where=norms > 0)
    turned = cosines * vectors + np.sqrt(1 - np.square(cosines)) * aside
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    unit: Matrix = turned.astype(np.float32)
    return unit
