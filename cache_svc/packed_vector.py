"""Unit vectors in 16 bits a number: half the memory, cosines right to 1e-4.

Fixed point, since no number of a unit vector is over 1: its step of 2**-15 rounds a
number of usual size (0.05) as finely as half precision does, and numpy turns it
back into floats some eight times as fast.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from cache_svc.vector_index import UNIT_TOLERANCE, VectorRefused

SCALE = np.float32(32767)
# int16, shape (..., dim); 32767 stands for 1.
Packed = npt.NDArray[np.int16]


def pack(vectors: npt.NDArray[np.float32]) -> Packed:
    """The 16-bit form of unit vectors, shape (..., dim); packing what was unpacked is exact."""
    # A unit vector may be so little too long that its only number is over 1.
    packed: Packed = np.clip(np.rint(vectors * SCALE), -SCALE, SCALE).astype("<i2")
    return packed


def unpack(packed: Packed) -> npt.NDArray[np.float32]:
    """The vectors again, each number to 2**-16."""
    vectors: npt.NDArray[np.float32] = packed.astype(np.float32)
    vectors /= SCALE
    return vectors


def cosines(packed: Packed, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Inner products of rows of shape (n, dim) with one float vector."""
    products: npt.NDArray[np.float32] = packed.astype(np.float32) @ (vector / SCALE)
    return products


def check_packed(packed: Packed) -> None:
    """Refuse rows that are no unit vectors.

    Raises:
        VectorRefused: at least one has another norm.
    """
    rows: Any = packed.astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows)) / SCALE
    if not np.all(np.abs(norms - 1.0) <= UNIT_TOLERANCE):
        raise VectorRefused("a stored vector is not of unit norm")
