"""The index of a small scope: a matrix, and nothing else.

Most scopes hold one or two answers, since the history of a conversation is part
of its scope, and most tenants some hundreds. A FAISS index costs 3 KB before its
first vector and doubles its memory as it grows, so a small scope is a numpy matrix
with little room to spare, in 16 bits a number.
"""

from collections.abc import Collection, Iterator, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np

from cache_svc.entry import DuplicateId
from cache_svc.packed_vector import Packed, check_packed, cosines, pack, unpack
from cache_svc.vector_index import (
    DimensionMismatch,
    Neighbor,
    Vector,
    check_id,
    check_vector,
    checked_neighbors,
)

# A matrix that grows gets this part of its rows to spare: an eighth.
_SPARE = 8


class _Rows(NamedTuple):
    """One state of the index; never changed, only replaced.

    ``vectors`` may be the beginning of a larger matrix. A later state writes the
    rows behind it, which this one does not show.
    """

    ids: tuple[int, ...]
    vectors: Packed


class PlainIndex:
    """A VectorIndex for some hundreds of vectors; every removal costs a copy of them all."""

    __slots__ = ("_room", "_rows", "dimension")

    # Shared by all: a change takes microseconds, a lock for each would cost more.
    _changing = Lock()

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._room: Packed = np.empty((0, dimension), np.int16)
        self._rows = _Rows((), self._room)

    def __len__(self) -> int:
        return len(self._rows.ids)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._rows.ids

    def __iter__(self) -> Iterator[tuple[int, Vector]]:
        """Each id with its vector."""
        rows = self._rows
        return zip(rows.ids, unpack(rows.vectors), strict=True)

    def add(self, entry_id: int, vector: Vector) -> None:
        check_id(entry_id)
        row = check_vector(vector, self.dimension)
        with self._changing:
            self._append((entry_id,), pack(row))

    def add_packed(self, entry_ids: Sequence[int], packed: Packed) -> None:
        """Add vectors that :func:`cache_svc.packed_vector.pack` made, shape (n, dimension).

        Raises:
            VectorRefused, DuplicateId: as for one; the index is unchanged.
        """
        if packed.shape[1:] != (self.dimension,):
            raise DimensionMismatch(f"rows of shape {packed.shape} in an index of {self.dimension}")
        check_packed(packed)
        check_id(min(entry_ids))
        with self._changing:
            self._append(tuple(entry_ids), packed)

    def _append(self, new: tuple[int, ...], packed: Packed) -> None:
        ids, vectors = self._rows
        there = set(ids) if len(new) > 1 else ids
        if len({*new}) < len(new) or any(entry_id in there for entry_id in new):
            raise DuplicateId(f"an id of {len(new)} is in the index already, or given twice")
        taken = len(ids)
        rows = taken + len(new)
        if rows > len(self._room):
            self._room = np.empty((rows + taken // _SPARE, self.dimension), np.int16)
            self._room[:taken] = vectors
        self._room[taken:rows] = packed
        self._rows = _Rows((*ids, *new), self._room[:rows])

    def search(self, vector: Vector, k: int) -> list[Neighbor]:
        row = check_vector(vector, self.dimension)
        ids, vectors = self._rows
        if not ids:
            return []
        scores = cosines(vectors, row[0])
        # NaN would sort anywhere; checked_neighbors refuses it among the best k.
        best = np.argsort(-scores, kind="stable")[:k]
        return checked_neighbors(np.array(ids, np.int64)[best], scores[best])

    def remove(self, entry_ids: Collection[int]) -> int:
        with self._changing:
            ids, vectors = self._rows
            kept = [row for row, entry_id in enumerate(ids) if entry_id not in entry_ids]
            if len(kept) < len(ids):
                # A matrix of its own: rows of the old one may still be searched.
                self._room = vectors[kept]
                self._rows = _Rows(tuple(ids[row] for row in kept), self._room)
            return len(ids) - len(kept)
