"""What every VectorIndex promises."""

from collections.abc import Callable, Iterator
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_svc.entry import DuplicateId
from cache_svc.faiss_index import FaissIndex, FaissSegment
from cache_svc.growing_index import Builder, GrowingIndex, RebuildPolicy
from cache_svc.large_index import GpuKind
from cache_svc.plain_index import PlainIndex
from cache_svc.vector_index import (
    SIMILARITY_TOLERANCE,
    CorruptIndex,
    DimensionMismatch,
    Neighbor,
    VectorIndex,
    VectorRefused,
    checked_neighbors,
)
from tests.fixtures.cache import random_unit
from tests.fixtures.shortlists import NO_GPU, on_test_cpu, on_test_gpu

DIMENSION = 16
NewIndex = Callable[[], VectorIndex]

BUILDER = Builder()


def _on_gpu(kind: GpuKind) -> VectorIndex:
    if NO_GPU:
        pytest.skip(NO_GPU)
    policy = RebuildPolicy(flat_rows=6, factor=1.3)
    return GrowingIndex(DIMENSION, BUILDER, policy, build_large=on_test_gpu(kind))


IMPLEMENTATIONS: dict[str, NewIndex] = {
    "plain": lambda: PlainIndex(DIMENSION),
    "segment": lambda: FaissSegment(DIMENSION),
    "index": lambda: FaissIndex(DIMENSION),
    "small-segments": lambda: FaissIndex(DIMENSION, segment_rows=4),
    # Both are rebuilt again and again while the suite changes them.
    "growing": lambda: GrowingIndex(DIMENSION, BUILDER, RebuildPolicy(flat_rows=6, factor=1.3)),
    "growing-at-40": lambda: GrowingIndex(DIMENSION, BUILDER, RebuildPolicy(flat_rows=40)),
    "shortlist": lambda: GrowingIndex(
        DIMENSION, BUILDER, RebuildPolicy(flat_rows=6, factor=1.3), build_large=on_test_cpu()
    ),
    "gpu-flat": lambda: _on_gpu("gpu_flat"),
    "gpu-ivf": lambda: _on_gpu("gpu_ivf"),
    # Scopes this small have no graph yet; tests/unit/cache_svc/gpu has larger ones.
    "gpu-cagra": lambda: _on_gpu("gpu_cagra"),
}


@pytest.fixture(scope="module", autouse=True)
def _builder() -> Iterator[None]:
    with BUILDER:
        yield


@pytest.fixture(params=IMPLEMENTATIONS.values(), ids=list(IMPLEMENTATIONS))
def index(request: pytest.FixtureRequest) -> VectorIndex:
    made: VectorIndex = request.param()
    return made


def test_nearest_first(index: VectorIndex) -> None:
    """Neighbours come best first with their cosine similarity, the query itself at 1."""
    vectors = {i: random_unit(str(i)) for i in range(20)}
    for i, vector in vectors.items():
        index.add(i, vector)
    found = index.search(vectors[7], 5)
    assert found[0].id == 7
    assert found[0].similarity == pytest.approx(1.0, abs=SIMILARITY_TOLERANCE)
    expected = sorted(vectors, key=lambda i: -float(vectors[i] @ vectors[7]))[:5]
    assert [neighbor.id for neighbor in found] == expected


def test_fewer_than_k(index: VectorIndex) -> None:
    """A small index returns what it has, without padding; an empty one nothing."""
    assert index.search(random_unit("a"), 4) == []
    index.add(3, random_unit("a"))
    assert [neighbor.id for neighbor in index.search(random_unit("b"), 4)] == [3]


def test_duplicate_id_refused(index: VectorIndex) -> None:
    """An id can be taken once, and a refused second changes nothing."""
    index.add(1, random_unit("a"))
    with pytest.raises(DuplicateId):
        index.add(1, random_unit("b"))
    assert len(index) == 1
    assert index.search(random_unit("a"), 2)[0].similarity == pytest.approx(
        1.0, abs=SIMILARITY_TOLERANCE
    )


@pytest.mark.parametrize(
    ("vector", "error"),
    [
        (random_unit("a", 8), DimensionMismatch),
        (random_unit("a").reshape(1, -1), DimensionMismatch),
        (np.zeros(DIMENSION, np.float32), VectorRefused),
        (np.full(DIMENSION, np.nan, np.float32), VectorRefused),
        (np.full(DIMENSION, np.inf, np.float32), VectorRefused),
        (2 * random_unit("a"), VectorRefused),
    ],
)
def test_bad_vectors_refused(
    index: VectorIndex, vector: np.ndarray, error: type[Exception]
) -> None:
    """A vector of another dimension, zero, NaN, infinite or not of unit norm never gets in."""
    with pytest.raises(error):
        index.add(1, vector)
    with pytest.raises(error):
        index.search(vector, 1)
    assert len(index) == 0


def test_negative_id_refused(index: VectorIndex) -> None:
    """Id -1 is FAISS's 'nothing' and cannot be an entry's."""
    with pytest.raises(VectorRefused):
        index.add(-1, random_unit("a"))


def test_removed_is_never_found(index: VectorIndex) -> None:
    """What was removed is not found, unknown ids are ignored, and the id is free again."""
    for i in range(10):
        index.add(i, random_unit(str(i)))
    assert index.remove([2, 5, 99]) == 2
    assert len(index) == 8
    assert 5 not in index
    assert 5 not in {neighbor.id for neighbor in index.search(random_unit("5"), 10)}
    index.add(5, random_unit("again"))
    assert index.search(random_unit("again"), 1)[0].id == 5


_Steps = st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(0, 12)), max_size=40)


@pytest.mark.parametrize("new_index", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
@settings(max_examples=40, deadline=None)
@given(steps=_Steps)
def test_equals_brute_force(new_index: NewIndex, steps: list[tuple[str, int]]) -> None:
    """After any adds and removes, a search returns what brute force over the same ids does."""
    index = new_index()
    model: dict[int, np.ndarray] = {}
    for action, i in steps:
        if action == "add" and i not in model:
            model[i] = random_unit(str(i))
            index.add(i, model[i])
        elif action == "remove":
            assert index.remove([i]) == (model.pop(i, None) is not None)
    assert len(index) == len(model)
    query = random_unit("query")
    expected = sorted(model, key=lambda i: -float(model[i] @ query))[:5]
    assert [neighbor.id for neighbor in index.search(query, 5)] == expected


def test_survives_changes_during_searches(index: VectorIndex) -> None:
    """Searches and changes from many threads neither crash nor break a result.

    Unguarded FAISS crashes the process here.
    """
    for i in range(50):
        index.add(i, random_unit(str(i)))
    changed = Event()
    found: list[list[Neighbor]] = []

    def search() -> None:
        while not changed.is_set():
            found.append(index.search(random_unit("7"), 4))

    searchers = [Thread(target=search) for _ in range(3)]
    changers = [Thread(target=_change, args=(index, first)) for first in (1000, 2000)]
    for thread in (*searchers, *changers):
        thread.start()
    for thread in changers:
        thread.join()
    changed.set()
    for thread in searchers:
        thread.join()
    assert found
    assert all(neighbors[0].id == 7 for neighbors in found)
    assert len(index) == 50


def _change(index: VectorIndex, first: int) -> None:
    """Add and remove ten ids, many times."""
    ids = range(first, first + 10)
    for round_number in range(60):
        for i in ids:
            index.add(i, random_unit(f"{i} {round_number}"))
        index.remove(ids)


@pytest.mark.parametrize("score", [2.8e36, float("nan"), -1.5, float("inf")])
def test_impossible_score_is_refused(score: float) -> None:
    """Damaged index memory shows as an impossible score and is never served."""
    with pytest.raises(CorruptIndex):
        checked_neighbors(np.array([4]), np.array([score], np.float32))


def test_padding_is_dropped() -> None:
    """FAISS pads missing results with id -1 and any score; they are no neighbours."""
    scores = np.array([0.5, -3.4e38], np.float32)
    assert checked_neighbors(np.array([4, -1]), scores) == [(4, 0.5)]
