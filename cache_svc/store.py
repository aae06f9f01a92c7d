"""The answer store: what is kept, how much of it, and for how long."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from cache_svc.entry import DuplicateId, Entry
from cache_svc.expiries import Expiries
from cache_svc.gdsf import Gdsf, Item
from cache_svc.vector_index import Vector
from sidecache.errors import SidecacheError, Unavailable

# Seconds on a monotonic clock.
Clock = Callable[[], float]


class EntryTooLarge(SidecacheError):
    """The entry alone is over the store's bound."""

    reason = "ENTRY_TOO_LARGE"


class NotWritable(SidecacheError):
    """The disk takes no new answers now."""

    reason = "NOT_WRITABLE"


class NotDurable(Unavailable):
    """A removal is done in memory but not on disk yet; it is tried again."""

    reason = "NOT_DURABLE"


class Removal(Enum):
    """Why an entry left the store."""

    EVICTED = "evicted"
    EXPIRED = "expired"
    REPLACED = "replaced"
    INVALIDATED = "invalidated"
    UNWRITTEN = "unwritten"


# Told of every entry that left, before anything else can look at the store.
RemovalListener = Callable[[Sequence[Entry], Removal], None]


class Usage(NamedTuple):
    """What a tenant, or all of them together, keep."""

    entries: int
    bytes: int
    vectors: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of one tenant's entries are meant: those that match every criterion.

    None: the criterion is not set. With none set, all of the tenant's entries.
    """

    entry_id: int | None = None
    tag: str | None = None
    model: str | None = None
    namespace: str | None = None

    def matches(self, entry: Entry) -> bool:
        """Whether the entry meets every criterion that is set."""
        return (
            (self.entry_id is None or self.entry_id == entry.id)
            and (self.tag is None or self.tag in entry.tags)
            and (self.model is None or self.model == entry.key.model)
            and (self.namespace is None or self.namespace == entry.key.namespace)
        )


class AnswerStore(Protocol):
    """The truth about what is cached. Used from the event loop only.

    Every method is quick enough for the event loop: a durable store answers from
    its page cache and writes behind. No method ever crosses tenants.
    """

    @property
    def max_bytes(self) -> int:
        """The bound that the sum of all entries' ``size_bytes`` never exceeds."""
        ...

    @property
    def lost_answers(self) -> int:
        """Answers that were taken and that the disk then refused, since the start."""
        ...

    def find(self, tenant: str, exact: bytes) -> Entry | None:
        """The living entry that answers exactly this request."""
        ...

    def get(self, tenant: str, entry_id: int) -> Entry | None:
        """The tenant's living entry with this id."""
        ...

    def touch(self, entry: Entry) -> None:
        """Note that the entry was served. Never lengthens its life."""
        ...

    def put(self, entry: Entry, vector: Vector | None = None) -> None:
        """Keep an entry in place of an older one with the same exact key.

        Evicts others until it fits; the listener hears of every one of them.

        Args:
            entry: found from now on.
            vector: kept beside it where the store outlives the process.

        Raises:
            EntryTooLarge: it would not fit an empty store; nothing has changed.
            DuplicateId: another entry has its id; nothing has changed.
            NotWritable: the disk takes nothing new now; nothing has changed.
        """
        ...

    async def settled(self, entries: Sequence[Entry]) -> list[Entry]:
        """Wait until these entries are as durable as the operator asked.

        Returns:
            Those that could not be made so; they have left the store.
        """
        ...

    async def removals_settled(self) -> None:
        """Wait until no removal so far can be undone by a crash or a power cut.

        Raises:
            NotDurable: the disk refuses; the store goes on trying.
        """
        ...

    def select(self, tenant: str, selection: Selection) -> list[Entry]:
        """The tenant's living entries that match."""
        ...

    def remove(self, entries: Iterable[Entry], why: Removal) -> int:
        """Drop entries; returns how many of them were still there."""
        ...

    def expire(self) -> int:
        """Drop what is past its time; returns how many entries that were."""
        ...

    def usage(self, tenant: str = "") -> Usage:
        """What a tenant keeps; with an empty name, all tenants together."""
        ...


class Kept(Item):
    """An entry in the store with its place in the eviction queue; ``arrival`` numbers it."""

    __slots__ = ("entry",)

    def __init__(self, entry: Entry, number: int, size: int) -> None:
        # An answer whose tokens nobody counted still saves a call.
        super().__init__(number, max(1, entry.tokens) / size)
        self.entry = entry


class _Shelf:
    """One tenant's entries."""

    __slots__ = ("by_exact", "bytes", "queue", "vectors")

    def __init__(self) -> None:
        self.by_exact: dict[bytes, Entry] = {}
        self.queue: Gdsf[Kept] = Gdsf()
        self.bytes = 0
        self.vectors = 0


class MemoryStore:
    """Answers in memory, bounded by bytes.

    Eviction is fair between tenants and GDSF within one (see gdsf.py): the
    victim always comes from the tenant that keeps the most bytes. A tenant
    within an equal share of the bound therefore never loses an entry to
    another's flood, and a lone tenant may use all of it (max-min fairness).

    Args:
        max_bytes: bound on the sum of ``Entry.size_bytes``.
        clock: monotonic seconds; the same clock that entries were stamped with.
        on_removed: told of every entry that leaves, whatever the reason.
    """

    def __init__(self, max_bytes: int, clock: Clock, on_removed: RemovalListener) -> None:
        self.max_bytes = max_bytes
        self._clock = clock
        self._on_removed = on_removed
        self._by_id: dict[int, Kept] = {}
        self._shelves: dict[str, _Shelf] = {}
        self._expiries = Expiries()
        self._next_number = 1
        self._bytes = 0
        self._vectors = 0

    @property
    def lost_answers(self) -> int:
        return 0

    def find(self, tenant: str, exact: bytes) -> Entry | None:
        shelf = self._shelves.get(tenant)
        return self._living(shelf.by_exact.get(exact)) if shelf is not None else None

    def get(self, tenant: str, entry_id: int) -> Entry | None:
        kept = self._by_id.get(entry_id)
        entry = self._living(None if kept is None else kept.entry)
        return entry if entry is not None and entry.key.tenant == tenant else None

    def touch(self, entry: Entry) -> None:
        kept = self._by_id.get(entry.id)
        if kept is not None:
            self._shelves[entry.key.tenant].queue.touch(kept)

    def put(self, entry: Entry, vector: Vector | None = None) -> None:
        size = entry.size_bytes
        if size > self.max_bytes:
            raise EntryTooLarge(f"the entry takes {size} bytes of a store of {self.max_bytes}")
        if entry.id in self._by_id:
            raise DuplicateId(f"entry {entry.name} is in the store already")
        shelf = self._shelves.get(entry.key.tenant)
        older = shelf.by_exact.get(entry.key.exact) if shelf is not None else None
        if older is not None:
            self.remove([older], Removal.REPLACED)
        self.expire()
        self._make_room(entry.key.tenant, size)
        self._insert(entry, size)

    async def settled(self, entries: Sequence[Entry]) -> list[Entry]:
        return []

    async def removals_settled(self) -> None:
        pass

    def select(self, tenant: str, selection: Selection) -> list[Entry]:
        if selection.entry_id is not None:
            entry = self.get(tenant, selection.entry_id)
            return [entry] if entry is not None and selection.matches(entry) else []
        shelf = self._shelves.get(tenant)
        if shelf is None:
            return []
        now = self._clock()
        return [e for e in shelf.by_exact.values() if e.expires_s > now and selection.matches(e)]

    def remove(self, entries: Iterable[Entry], why: Removal) -> int:
        removed = [entry for entry in entries if self._drop(entry) is not None]
        if removed:
            self._on_removed(removed, why)
        return len(removed)

    def expire(self) -> int:
        due = self._expiries.due(self._clock(), self._expires_s)
        return self.remove([self._by_id[entry_id].entry for entry_id in due], Removal.EXPIRED)

    def usage(self, tenant: str = "") -> Usage:
        if not tenant:
            return Usage(len(self._by_id), self._bytes, self._vectors)
        shelf = self._shelves.get(tenant)
        if shelf is None:
            return Usage(0, 0, 0)
        return Usage(len(shelf.by_exact), shelf.bytes, shelf.vectors)

    def _living(self, entry: Entry | None) -> Entry | None:
        return entry if entry is not None and entry.expires_s > self._clock() else None

    def _make_room(self, tenant: str, size: int) -> None:
        """Evict until ``size`` bytes more for ``tenant`` keep the bound."""
        if self._bytes + size <= self.max_bytes:
            return

        def bytes_with_newcomer(shelf_of: str) -> int:
            return self._shelves[shelf_of].bytes + (size if shelf_of == tenant else 0)

        evicted = []
        while self._bytes + size > self.max_bytes:
            largest = max(self._shelves, key=bytes_with_newcomer)
            victim = self._shelves[largest].queue.victim().entry
            self._drop(victim)
            evicted.append(victim)
        if evicted:
            self._on_removed(evicted, Removal.EVICTED)

    def _insert(self, entry: Entry, size: int) -> None:
        kept = Kept(entry, self._next_number, size)
        self._next_number += 1
        self._shelve(kept, size).queue.add(kept)

    def _shelve(self, kept: Kept, size: int) -> _Shelf:
        """Enter it in every table but the eviction queue; returns where that is."""
        entry = kept.entry
        shelf = self._shelves.get(entry.key.tenant)
        if shelf is None:
            shelf = self._shelves[entry.key.tenant] = _Shelf()
        shelf.by_exact[entry.key.exact] = entry
        self._by_id[entry.id] = kept
        self._expiries.add(entry.expires_s, entry.id)
        self._count(shelf, size, 1 if entry.vector_dimension else 0)
        return shelf

    def _drop(self, entry: Entry) -> Kept | None:
        """Take an entry out of every table; None when it was not there."""
        kept = self._by_id.get(entry.id)
        if kept is None or kept.entry is not entry:
            return None
        del self._by_id[entry.id]
        tenant = entry.key.tenant
        shelf = self._shelves[tenant]
        del shelf.by_exact[entry.key.exact]
        shelf.queue.remove(kept)
        self._count(shelf, -entry.size_bytes, -1 if entry.vector_dimension else 0)
        if not shelf.by_exact:
            del self._shelves[tenant]
        self._prune_expiries()
        return kept

    def _expires_s(self, entry_id: int) -> float | None:
        kept = self._by_id.get(entry_id)
        return None if kept is None else kept.entry.expires_s

    def _count(self, shelf: _Shelf, size: int, vectors: int) -> None:
        shelf.bytes += size
        shelf.vectors += vectors
        self._bytes += size
        self._vectors += vectors

    def _prune_expiries(self) -> None:
        """Start over once most of it belongs to entries that left early."""
        if len(self._expiries) > 64 + 2 * len(self._by_id):
            entries = (kept.entry for kept in self._by_id.values())
            self._expiries.rebuild((entry.expires_s, entry.id) for entry in entries)
