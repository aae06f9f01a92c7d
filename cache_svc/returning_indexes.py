"""After a restart: indexes of large scopes return from their snapshots, before the vectors.

The store decides what a loaded index may name: ids that the store does not have are
dropped before it is used, those that only the store has are added from the database
afterwards (durable/restore.py), and what leaves the store meanwhile leaves the index.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from cache_svc.entry import Entry, Place
from cache_svc.index_shelf import IndexShelf
from cache_svc.index_snapshot import reconcile
from cache_svc.ivf_index import IvfIndex
from cache_svc.scoped_index import ScopedIndex
from cache_svc.vector_index import VectorIndex

_log = logging.getLogger(__name__)


async def return_indexes(
    shelf: IndexShelf,
    entries: Callable[[], Sequence[Entry]],
    index: ScopedIndex,
    grown_from: Callable[[Place, IvfIndex], VectorIndex],
    least_rows: float,
) -> int:
    """Put every sound snapshot into its place; returns how many vectors came back.

    Args:
        shelf: where they are; what belongs to no scope of the store is removed.
        entries: the store's, as they are when it is called.
        index: where they go; what it got since the start stays in it.
        grown_from: makes an index that goes on from a loaded one.
        least_rows: an index of fewer vectors is not worth its lists.
    """
    started_s, returned = time.perf_counter(), 0
    with index.noting_departures() as departed:
        living = await asyncio.to_thread(_living, entries(), shelf)
        for place, ids in living.items():
            loaded = await asyncio.to_thread(_loaded, shelf, place, ids)
            if loaded is None:
                continue
            loaded.remove(departed.pop(place, ()))
            if len(loaded) >= least_rows and index.install(place, grown_from(place, loaded)):
                returned += len(loaded)
    if returned:
        spent_s = time.perf_counter() - started_s
        _log.info("%d vectors are back from index snapshots after %.1f s", returned, spent_s)
    return returned


def _living(entries: Iterable[Entry], shelf: IndexShelf) -> dict[Place, list[int]]:
    """Ids of the entries with a vector in each scope that has a snapshot."""
    names = shelf.names()
    if not names:
        return {}
    living: dict[Place, list[int]] = defaultdict(list)
    for entry in entries:
        if entry.vector_dimension:
            living[entry.key.place].append(entry.id)
    found = {place: ids for place, ids in living.items() if shelf.name(place) in names}
    shelf.keep_only(set(map(shelf.name, found)))
    return found


def _loaded(shelf: IndexShelf, place: Place, living: Sequence[int]) -> IvfIndex | None:
    loaded = shelf.load(place)
    if loaded is not None:
        reconcile(loaded, dict.fromkeys(living))
    return loaded
