"""The durable answer store: answers in memory, and every change behind them on disk.

A lookup never waits for a disk: everything it needs is in memory, bounded by
``max_bytes``. The database is what the next process starts from.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Literal

from cache_svc.durable.learnt_row import (
    Bar,
    BoundState,
    Judgement,
    write_bound,
    write_judgement,
)
from cache_svc.durable.row import (
    Restored,
    write_entry,
    write_vector,
)
from cache_svc.durable.timeline import Timeline
from cache_svc.durable.writer import WriteBehind
from cache_svc.entry import Entry
from cache_svc.store import (
    Clock,
    Kept,
    MemoryStore,
    NotDurable,
    Removal,
    RemovalListener,
)
from cache_svc.vector_index import Vector

# What an acknowledged Store outlives: nothing (it is only queued), this process
# (the system has it), or a power cut (the disk has it).
Durability = Literal["memory", "written", "synced"]
# What a row costs beside its answer and vector while it waits to be written.
_ROW_BYTES = 1200
# Rows of hits written in one go.
_USES_AT_ONCE = 1000


class DurableStore(MemoryStore):
    """A MemoryStore whose every change is also written to a database.

    Open one with :func:`cache_svc.durable.opening.open_durable_store`.

    Args:
        writer: takes the changes to disk.
        embedder: number of the embedder whose vectors come with new entries.
        timeline: between this process's clock and the database's.
    """

    def __init__(
        self,
        max_bytes: int,
        clock: Clock,
        on_removed: RemovalListener,
        *,
        writer: WriteBehind,
        embedder: int,
        timeline: Timeline,
        durability: Durability,
    ) -> None:
        super().__init__(max_bytes, clock, self._note_removed)
        self._tell_removed = on_removed
        self._writer = writer
        self._embedder = embedder
        self._timeline = timeline
        self._durability = durability
        # Numbers of rows whose entries have just left memory.
        self._leaving: list[int] = []
        # Entries served since their hits were last written.
        self._used: dict[int, None] = {}

    def put(self, entry: Entry, vector: Vector | None = None) -> None:
        self._writer.check_writable()
        # Whom it replaces goes in the same transaction as it comes.
        with self._writer.one_change():
            super().put(entry)
            kept = self._by_id[entry.id]
            number = kept.arrival
            embedder = 0 if vector is None else self._embedder
            row = write_entry(number, entry, embedder, self._timeline, kept.priority)
            beside = None if vector is None else write_vector(number, entry.id, vector)
            size = _ROW_BYTES + len(entry.answer) + (0 if vector is None else vector.nbytes)
            self._writer.add(row, beside, size)

    def touch(self, entry: Entry) -> None:
        super().touch(entry)
        self._used[entry.id] = None

    async def settled(self, entries: Sequence[Entry]) -> list[Entry]:
        if self._durability == "memory":
            return []
        await self._writer.settled()
        kept = filter(None, (self._by_id.get(entry.id) for entry in entries))
        lost = [one.entry for one in kept if self._writer.is_lost(one.arrival)]
        self.remove(lost, Removal.UNWRITTEN)
        return lost

    async def removals_settled(self) -> None:
        if not await self._writer.settled(sync=True):
            raise NotDurable("removed here, but the disk takes no writes; it is tried again")

    def set_bar(self, bar: Bar, barred: bool) -> None:
        """Remember across restarts that a request is barred from the semantic tier, or free."""
        self._writer.set_bar(bar, barred=barred)

    def write_uses(self) -> None:
        """Write how often entries were served; a bounded number of them, the rest next time."""
        uses = {}
        for entry_id in list(islice(self._used, _USES_AT_ONCE)):
            del self._used[entry_id]
            if (kept := self._by_id.get(entry_id)) is not None:
                uses[kept.arrival] = (kept.hits, kept.priority)
        self._writer.note(uses=uses)

    def write_learnt(self, judgements: Iterable[Judgement], bounds: Iterable[BoundState]) -> None:
        """Write what the bound on false hits learnt; of entries that left, nothing."""
        rows = {}
        for judgement in judgements:
            if (kept := self._by_id.get(judgement.entry_id)) is not None:
                rows[kept.arrival] = write_judgement(kept.arrival, judgement)
        states = {(bound.tenant, bound.namespace): write_bound(bound) for bound in bounds}
        self._writer.note(judgements=rows, bounds=states)

    @property
    def lost_answers(self) -> int:
        return self._writer.lost_answers

    def restore(
        self,
        entries: Iterable[Restored],
        damaged: Iterable[int],
        uses: Mapping[int, tuple[int, float]],
    ) -> None:
        """Take in what is on disk already, oldest first; what is past its time goes there too.

        Args:
            entries: with the numbers of their rows.
            damaged: numbers of rows that are to be deleted.
            uses: hits and priority of entries that were served, by the numbers of their rows.
        """
        now_s = self._clock()
        dropped = list(damaged)
        number = 0
        for number, entry, priority in entries:
            size = entry.size_bytes
            # A smaller bound; a copy of a row.
            if entry.expires_s <= now_s or size > self.max_bytes or entry.id in self._by_id:
                dropped.append(number)
            else:
                kept = Kept(entry, number, size)
                kept.hits, kept.priority = uses.get(number, (1, priority))
                self._bring_back(kept, size)
        for shelf in self._shelves.values():
            shelf.queue.resume()
        self._make_room("", 0)
        self._next_number = max([number, *dropped]) + 1
        self._writer.remove(dropped)

    def _bring_back(self, kept: Kept, size: int) -> None:
        older = self.find(kept.entry.key.tenant, kept.entry.key.exact)
        if older is not None:
            self.remove([older], Removal.REPLACED)
        self._shelve(kept, size).queue.bring_back(kept)

    def without_vector(self) -> list[tuple[str, int]]:
        """Tenant and id of entries that have a text to compare and no vector, newest first."""
        return [
            (entry.key.tenant, entry.id)
            for entry in (kept.entry for kept in reversed(self._by_id.values()))
            if entry.key.text and not entry.vector_dimension
        ]

    def entries(self) -> list[Entry]:
        """All entries of all tenants, oldest first; to bring their index back."""
        return [kept.entry for kept in self._by_id.values()]

    def by_id(self, entry_id: int) -> Entry | None:
        """The entry with this id, whoever's it is; to bring its vector back."""
        kept = self._by_id.get(entry_id)
        return None if kept is None else kept.entry

    def _drop(self, entry: Entry) -> Kept | None:
        kept = super()._drop(entry)
        if kept is not None:
            self._used.pop(entry.id, None)
            self._leaving.append(kept.arrival)
        return kept

    def _note_removed(self, entries: Sequence[Entry], why: Removal) -> None:
        leaving, self._leaving = self._leaving, []
        self._writer.remove(leaving)
        self._tell_removed(entries, why)
