"""After a change of embedder: stored answers become comparable again, bit by bit.

Vectors of two embedders are never compared, so a new embedder's index starts
empty, as a generation of its own. Exact hits go on as if nothing had happened;
similar ones return as the entries' texts are embedded again, beside the traffic.
The other way, to serve the old generation until the new one is complete, would need
both models in memory, and the old one may be the very reason for the change.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

from cache_svc.embedder import NotComparable
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.entry import Entry, new_entry_id
from cache_svc.quarantine import Quarantine
from cache_svc.scoped_index import ScopedIndex
from cache_svc.store import AnswerStore, Clock
from cache_svc.vector_index import Vector
from sidecache.errors import Overloaded, SidecacheError

_log = logging.getLogger(__name__)

# How long to leave the embedder alone once it had too much to do.
OVERLOAD_PAUSE_S = 1.0
Sleep = Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class Progress:
    """What became of the entries so far.

    Attributes:
        embedded: comparable again.
        skipped: left the store meanwhile, have a vector already, or may have none.
        failed: the embedder or the store refused them; they keep their exact hits.
    """

    embedded: int = 0
    skipped: int = 0
    failed: int = 0


class Reembedding:
    """Gives entries that have no vector of the current embedder one, at a bounded rate.

    A lookup never waits for it: at most one run of the model goes on beside it.

    Args:
        store: knows which entries are still there.
        put: keeps an entry, with its vector where the store outlives the process, in
            place of the one with the same exact key: the store's own ``put``.
        index: of the current embedder's vectors, and no other's.
        queue: of the current embedder.
        quarantine: requests whose answers stay out of the semantic tier.
        share: most of the embedder's time that this may take; over 0, at most 1.
    """

    def __init__(
        self,
        store: AnswerStore,
        put: Callable[[Entry, Vector], None],
        index: ScopedIndex,
        queue: EmbeddingQueue,
        quarantine: Quarantine,
        *,
        share: float,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share is {share:g}, must be over 0 and at most 1")
        self._store = store
        self._put = put
        self._index = index
        self._queue = queue
        self._quarantine = quarantine
        self._rest = (1 - share) / share
        self._clock = clock
        self._sleep = sleep
        self.progress = Progress()

    async def run(self, stale: Iterable[tuple[str, int]]) -> Progress:
        """Embed the texts of these entries, one after another.

        Args:
            stale: tenant and id of entries whose vectors are another embedder's; the
                most useful first.
        """
        for tenant, entry_id in stale:
            entry = self._store.get(tenant, entry_id)
            if entry is None or entry.vector_dimension or not self._may_compare(entry):
                self.progress.skipped += 1
                continue
            started_s = self._clock()
            await self._embed(entry)
            await self._sleep(self._rest * (self._clock() - started_s))
        done = self.progress
        _log.info(
            "embedded again: %d entries; skipped %d, failed %d",
            done.embedded,
            done.skipped,
            done.failed,
        )
        return done

    def _may_compare(self, entry: Entry) -> bool:
        return bool(entry.key.text) and not self._quarantine.holds(entry.key)

    async def _embed(self, entry: Entry) -> None:
        try:
            vector = await self._vector(entry.key.text)
            # While it was embedded the entry may have left, or been reported as wrong.
            there = self._store.get(entry.key.tenant, entry.id) is entry
            if there and self._may_compare(entry):
                self._renew(entry, vector)
                self.progress.embedded += 1
            else:
                self.progress.skipped += 1
        except NotComparable:
            self.progress.skipped += 1
        except SidecacheError as error:
            self.progress.failed += 1
            _log.debug("an entry was not embedded again: %s", error.reason)

    async def _vector(self, text: str) -> Vector:
        while True:
            try:
                return await self._queue.vector(text, in_background=True)
            except Overloaded:
                await self._sleep(OVERLOAD_PAUSE_S)

    def _renew(self, entry: Entry, vector: Vector) -> None:
        """The same answer, with the same life, under a new id: both tiers or neither."""
        renewed = replace(entry, id=new_entry_id(), vector_dimension=len(vector))
        self._index.add(entry.key.place, renewed.id, vector)
        try:
            self._put(renewed, vector)
        except SidecacheError:
            self._index.remove(entry.key.place, [renewed.id])
            raise
