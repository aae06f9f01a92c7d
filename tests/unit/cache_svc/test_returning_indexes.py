"""Loaded indexes in their places: never a vector that the store does not have, none lost."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cache_svc.entry import Entry, Place
from cache_svc.faiss_index import FaissIndex
from cache_svc.growing_index import Builder, GrowingIndex, RebuildPolicy
from cache_svc.index_shelf import IndexShelf
from cache_svc.ivf_index import IvfIndex
from cache_svc.returning_indexes import return_indexes
from cache_svc.scoped_index import PLAIN_ROWS, ScopedIndex
from tests.fixtures.cache import entry_of, random_unit
from tests.unit.cache_svc.test_growing_index import DIMENSION, clustered, filled

ROWS = 600
VECTORS = clustered(ROWS + 200)
POLICY = RebuildPolicy(flat_rows=400)


def entries_of(*ids: range, scope: str = "scope") -> list[Entry]:
    return [
        entry_of(i, f"text {i}", scope=scope, vector_dimension=DIMENSION)
        for part in ids
        for i in part
    ]


PLACE = entries_of(range(1))[0].key.place


class Restart:
    """A process that has just begun: a shelf with one snapshot, and an empty index."""

    def __init__(self, folder: Path, builder: Builder, executor: ThreadPoolExecutor) -> None:
        self.builder = builder
        self.shelf = IndexShelf(folder, "model", DIMENSION)
        flat = FaissIndex(DIMENSION)
        filled(flat, VECTORS[:ROWS])
        self.shelf.save(PLACE, IvfIndex.build(DIMENSION, flat))
        self.index = ScopedIndex(DIMENSION, self.grown, executor, inline_rows=10_000)

    def grown(self, _place: Place, start: IvfIndex | None = None) -> GrowingIndex:
        return GrowingIndex(DIMENSION, self.builder, POLICY, start=start)

    async def bring_back(self, entries: list[Entry], least_rows: float = 200) -> int:
        return await return_indexes(self.shelf, lambda: entries, self.index, self.grown, least_rows)

    async def found(self, row: int) -> int:
        return (await self.index.search(PLACE, VECTORS[row], 1))[0].id


@pytest.fixture
def restart(tmp_path: Path) -> Iterator[Restart]:
    with Builder() as builder, ThreadPoolExecutor(1) as executor:
        yield Restart(tmp_path / "indexes", builder, executor)


async def test_only_what_the_store_has_returns(restart: Restart) -> None:
    """Entries that left the store since the snapshot are not findable, the others are."""
    assert await restart.bring_back(entries_of(range(100, ROWS + 50))) == ROWS - 100
    assert len(restart.index) == ROWS - 100
    assert not any(restart.index.contains(PLACE, i) for i in range(100))
    assert await restart.found(100) == 100
    assert await restart.found(5) != 5


async def test_what_arrived_since_the_start_stays(restart: Restart) -> None:
    """New entries of the same scope are kept beside what returns, each once."""
    restart.index.add(PLACE, ROWS, VECTORS[ROWS])
    restart.index.add(PLACE, 7, VECTORS[7])
    await restart.bring_back(entries_of(range(ROWS + 1)))
    assert len(restart.index) == ROWS + 1
    assert await restart.found(ROWS) == ROWS
    assert await restart.found(8) == 8


async def test_what_leaves_while_an_index_loads_is_gone(restart: Restart) -> None:
    """An entry removed after the store was read does not come back with the snapshot."""
    entries = entries_of(range(ROWS))
    living = restart.shelf.load

    def load_slowly(place: Place) -> IvfIndex | None:
        restart.index.remove(PLACE, [3, 4])
        return living(place)

    restart.shelf.load = load_slowly  # type: ignore[method-assign]
    assert await restart.bring_back(entries) == ROWS - 2
    assert not restart.index.contains(PLACE, 3)
    assert {3, 4}.isdisjoint({n.id for n in await restart.index.search(PLACE, VECTORS[3], 50)})


async def test_a_scope_that_has_outgrown_a_matrix_keeps_its_own(restart: Restart) -> None:
    """A busy scope is not replaced; the vectors come from the database, as without a snapshot."""
    for i in range(ROWS, ROWS + PLAIN_ROWS + 1):
        restart.index.add(PLACE, i, VECTORS[i])
    assert await restart.bring_back(entries_of(range(ROWS + 200))) == 0
    assert len(restart.index) == PLAIN_ROWS + 1
    assert await restart.found(ROWS + 3) == ROWS + 3


async def test_too_little_left_is_not_worth_its_lists(restart: Restart) -> None:
    """A scope that shrank is built from the database."""
    assert await restart.bring_back(entries_of(range(150))) == 0
    assert len(restart.index) == 0


async def test_snapshots_of_nobody_are_dropped(restart: Restart) -> None:
    """Where the store has nothing of a scope, or no vectors of this embedder, its files go."""
    without_vectors = [entry_of(i, vector_dimension=0) for i in range(ROWS)]
    assert await restart.bring_back(without_vectors) == 0
    assert restart.shelf.names() == set()


async def test_an_emptied_scope_takes_its_snapshot_along() -> None:
    """Vectors tell of prompts: when the last one of a large scope is invalidated, so are they."""
    emptied: list[Place] = []
    with ThreadPoolExecutor(1) as executor:
        index = ScopedIndex(
            16,
            lambda _place: FaissIndex(16),
            executor,
            inline_rows=10_000,
            on_emptied=emptied.append,
        )
        for i in range(PLAIN_ROWS + 1):
            index.add(PLACE, i, random_unit(str(i)))
        index.remove(PLACE, range(PLAIN_ROWS))
        assert emptied == []
        index.remove(PLACE, [PLAIN_ROWS])
        assert emptied == [PLACE]
