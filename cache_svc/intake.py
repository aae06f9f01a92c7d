"""The way into the cache: a finished answer becomes findable in both tiers at once."""

from collections.abc import Sequence
from dataclasses import dataclass

from cache_svc.embedder import NotComparable
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.entry import Entry, Key, new_entry_id
from cache_svc.new_entry_rate import NewEntryRate
from cache_svc.quarantine import Quarantine
from cache_svc.scoped_index import ScopedIndex
from cache_svc.store import AnswerStore, Clock, EntryTooLarge, NotWritable
from cache_svc.vector_index import Vector
from cache_svc.whole_answer import why_not_whole
from cache_svc.wire import check_name, read_duration, read_key
from sidecache.errors import InvalidRequest, SidecacheError
from sidecache.v1 import cache_pb2


@dataclass(frozen=True, slots=True)
class IntakeLimits:
    """What one entry may be.

    Attributes:
        default_ttl_s: life of an entry whose request names none.
        max_ttl_s: longest life; a longer wish is cut to it.
        max_answer_bytes: largest serialized answer.
        max_tags: most tags of one entry.
    """

    default_ttl_s: float
    max_ttl_s: float
    max_answer_bytes: int
    max_tags: int


@dataclass(frozen=True, slots=True)
class Stored:
    """The answer is kept. ``note`` says why it is not comparable by meaning, if it is not."""

    entry: Entry
    note: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer is not kept, and nothing of it is."""

    reason: str


class Intake:
    """Checks answers and puts them into store and index.

    Args:
        queue: None where the semantic tier is off.
        rate: None: tenants may store as fast as they can.
    """

    def __init__(
        self,
        store: AnswerStore,
        index: ScopedIndex,
        queue: EmbeddingQueue | None,
        quarantine: Quarantine,
        limits: IntakeLimits,
        clock: Clock,
        rate: NewEntryRate | None = None,
    ) -> None:
        self._store = store
        self._index = index
        self._queue = queue
        self._quarantine = quarantine
        self._limits = limits
        self._clock = clock
        self._rate = rate

    async def store(self, offered: cache_pb2.StoreEntry) -> Stored | Refused:
        """Keep one answer, or say why not."""
        try:
            key = read_key(offered.key)
            tags = self._read_tags(offered)
            ttl_s = self._read_ttl_s(offered)
            answer = self._read_answer(offered)
        except InvalidRequest as error:
            return Refused(error.text)
        if self._rate is not None and not self._rate.admits(key.tenant):
            return Refused(f"the tenant stores more than {self._rate.per_s:g} entries a second")
        vector, note = await self._vector(key)
        now = self._clock()
        dimension = 0 if vector is None else len(vector)
        tokens = sum(len(delta.token_ids) for delta in offered.answer.deltas)
        entry = Entry(new_entry_id(), key, answer, tags, now, now + ttl_s, dimension, tokens)
        try:
            self._insert(entry, vector)
        except (EntryTooLarge, NotWritable) as error:
            return Refused(error.text)
        return Stored(entry, note)

    async def settled(self, kept: Sequence[Stored | Refused]) -> list[Stored | Refused]:
        """Wait until what was kept is as durable as the operator asked; some may not be."""
        entries = [one.entry for one in kept if isinstance(one, Stored)]
        lost = {entry.id for entry in await self._store.settled(entries)}
        return [
            Refused("the store's disk took no writes")
            if isinstance(one, Stored) and one.entry.id in lost
            else one
            for one in kept
        ]

    def _insert(self, entry: Entry, vector: Vector | None) -> None:
        """Both tiers or neither: nothing else runs on the event loop in between."""
        if vector is not None:
            self._index.add(entry.key.place, entry.id, vector)
        try:
            self._store.put(entry, vector)
        except SidecacheError:
            self._index.remove(entry.key.place, [entry.id])
            raise

    async def _vector(self, key: Key) -> tuple[Vector | None, str]:
        """The vector of the entry's prompt, or None and why it has none."""
        if self._queue is None:
            return None, "the semantic tier is off"
        if not key.text:
            return None, "the request has no text to compare"
        if self._quarantine.holds(key):
            return None, "answers to this request were reported as wrong hits"
        try:
            # Its lookup has just embedded the same text: usually no work at all. Else it takes
            # its turn among the answers learnt from, which would fall behind it otherwise.
            return await self._queue.vector(key.text, in_background=True), ""
        except NotComparable as error:
            return None, error.text
        except SidecacheError as error:
            return None, f"the semantic tier is degraded: {error.text}"

    def _read_answer(self, offered: cache_pb2.StoreEntry) -> bytes:
        size, limit = offered.answer.ByteSize(), self._limits.max_answer_bytes
        if size > limit:
            raise InvalidRequest(f"has {size} bytes, may have {limit}", field="answer")
        if problem := why_not_whole(offered.answer):
            raise InvalidRequest(problem, field="answer")
        return offered.answer.SerializeToString()

    def _read_tags(self, offered: cache_pb2.StoreEntry) -> tuple[str, ...]:
        tags = tuple(dict.fromkeys(offered.tags))
        if len(tags) > self._limits.max_tags:
            limit = self._limits.max_tags
            raise InvalidRequest(f"are {len(tags)}, may be {limit}", field="tags")
        for tag in tags:
            check_name(tag, "tags")
        return tags

    def _read_ttl_s(self, offered: cache_pb2.StoreEntry) -> float:
        limits = self._limits
        if not offered.HasField("ttl"):
            return limits.default_ttl_s
        ttl_s = read_duration(offered.ttl, "ttl")
        if ttl_s <= 0:
            raise InvalidRequest(f"is {ttl_s:g} s, must be over 0", field="ttl")
        return min(ttl_s, limits.max_ttl_s)
