"""The flat index on FAISS: every unit vector is compared, in half precision, in segments.

FAISS is guarded on every side it is known to be weak on: a change while
another thread searches crashes the process, duplicate ids are accepted, missing
results come back as id -1, and damaged memory comes back as a score.
"""

import heapq
from collections.abc import Collection, Iterator
from threading import Lock

import faiss
import numpy as np

from cache_svc.entry import DuplicateId
from cache_svc.rw_lock import ReadersWriterLock
from cache_svc.vector_index import (
    Batch,
    Neighbor,
    Vector,
    check_id,
    check_vector,
    checked_neighbors,
)

# Rows of one segment. It bounds how long one call holds a lock: growing or
# compacting a single flat index of 100,000 rows stalls for milliseconds.
SEGMENT_ROWS = 2048
# Memory kept for this many times the rows there are, before it is given back.
_MAX_SLACK = 2


class FaissSegment:
    """One flat FAISS index behind a readers-writer lock."""

    __slots__ = ("_ids", "_index", "_lock", "_peak", "dimension")

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        # Half precision: half the memory, as quick, cosines right to 5e-4.
        half = faiss.ScalarQuantizer.QT_fp16
        flat = faiss.IndexScalarQuantizer(dimension, half, faiss.METRIC_INNER_PRODUCT)
        self._index = faiss.IndexIDMap(flat)
        self._ids: set[int] = set()
        self._lock = ReadersWriterLock()
        self._peak = 0  # rows there is memory for; FAISS gives none of it back

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._ids

    def add(self, entry_id: int, vector: Vector) -> None:
        row = check_vector(vector, self.dimension)
        check_id(entry_id)
        with self._lock.writing():
            if entry_id in self._ids:
                raise DuplicateId(f"id {entry_id} is in the index already")
            self._index.add_with_ids(row, np.array([entry_id], np.int64))
            self._ids.add(entry_id)
            self._peak = max(self._peak, len(self._ids))

    def search(self, vector: Vector, k: int) -> list[Neighbor]:
        row = check_vector(vector, self.dimension)
        with self._lock.reading():
            if not self._ids:
                return []
            use_one_thread()
            scores, ids = self._index.search(row, min(k, len(self._ids)))
        return checked_neighbors(ids[0], scores[0])

    def remove(self, entry_ids: Collection[int]) -> int:
        with self._lock.writing():
            known = self._ids.intersection(entry_ids)
            if known:
                chosen = np.fromiter(known, np.int64, len(known))
                self._index.remove_ids(faiss.IDSelectorBatch(chosen))
                self._ids -= known
                if self._peak > _MAX_SLACK * len(self._ids):
                    self._compact()
            return len(known)

    def batches(self) -> Iterator[Batch]:
        """All rows, copied under the lock, as one batch; none when there are none."""
        with self._lock.reading():
            if not self._ids:
                return
            ids = faiss.vector_to_array(self._index.id_map)
            vectors = self._index.index.reconstruct_n(0, self._index.ntotal)
        yield Batch(ids, vectors)

    def _compact(self) -> None:
        """Copy what is left into an index of its own size."""
        left = faiss.IndexIDMap(faiss.IndexFlatIP(self.dimension))
        vectors = self._index.index.reconstruct_n(0, self._index.ntotal)
        left.add_with_ids(vectors, faiss.vector_to_array(self._index.id_map))
        self._index, self._peak = left, len(self._ids)


class FaissIndex:
    """Flat FAISS segments searched one after another: exact, and cheap to change.

    A search sees each segment as it is when it gets there, so an entry added or
    removed meanwhile may or may not be among its results; the store decides
    whether a result still exists.
    """

    __slots__ = ("_changing", "_home", "_segment_rows", "_segments", "dimension")

    def __init__(self, dimension: int, *, segment_rows: int = SEGMENT_ROWS) -> None:
        self.dimension = dimension
        self._segment_rows = segment_rows
        # Replaced, never changed in place: a search walks the tuple it took.
        self._segments: tuple[FaissSegment, ...] = ()
        self._home: dict[int, FaissSegment] = {}
        self._changing = Lock()

    def __len__(self) -> int:
        return len(self._home)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._home

    def add(self, entry_id: int, vector: Vector) -> None:
        with self._changing:
            if entry_id in self._home:
                raise DuplicateId(f"id {entry_id} is in the index already")
            segment = self._segment_with_room()
            if segment is not None:
                segment.add(entry_id, vector)
            else:
                # A new segment joins only once its first vector was accepted.
                segment = FaissSegment(self.dimension)
                segment.add(entry_id, vector)
                self._segments = (*self._segments, segment)
            self._home[entry_id] = segment

    def search(self, vector: Vector, k: int) -> list[Neighbor]:
        segments = self._segments
        if len(segments) == 1:
            return segments[0].search(vector, k)
        if not segments:
            check_vector(vector, self.dimension)
            return []
        found = (neighbor for s in segments for neighbor in s.search(vector, k))
        return heapq.nlargest(k, found, key=lambda neighbor: neighbor.similarity)

    def remove(self, entry_ids: Collection[int]) -> int:
        with self._changing:
            parts: dict[FaissSegment, list[int]] = {}
            for entry_id in entry_ids:
                segment = self._home.pop(entry_id, None)
                if segment is not None:
                    parts.setdefault(segment, []).append(entry_id)
            removed = sum(segment.remove(ids) for segment, ids in parts.items())
            if any(not len(segment) for segment in parts):
                self._segments = tuple(s for s in self._segments if len(s))
            return removed

    def batches(self) -> Iterator[Batch]:
        """Every vector, a segment at a time."""
        for segment in self._segments:
            yield from segment.batches()

    def _segment_with_room(self) -> FaissSegment | None:
        """The first segment that is not full: holes left by evictions fill up again."""
        return next((s for s in self._segments if len(s) < self._segment_rows), None)


def use_one_thread() -> None:
    """Keep OpenMP out of this thread's search.

    OpenMP's setting belongs to the thread that makes it, so every search makes it
    (0.2 us). Without it two searches side by side take five times as long as one
    after the other, and ten times the CPU.
    """
    faiss.omp_set_num_threads(1)
