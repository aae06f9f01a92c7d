"""The tables on disk: SQLite in WAL mode, nothing of our own beside it.

Rows are appended under a rising number: a table in the order of random ids costs
some eight times as much to fill (docs/decisions/0008-durable-store.md).
Vectors have a table of their own, so that a restart reads all answers first.
"""

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cache_svc.durable.learnt_row import (
    Bar,
    Bounded,
    BoundRow,
    BoundState,
    Judgement,
    JudgementRow,
    read_bar,
    read_bound,
    read_judgement,
    write_bar,
)
from cache_svc.durable.row import CorruptRow, EntryRow, VectorRow
from sidecache.errors import SetupError, SidecacheError

_log = logging.getLogger(__name__)
Read = TypeVar("Read")
Learnt = TypeVar("Learnt", BoundState, Judgement)

APPLICATION_ID = 0x51DECACE
SCHEMA_VERSION = 2
_PAGE_BYTES = 8192
_LOG_BYTES = 64 << 20
_MAX_BOUNDS = 10_000
_FILE_MAGIC = b"SQLite format 3\0"
_SCHEMA = """
BEGIN;
CREATE TABLE embedders(number INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL UNIQUE);
CREATE TABLE entries(
    seq INTEGER PRIMARY KEY, id INTEGER NOT NULL, embedder INTEGER NOT NULL,
    dimension INTEGER NOT NULL, tokens INTEGER NOT NULL,
    created REAL NOT NULL, expires REAL NOT NULL, priority REAL NOT NULL,
    tenant TEXT NOT NULL, namespace TEXT NOT NULL, model TEXT NOT NULL,
    text TEXT NOT NULL, tags TEXT NOT NULL,
    scope BLOB NOT NULL, exact BLOB NOT NULL, answer BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE vectors(
    seq INTEGER PRIMARY KEY, id INTEGER NOT NULL, vector BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE bars(
    number INTEGER PRIMARY KEY, tenant TEXT NOT NULL, exact BLOB NOT NULL,
    checksum BLOB NOT NULL, UNIQUE(tenant, exact));
CREATE TABLE uses(seq INTEGER PRIMARY KEY, hits INTEGER NOT NULL, priority REAL NOT NULL);
CREATE TABLE judgements(
    seq INTEGER PRIMARY KEY, id INTEGER NOT NULL, sense INTEGER NOT NULL,
    right INTEGER NOT NULL, wrong INTEGER NOT NULL, lineage BLOB NOT NULL, checksum BLOB NOT NULL);
CREATE TABLE bounds(
    tenant TEXT NOT NULL, namespace TEXT NOT NULL, lineage BLOB NOT NULL, state BLOB NOT NULL,
    checksum BLOB NOT NULL, PRIMARY KEY(tenant, namespace));
CREATE TABLE last_commit(unix_s REAL NOT NULL);
INSERT INTO last_commit VALUES (0);
PRAGMA application_id = {application};
PRAGMA user_version = {version};
COMMIT;
"""
_INSERT_ENTRY = (
    "INSERT INTO entries VALUES (?,?,?,?,?,?,?,?,CAST(? AS TEXT),CAST(? AS TEXT),CAST(? AS TEXT),"
    "CAST(? AS TEXT),CAST(? AS TEXT),?,?,?,?)"
)


class CorruptDatabase(SidecacheError):
    """The file was a database of ours and is damaged."""

    reason = "CORRUPT_DATABASE"


@dataclass(slots=True)
class Change:
    """What one transaction does: rows come, rows go, bars change.

    Attributes:
        entries: rows to add, by their numbers.
        vectors: the rows of their vectors, by the same numbers.
        removed: numbers of rows to delete with their vectors.
        bars: requests to bar (True) or to free, in order.
        uses: hits and priority of entries, by their numbers.
        judgements: what was learnt of entries, by their numbers.
        bounds: what was learnt of tenants' namespaces.
        bytes: what the rows to add hold in memory, about.
        sync: force it to the disk, whatever the durability.
    """

    entries: dict[int, EntryRow] = field(default_factory=dict)
    vectors: dict[int, VectorRow] = field(default_factory=dict)
    removed: list[int] = field(default_factory=list)
    bars: dict[Bar, bool] = field(default_factory=dict)
    uses: dict[int, tuple[int, float]] = field(default_factory=dict)
    judgements: dict[int, JudgementRow] = field(default_factory=dict)
    bounds: dict[Bounded, BoundRow] = field(default_factory=dict)
    bytes: int = 0
    sync: bool = False

    def __bool__(self) -> bool:
        learnt = self.uses or self.judgements or self.bounds
        return bool(self.entries or self.removed or self.bars or learnt or self.sync)

    def forget(self, number: int) -> None:
        """Leave a row out that is not written yet, or delete it."""
        self.uses.pop(number, None)
        self.judgements.pop(number, None)
        if self.entries.pop(number, None) is None:
            self.removed.append(number)
        else:
            self.vectors.pop(number, None)


class AnswerDatabase:
    """One connection; used from one thread at a time.

    While there is one, the file is opened in no other way: when a process closes a
    file, POSIX drops all its locks on it, SQLite's too, and whoever reads the database
    next may take the log away from under us (sqlite.org/howtocorrupt.html, 2.2).

    Raises:
        SetupError: the file is another program's database, or a newer release's.
        CorruptDatabase: it was one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Another thread opens it than later writes to it.
        self._db = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=32
        )
        # A damaged text must fail its row's checksum, not the whole scan.
        self._db.text_factory = bytes
        self._synchronous = ""
        try:
            with _damage_told(path):
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Give the file back; the log is folded into the database."""
        self._db.close()

    @property
    def last_commit_s(self) -> float:
        """Unix seconds of the last commit; 0 before the first."""
        with _damage_told(self._path):
            found = self._db.execute("SELECT unix_s FROM last_commit").fetchone()
        return float(found[0]) if found else 0.0

    def embedder(self, fingerprint: str) -> int:
        """The number of an embedder, given to it the first time; 0 for none."""
        if not fingerprint:
            return 0
        with _damage_told(self._path):
            query = "SELECT number FROM embedders WHERE fingerprint=?"
            found = self._db.execute(query, [fingerprint]).fetchone()
            if found is None:
                insert = "INSERT INTO embedders(fingerprint) VALUES (?) RETURNING number"
                (found,) = self._db.execute(insert, [fingerprint]).fetchall()
            return int(found[0])

    def entries(self) -> Iterator[EntryRow]:
        """Every row of an entry, oldest first.

        Raises:
            CorruptDatabase: a page is damaged, or rows are out of order.
        """
        last = 0
        with _damage_told(self._path):
            for row in self._db.execute("SELECT * FROM entries ORDER BY seq"):
                if not isinstance(row[0], int) or row[0] <= last:
                    raise CorruptDatabase(f"{self._path} has its rows out of order")
                last = row[0]
                yield row

    def vectors(self, after: int, limit: int) -> list[VectorRow]:
        """Up to ``limit`` rows of vectors with numbers over ``after``, in order."""
        query = "SELECT * FROM vectors WHERE seq>? ORDER BY seq LIMIT ?"
        with _damage_told(self._path):
            return self._db.execute(query, (after, limit)).fetchall()

    def bars(self) -> list[Bar]:
        """Requests that are barred from the semantic tier, oldest first.

        A damaged one is left out and told of in the log: whom it named is unknown.
        """
        query = "SELECT tenant, exact, checksum FROM bars ORDER BY number"
        return self._readable(query, read_bar, "bars of requests")

    def uses(self) -> dict[int, tuple[int, float]]:
        """Hits and priority of the entries that were used, by their rows' numbers.

        Without a checksum: a wrong count costs an eviction out of turn, no answer.
        """
        with _damage_told(self._path):
            rows = self._db.execute("SELECT seq, hits, priority FROM uses").fetchall()
        return {
            number: (hits, priority)
            for number, hits, priority in rows
            if isinstance(hits, int) and hits > 0 and isinstance(priority, float)
        }

    def judgements(self, lineage: bytes) -> list[Judgement]:
        """What was learnt of entries by a bound of this lineage."""
        query = "SELECT * FROM judgements"
        found = self._readable(query, read_judgement, "judgements of answers")
        return self._of_lineage(found, lineage, "judgements of answers")

    def bounds(self, lineage: bytes) -> list[BoundState]:
        """What was learnt of tenants' namespaces by a bound of this lineage, oldest first.

        Those beyond the newest ten thousand are deleted.
        """
        delete = (
            "DELETE FROM bounds WHERE rowid<="
            "(SELECT rowid FROM bounds ORDER BY rowid DESC LIMIT 1 OFFSET ?)"
        )
        with _damage_told(self._path):
            self._db.execute(delete, [_MAX_BOUNDS])
        query = "SELECT * FROM bounds ORDER BY rowid"
        found = self._readable(query, read_bound, "bounds of tenants")
        return self._of_lineage(found, lineage, "bounds of tenants")

    def _readable(self, query: str, read: Callable[[Any], Read], what: str) -> list[Read]:
        """The rows that are what was written."""
        found, damaged = [], 0
        with _damage_told(self._path):
            for row in self._db.execute(query):
                try:
                    found.append(read(row))
                except CorruptRow:
                    damaged += 1
        if damaged:
            _log.error("%d %s in %s are damaged and left out", damaged, what, self._path)
        return found

    def _of_lineage(self, found: list[Learnt], lineage: bytes, what: str) -> list[Learnt]:
        ours = [one for one in found if one.lineage == lineage]
        if len(ours) < len(found):
            foreign = len(found) - len(ours)
            _log.warning("%d %s are of other settings; it is learnt again", foreign, what)
        return ours

    def commit(self, change: Change, unix_s: float, *, sync: bool) -> None:
        """Make a change, all of it or nothing.

        Args:
            change: rows of removed entries need not exist.
            unix_s: now, for whoever opens the database next.
            sync: return only when it would outlive a power cut.

        Raises:
            sqlite3.Error: nothing of it was made.
        """
        db = self._db
        self._set_synchronous("FULL" if sync or change.sync else "NORMAL")
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(_INSERT_ENTRY, change.entries.values())
            db.executemany("INSERT INTO vectors VALUES (?,?,?,?)", change.vectors.values())
            numbers = [(number,) for number in change.removed]
            db.executemany("DELETE FROM entries WHERE seq=?", numbers)
            for table in ("vectors", "uses", "judgements"):
                db.executemany(f"DELETE FROM {table} WHERE seq=?", numbers)  # noqa: S608  # a name of ours
            for bar, barred in change.bars.items():
                db.execute("DELETE FROM bars WHERE tenant=? AND exact=?", bar)
                if barred:
                    insert = "INSERT INTO bars(tenant, exact, checksum) VALUES (?,?,?)"
                    db.execute(insert, write_bar(bar))
            uses = ((number, *use) for number, use in change.uses.items())
            db.executemany("INSERT OR REPLACE INTO uses VALUES (?,?,?)", uses)
            insert = "INSERT OR REPLACE INTO judgements VALUES (?,?,?,?,?,?,?)"
            db.executemany(insert, change.judgements.values())
            insert = "INSERT OR REPLACE INTO bounds VALUES (?,?,?,?,?)"
            db.executemany(insert, change.bounds.values())
            db.execute("UPDATE last_commit SET unix_s=?", [unix_s])
            db.execute("COMMIT")
        except BaseException:
            # A full disk may have rolled it back already.
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _prepare(self) -> None:
        db = self._db
        self._check_kind()
        db.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != b"wal":
            raise SetupError(f"{self._path} is on a file system where SQLite has no WAL mode")
        db.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
        # What was invalidated is overwritten where that costs no further write.
        db.execute("PRAGMA secure_delete=FAST")
        if not db.execute("PRAGMA user_version").fetchone()[0]:
            db.executescript(_SCHEMA.format(application=APPLICATION_ID, version=SCHEMA_VERSION))

    def _check_kind(self) -> None:
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not (application or version or tables):
            return  # a new file
        if application != APPLICATION_ID:
            raise SetupError(
                f"{self._path} is a database of another program; name another store.path"
            )
        if version < SCHEMA_VERSION:
            raise CorruptDatabase(f"{self._path} has schema {version}, of an older release")
        if version > SCHEMA_VERSION:
            raise SetupError(
                f"{self._path} has schema {version}, this release reads {SCHEMA_VERSION}; "
                "use the release that wrote it, or name another store.path"
            )

    def _set_synchronous(self, level: str) -> None:
        if level != self._synchronous:
            self._db.execute(f"PRAGMA synchronous={level}")
            self._synchronous = level


def check_magic(path: Path) -> None:
    """Refuse a file that is no database at all; before there is a connection to it.

    Raises:
        SetupError: it is not empty and begins as no database does.
    """
    with path.open("rb") as file:
        start = file.read(len(_FILE_MAGIC))
    if start and start != _FILE_MAGIC:
        raise SetupError(f"{path} is no SQLite database; move it away, or name another store.path")


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Tell damage from everything else that SQLite may complain of."""
    try:
        yield
    except sqlite3.OperationalError as error:
        # No such table or column in a file that says it is ours: damage too.
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_ERROR:
            raise CorruptDatabase(f"{path} is damaged: {error}") from error
        raise SetupError(f"cannot use {path}: {error}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError, TypeError, ValueError) as error:
        # A damaged schema is quoted in bytes that are no text; a damaged field has another type.
        raise CorruptDatabase(f"{path} is damaged: {error}") from error
