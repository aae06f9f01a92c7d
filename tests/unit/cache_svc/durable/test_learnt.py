"""What was learnt outlives a restart: bars, hits, judgements and bounds."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from cache_svc.durable.folder import DATABASE
from cache_svc.durable.learnt_row import BoundState, Judgement
from cache_svc.entry import Entry
from cache_svc.quarantine import Quarantine
from cache_svc.store import Removal
from tests.fixtures.cache import key_of
from tests.fixtures.durable import Shop, everything, fill

LEARNT = (
    BoundState("t0", "", b"ours", b"{}"),
    BoundState("t1", "n", b"ours", b"[]"),
)


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
