"""Large scopes: inverted lists, built beside the searches."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_svc.faiss_index import FaissIndex
from cache_svc.growing_index import Builder, GrowingIndex, RebuildPolicy
from cache_svc.ivf_index import BuildStopped, IvfIndex, displaced
from cache_svc.vector_index import SIMILARITY_TOLERANCE, Batch, Matrix
from tests.fixtures.cache import random_unit

DIMENSION = 32


def clustered(rows: int, *, clusters: int = 60, seed: int = 0) -> Matrix:
    """Unit vectors in clusters, as texts of one topic are."""
    random = np.random.default_rng(seed)
    centers = random.standard_normal((clusters, DIMENSION)).astype(np.float32)
    vectors = centers[random.integers(clusters, size=rows)]
    vectors = vectors + 0.6 * random.standard_normal((rows, DIMENSION)).astype(np.float32)
    unit: Matrix = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def queries_near(vectors: Matrix, cosine: float = 0.9) -> Matrix:
    """One query near each vector."""
    random = np.random.default_rng(7)
    directions = random.standard_normal(vectors.shape).astype(np.float32)
    return displaced(vectors, directions, cosine)


def filled(index: FaissIndex | GrowingIndex, vectors: Matrix) -> None:
    for entry_id, vector in enumerate(vectors):
        index.add(entry_id, vector)


@pytest.fixture
def builder() -> Iterator[Builder]:
    with Builder() as builder:
        yield builder


class HeldBuilder(Builder):
    """A builder whose builds run when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[object] = []

    def submit(self, build: object) -> None:
        self.waiting.append(build)

    def run(self) -> None:
        build = self.waiting.pop()
        assert callable(build)
        build()


def wait_until_built(index: GrowingIndex) -> None:
    """The builder's thread gives no event to await."""
    for _ in range(1000):
        if not index.rebuilding:
            return
        threading.Event().wait(0.02)
    pytest.fail("the rebuild did not end")


def test_lists_find_what_a_flat_index_finds() -> None:
    """Of 400 paraphrase-like queries the nearest of 20,000 vectors is found for 99 %."""
    vectors = clustered(20_000)
    flat = FaissIndex(DIMENSION)
    filled(flat, vectors)
    inverted = IvfIndex.build(DIMENSION, flat)
    assert inverted.lists_searched < 300, "all lists are searched: there is no point in lists"
    queries = queries_near(vectors[:400])
    pairs = [(flat.search(q, 1)[0], inverted.search(q, 1)[0]) for q in queries]
    assert np.mean([truth.id == found.id for truth, found in pairs]) >= 0.99
    for truth, found in pairs:
        if truth.id == found.id:
            assert found.similarity == pytest.approx(truth.similarity, abs=SIMILARITY_TOLERANCE)


def test_batches_give_every_vector_back() -> None:
    """An index can be built anew from the vectors of an old one, and they stay what they were."""
    vectors = clustered(3000)
    flat = FaissIndex(DIMENSION)
    filled(flat, vectors)
    inverted = IvfIndex.build(DIMENSION, flat)
    inverted.remove(range(1000))
    again = IvfIndex.build(DIMENSION, inverted)
    ids = np.concatenate([batch.ids for batch in again.batches()])
    got = np.concatenate([batch.vectors for batch in again.batches()])
    assert sorted(ids.tolist()) == list(range(1000, 3000))
    assert np.abs(got - vectors[ids]).max() < 1e-3
    assert np.linalg.norm(got, axis=1) == pytest.approx(1.0, abs=1e-6)


def test_outgrown_scope_gets_lists_and_gives_them_back(builder: Builder) -> None:
    """A scope is rebuilt with lists when it outgrows flat search, and flat when it shrinks."""
    index = GrowingIndex(DIMENSION, builder, RebuildPolicy(flat_rows=400))
    vectors = clustered(500)
    filled(index, vectors)
    wait_until_built(index)
    assert kind(index) == "IvfIndex"
    assert all(index.search(vectors[i], 1)[0].id == i for i in range(500))
    index.remove(range(400))
    wait_until_built(index)
    assert kind(index) == "FaissIndex"
    assert all(index.search(vectors[i], 1)[0].id == i for i in range(400, 500))


def test_lists_are_learnt_anew_after_growth(builder: Builder) -> None:
    """Lists of an index that doubled since they were learnt are learnt again."""
    index = GrowingIndex(DIMENSION, builder, RebuildPolicy(flat_rows=200))
    vectors = clustered(700)
    filled(index, vectors[:201])
    wait_until_built(index)
    first = index.main
    for entry_id in range(201, 700):
        index.add(entry_id, vectors[entry_id])
    wait_until_built(index)
    assert index.main is not first
    assert len(index.main) == len(index) == 700


def kind(index: GrowingIndex) -> str:
    return type(index.main).__name__


_Change = st.tuples(st.sampled_from(["add", "remove", "build"]), st.integers(0, 40))


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(_Change, max_size=80))
def test_nothing_is_lost_while_an_index_is_rebuilt(changes: list[tuple[str, int]]) -> None:
    """Whatever changes before, during and after rebuilds, every vector there is is found."""
    with HeldBuilder() as held:
        index = GrowingIndex(DIMENSION, held, RebuildPolicy(flat_rows=8, factor=1.5))
        model: set[int] = set()
        for action, i in changes:
            if action == "build" and held.waiting:
                held.run()
            elif action == "add" and i not in model:
                index.add(i, random_unit(str(i), DIMENSION))
                model.add(i)
            elif action == "remove":
                assert index.remove([i]) == (i in model)
                model.discard(i)
            assert len(index) == len(model)
        for _ in range(len(held.waiting)):
            held.run()
        found = index.search(random_unit("query", DIMENSION), 50)
        assert {neighbor.id for neighbor in found} == model
        assert all((i in index) == (i in model) for i in range(41))


def test_searches_see_every_vector_during_a_rebuild(builder: Builder) -> None:
    """A search beside a rebuild and beside the moves after it finds what was added before it."""
    index = GrowingIndex(DIMENSION, builder, RebuildPolicy(flat_rows=1000, factor=1.2))
    vectors = clustered(6000)
    lost: list[int] = []
    added = [0]
    stop = threading.Event()

    def search() -> None:
        random = np.random.default_rng(1)
        while not stop.is_set():
            if not (known := added[0]):
                continue
            wanted = int(random.integers(known))
            found = index.search(vectors[wanted], 1)
            if found[0].id != wanted:
                lost.append(wanted)

    searchers = [threading.Thread(target=search) for _ in range(2)]
    for thread in searchers:
        thread.start()
    for entry_id, vector in enumerate(vectors):
        index.add(entry_id, vector)
        added[0] = entry_id + 1
    wait_until_built(index)
    stop.set()
    for thread in searchers:
        thread.join()
    assert not lost
    assert kind(index) == "IvfIndex"


class FailingSource(FaissIndex):
    """Vectors that cannot be read."""

    def batches(self) -> Iterator[Batch]:
        raise MemoryError


def test_failed_rebuild_leaves_the_old_index(caplog: pytest.LogCaptureFixture) -> None:
    """A rebuild without memory is logged, loses nothing, and is not tried with every addition."""
    with HeldBuilder() as held:
        index = GrowingIndex(DIMENSION, held, RebuildPolicy(flat_rows=100))
        index._main = FailingSource(DIMENSION)
        vectors = clustered(150)
        filled(index, vectors[:110])
        assert len(held.waiting) == 1
        held.run()
        assert "was not rebuilt" in caplog.text
        for entry_id in range(110, 150):
            index.add(entry_id, vectors[entry_id])
        assert not held.waiting
        assert all(index.search(vectors[i], 1)[0].id == i for i in range(150))


def test_a_closing_process_stops_its_build() -> None:
    """Closing the builder ends a running build soon; the index serves until the end."""
    flat = FaissIndex(DIMENSION)
    vectors = clustered(5000)
    filled(flat, vectors)
    with Builder() as builder:
        index = GrowingIndex(DIMENSION, builder, RebuildPolicy(flat_rows=100))
    with pytest.raises(BuildStopped):
        IvfIndex.build(DIMENSION, flat, check_stop=builder.check_stop)
    filled(index, vectors[:300])
    assert index.search(vectors[299], 1)[0].id == 299


def test_unexpected_end_of_a_build_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A build that dies of a defect leaves a log line with its cause."""

    def defect() -> None:
        raise ZeroDivisionError

    with Builder() as builder:
        builder.submit(defect)
    assert "unexpected way" in caplog.text
    assert "ZeroDivisionError" in caplog.text
