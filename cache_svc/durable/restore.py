"""After a restart: vectors come back beside the traffic, the exact tier was there first."""

import asyncio
import logging
from collections.abc import Callable

from cache_svc.durable.database import CorruptDatabase
from cache_svc.durable.row import CorruptRow, VectorRow, read_vector
from cache_svc.durable.store import DurableStore
from cache_svc.scoped_index import ScopedIndex
from cache_svc.vector_index import VectorRefused
from sidecache.errors import SetupError

_log = logging.getLogger(__name__)

READ_ROWS = 1024
# So many are added before others may use the event loop: well under a millisecond.
SLICE_ROWS = 32


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
                restored += sum(
                    _restore(row, store, index) for row in rows[start : start + SLICE_ROWS]
                )
                await asyncio.sleep(0)
    except (CorruptDatabase, SetupError) as error:
        _log.error("%s; the answers not read keep their exact hits only", error.text)
    return restored


def _restore(row: VectorRow, store: DurableStore, index: ScopedIndex) -> bool:
    # Stored since the restart, or back from a snapshot: the checksum is not worth its time.
    known = store.by_id(row[1])
    if known is not None and index.contains(known.key.place, known.id):
        return False
    try:
        entry_id, vector = read_vector(row)
        entry = store.by_id(entry_id)
        if entry is None or not entry.vector_dimension:
            return False
        index.add(entry.key.place, entry_id, vector)
    except (CorruptRow, VectorRefused):
        return False
    return True
