"""The index of a small scope: a matrix, and nothing else.

Most scopes hold one or two answers, since the history of a conversation is part
of its scope. A FAISS index costs 3 KB before its first vector, so a small scope
is a numpy matrix that is copied on every change.
"""

from collections.abc import Collection, Iterator
from threading import Lock
from typing import NamedTuple

import numpy as np

from cache_svc.entry import DuplicateId
from cache_svc.vector_index import (
    Matrix,
    Neighbor,
    Vector,
    check_id,
    check_vector,
    checked_neighbors,
)


class _Rows(NamedTuple):
    """One state of the index; never changed, only replaced."""

    ids: tuple[int, ...]
    vectors: Matrix


class PlainIndex:
    """A VectorIndex for some dozens of vectors; every change costs a copy of them all."""

    __slots__ = ("_rows", "dimension")

    # Shared by all: a change takes microseconds, a lock for each would cost more.
    _changing = Lock()

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._rows = _Rows((), np.empty((0, dimension), np.float32))

    def __len__(self) -> int:
        return len(self._rows.ids)

    def __contains__(self, entry_id: int) -> bool:
        return entry_id in self._rows.ids

    def __iter__(self) -> Iterator[tuple[int, Vector]]:
        """Each id with its vector."""
        rows = self._rows
        return zip(rows.ids, rows.vectors, strict=True)

    def add(self, entry_id: int, vector: Vector) -> None:
        check_id(entry_id)
        row = check_vector(vector, self.dimension)
        with self._changing:
            ids, vectors = self._rows
            if entry_id in ids:
                raise DuplicateId(f"id {entry_id} is in the index already")
            self._rows = _Rows((*ids, entry_id), np.concatenate((vectors, row)))

    def search(self, vector: Vector, k: int) -> list[Neighbor]:
        row = check_vector(vector, self.dimension)
        ids, vectors = self._rows
        if not ids:
            return []
        scores = vectors @ row[0]
        # NaN would sort anywhere; checked_neighbors refuses it among the best k.
        best = np.argsort(-scores, kind="stable")[:k]
        return checked_neighbors(np.array(ids, np.int64)[best], scores[best])

    def remove(self, entry_ids: Collection[int]) -> int:
        with self._changing:
            ids, vectors = self._rows
            kept = [row for row, entry_id in enumerate(ids) if entry_id not in entry_ids]
            if len(kept) < len(ids):
                self._rows = _Rows(tuple(ids[row] for row in kept), vectors[kept])
            return len(ids) - len(kept)
