"""Files that are damaged, of another release, or not ours at all."""

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from cache_svc.durable.database import SCHEMA_VERSION
from cache_svc.durable.folder import DATABASE
from sidecache.errors import SetupError
from tests.fixtures.cache import entry_of
from tests.fixtures.durable import Shop, bytes_of, everything, fill, same_answer


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
