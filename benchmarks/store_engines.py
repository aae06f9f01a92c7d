"""Which embedded database the durable store stands on: SQLite beside LMDB.

What a sidecar does to its database: one thread commits batches of answers with
their vectors, lookups read by key, a restart reads everything. ::

    python -m benchmarks.store_engines --entries 100000 --folder /var/tmp

prints one JSON row for each engine and layout. Times are medians, per commit for
writes and per entry for reads; LMDB is not a dependency: `pip install lmdb`.
"""

import argparse
import json
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import lmdb

from benchmarks.statistics import median

ANSWER_BYTES = 2048
VECTOR_BYTES = 4 * 384
COMMITS = 200
READS = 2000
FILL_BATCH = 1000
LMDB_MAP_BYTES = 64 << 30

T = TypeVar("T")


class Row(NamedTuple):
    """One answer with its vector, under a random id as the store gives them."""

    id: int
    answer: bytes
    vector: bytes


class Engine(Protocol):
    """A database under measurement."""

    def write(self, rows: Sequence[Row]) -> None:
        """Commit rows in one transaction."""

    def read(self, entry_id: int) -> bytes:
        """The answer of an entry."""

    def scan(self) -> Iterator[object]:
        """Every answer, then every vector."""

    def close(self) -> None:
        """Give the files back."""


class Sqlite:
    """SQLite in WAL mode; answers and vectors in tables of their own."""

    def __init__(self, folder: Path, layout: str, synchronous: str, page: int = 4096) -> None:
        self._db = sqlite3.connect(folder / "db", isolation_level=None)
        self._db.execute(f"PRAGMA page_size={page}")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={synchronous}")
        key, tail = _LAYOUTS[layout]
        self._db.execute(f"CREATE TABLE entries({key}, answer BLOB){tail}")
        self._db.execute(f"CREATE TABLE vectors({key}, vector BLOB){tail}")
        self._remembers = layout == "append"
        self._seq: dict[int, int] = {}

    def write(self, rows: Sequence[Row]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        answers = ((row.id, row.answer) for row in rows)
        db.executemany("INSERT INTO entries(id, answer) VALUES (?, ?)", answers)
        vectors = ((row.id, row.vector) for row in rows)
        db.executemany("INSERT INTO vectors(id, vector) VALUES (?, ?)", vectors)
        db.execute("COMMIT")
        if self._remembers:
            self._seq.update((row.id, len(self._seq) + 1 + i) for i, row in enumerate(rows))

    def read(self, entry_id: int) -> bytes:
        # A layout without an index over ids is asked by the number that its reader remembers.
        column = "seq" if self._remembers else "id"
        key = self._seq.get(entry_id, 0) if self._remembers else entry_id
        query = f"SELECT answer FROM entries WHERE {column}=?"  # noqa: S608 - one of two names
        found = self._db.execute(query, (key,)).fetchone()
        answer: bytes = found[0]
        return answer

    def scan(self) -> Iterator[object]:
        yield from self._db.execute("SELECT id, answer FROM entries")
        yield from self._db.execute("SELECT id, vector FROM vectors")

    def close(self) -> None:
        self._db.close()


_LAYOUTS = {
    "rowid": ("id INTEGER PRIMARY KEY", ""),
    "without rowid": ("id INTEGER PRIMARY KEY", " WITHOUT ROWID"),
    "append": ("seq INTEGER PRIMARY KEY, id INTEGER", ""),
    "append, id indexed": ("seq INTEGER PRIMARY KEY, id INTEGER UNIQUE", ""),
}


class Lmdb:
    """LMDB; answers and vectors in databases of their own."""

    def __init__(self, folder: Path, *, sync: bool) -> None:
        self._env = lmdb.open(str(folder / "db"), map_size=LMDB_MAP_BYTES, max_dbs=2, sync=sync)
        self._answers = self._env.open_db(b"answers")
        self._vectors = self._env.open_db(b"vectors")

    def write(self, rows: Sequence[Row]) -> None:
        with self._env.begin(write=True) as transaction:
            for row in rows:
                key = row.id.to_bytes(8, "big")
                transaction.put(key, row.answer, db=self._answers)
                transaction.put(key, row.vector, db=self._vectors)

    def read(self, entry_id: int) -> bytes:
        with self._env.begin(db=self._answers) as transaction:
            return bytes(transaction.get(entry_id.to_bytes(8, "big")) or b"")

    def scan(self) -> Iterator[object]:
        for table in (self._answers, self._vectors):
            with self._env.begin(db=table) as transaction:
                yield from transaction.cursor()

    def close(self) -> None:
        self._env.close()


ENGINES: dict[str, Callable[[Path], Engine]] = {
    "sqlite rowid NORMAL": lambda folder: Sqlite(folder, "rowid", "NORMAL"),
    "sqlite rowid NORMAL 16k pages": lambda folder: Sqlite(folder, "rowid", "NORMAL", 16384),
    "sqlite rowid FULL": lambda folder: Sqlite(folder, "rowid", "FULL"),
    "sqlite append NORMAL": lambda folder: Sqlite(folder, "append", "NORMAL"),
    "sqlite append NORMAL 8k pages": lambda folder: Sqlite(folder, "append", "NORMAL", 8192),
    "sqlite append NORMAL 16k pages": lambda folder: Sqlite(folder, "append", "NORMAL", 16384),
    "sqlite append FULL 8k pages": lambda folder: Sqlite(folder, "append", "FULL", 8192),
    "sqlite append, id indexed NORMAL": lambda folder: Sqlite(
        folder, "append, id indexed", "NORMAL"
    ),
    "sqlite without rowid NORMAL": lambda folder: Sqlite(folder, "without rowid", "NORMAL"),
    "lmdb nosync": lambda folder: Lmdb(folder, sync=False),
    "lmdb sync": lambda folder: Lmdb(folder, sync=True),
}


class RowSource:
    """Rows whose bytes differ from one another but come cheaply."""

    def __init__(self) -> None:
        self._random = random.Random(1)  # noqa: S311 - rows to measure with, no secret
        self._pool = self._random.randbytes(1 << 20)

    def rows(self, count: int) -> list[Row]:
        """So many new ones."""
        return [self._row() for _ in range(count)]

    def _row(self) -> Row:
        at = self._random.randrange(len(self._pool) - ANSWER_BYTES)
        answer = self._pool[at : at + ANSWER_BYTES]
        return Row(self._random.getrandbits(63), answer, answer[:VECTOR_BYTES])


def _median_us(action: Callable[[T], object], arguments: Iterable[T]) -> float:
    spent = []
    for argument in arguments:
        started = time.perf_counter()
        action(argument)
        spent.append(time.perf_counter() - started)
    return round(median(spent) * 1e6, 1)


def measure(name: str, entries: int, folder: Path) -> dict[str, object]:
    """Fill one engine, then write, read and scan."""
    source = RowSource()
    engine = ENGINES[name](folder)
    ids: list[int] = []
    fill_s = 0.0
    for _ in range(entries // FILL_BATCH):
        rows = source.rows(FILL_BATCH)
        started = time.perf_counter()
        engine.write(rows)
        fill_s += time.perf_counter() - started
        ids.extend(row.id for row in rows)
    row = {
        "engine": name,
        "entries": entries,
        "fill_s": round(fill_s, 2),
        "commit_1_us": _median_us(engine.write, [source.rows(1) for _ in range(COMMITS)]),
        "commit_32_us": _median_us(engine.write, [source.rows(32) for _ in range(COMMITS)]),
        "read_us": _median_us(engine.read, ids[:: max(1, len(ids) // READS)]),
    }
    started = time.perf_counter()
    scanned = sum(1 for _ in engine.scan())
    row["scan_us_per_entry"] = round((time.perf_counter() - started) / scanned * 2e6, 2)
    engine.close()
    size = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
    row["bytes_per_entry"] = size * 2 // scanned
    return row


def main() -> None:
    """Measure each engine in a folder of its own."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--entries", type=int, default=100_000)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments.add_argument("--engine", action="append", choices=list(ENGINES))
    chosen = arguments.parse_args()
    for name in chosen.engine or ENGINES:
        folder = Path(tempfile.mkdtemp(dir=chosen.folder))
        try:
            print(json.dumps(measure(name, chosen.entries, folder)), flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
