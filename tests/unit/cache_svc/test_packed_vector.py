"""Vectors in 16 bits a number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_svc.entry import DuplicateId
from cache_svc.packed_vector import check_packed, cosines, pack, unpack
from cache_svc.plain_index import PlainIndex
from cache_svc.vector_index import DimensionMismatch, Matrix, VectorRefused


def unit_rows(seed: int, rows: int, dimension: int) -> Matrix:
    random = np.random.default_rng(seed)
    # Heavy tails: some rows have nearly all of their length in one number.
    vectors = random.standard_t(1.5, (rows, dimension)).astype(np.float32)
    unit: Matrix = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 16, 384, 1024]))
def test_cosines_stay_right(seed: int, dimension: int) -> None:
    """No cosine moves by more than the contract allows, and packing twice is packing once."""
    vectors = unit_rows(seed, 8, dimension)
    packed = pack(vectors)
    assert packed.nbytes == vectors.nbytes // 2
    check_packed(packed)
    assert np.array_equal(pack(unpack(packed)), packed)
    for query in vectors:
        assert np.allclose(cosines(packed, query), vectors @ query, atol=5e-4)
    if dimension == 384:  # the default embedder's
        assert np.allclose(cosines(packed, vectors[0]), vectors @ vectors[0], atol=1e-4)


def test_the_nearest_stays_the_nearest() -> None:
    """In full small scopes the packed search names the exact search's first, .9995 of the time."""
    agreed = asked = 0
    for seed in range(40):
        vectors = unit_rows(seed, 128, 384)
        index = PlainIndex(384)
        index.add_packed(range(128), pack(vectors))
        for query in unit_rows(seed + 1000, 50, 384):
            scores = vectors @ query
            agreed += index.search(query, 1)[0].id == int(scores.argmax())
            asked += 1
    assert agreed / asked >= 0.9995


def test_what_is_no_unit_vector_is_refused_whole() -> None:
    """One bad row, a wrong dimension or a taken id: nothing of the lot is added."""
    index = PlainIndex(16)
    rows = pack(unit_rows(1, 4, 16))
    bad = rows.copy()
    bad[2] = 0
    with pytest.raises(VectorRefused):
        index.add_packed(range(4), bad)
    with pytest.raises(DimensionMismatch):
        index.add_packed(range(4), rows[:, :8])
    with pytest.raises(VectorRefused):
        index.add_packed([-1, 1, 2, 3], rows)
    index.add_packed([7], rows[:1])
    for ids in ([1, 2, 3, 7], [1, 2, 2, 3]):
        with pytest.raises(DuplicateId):
            index.add_packed(ids, rows)
    assert len(index) == 1
