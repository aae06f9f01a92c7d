"""Large scopes searched elsewhere: what comes back is checked and scored here."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from cache_svc import shortlist_index
from cache_svc.faiss_index import FaissIndex
from cache_svc.growing_index import Builder, GrowingIndex, RebuildPolicy
from cache_svc.ivf_index import IvfIndex
from cache_svc.large_index import CheckStop, on_device
from cache_svc.shortlist_index import HalfMatrix, Positions, ShortlistIndex
from cache_svc.vector_index import SIMILARITY_TOLERANCE, DeviceFailed, Matrix
from tests.fixtures.shortlists import CpuShortlister
from tests.unit.cache_svc.test_growing_index import (
    DIMENSION,
    HeldBuilder,
    clustered,
    filled,
    queries_near,
)

ROWS = 3000


class FaultyDevice(CpuShortlister):
    """A device that fails when the test says so, or returns what it should not."""

    def __init__(self, rows: HalfMatrix, check_stop: CheckStop) -> None:
        super().__init__(rows, check_stop)
        self.broken = False
        self.noise: Callable[[Positions], Positions] = lambda found: found

    def shortlist(self, queries: Matrix, k: int) -> Positions:
        if self.broken:
            raise DeviceFailed("out of memory")
        return self.noise(super().shortlist(queries, k))


def shortlisted(vectors: Matrix) -> ShortlistIndex:
    flat = FaissIndex(DIMENSION)
    filled(flat, vectors)
    return ShortlistIndex.build(flat, FaultyDevice)


def device_of(index: ShortlistIndex) -> FaultyDevice:
    device = index.shortlister
    assert isinstance(device, FaultyDevice)
    return device


def test_finds_what_a_flat_index_finds() -> None:
    """Neighbours and similarities are those of an exact search, but for half precision."""
    vectors = clustered(ROWS)
    flat = FaissIndex(DIMENSION)
    filled(flat, vectors)
    index = shortlisted(vectors)
    for query in queries_near(vectors[:200]):
        truth, found = flat.search(query, 4), index.search(query, 4)
        assert found[0].id == truth[0].id
        for one, other in zip(truth, found, strict=True):
            assert other.similarity == pytest.approx(one.similarity, abs=SIMILARITY_TOLERANCE)
    several = index.search_many(vectors[:5], 3)
    assert several == [index.search(vector, 3) for vector in vectors[:5]]


def test_a_crowd_of_removed_neighbours_hides_nobody() -> None:
    """Where the nearest thousand were removed, the next ones are found behind them."""
    vectors = clustered(ROWS)
    index = shortlisted(vectors)
    nearest = [neighbor.id for neighbor in index.search(vectors[0], 1200)]
    assert index.remove(nearest[:1000]) == 1000
    assert [neighbor.id for neighbor in index.search(vectors[0], 4)] == nearest[1000:1004]


@pytest.mark.parametrize(
    "noise",
    [
        lambda found: np.full_like(found, -1),
        lambda found: np.full_like(found, 10**12),
        lambda found: np.repeat(found[:, :1], found.shape[1], axis=1),
        lambda found: np.random.default_rng(0).integers(-5, ROWS + 5, found.shape),
    ],
    ids=["nothing", "no rows", "one row many times", "random rows"],
)
def test_noise_from_the_device_is_never_a_wrong_score(
    noise: Callable[[Positions], Positions],
) -> None:
    """Whatever rows a device names, each comes back once, with its true similarity."""
    vectors = clustered(ROWS)
    index = shortlisted(vectors)
    device_of(index).noise = noise
    index.add(ROWS, vectors[7])
    found = index.search(vectors[7], 8)
    assert found[0].id in {7, ROWS}
    assert len({neighbor.id for neighbor in found}) == len(found)
    truth = np.concatenate([vectors, vectors[7:8]]) @ vectors[7]
    for neighbor in found:
        assert neighbor.similarity == pytest.approx(truth[neighbor.id], abs=SIMILARITY_TOLERANCE)


def test_wears_with_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many arrivals or removals since it was built, and the index asks for a new one."""
    monkeypatch.setattr(shortlist_index, "_LEAST_WORN_ROWS", 50)
    vectors = clustered(ROWS)
    index = shortlisted(vectors[:2000])
    for entry_id in range(2000, 2050):
        index.add(entry_id, vectors[entry_id])
    assert not index.worn
    index.add(2050, vectors[2050])
    assert bool(index.worn)  # mypy believes the line above for ever
    other = shortlisted(vectors[:2000])
    other.remove(range(50))
    assert not other.worn
    other.remove([50])
    assert bool(other.worn)


def test_a_worn_index_is_built_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner rebuilds it with all that is there, and everything is still found."""
    monkeypatch.setattr(shortlist_index, "_LEAST_WORN_ROWS", 50)
    vectors = clustered(600)
    with HeldBuilder() as held:
        build = partial(on_device, FaultyDevice, 0)
        index = GrowingIndex(DIMENSION, held, RebuildPolicy(flat_rows=400), build_large=build)
        filled(index, vectors[:401])
        held.run()
        first = index.main
        assert isinstance(first, ShortlistIndex)
        for entry_id in range(401, 460):
            index.add(entry_id, vectors[entry_id])
        held.run()
        second = index.main
        assert isinstance(second, ShortlistIndex)
        assert second is not first
        assert not second.worn
        assert all(index.search(vectors[i], 1)[0].id == i for i in range(460))


def test_a_failing_device_is_left_for_the_cpu() -> None:
    """A search that fails says so; the scope is built on the CPU from the host's vectors."""
    vectors = clustered(500)
    with HeldBuilder() as held:
        build = partial(on_device, FaultyDevice, 0)
        index = GrowingIndex(DIMENSION, held, RebuildPolicy(flat_rows=400), build_large=build)
        filled(index, vectors)
        held.run()
        first = index.main
        assert isinstance(first, ShortlistIndex)
        device_of(first).broken = True
        with pytest.raises(DeviceFailed):
            index.search(vectors[3], 1)
        assert len(held.waiting) == 1, "nothing was added, and it is built anew all the same"
        held.run()
        assert isinstance(index.main, IvfIndex)
        assert all(index.search(vectors[i], 1)[0].id == i for i in range(500))


def test_a_device_without_memory_is_left_for_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    """A build that the device has no room for is one log line and an index on the CPU."""

    def full(_rows: HalfMatrix, _check_stop: CheckStop) -> CpuShortlister:
        raise DeviceFailed("out of memory")

    vectors = clustered(500)
    with Builder() as builder:
        flat = FaissIndex(DIMENSION)
        filled(flat, vectors)
        built = on_device(full, 0, DIMENSION, flat, builder.check_stop)
    assert isinstance(built, IvfIndex)
    assert "built on the CPU: out of memory" in caplog.text


def test_small_scopes_stay_on_the_cpu() -> None:
    """A device serves scopes of a stated size only."""
    flat = FaissIndex(DIMENSION)
    filled(flat, clustered(500))
    assert isinstance(on_device(CpuShortlister, 501, DIMENSION, flat, lambda: None), IvfIndex)
    assert isinstance(on_device(CpuShortlister, 500, DIMENSION, flat, lambda: None), ShortlistIndex)
