"""The scripted engine's cache: bounded, shared by prefix, evicted leaf first."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from inference_svc.engines.paged_cache import PagedCache
from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent

CAPACITY = 6


def chain(*path: int) -> list[int]:
    """Names of a prompt's blocks: each says its whole path, as real names do."""
    names, name = [], 0
    for step in path:
        name = name * 10 + step
        names.append(name)
    return names


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


PATHS = st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple)


class CacheMachine(RuleBasedStateMachine):
    """Requests that come, are prefilled and leave, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = PagedCache(CAPACITY, self.clock)
        self.told: set[int] = set()
        self.running: list[tuple[list[int], list[int]]] = []

    def hear(self, event: KvEvent) -> None:
        """Follow the events; a block never comes before or stays after its parent."""
        if isinstance(event, BlocksStored):
            parent = event.parent
            for name in event.hashes:
                assert parent is None or parent in self.told
                assert name not in self.told
                self.told.add(name)
                parent = name
        else:
            assert isinstance(event, BlocksRemoved)
            for name in event.hashes:
                self.told.remove(name)
                assert not any(each // 10 == name for each in self.told), "a parent left first"

    @rule(path=PATHS)
    def come(self, path: tuple[int, ...]) -> None:
        names = chain(*path)
        held = self.cache.match(names)
        assert held == sum(name in self.told for name in names)
        self.cache.pin(names[:held])
        self.running.append((names, names[:held]))

    @rule(
        data=st.data(),
        priority=st.integers(0, 3),
        duration_s=st.none() | st.floats(1, 20),
    )
    def prefill(self, data: st.DataObject, priority: int, duration_s: float | None) -> None:
        if not self.running:
            return
        index = data.draw(st.integers(0, len(self.running) - 1))
        names, pinned = self.running[index]
        held = len(pinned)
        parent = names[held - 1] if held else None
        stored = self.cache.store(names[held:], parent, held, self.hear)
        pinned = [*pinned, *stored]
        self.running[index] = (names, pinned)
        if priority:
            self.cache.retain(pinned, priority, duration_s)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.running:
            _, pinned = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            self.cache.unpin(pinned)

    @rule(seconds=st.floats(0, 15))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def is_bounded_and_true(self) -> None:
        in_use = {name for _, pinned in self.running for name in pinned}
        assert len(self.cache) == len(self.told) <= CAPACITY
        assert self.cache.pinned == len(in_use)
        assert in_use <= self.told


CacheMachine.TestCase.settings = settings(deadline=None, max_examples=150)
TestCache = CacheMachine.TestCase


def served(cache: PagedCache, *path: int, retained: tuple[int, float | None] | None = None) -> int:
    """One request from its beginning to its end; how many of its blocks were cached."""
    names = chain(*path)
    held = cache.match(names)
    cache.pin(names[:held])
    parent = names[held - 1] if held else None
    pinned = [*names[:held], *cache.store(names[held:], parent, held, lambda _: None)]
    if retained is not None:
        cache.retain(pinned, *retained)
    cache.unpin(pinned)
    return held


def test_the_least_recently_used_leaf_goes_first() -> None:
    """Used again, a prompt outlives another; and its end goes before its beginning."""
    cache = PagedCache(4, Clock())
    served(cache, 1, 1)
    served(cache, 2, 2)
    served(cache, 1, 1)
    served(cache, 3)
    assert cache.match(chain(2, 2)) == 1
    served(cache, 3, 3)
    assert cache.match(chain(2)) == 0
    assert cache.match(chain(1, 1)) == 2


def test_a_retained_prefix_outlives_normal_ones_until_its_time() -> None:
    """However much passes through the cache, it is kept; afterwards it is like any other."""
    clock = Clock()
    cache = PagedCache(4, clock)
    served(cache, 1, 1, retained=(50, 10))
    for step in range(2, 9):
        served(cache, step, step)
    assert cache.match(chain(1, 1)) == 2
    clock.now = 11
    for step in range(2, 9):
        served(cache, step, step)
    assert cache.match(chain(1, 1)) == 0


def test_of_retained_prefixes_the_lower_priority_goes_first() -> None:
    """When nothing normal is left, priority decides."""
    cache = PagedCache(4, Clock())
    served(cache, 1, 1, retained=(90, None))
    served(cache, 2, 2, retained=(10, None))
    served(cache, 3, 3)
    assert cache.match(chain(1, 1)) == 2
    assert cache.match(chain(2, 2)) == 0


def test_a_later_wish_never_shortens_an_earlier_one() -> None:
    """A prefix kept for good stays so when another request wants it for a second."""
    clock = Clock()
    cache = PagedCache(4, clock)
    served(cache, 1, 1, retained=(50, None))
    served(cache, 1, 1, retained=(60, 1))
    clock.now = 100
    for step in range(2, 9):
        served(cache, step, step)
    assert cache.match(chain(1, 1)) == 2


def test_a_later_wish_never_lowers_an_earlier_one() -> None:
    """Of two priorities for one prefix the higher holds, whichever came last."""
    cache = PagedCache(4, Clock())
    served(cache, 1, 1, retained=(90, None))
    served(cache, 1, 1, retained=(10, None))
    served(cache, 2, 2, retained=(50, None))
    served(cache, 3, 3)
    assert cache.match(chain(1, 1)) == 2
    assert cache.match(chain(2, 2)) == 0


def test_a_prolonged_wish_ends_too() -> None:
    """Past the first time it is still kept, and past the second it is like any other."""
    clock = Clock()
    cache = PagedCache(4, clock)
    served(cache, 1, 1, retained=(50, 10))
    served(cache, 1, 1, retained=(50, 20))
    for now, kept in ((15, 2), (25, 0)):
        clock.now = now
        for step in range(2, 9):
            served(cache, step, step)
        assert cache.match(chain(1, 1)) == kept


def test_where_everything_is_in_use_nothing_is_stored() -> None:
    """Blocks in use are never taken from whoever uses them."""
    cache = PagedCache(2, Clock())
    pinned = cache.store(chain(1, 1), None, 0, lambda _: None)
    assert list(cache.store(chain(2, 2), None, 0, lambda _: None)) == []
    cache.unpin(pinned)
    assert served(cache, 1, 1) == 2


def test_a_cache_in_use_is_not_emptied() -> None:
    """It is emptied as a whole and says so, or keeps everything and says nothing."""
    cache = PagedCache(4, lambda: 0.0)
    told: list[KvEvent] = []
    held = cache.store([1, 2, 3], None, 0, told.append)
    assert not cache.clear(told.append)
    assert cache.match([1, 2, 3]) == 3
    cache.unpin(held)
    assert cache.clear(told.append)
    assert told == [BlocksStored((1, 2, 3)), CacheCleared()]
    assert (len(cache), cache.match([1])) == (0, 0)
    assert cache.store([1, 2, 3, 4, 5], None, 0, told.append) == [1, 2, 3, 4]
