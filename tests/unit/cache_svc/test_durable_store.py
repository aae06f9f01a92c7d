"""What only a store on disk promises: crashes, damage, clocks, a full disk."""

import asyncio
import contextlib
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cache_svc.durable.database import SCHEMA_VERSION
from cache_svc.durable.folder import DATABASE
from cache_svc.durable.learnt_row import BoundState, Judgement
from cache_svc.durable.restore import restore_vectors
from cache_svc.durable.store import Durability
from cache_svc.entry import Entry
from cache_svc.faiss_index import FaissIndex
from cache_svc.quarantine import Quarantine
from cache_svc.scoped_index import ScopedIndex
from cache_svc.store import NotDurable, NotWritable, Removal, Selection
from sidecache.errors import SetupError
from tests.fixtures.cache import entry_of, key_of, random_unit
from tests.fixtures.durable import MIB, Shop, same_answer, small_disk

WALL_S = 1_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def bytes_of(number: int, size: int) -> bytes:
    """Bytes that no other number has."""
    return random.Random(number).randbytes(size)  # noqa: S311 - content of a test


def fill(shop: Shop, count: int = 40, size: int = 1500) -> dict[int, Entry]:
    """Entries of several tenants, each with bytes of its own."""
    entries = {}
    for number in range(count):
        answer = bytes_of(number, size)
        entry = entry_of(number, f"text {number} ü", tenant=f"t{number % 3}", answer=answer)
        shop.store.put(entry, random_unit(entry.key.text))
        entries[number] = entry
    return entries


def everything(shop: Shop) -> list[Entry]:
    return [entry for number in range(3) for entry in shop.store.select(f"t{number}", Selection())]


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


def test_bars_outlive_a_restart(folder: Path) -> None:
    """What Feedback barred stays barred, in the order it was, within the bound."""
    with Shop(folder) as shop:
        quarantine = Quarantine(2, barred=shop.bars, on_change=shop.store.set_bar)
        for text in ("a", "b", "a", "c"):
            quarantine.bar(key_of(text))
    with Shop(folder) as shop:
        quarantine = Quarantine(2, barred=shop.bars, on_change=shop.store.set_bar)
        assert [quarantine.holds(key_of(text)) for text in "abc"] == [True, False, True]
        quarantine.bar(key_of("d"))
        assert not quarantine.holds(key_of("a"))


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


def test_a_start_on_a_full_disk(tmp_path: Path) -> None:
    """No room for the database, or for its first log: a SetupError that says so."""
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        for left in (0, 4096, 20_000):
            with (disk / "ballast").open("wb", 0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            with (disk / "ballast").open("r+b") as file:
                file.truncate((disk / "ballast").stat().st_size - left)
            with pytest.raises(SetupError, match=r"full|No space"):
                Shop(disk)
            (disk / "ballast").unlink()
        # What the failed starts left behind does not stop a good one.
        with Shop(disk) as shop:
            fill(shop, 3)
        with Shop(disk) as shop:
            assert len(everything(shop)) == 3


def test_a_restart_on_a_full_disk_serves_what_is_there(tmp_path: Path) -> None:
    """With answers on it, a disk that has filled up is a SetupError or serves them, never loses."""
    with small_disk(tmp_path / "disk", "size=8m") as disk:
        with Shop(disk) as shop:
            entries = fill(shop)
        with (disk / "ballast").open("wb", 0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with pytest.raises(SetupError, match=r"full|No space|disk I/O"):
            Shop(disk)
        (disk / "ballast").unlink()
        with Shop(disk) as shop:
            assert len(everything(shop)) == len(entries)


def test_a_start_on_a_database_in_use(folder: Path) -> None:
    """A database that another program keeps locked is a SetupError, and is whole afterwards."""
    with Shop(folder) as shop:
        fill(shop, 3)
    other = sqlite3.connect(folder / DATABASE, isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(SetupError, match="locked"):
        Shop(folder)
    other.execute("ROLLBACK")
    other.close()
    with Shop(folder) as shop:
        assert len(everything(shop)) == 3


def test_an_older_schema_is_set_aside(folder: Path) -> None:
    """An older release's answers are moved away, not read as what they are not."""
    with Shop(folder) as shop:
        fill(shop, 3)
    with sqlite3.connect(folder / DATABASE) as database:
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION - 1}")
    database.close()
    with pytest.raises(SetupError, match="older release"):
        Shop(folder, on_corrupt="refuse")
    with Shop(folder) as shop:
        assert everything(shop) == []
        assert (folder / f"{DATABASE}.corrupt").exists()


def test_hits_outlive_a_restart(folder: Path) -> None:
    """What was served often stays after a restart, and what was not goes, as without one."""
    with Shop(folder) as shop:
        entries = fill(shop, 12)
        for number in (0, 1, 4):
            for _ in range(5):
                shop.store.touch(entries[number])
        shop.store.write_uses()
    size = max(entry.size_bytes for entry in entries.values())
    with Shop(folder, max_bytes=6 * size) as shop:
        assert {0, 1, 4} <= {entry.id for entry in everything(shop)}
    with Shop(folder) as shop:
        assert {0, 1, 4} <= {entry.id for entry in everything(shop)}
        shop.store.remove([entries_by_id(shop)[4]], Removal.INVALIDATED)
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as database:
        # Of what left, no count stays.
        query = "SELECT count(*) FROM uses WHERE seq NOT IN (SELECT seq FROM entries)"
        assert database.execute(query).fetchone() == (0,)


def entries_by_id(shop: Shop) -> dict[int, Entry]:
    return {entry.id: entry for entry in everything(shop)}


LEARNT = (
    BoundState("t0", "", b"ours", b"{}"),
    BoundState("t1", "n", b"ours", b"[]"),
)


def test_what_was_learnt_outlives_a_restart(folder: Path) -> None:
    """Judgements of entries that are there and bounds come back; of another lineage, none."""
    judged = [Judgement(number, number % 3 or None, 2, number, b"ours") for number in range(4)]
    with Shop(folder, lineage=b"ours") as shop:
        entries = fill(shop, 4)
        shop.store.write_learnt([*judged, Judgement(99, 1, 1, 1, b"ours")], LEARNT)
        shop.store.write_learnt([judged[2]._replace(right=7)], [LEARNT[0]._replace(state=b"{1}")])
        shop.store.remove([entries[3]], Removal.INVALIDATED)
    with Shop(folder, lineage=b"ours") as shop:
        assert shop.opened.judgements == [*judged[:2], judged[2]._replace(right=7)]
        assert set(shop.opened.bounds) == {LEARNT[0]._replace(state=b"{1}"), LEARNT[1]}
    with Shop(folder, lineage=b"theirs") as shop:
        assert (shop.opened.judgements, shop.opened.bounds) == ([], [])


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("bars", "tenant='other'"),
        ("bars", "exact=x'00'"),
        ("bars", "exact='text'"),
        ("judgements", "wrong=0"),
        ("judgements", "sense='x'"),
        ("bounds", "state=x'5b5d'"),
        ("bounds", "checksum=7"),
    ],
)
def test_learnt_rows_have_a_checksum(
    folder: Path, table: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that is not what was written is left out, with a line in the log; the rest is used."""
    with Shop(folder, lineage=b"ours") as shop:
        fill(shop, 3)
        shop.store.set_bar(("t0", b"exact"), True)
        shop.store.set_bar(("t1", b"exact"), True)
        shop.store.write_learnt([Judgement(i, i, 1, 5, b"ours") for i in range(3)], LEARNT)
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as database, database:
        database.execute(f"UPDATE {table} SET {change} WHERE rowid=1")  # noqa: S608  # a test's own
        assert database.total_changes == 1
    whole = {"bars": 2, "judgements": 3, "bounds": 2}
    with Shop(folder, lineage=b"ours") as shop:
        found = {
            "bars": len(shop.bars),
            "judgements": len(shop.opened.judgements),
            "bounds": len(shop.opened.bounds),
        }
        assert found == {**whole, table: whole[table] - 1}
    assert f"1 {table} of" in caplog.text


def foreign_text(path: Path) -> None:
    path.write_text("dear diary, " * 100)


def foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE notes(text)")
    database.close()


def newer_schema(path: Path) -> None:
    with Shop(path.parent):
        pass
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    database.close()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (foreign_text, "no SQLite database"),
        (foreign_database, "another program"),
        (newer_schema, f"schema {SCHEMA_VERSION + 1}"),
    ],
)
def test_foreign_files_are_left_alone(folder: Path, make: object, said: str) -> None:
    """A file that is not ours, or a newer release's, is refused by name and not changed."""
    folder.mkdir(mode=0o700)
    make(folder / DATABASE)  # type: ignore[operator]  # one of the three above
    before = (folder / DATABASE).read_bytes()
    with pytest.raises(SetupError, match=said):
        Shop(folder)
    assert (folder / DATABASE).read_bytes() == before


def damaged_copies(source: bytes) -> list[bytes]:
    """The file with a few bits turned in many places, and cut in many places."""
    seed = random.Random(7)  # noqa: S311 - damage that is the same every time
    copies = []
    for _ in range(120):
        content = bytearray(source)
        for _ in range(seed.choice([1, 1, 8, 64])):
            content[seed.randrange(16, len(content))] ^= 1 << seed.randrange(8)
        copies.append(bytes(content))
    copies.extend(source[: seed.randrange(len(source))] for _ in range(30))
    return copies


def test_damage_is_never_served(folder: Path, tmp_path: Path) -> None:
    """Turned bits and cut files cost answers, never change one; the sidecar starts or says why."""
    with Shop(folder) as shop:
        entries = fill(shop)
    source = (folder / DATABASE).read_bytes()
    kept = aside = refused = 0
    for number, content in enumerate(damaged_copies(source)):
        damaged = tmp_path / f"damaged {number}"
        damaged.mkdir(mode=0o700)
        (damaged / DATABASE).write_bytes(content)
        try:
            shop = Shop(damaged)
        except SetupError:  # test_foreign_files_are_left_alone has the words
            refused += 1
            continue
        with shop:
            found = everything(shop)
            assert all(same_answer(entry, entries[entry.id]) for entry in found)
            kept += len(found)
            aside += (damaged / f"{DATABASE}.corrupt").exists()
            shop.store.put(entry_of(1000, "goes on", tenant="t0"))
            shop.settle()
        shutil.rmtree(damaged)
    assert kept > 1000
    assert aside > 20
    assert refused < 20


def test_damage_can_stop_the_start(folder: Path) -> None:
    """With on_corrupt "refuse" a damaged database stops the start and stays where it is."""
    with Shop(folder) as shop:
        fill(shop)
    content = bytearray((folder / DATABASE).read_bytes())
    at = content.index(bytes_of(0, 1500)[:64])
    content[at] ^= 1
    (folder / DATABASE).write_bytes(content)
    with pytest.raises(SetupError, match="1 damaged answers"):
        Shop(folder, on_corrupt="refuse")
    with Shop(folder) as shop:
        assert len(everything(shop)) == 39
    (folder / DATABASE).write_bytes(content[: len(content) // 2])
    with pytest.raises(SetupError, match="damaged"):
        Shop(folder, on_corrupt="refuse")
    assert not (folder / f"{DATABASE}.corrupt").exists()


async def test_a_disk_that_falls_behind_refuses(folder: Path) -> None:
    """What waits for the disk is bounded: new answers are refused, and taken again later."""
    with Shop(folder) as shop:
        with shop.store._writer.one_change(), pytest.raises(NotWritable, match="wait"):
            fill(shop, 1000)
        taken = shop.store.usage().entries
        assert 200 < taken < 1000
        assert await shop.store.settled([]) == []
        shop.store.put(entry_of(5000, "again"))
    with Shop(folder) as shop:
        assert shop.store.usage().entries == taken + 1


async def test_a_full_disk(tmp_path: Path) -> None:
    """Answers that a full disk refuses are not kept, lookups go on, and room brings recovery."""
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        with Shop(disk, max_waiting_bytes=64 * MIB) as shop:
            entries = fill(shop, 20)
            assert await shop.store.settled(list(entries.values())) == []
            ballast = disk / "ballast"
            with pytest.raises(OSError, match="No space"), ballast.open("wb", 0) as file:
                while True:
                    file.write(bytes(4096))
            for number in range(100, 105):
                assert not await kept_on_disk(shop, entry_of(number, answer=bytes(MIB)))
            assert shop.store.lost_answers > 0
            assert shop.store.find("t0", entries[0].key.exact) is entries[0]
            shop.store.remove([entries[1]], Removal.INVALIDATED)
            ballast.unlink()
            await recovered(shop, entry_of(300, "back", tenant="t0"))
            await shop.store.removals_settled()
        with Shop(disk) as shop:
            found = {entry.id for entry in everything(shop)}
            assert found == (set(entries) | {300}) - {1}


async def kept_on_disk(shop: Shop, entry: Entry) -> bool:
    """Put an entry; whatever the disk did with it, memory agrees."""
    try:
        shop.store.put(entry)
    except NotWritable:
        kept = False
    else:
        kept = await shop.store.settled([entry]) == []
    assert (shop.store.get(entry.key.tenant, entry.id) is entry) is kept
    return kept


async def recovered(shop: Shop, entry: Entry) -> None:
    """Put an entry as soon as the disk takes writes again."""
    deadline_s = time.monotonic() + 20
    while True:
        try:
            shop.store.put(entry)
            break
        except NotWritable:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.05)
    assert await shop.store.settled([entry]) == []


async def test_a_removal_owed_to_a_sick_disk(folder: Path) -> None:
    """An invalidation the disk cannot take says so, is tried again, and holds in memory."""
    with Shop(folder) as shop:
        entries = fill(shop, 5)
        other = sqlite3.connect(folder / DATABASE, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # another program holds the database
        shop.store.remove([entries[1]], Removal.INVALIDATED)
        with pytest.raises(NotDurable):
            await shop.store.removals_settled()
        assert shop.store.get("t1", 1) is None
        other.execute("ROLLBACK")
        other.close()
        await recovered(shop, entry_of(300, "back", tenant="t0"))
        await shop.store.removals_settled()
    with Shop(folder) as shop:
        assert 1 not in {entry.id for entry in everything(shop)}


def test_a_read_only_disk(tmp_path: Path) -> None:
    """A folder that cannot be written is a clear SetupError."""
    with (
        small_disk(tmp_path / "disk", "size=1m,ro") as disk,
        pytest.raises(SetupError, match="Read-only"),
    ):
        Shop(disk)
