"""What every AnswerStore promises."""

import contextlib
import dataclasses
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache_svc.durable.opening import open_durable_store
from cache_svc.entry import DuplicateId, Entry
from cache_svc.store import (
    AnswerStore,
    Clock,
    EntryTooLarge,
    MemoryStore,
    Removal,
    RemovalListener,
    Selection,
)
from tests.fixtures.cache import TurnedClock, digest, entry_of

OpenStore = Callable[[int, Clock, RemovalListener], contextlib.AbstractContextManager[AnswerStore]]


@contextlib.contextmanager
def open_memory(max_bytes: int, clock: Clock, listener: RemovalListener) -> Iterator[AnswerStore]:
    yield MemoryStore(max_bytes, clock, listener)


@contextlib.contextmanager
def open_durable(max_bytes: int, clock: Clock, listener: RemovalListener) -> Iterator[AnswerStore]:
    with (
        tempfile.TemporaryDirectory() as folder,
        open_durable_store(Path(folder), max_bytes, clock, listener) as opened,
    ):
        yield opened.store


IMPLEMENTATIONS: list[OpenStore] = [open_memory, open_durable]
ENTRY_BYTES = entry_of(0, "00").size_bytes


class Leavers:
    """A removal listener that remembers."""

    def __init__(self) -> None:
        self.left: list[tuple[int, Removal]] = []

    def __call__(self, entries: Sequence[Entry], why: Removal) -> None:
        self.left.extend((entry.id, why) for entry in entries)


class Shop:
    """A store with its clock and its listener."""

    def __init__(self, open_store: OpenStore, max_bytes: int) -> None:
        self.clock = TurnedClock()
        self.leavers = Leavers()
        self._held = contextlib.ExitStack()
        self.store = self._held.enter_context(open_store(max_bytes, self.clock, self.leavers))

    def close(self) -> None:
        self._held.close()


@pytest.fixture(params=IMPLEMENTATIONS)
def shop(request: pytest.FixtureRequest) -> Iterator[Shop]:
    shop = Shop(request.param, 10 * ENTRY_BYTES)
    yield shop
    shop.close()


async def test_everything_settles(shop: Shop) -> None:
    """Waiting for puts and removals ends, and nothing is lost where the disk is well."""
    entry = entry_of(1)
    shop.store.put(entry)
    assert await shop.store.settled([entry]) == []
    shop.store.remove([entry], Removal.INVALIDATED)
    await shop.store.removals_settled()
    assert shop.store.usage().entries == 0


def test_found_until_it_expires(shop: Shop) -> None:
    """An entry is found from put until its time, and not one tick later."""
    entry = entry_of(1, ttl_s=60)
    shop.store.put(entry)
    shop.clock.now_s += 59.9
    assert shop.store.find("acme", entry.key.exact) is entry
    assert shop.store.get("acme", 1) is entry
    shop.clock.now_s += 0.1
    assert shop.store.find("acme", entry.key.exact) is None
    assert shop.store.get("acme", 1) is None
    assert shop.store.select("acme", Selection()) == []


def test_a_hit_never_lengthens_life(shop: Shop) -> None:
    """A popular answer dies at its time however often it is served."""
    entry = entry_of(1, ttl_s=60)
    shop.store.put(entry)
    for _ in range(59):
        shop.clock.now_s += 1
        shop.store.touch(entry)
    shop.clock.now_s += 1
    assert shop.store.find("acme", entry.key.exact) is None


def test_expiry_frees_bytes_and_tells(shop: Shop) -> None:
    """What expired is given back, and the listener hears of it once."""
    shop.store.put(entry_of(1, "a", ttl_s=10))
    shop.store.put(entry_of(2, "b", ttl_s=20))
    shop.clock.now_s += 10
    assert shop.store.expire() == 1
    assert shop.store.expire() == 0
    assert shop.leavers.left == [(1, Removal.EXPIRED)]
    assert shop.store.usage().entries == 1


def test_same_request_replaces(shop: Shop) -> None:
    """A newer answer to the same request takes the place of the older one."""
    shop.store.put(entry_of(1, "a"))
    newer = entry_of(2, "a")
    shop.store.put(newer)
    assert shop.store.find("acme", newer.key.exact) is newer
    assert shop.leavers.left == [(1, Removal.REPLACED)]
    assert shop.store.usage() == (1, newer.size_bytes, 1)


def test_duplicate_id_refused(shop: Shop) -> None:
    """Two entries never share an id, and the refused one leaves no trace."""
    shop.store.put(entry_of(1, "a"))
    with pytest.raises(DuplicateId):
        shop.store.put(entry_of(1, "b"))
    assert shop.store.usage().entries == 1


def test_too_large_changes_nothing(shop: Shop) -> None:
    """An entry over the whole bound is refused and evicts nobody."""
    shop.store.put(entry_of(1, "a"))
    with pytest.raises(EntryTooLarge):
        shop.store.put(entry_of(2, "b", answer=bytes(11 * ENTRY_BYTES)))
    assert shop.leavers.left == []
    assert shop.store.get("acme", 1) is not None


def test_hit_entries_outlive_others(shop: Shop) -> None:
    """What was served stays, one-off answers go, the oldest first."""
    for i in range(10):
        shop.store.put(entry_of(i, f"{i:02}"))
    served = shop.store.get("acme", 0)
    assert served is not None
    shop.store.touch(served)
    for i in range(10, 15):
        shop.store.put(entry_of(i, f"{i:02}"))
    assert shop.store.get("acme", 0) is not None
    assert [entry_id for entry_id, _ in shop.leavers.left] == [1, 2, 3, 4, 5]


def test_dear_answers_outlive_cheap_ones(shop: Shop) -> None:
    """Of answers of one size, those that took more tokens to generate stay."""
    for i in range(10):
        shop.store.put(dataclasses.replace(entry_of(i, f"{i:02}"), tokens=1 + 50 * (i % 2)))
    for i in range(10, 15):
        shop.store.put(dataclasses.replace(entry_of(i, f"{i:02}"), tokens=20))
    assert [entry_id for entry_id, _ in shop.leavers.left] == [0, 2, 4, 6, 8]


def test_a_flood_stays_with_its_tenant(shop: Shop) -> None:
    """A tenant that floods the store evicts its own entries, not those of a small one."""
    for i in range(3):
        shop.store.put(entry_of(i, f"{i:02}", tenant="tiny"))
    for i in range(100, 200):
        shop.store.put(entry_of(i, f"{i % 100:02}", tenant="acme"))
    assert shop.store.usage("tiny").entries == 3
    assert shop.store.usage("acme").entries == 7


def test_tenants_never_meet(shop: Shop) -> None:
    """Same exact bytes, same id: another tenant's entry is neither found nor selected."""
    entry = entry_of(1, "a", tenant="acme", tags=("t",))
    shop.store.put(entry)
    assert shop.store.find("other", entry.key.exact) is None
    assert shop.store.get("other", 1) is None
    for selection in (Selection(), Selection(entry_id=1), Selection(tag="t")):
        assert shop.store.select("other", selection) == []
    assert shop.store.usage("other") == (0, 0, 0)


def test_selection_needs_every_criterion(shop: Shop) -> None:
    """Entry, tag, model and namespace narrow a selection together."""
    shop.store.put(entry_of(1, "a", tags=("x", "y"), model="m1", namespace="n"))
    shop.store.put(entry_of(2, "b", tags=("x",), model="m2", namespace=""))

    def ids(selection: Selection) -> list[int]:
        return [entry.id for entry in shop.store.select("acme", selection)]

    assert ids(Selection()) == [1, 2]
    assert ids(Selection(tag="x")) == [1, 2]
    assert ids(Selection(tag="x", model="m2")) == [2]
    assert ids(Selection(namespace="")) == [2]
    assert ids(Selection(entry_id=1, model="m2")) == []
    assert ids(Selection(tag="z")) == []


def test_remove_is_told_once(shop: Shop) -> None:
    """Removing twice removes once."""
    entry = entry_of(1)
    shop.store.put(entry)
    assert shop.store.remove([entry, entry], Removal.INVALIDATED) == 1
    assert shop.store.remove([entry], Removal.INVALIDATED) == 0
    assert shop.leavers.left == [(1, Removal.INVALIDATED)]
    assert shop.store.usage() == (0, 0, 0)


def fresh(name: str) -> str:
    """An equal string that is an object of its own, as parsing a message makes it."""
    return name.encode().decode()


@pytest.mark.parametrize("open_store", IMPLEMENTATIONS)
async def test_byte_accounting_is_honest(open_store: OpenStore) -> None:
    """Memory that Python really takes is within a fifth of what the entries claim."""
    shop = Shop(open_store, 1 << 30)
    store = shop.store
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for i in range(2000):
            text = f"{i:05}"
            entry = entry_of(
                (1 << 60) + i,
                text,
                tenant=fresh("tenant"),
                model=fresh("model"),
                namespace=fresh("namespace"),
                answer=digest(text) * 16,
                vector_dimension=0,
            )
            store.put(entry)
        await store.settled([entry])  # what waits to be written is bounded by itself
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
        shop.close()
    assert store.usage().bytes == pytest.approx(taken, rel=0.2)


class StoreMachine(RuleBasedStateMachine):
    """The store against a plain model: a dictionary of what should be alive."""

    open_store = staticmethod(open_memory)

    def __init__(self) -> None:
        super().__init__()
        self.shop = Shop(self.open_store, 6 * ENTRY_BYTES)
        self.model: dict[int, Entry] = {}
        self.shop.leavers.left = []
        self.next_id = 0

    def teardown(self) -> None:
        self.shop.close()

    def _settle(self) -> None:
        """Take what the listener heard out of the model; nobody leaves twice."""
        for entry_id, why in self.shop.leavers.left:
            left = self.model.pop(entry_id)
            if why is Removal.EXPIRED:
                assert left.expires_s <= self.shop.clock.now_s
        self.shop.leavers.left = []

    @rule(
        tenant=st.sampled_from(["a", "b", "c"]),
        text=st.sampled_from(["x", "y", "z", "w"]),
        size=st.integers(0, 2 * ENTRY_BYTES),
        ttl_s=st.floats(0.1, 50),
        vector=st.sampled_from([0, 16]),
    )
    def put(self, tenant: str, text: str, size: int, ttl_s: float, vector: int) -> None:
        entry = entry_of(
            self.next_id,
            text,
            tenant=tenant,
            answer=bytes(size),
            created_s=self.shop.clock.now_s,
            ttl_s=ttl_s,
            vector_dimension=vector,
        )
        self.next_id += 1
        self.shop.store.put(entry)
        self._settle()
        assert all(e.key.exact != entry.key.exact for e in self.model.values())
        self.model[entry.id] = entry

    @rule(step_s=st.floats(0, 30))
    def wait(self, step_s: float) -> None:
        self.shop.clock.now_s += step_s

    @rule()
    def expire(self) -> None:
        self.shop.store.expire()
        self._settle()
        assert all(e.expires_s > self.shop.clock.now_s for e in self.model.values())

    @rule(data=st.data())
    def touch(self, data: st.DataObject) -> None:
        if self.model:
            self.shop.store.touch(data.draw(st.sampled_from(list(self.model.values()))))

    @rule(tenant=st.sampled_from(["a", "b", "c"]))
    def invalidate(self, tenant: str) -> None:
        store = self.shop.store
        store.remove(store.select(tenant, Selection()), Removal.INVALIDATED)
        self._settle()

    @invariant()
    def agrees_with_model(self) -> None:
        store, now_s = self.shop.store, self.shop.clock.now_s
        entries = list(self.model.values())
        size = sum(entry.size_bytes for entry in entries)
        vectors = sum(bool(entry.vector_dimension) for entry in entries)
        assert size <= store.max_bytes
        assert store.usage() == (len(entries), size, vectors)
        for entry in entries:
            alive = entry.expires_s > now_s
            assert (store.get(entry.key.tenant, entry.id) is entry) is alive
            assert (store.find(entry.key.tenant, entry.key.exact) is entry) is alive
        by_tenant = [store.usage(tenant).bytes for tenant in "abc"]
        assert sum(by_tenant) == size


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMemoryStore = StoreMachine.TestCase


class DurableMachine(StoreMachine):
    """The same promises kept with a database behind."""

    open_store = staticmethod(open_durable)


DurableMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
TestDurableStore = DurableMachine.TestCase
