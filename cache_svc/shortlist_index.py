"""The index of a large scope whose search runs elsewhere, say on a GPU.

Somebody else names a few rows that may be near; what is near is decided here. The
vectors stay in the host's memory in half precision, and every similarity that is
returned was computed from them. So a device that fails, forgets or returns noise
costs recall and never a wrong score, and the index can be rebuilt without it.

What the device holds never changes. Vectors that arrive later are kept in a flat
index at the side, removed ones are skipped, and the index says that it is worn when
it has gathered too many of both, so that its owner builds it anew.
"""

import heapq
from collections.abc import Callable, Collection, Iterator
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cache_svc.entry import DuplicateId
from cache_svc.faiss_index import FaissIndex
from cache_svc.vector_index import (
    Batch,
    DeviceFailed,
    Matrix,
    Neighbor,
    Vector,
    VectorSource,
    check_id,
    check_vector,
    checked_neighbors,
)

# float16, shape (n, dim); of unit norm but for the rounding.
HalfMatrix = npt.NDArray[np.float16]
Positions = npt.NDArray[np.int64]

# More rows are asked for than are wanted: half precision on the device may swap
# near ones, and some may be removed.
_SPARE_ROWS = 4
# When too few of those asked for are left, so many times as many are asked for.
_WIDER = 4
# Vectors at the side, or removed ones, that an index may have before it is worn: at
# least so many, and this part of its rows. The side is searched in 0.15 ms then.
_LEAST_WORN_ROWS = 4096
_WORN_SHARE = 1 / 128
_BLOCK_ROWS = 8192


class Shortlister(Protocol):
    """Names rows that may be near a query. Safe to use from several threads at once."""

    @property
    def most(self) -> int:
        """The largest ``k``."""
        ...

    def shortlist(self, queries: Matrix, k: int) -> Positions:
        """Rows near each query, in any order, shape (len(queries), k); others are ignored.

        A row number that no row has, such as -1, stands for nothing.

        Raises:
            DeviceFailed: the device has no memory, or broke.
        """
        ...


MakeShortlister = Callable[[HalfMatrix, Callable[[], None]], Shortlister]


class ShortlistIndex:
    """A VectorIndex that computes similarities of the rows that a shortlister names.

    Made by :meth:`build`.

    Args:
        ids: of the rows, distinct, shape (n,).
        rows: never changed.
        shortlister: knows the same rows by their positions.
    """

    __slots__ = (
        "_alive",
        "_changing",
        "_fresh",
        "_ids",
        "_places",
        "_rows",
        "_shortlister",
        "_worn_rows",
        "dimension",
        "failed",
    )

    def __init__(self, ids: Positions, rows: HalfMatrix, shortlister: Shortlister) -> None:
        self.dimension: int = rows.shape[1]
        self.failed = False
        self._ids = ids
        self._rows = rows
        self._shortlister = shortlister
        self._alive = np.ones(len(ids), np.bool_)
        self._places = dict(zip(ids.tolist(), range(len(ids)), strict=True))
        self._fresh = FaissIndex(self.dimension)
        self._changing = Lock()
        self._worn_rows = max(_LEAST_WORN_ROWS, len(ids) * _WORN_SHARE)

    @classmethod
    def build(
        cls,
        source: VectorSource,
        make_shortlister: MakeShortlister,
        *,
        check_stop: Callable[[], None] = lambda: None,
    ) -> "ShortlistIndex":
        """Copy the source's vectors and hand them to the device.

        Args:
            source: at least one vector, and nothing added meanwhile; what is removed
                meanwhile may or may not be in the result.
            make_shortlister: given the rows and ``check_stop``.
            check_stop: raises BuildStopped when the build is no longer wanted.

        Raises:
            DeviceFailed: the device has no memory for it, or broke.
        """
        ids, rows = [], []
        for batch in source.batches():
            check_stop()
            ids.append(batch.ids)
            rows.append(batch.vectors.astype(np.float16))
        whole = np.concatenate(rows)
        del rows
        return cls(np.concatenate(ids), whole, make_shortlister(whole, check_stop))

    def __len__(self) -> int:
        return len(self._places) + len(self._fresh)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._places or entry_id in self._fresh

    @property
    def worn(self) -> bool:
        """Whether it should be built anew: the device failed, or too much has changed."""
        removed = len(self._ids) - len(self._places)
        return self.failed or max(len(self._fresh), removed) > self._worn_rows

    @property
    def shortlister(self) -> Shortlister:
        """Who names the rows."""
        return self._shortlister

    def add(self, entry_id: int, vector: Vector) -> None:
        check_id(entry_id)
        with self._changing:
            if entry_id in self._places:
                raise DuplicateId(f"id {entry_id} is in the index already")
            self._fresh.add(entry_id, vector)

    def search(self, vector: Vector, k: int) -> list[Neighbor]:
        row = check_vector(vector, self.dimension)
        return self.search_many(row, k)[0]

    def search_many(self, queries: Matrix, k: int) -> list[list[Neighbor]]:
        """As :meth:`search`, for queries of shape (n, dimension) at once.

        Raises:
            DeviceFailed: the device broke; the index is worn from then on.
        """
        aside = [self._fresh.search(query, k) for query in queries]
        if not self._places:
            return aside
        try:
            near = [self._nearest(query, named, k) for query, named in self._named(queries, k)]
        except DeviceFailed:
            self.failed = True
            raise
        return [
            heapq.nlargest(k, [*found, *fresh], key=lambda neighbor: neighbor.similarity)
            for found, fresh in zip(near, aside, strict=True)
        ]

    def remove(self, entry_ids: Collection[int]) -> int:
        with self._changing:
            removed = self._fresh.remove(entry_ids)
            for entry_id in entry_ids:
                place = self._places.pop(entry_id, None)
                if place is not None:
                    self._alive[place] = False
                    removed += 1
            return removed

    def batches(self) -> Iterator[Batch]:
        """Every vector, a block at a time; the device is not asked."""
        for start in range(0, len(self._ids), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            alive = self._alive[block].copy()
            if not alive.any():
                continue
            vectors = self._rows[block][alive].astype(np.float32)
            # Rounding to half precision moved the norm; the next index checks it.
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            yield Batch(self._ids[block][alive], vectors)
        yield from self._fresh.batches()

    def _named(self, queries: Matrix, k: int) -> Iterator[tuple[Vector, Positions]]:
        """Each query with the living rows named for it: enough of them, if there are."""
        most = min(len(self._ids), self._shortlister.most)
        asked = min(2 * k + _SPARE_ROWS, most)
        listed = self._shortlister.shortlist(queries, asked)
        wanted = min(k, len(self._places))
        for query, row in zip(queries, listed, strict=True):
            named, width = self._living(row), asked
            while len(named) < wanted and width < most:
                width = min(width * _WIDER, most)
                named = self._living(self._shortlister.shortlist(query[None], width)[0])
            yield query, named

    def _living(self, named: Positions) -> Positions:
        """Those that are rows of ours, each once."""
        known = np.unique(named[(named >= 0) & (named < len(self._ids))])
        return known[self._alive[known]]

    def _nearest(self, query: Vector, named: Positions, k: int) -> list[Neighbor]:
        scores = self._rows[named].astype(np.float32) @ query
        best = np.argsort(-scores, kind="stable")[:k]
        return checked_neighbors(self._ids[named[best]], scores[best])
