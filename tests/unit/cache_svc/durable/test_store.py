"""What only a store on disk promises: restarts, crashes, clocks, one process at a time."""

import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cache_svc.durable.folder import DATABASE
from cache_svc.durable.restore import restore_vectors
from cache_svc.durable.store import Durability
from cache_svc.faiss_index import FaissIndex
from cache_svc.scoped_index import ScopedIndex
from cache_svc.store import Removal
from sidecache.errors import SetupError
from tests.fixtures.cache import entry_of, random_unit
from tests.fixtures.durable import Shop, everything, fill, same_answer

WALL_S = 1_000_000.0


def test_everything_comes_back(folder: Path) -> None:
    """After a restart each field is what it was, and the age goes on counting."""
    entry = entry_of(
        (1 << 63) - 1, "naïve\0text 🙂", answer=bytes(range(256)), tags=("a", "ü"), namespace="n"
    )
    with Shop(folder) as shop:
        shop.store.put(entry, random_unit("x"))
    with Shop(folder, wall_s=WALL_S + 20, started_s=5.0) as shop:
        back = shop.store.find("acme", entry.key.exact)
        assert same_answer(back, entry)
        assert back is not None
        assert back.vector_dimension == 16
        assert shop.clock() - back.created_s == pytest.approx(20)
        assert back.expires_s - shop.clock() == pytest.approx(40)
        assert shop.store.usage().entries == shop.store.usage().vectors == 1


def test_what_left_does_not_come_back(folder: Path) -> None:
    """Replaced, evicted, expired and invalidated answers stay away after a restart."""
    with Shop(folder) as shop:
        entries = fill(shop)
        newer = entry_of(100, entries[0].key.text, tenant="t0")
        shop.store.put(newer)
        shop.store.put(entry_of(101, "short", tenant="t1", ttl_s=5))
        shop.store.remove([entries[1]], Removal.INVALIDATED)
        shop.clock.now_s += 6
        shop.store.expire()
    with Shop(folder, wall_s=WALL_S + 6, max_bytes=20 * newer.size_bytes) as shop:
        ids = {entry.id for entry in everything(shop)}
        assert not ids & {0, 1, 101}
        assert 100 in ids
        evicted = set(shop.left)
        assert evicted
    with Shop(folder, wall_s=WALL_S + 6) as shop:
        assert {entry.id for entry in everything(shop)} == ids
        assert not ids & evicted


async def test_an_acknowledged_removal_survives_a_crash(folder: Path, tmp_path: Path) -> None:
    """Once an invalidation has settled, no crash brings the answer back, whatever durability."""
    with Shop(folder, durability="memory") as shop:
        entries = fill(shop)
        shop.store.remove([entries[3]], Removal.INVALIDATED)
        await shop.store.removals_settled()
        crashed = shop.copy_to(tmp_path / "crashed")
    with Shop(crashed) as shop:
        assert shop.store.get("t0", 3) is None
        assert len(everything(shop)) == len(entries) - 1


@pytest.mark.parametrize("durability", ["memory", "written", "synced"])
async def test_what_is_forced_to_the_disk(folder: Path, durability: Durability) -> None:
    """Answers are forced to the disk if the operator says so, acknowledged removals always."""
    with Shop(folder, durability=durability) as shop:
        entries = fill(shop, 3)
        await shop.store._writer.settled()
        # The level of the last commit, as SQLite itself has it: 1 is NORMAL, 2 is FULL.
        connection = shop.store._writer._database._db
        level = 2 if durability == "synced" else 1
        assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
        shop.store.remove([entries[0]], Removal.INVALIDATED)
        await shop.store.removals_settled()
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_the_unwritten_tail_is_lost_whole(folder: Path, tmp_path: Path) -> None:
    """A crash before a commit loses what was in it and keeps all that was acknowledged."""
    with Shop(folder) as shop:
        entries = fill(shop)
        assert await shop.store.settled(list(entries.values())) == []
        with shop.store._writer.one_change():
            shop.store.put(entry_of(0x77, entries[0].key.text, tenant="t0"))
            crashed = shop.copy_to(tmp_path / "crashed")
    with Shop(crashed) as shop:
        assert same_answer(shop.store.find("t0", entries[0].key.exact), entries[0])
        assert len(everything(shop)) == len(entries)


@pytest.mark.parametrize(
    ("off_s", "alive"), [(59.0, True), (61.0, False), (-1e6, True), (1e9, False)]
)
def test_clocks_between_runs(folder: Path, off_s: float, alive: bool) -> None:
    """Time off counts; a clock set back adds nothing to a life, one set forward only ends it."""
    entry = entry_of(1, ttl_s=60)
    with Shop(folder) as shop:
        shop.store.put(entry)
        shop.clock.now_s += 10
        shop.store.put(entry_of(2, "later"))
    with Shop(folder, wall_s=WALL_S + off_s) as shop:
        back = shop.store.get("acme", 1)
        assert (back is not None) is alive
        if back is not None:
            expected_s = 50 if off_s < 0 else 60 - off_s
            assert back.expires_s - shop.clock() == pytest.approx(expected_s)


def test_a_restart_between_expiries_frees_the_disk(folder: Path) -> None:
    """Answers that expired while nothing ran are deleted from the disk, not only skipped."""
    with Shop(folder) as shop:
        fill(shop)
    with Shop(folder, wall_s=WALL_S + 1e5) as shop:
        assert everything(shop) == []
    with sqlite3.connect(folder / DATABASE) as database:
        query = "SELECT (SELECT count(*) FROM entries), (SELECT count(*) FROM vectors)"
        assert database.execute(query).fetchone() == (0, 0)
    database.close()


async def test_vectors_return_without_embedding(folder: Path) -> None:
    """Stored vectors are findable again; those of another embedder are not mixed in."""
    with Shop(folder) as shop:
        entries = fill(shop, 40)
        shop.store.remove([entries[7]], Removal.INVALIDATED)
    for fingerprint, expected in (("embedder", 39), ("another", 0), ("embedder", 39)):
        with (
            Shop(folder, fingerprint=fingerprint) as shop,
            ThreadPoolExecutor(1) as executor,
        ):
            index = ScopedIndex(16, lambda _place: FaissIndex(16), executor, inline_rows=64)
            assert shop.store.usage().vectors == expected
            assert await restore_vectors(shop.opened.vectors, shop.store, index) == expected
            assert len(index) == expected
            assert len(everything(shop)) == 39
            if expected:
                key = entries[5].key
                (nearest,) = await index.search(key.place, random_unit(key.text), 1)
                assert nearest.id == 5
                assert nearest.similarity == pytest.approx(1.0, abs=1e-5)
            # Stored while vectors come back: found once, not twice.
            assert await restore_vectors(shop.opened.vectors, shop.store, index) == 0


def test_private_and_for_one_process(folder: Path) -> None:
    """The folder is 0700, its files 0600, and a second sidecar is told who is there."""
    with Shop(folder) as shop:
        fill(shop, 3)
        shop.settle()
        files = list(folder.iterdir())
        assert {file.name for file in files} >= {"lock", DATABASE, f"{DATABASE}-wal"}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        with pytest.raises(SetupError, match="another sidecar"):
            Shop(folder)
    folder.chmod(0o755)
    with pytest.raises(SetupError, match="chmod 0700"):
        Shop(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_an_operator_may_look_inside(folder: Path, tmp_path: Path) -> None:
    """Another process that reads the database and leaves does not take the log with it."""
    look = f"import sqlite3; d = sqlite3.connect({str(folder / DATABASE)!r}); "
    look += "print(d.execute('SELECT count(*) FROM entries').fetchone()[0]); d.close()"
    with Shop(folder) as shop:
        for number in range(4):
            entry = entry_of(number, f"text {number}", tenant="t0")
            shop.store.put(entry)
            shop.settle()
            told = subprocess.run([sys.executable, "-c", look], capture_output=True, check=True)
            assert int(told.stdout) == number + 1
        crashed = shop.copy_to(tmp_path / "crashed")
    with Shop(crashed) as shop:
        assert len(everything(shop)) == 4
