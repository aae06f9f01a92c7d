"""After a restart: vectors come back beside the traffic, the exact tier was there first."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from cache_svc.durable.database import CorruptDatabase
from cache_svc.durable.row import CorruptRow, VectorRow, read_vector
from cache_svc.durable.store import DurableStore
from cache_svc.entry import Place
from cache_svc.scoped_index import ScopedIndex
from cache_svc.vector_index import VectorRefused
from sidecache.errors import SetupError

_log = logging.getLogger(__name__)

READ_ROWS = 4096
# So many are added before others may use the event loop: about a millisecond.
SLICE_ROWS = 128


async def restore_vectors(
    vectors: Callable[[int, int], list[VectorRow]], store: DurableStore, index: ScopedIndex
) -> int:
    """Make stored answers comparable by meaning again; returns how many.

    An entry whose vector is damaged, missing or another embedder's keeps its exact
    hits. What left the store meanwhile is passed over.

    Args:
        vectors: reads up to so many rows behind a number; on a thread.
        store: knows which of their entries are still there.
        index: where they are added.
    """
    restored, after = 0, 0
    try:
        while rows := await asyncio.to_thread(vectors, after, READ_ROWS):
            after = rows[-1][0]
            for start in range(0, len(rows), SLICE_ROWS):
                restored += _restore(rows[start : start + SLICE_ROWS], store, index)
                await asyncio.sleep(0)
    except (CorruptDatabase, SetupError) as error:
        _log.error("%s; the answers not read keep their exact hits only", error.text)
    return restored


def _restore(rows: list[VectorRow], store: DurableStore, index: ScopedIndex) -> int:
    by_place: dict[Place, dict[int, bytes]] = defaultdict(dict)
    for row in rows:
        # Stored since the restart, or back from a snapshot: the checksum is not worth its time.
        known = store.by_id(row[1])
        if known is not None and index.contains(known.key.place, known.id):
            continue
        try:
            entry_id, packed = read_vector(row)
        except CorruptRow:
            continue
        entry = store.by_id(entry_id)
        # Of another embedder, or of one that is gone.
        if entry is not None and packed and len(packed) == 2 * entry.vector_dimension:
            by_place[entry.key.place][entry.id] = packed
    return sum(_add(index, place, vectors) for place, vectors in by_place.items())


def _add(index: ScopedIndex, place: Place, vectors: dict[int, bytes]) -> int:
    """Add all of a place's, or of a bad lot each that is good."""
    rows = np.frombuffer(b"".join(vectors.values()), "<i2").reshape(len(vectors), -1)
    try:
        index.add_packed(place, list(vectors), rows)
    except VectorRefused:
        if len(vectors) == 1:
            return 0
        return sum(_add(index, place, {one: packed}) for one, packed in vectors.items())
    return len(vectors)
