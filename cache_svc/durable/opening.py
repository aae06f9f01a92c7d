"""A durable store from its folder: claimed, loaded, checked, and closed again."""

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from cache_svc.durable.database import AnswerDatabase, CorruptDatabase, check_magic
from cache_svc.durable.folder import claimed_folder, make_private, set_aside
from cache_svc.durable.learnt_row import Bar, BoundState, Judgement
from cache_svc.durable.row import CorruptRow, Restored, VectorRow, read_entry
from cache_svc.durable.store import Durability, DurableStore
from cache_svc.durable.timeline import Timeline
from cache_svc.durable.writer import WriteBehind
from cache_svc.store import Clock, RemovalListener
from sidecache.errors import SetupError

_log = logging.getLogger(__name__)

OnCorrupt = Literal["set_aside", "refuse"]


class Opened(NamedTuple):
    """A durable store with what else its database knows.

    Attributes:
        bars: requests that were barred from the semantic tier, oldest first.
        vectors: the vectors on disk, for :func:`cache_svc.durable.restore.restore_vectors`.
        judgements: what was learnt of entries, under the lineage in use.
        bounds: what was learnt of tenants' namespaces, under the lineage in use.
    """

    store: DurableStore
    bars: list[Bar]
    vectors: Callable[[int, int], list[VectorRow]]
    judgements: list[Judgement]
    bounds: list[BoundState]


@contextlib.contextmanager
def open_durable_store(
    folder: Path,
    max_bytes: int,
    clock: Clock,
    on_removed: RemovalListener,
    *,
    fingerprint: str = "",
    lineage: bytes = b"",
    durability: Durability = "written",
    on_corrupt: OnCorrupt = "set_aside",
    max_waiting_bytes: int = 64 << 20,
    system_clock: Callable[[], float] = time.time,
) -> Iterator[Opened]:
    """Open the store of a folder with all its answers; leaving the block writes what waits.

    Args:
        folder: private to one process at a time; made if need be.
        max_bytes: as for MemoryStore; what does not fit any more is evicted.
        clock: monotonic seconds.
        on_removed: as for MemoryStore.
        fingerprint: of the embedder in use; vectors of others are not loaded.
        lineage: of the bound in use; what others learnt is not loaded.
        durability: what an acknowledged entry outlives.
        on_corrupt: what to do with a damaged database.
        max_waiting_bytes: of answers that wait for the disk; beyond it they are refused.
        system_clock: Unix seconds.

    Raises:
        SetupError: the folder or its database cannot be used; the text says why.
    """
    with contextlib.ExitStack() as held:
        path = held.enter_context(claimed_folder(folder))
        started_s = time.perf_counter()
        with _collector_resting():
            loaded = _load_or_set_aside(path, clock, system_clock, fingerprint, on_corrupt)
            held.callback(loaded.database.close)
            writer = WriteBehind(
                loaded.database,
                loaded.timeline.now,
                sync=durability == "synced",
                max_waiting_bytes=max_waiting_bytes,
            )
            held.callback(writer.close)
            store = DurableStore(
                max_bytes,
                clock,
                on_removed,
                writer=writer,
                embedder=loaded.embedder,
                timeline=loaded.timeline,
                durability=durability,
            )
            store.restore(loaded.entries, loaded.damaged, loaded.database.uses())
            # Only so many bounds, and of entries only what is still there.
            judgements = loaded.database.judgements(lineage)
            bounds = loaded.database.bounds(lineage)
        reader = AnswerDatabase(path)
        held.callback(reader.close)
        _log.info(
            "%d answers are back after %.1f s",
            store.usage().entries,
            time.perf_counter() - started_s,
        )
        yield Opened(store, loaded.bars, reader.vectors, judgements, bounds)


class _Loaded(NamedTuple):
    """All of a database but its vectors; ``damaged``: numbers of rows that are not served."""

    database: AnswerDatabase
    timeline: Timeline
    embedder: int
    bars: list[Bar]
    entries: list[Restored]
    damaged: list[int]


def _load_or_set_aside(
    path: Path,
    clock: Clock,
    system_clock: Callable[[], float],
    fingerprint: str,
    on_corrupt: OnCorrupt,
) -> _Loaded:
    try:
        loaded = _load(path, clock, system_clock, fingerprint)
    except CorruptDatabase as error:
        if on_corrupt == "refuse":
            raise SetupError(f"{error.text}; restore it, or set store.on_corrupt") from error
        aside = set_aside(path)
        _log.error("%s; it lies in %s now, the store starts empty", error.text, aside)
        make_private(path)
        return _load(path, clock, system_clock, fingerprint)
    if loaded.damaged:
        if on_corrupt == "refuse":
            loaded.database.close()
            count = len(loaded.damaged)
            raise SetupError(f"{path} has {count} damaged answers; set store.on_corrupt to go on")
        _log.error("%d answers of %s are damaged and dropped", len(loaded.damaged), path)
    return loaded


def _load(path: Path, clock: Clock, system_clock: Callable[[], float], fingerprint: str) -> _Loaded:
    """Read and check every answer.

    The scan reads each page of the answers and each row has a checksum, so
    SQLite's own quick_check (which reads the vectors too) would find little more.
    """
    check_magic(path)
    database = AnswerDatabase(path)
    try:
        timeline = Timeline(clock, system_clock(), database.last_commit_s)
        embedder = database.embedder(fingerprint)
        entries, damaged = [], []
        for row in database.entries():
            try:
                entries.append(read_entry(row, embedder, timeline))
            except CorruptRow:
                damaged.append(row[0])
        return _Loaded(database, timeline, embedder, database.bars(), entries, damaged)
    except BaseException:
        database.close()
        raise


@contextlib.contextmanager
def _collector_resting() -> Iterator[None]:
    """Millions of new objects, none of them garbage: collecting would double the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
