"""What a vector index is: ids and unit vectors in, nearest ids out.

An index is never the truth: the answer store is, and an index can be rebuilt
from it. So an index may refuse, forget or be thrown away, but must never name
a wrong neighbour.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sidecache.errors import SidecacheError

# float32, shape (dim,), unit norm.
Vector = npt.NDArray[np.float32]
# float32, shape (n, dim), unit norm by row.
Matrix = npt.NDArray[np.float32]

# How far from 1 the norm of a vector, or from [-1, 1] a cosine, may be: float32
# rounding over a few hundred dimensions stays under 1e-5.
UNIT_TOLERANCE = 1e-3
# How far a similarity may be from the cosine of the vectors as they were given:
# large scopes keep them in half precision, which rounds by 2**-11 at most.
SIMILARITY_TOLERANCE = 5e-4


class VectorRefused(SidecacheError):
    """The vector cannot be compared: its dimension, its length or its numbers are wrong."""

    reason = "VECTOR_REFUSED"


class DimensionMismatch(VectorRefused):
    """The vector came from another embedder."""

    reason = "DIMENSION_MISMATCH"


class CorruptIndex(SidecacheError):
    """The index returned a score that no pair of unit vectors has."""

    reason = "CORRUPT_INDEX"


class DeviceFailed(SidecacheError):
    """The device that searches has no memory left, or broke."""

    reason = "DEVICE_FAILED"


class Neighbor(NamedTuple):
    """An id and its cosine similarity to the query, in [-1, 1], to SIMILARITY_TOLERANCE."""

    id: int
    similarity: float


class Batch(NamedTuple):
    """Some vectors of an index: ids of shape (n,), vectors of shape (n, dim)."""

    ids: npt.NDArray[np.int64]
    vectors: Matrix


class VectorSource(Protocol):
    """Where an index is built from; walked several times while nothing is added to it."""

    def __len__(self) -> int: ...

    def batches(self) -> Iterator[Batch]:
        """Every vector once, unless it is removed meanwhile; in bounded batches."""
        ...


class VectorIndex(Protocol):
    """Vectors of one scope. Safe to use from several threads at once."""

    @property
    def dimension(self) -> int:
        """Length of every vector."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, entry_id: int) -> bool: ...

    def add(self, entry_id: int, vector: Vector) -> None:
        """Make a vector findable.

        Args:
            entry_id: at least 0, and not in the index.
            vector: unit norm, float32, shape (dimension,).

        Raises:
            DimensionMismatch: the vector came from another embedder.
            VectorRefused: it is zero, not of unit norm, or holds NaN or infinity.
            DuplicateId: the id is taken; the index is unchanged.
        """
        ...

    def search(self, vector: Vector, k: int) -> list[Neighbor]:
        """Return up to ``k`` nearest ids, best first.

        Args:
            vector: unit norm, float32, shape (dimension,).
            k: at least 1.

        Returns:
            Fewer than ``k`` when the index holds fewer.

        Raises:
            DimensionMismatch, VectorRefused: as for :meth:`add`.
            CorruptIndex: a score was NaN or outside [-1, 1].
        """
        ...

    def remove(self, entry_ids: Collection[int]) -> int:
        """Forget these ids; returns how many were there."""
        ...


def check_vector(vector: Vector, dimension: int) -> Matrix:
    """The vector as one row, float32, shape (1, dimension), if it may be compared.

    Raises:
        DimensionMismatch: the vector came from another embedder.
        VectorRefused: it is zero, not of unit norm, or holds NaN or infinity.
    """
    if vector.shape != (dimension,):
        raise DimensionMismatch(
            f"a vector of shape {vector.shape} was given to an index of shape ({dimension},)"
        )
    row = np.ascontiguousarray(vector, dtype=np.float32).reshape(1, dimension)
    norm = float(np.sqrt(np.dot(row[0], row[0])))
    if not abs(norm - 1.0) <= UNIT_TOLERANCE:  # written so that NaN is refused too
        raise VectorRefused(f"a vector of norm {norm:g} was given; only unit vectors compare")
    return row


def check_id(entry_id: int) -> None:
    """Refuse an id that FAISS could not give back.

    Raises:
        VectorRefused: the id is negative; -1 is how FAISS says "no result".
    """
    if entry_id < 0:
        raise VectorRefused(f"id {entry_id} is negative; ids start at 0")


def checked_neighbors(
    ids: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]
) -> list[Neighbor]:
    """Pair ids with scores, dropping the id -1 that FAISS pads with.

    Raises:
        CorruptIndex: a score is NaN or outside [-1, 1] by more than rounding.
    """
    neighbors = []
    for entry_id, score in zip(ids.tolist(), scores.tolist(), strict=True):
        if entry_id < 0:
            continue
        if not abs(score) <= 1.0 + UNIT_TOLERANCE:
            raise CorruptIndex(f"the index scored {score:g}; a cosine is in [-1, 1]")
        neighbors.append(Neighbor(entry_id, min(1.0, max(-1.0, score))))
    return neighbors
