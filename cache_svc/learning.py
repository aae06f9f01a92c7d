"""What the sidecar learns from the answers it is given: in the background, in order."""

import asyncio
import logging
from typing import NamedTuple

from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.entry import Entry
from cache_svc.gate import Gate
from cache_svc.scoped_index import ScopedIndex
from cache_svc.store import AnswerStore
from sidecache.errors import SidecacheError
from sidecache.v1 import cache_pb2

log = logging.getLogger(__name__)


class _Lesson(NamedTuple):
    entry: Entry
    answer: cache_pb2.Answer
    audits: str


class Learning:
    """Shows the gate every stored answer with what is stored around it.

    Args:
        max_waiting: answers not looked at yet; more are not learnt from.
    """

    def __init__(
        self,
        gate: Gate,
        store: AnswerStore,
        queue: EmbeddingQueue,
        index: ScopedIndex,
        *,
        max_waiting: int,
    ) -> None:
        self._gate = gate
        self._store = store
        self._queue = queue
        self._index = index
        self._lessons: asyncio.Queue[_Lesson] = asyncio.Queue(max_waiting)
        self.dropped = 0

    def stored(self, entry: Entry, offered: cache_pb2.StoreEntry) -> None:
        """Note an answer that was stored; costs its caller nothing."""
        if not entry.vector_dimension:
            return
        try:
            self._lessons.put_nowait(_Lesson(entry, offered.answer, offered.audits_entry_id))
        except asyncio.QueueFull:
            self.dropped += 1

    def complained(self, entry: Entry) -> None:
        """Note that a hit on this entry was reported as wrong."""
        self._gate.complained(entry)

    async def run(self) -> None:
        """Learn from one answer after another until cancelled."""
        while True:
            lesson = await self._lessons.get()
            try:
                around = await self._around(lesson.entry)
                await self._gate.stored(lesson.entry, lesson.answer, around, lesson.audits)
            except SidecacheError as error:
                # One observation less; a sick embedder is told of elsewhere.
                log.debug("an answer was not learnt from: %s", error.reason)

    async def _around(self, entry: Entry) -> list[Entry]:
        """The entries nearest to a new one, itself left out."""
        # Stored a moment ago: its vector is kept, so this is no work for the embedder.
        vector = await self._queue.vector(entry.key.text, in_background=True)
        nearest = await self._index.search(entry.key.place, vector, self._gate.company + 1)
        found = (self._store.get(entry.key.tenant, i) for i, _ in nearest if i != entry.id)
        return [neighbor for neighbor in found if neighbor is not None]
