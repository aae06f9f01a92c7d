"""The small parts: locks, bounds, settings, scopes."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from benchmarks.sieve import Sieve
from cache_svc.entry import Place, new_entry_id, parse_entry_name
from cache_svc.expiries import Expiries
from cache_svc.faiss_index import FaissIndex
from cache_svc.gdsf import Gdsf, Item
from cache_svc.new_entry_rate import NewEntryRate
from cache_svc.owned_task import owned_task
from cache_svc.plain_index import PlainIndex
from cache_svc.quarantine import Quarantine
from cache_svc.rw_lock import ReadersWriterLock
from cache_svc.scoped_index import PLAIN_ROWS, ScopedIndex
from cache_svc.settings import CacheSettings
from cache_svc.stats import Stats
from tests.fixtures.cache import TurnedClock, entry_of, key_of, random_unit


def test_readers_share_and_a_waiting_writer_comes_next() -> None:
    """Readers run side by side; once a writer waits, later readers wait behind it."""
    lock, order = ReadersWriterLock(), list[str]()
    first_in, release, writer_waits = Event(), Event(), Event()

    def first_reader() -> None:
        with lock.reading():
            first_in.set()
            assert release.wait(10)
        order.append("first reader out")

    def writer() -> None:
        writer_waits.set()
        with lock.writing():
            order.append("writer")

    def late_reader() -> None:
        with lock.reading():
            order.append("late reader")

    threads = [Thread(target=first_reader), Thread(target=writer), Thread(target=late_reader)]
    threads[0].start()
    assert first_in.wait(10)
    with lock.reading():  # side by side with the first
        pass
    threads[1].start()
    assert writer_waits.wait(10)
    while not lock._writers_waiting:  # the writer is between its signal and the lock
        pass
    threads[2].start()
    release.set()
    for thread in threads:
        thread.join(10)
    assert order.index("writer") < order.index("late reader")


async def test_scopes_grow_and_vanish() -> None:
    """A scope starts as a matrix, moves to FAISS with all its vectors, and leaves nothing."""
    place = Place("acme", b"scope")
    with ThreadPoolExecutor(1) as executor:
        index = ScopedIndex(16, lambda _place: FaissIndex(16), executor, inline_rows=PLAIN_ROWS + 2)
        for i in range(PLAIN_ROWS + 10):
            index.add(place, i, random_unit(str(i)))
            kind = PlainIndex if i < PLAIN_ROWS else FaissIndex
            assert isinstance(index._indexes[place], kind)
            assert (await index.search(place, random_unit("0"), 1))[0].id == 0
        assert len(index) == PLAIN_ROWS + 10
        assert await index.search(Place("other", b"scope"), random_unit("0"), 1) == []
        index.remove(place, range(PLAIN_ROWS + 10))
        index.remove(place, [1])
        assert (len(index), index.scopes) == (0, 0)


def test_sieve_gives_a_second_chance_once() -> None:
    """The hand passes what was hit, once, and goes on from where it stopped."""
    queue = Sieve()
    for i in range(4):
        queue.add(i)
    queue.touch(0)
    queue.touch(1)
    assert queue.victim() == 2
    queue.remove(2)
    assert queue.victim() == 3
    queue.remove(3)
    assert queue.victim() == 0
    queue.remove(0)
    queue.remove(1)
    with pytest.raises(LookupError):
        queue.victim()


def test_gdsf_keeps_what_saves_most_for_its_bytes() -> None:
    """The least worth goes first, hits count as often as they came, the oldest first of equals."""
    queue: Gdsf[Item] = Gdsf()
    items = [Item(number, worth) for number, worth in enumerate((1.0, 1.0, 2.5, 1.0))]
    for item in items:
        queue.add(item)
    queue.touch(items[0])
    queue.touch(items[0])
    order = []
    for _ in range(4):
        victim = queue.victim()
        order.append(victim.arrival)
        queue.remove(victim)
    assert order == [1, 3, 2, 0]
    with pytest.raises(LookupError):
        queue.victim()


def test_gdsf_forgets_old_fame() -> None:
    """What was popular once is overtaken by what is asked for now, in bounded time."""
    queue: Gdsf[Item] = Gdsf()
    famous = Item(0, 1.0)
    queue.add(famous)
    for _ in range(50):
        queue.touch(famous)
    for number in range(1, 200):
        newcomer = Item(number, 1.0)
        queue.add(newcomer)
        queue.touch(newcomer)
        if (victim := queue.victim()) is famous:
            break
        queue.remove(victim)
    assert victim is famous
    assert number < 120
    for number in range(1000, 3000):
        item = Item(number, 1.0)
        queue.add(item)
        queue.remove(item)
    assert len(queue._heap) < 200


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 5)), min_size=1, max_size=30),
    st.integers(0, 20),
)
def test_gdsf_goes_on_after_a_restart(uses: list[tuple[float, int]], evicted: int) -> None:
    """A queue brought back by hits and priorities evicts what the old one would have."""
    old: Gdsf[Item] = Gdsf()
    items = []
    for number, (worth, hits) in enumerate(uses):
        items.append(Item(number, worth))
        old.add(items[-1])
        for _ in range(hits):
            old.touch(items[-1])
    for _ in range(min(evicted, len(items) - 1)):
        old.remove(old.victim())
    new: Gdsf[Item] = Gdsf()
    for item in (one for one in items if one.hits):
        copy = Item(item.arrival, item.worth)
        copy.hits, copy.priority = item.hits, item.priority
        new.bring_back(copy)
    new.resume()
    orders: list[list[int]] = [[], []]
    for queue, order in zip((old, new), orders, strict=True):
        while len(queue):
            victim = queue.victim()
            order.append(victim.arrival)
            queue.remove(victim)
    assert orders[0] == orders[1]


@given(st.lists(st.tuples(st.floats(0, 500), st.booleans()), max_size=40), st.data())
def test_expiries_tell_each_time_once(
    entries: list[tuple[float, bool]], data: st.DataObject
) -> None:
    """Whatever ends is told in the first asking after its moment; what left early never is."""
    expiries = Expiries()
    alive = dict[int, float]()
    for entry_id, (expires_s, stays) in enumerate(entries):
        expiries.add(expires_s, entry_id)
        if stays:
            alive[entry_id] = expires_s
    now_s = 0.0
    while alive or len(expiries):
        now_s += data.draw(st.floats(1, 200))
        told = expiries.due(now_s, alive.get)
        assert sorted(told) == sorted(i for i, expires_s in alive.items() if expires_s <= now_s)
        for entry_id in told:
            del alive[entry_id]


def test_new_entries_have_a_rate_for_each_tenant() -> None:
    """A burst is taken, the flood behind it refused, and another tenant not touched by it."""
    clock = TurnedClock()
    rate = NewEntryRate(2.0, 5, clock, max_tenants=2)
    assert [rate.admits("loud") for _ in range(7)] == [True] * 5 + [False] * 2
    assert rate.admits("quiet")
    clock.now_s += 1.0
    assert [rate.admits("loud") for _ in range(3)] == [True, True, False]
    clock.now_s += 100.0
    assert [rate.admits("loud") for _ in range(6)] == [True] * 5 + [False]
    for tenant in ("a", "b"):
        rate.admits(tenant)
    assert len(rate._buckets) == 2


def test_quarantine_is_bounded_and_per_tenant() -> None:
    """The oldest bar is lifted for a newer one; another tenant's same request is free."""
    quarantine = Quarantine(2)
    for text in ("a", "b", "c"):
        quarantine.bar(key_of(text))
    assert not quarantine.holds(key_of("a"))
    assert quarantine.holds(key_of("b"))
    assert not quarantine.holds(key_of("b", tenant="other"))


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), max_size=60), st.integers(1, 12)
)
def test_one_tenants_reports_never_push_out_anothers(
    reports: list[tuple[str, int]], limit: int
) -> None:
    """A report costs another tenant a bar only where that one has more; memory and disk agree."""
    on_disk: dict[tuple[str, bytes], None] = {}

    def remember(bar: tuple[str, bytes], barred: bool) -> None:
        on_disk.pop(bar, None)
        if barred:
            on_disk[bar] = None

    quarantine = Quarantine(limit, on_change=remember)
    for tenant, number in reports:
        before = list(on_disk)
        held = {name: sum(bar[0] == name for bar in before) for name in "ab"}
        key = key_of(f"{number}", tenant=tenant)
        quarantine.bar(key)
        assert quarantine.holds(key)
        lost = [bar for bar in before if bar not in on_disk]
        assert all(name == tenant or held[name] > held[tenant] for name, _ in lost)
        # The oldest of a tenant goes first.
        for name, exact in lost:
            assert (name, exact) == next(bar for bar in before if bar[0] == name)
        assert len(quarantine) == len(on_disk) <= limit
    again = Quarantine(limit, barred=on_disk)
    assert len(again) == len(on_disk)


def test_stats_are_bounded() -> None:
    """Counters of tenants beyond the bound are forgotten; the total is not."""
    stats = Stats(max_tenants=2)
    for tenant in ("a", "b", "c"):
        stats.count(tenant, "lookups", times=2)
    assert stats.of().lookups == 6
    assert (stats.of("a").lookups, stats.of("c").lookups) == (0, 2)


def test_entry_names() -> None:
    """A name leads back to its id; what no entry can be called leads nowhere."""
    entry_id = new_entry_id()
    assert parse_entry_name(entry_of(entry_id).name) == entry_id
    for name in ("", "xyz", "0" * 15, "G" * 16, "-" + "1" * 15, " " * 16):
        assert parse_entry_name(name) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_bytes": 0}, "max_bytes"),
        ({"default_ttl_s": 0}, "default_ttl_s"),
        ({"default_ttl_s": 1e9}, "max_ttl_s"),
        ({"max_answer_bytes": 1 << 29}, "max_answer_bytes"),
        ({"semantic": {"min_similarity": float("nan")}}, "min_similarity"),
        ({"semantic": {"min_similarity": 1.1}}, "min_similarity"),
        ({"semantic": {"budget_s": 0}}, "budget_s"),
        ({"semantic": {"misspelt": 1}}, "misspelt"),
        ({"misspelt": 1}, "misspelt"),
        (
            {"server": {"listen": "0.0.0.0:1", "tls": {"cert_file": "c", "key_file": "k"}}},
            "client_ca_file",
        ),
    ],
)
def test_bad_settings_name_themselves(change: dict[str, object], named: str) -> None:
    """A bad value is refused with its own name."""
    with pytest.raises(ValidationError, match=named):
        CacheSettings.model_validate(change)


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from SIDECACHE_CACHE_ variables; a floor of 0 stays 0."""
    monkeypatch.setenv("SIDECACHE_CACHE_SEMANTIC__MIN_SIMILARITY", "0")
    monkeypatch.setenv("SIDECACHE_CACHE_MAX_BYTES", "2000000")
    monkeypatch.setenv("SIDECACHE_CACHE_MAX_ANSWER_BYTES", "1000000")
    settings = CacheSettings()
    assert settings.semantic.min_similarity == 0
    assert settings.max_bytes == 2_000_000


async def test_a_task_that_died_is_never_silent() -> None:
    """Work beside a block ends with it; work that failed before makes the block fail."""
    async with owned_task(asyncio.Event().wait(), "endless"):
        pass

    async def fail() -> None:
        msg = "broken"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="broken"):
        async with owned_task(fail(), "failing"):
            await asyncio.sleep(0)
