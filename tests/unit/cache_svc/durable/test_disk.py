"""A disk that is full, slow, read-only, or held by another program."""

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path

import pytest

from cache_svc.durable.folder import DATABASE
from cache_svc.entry import Entry
from cache_svc.store import NotDurable, NotWritable, Removal
from sidecache.errors import SetupError
from tests.fixtures.cache import entry_of
from tests.fixtures.durable import MIB, Shop, everything, fill, small_disk


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
