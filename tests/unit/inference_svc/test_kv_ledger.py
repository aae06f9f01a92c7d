"""Followers of the ledger know exactly what it knows, or are told that they do not."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc import kv_ledger
from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent
from inference_svc.kv_ledger import KvCursor, KvLedger, SnapshotPart
from sidecache.errors import Overloaded, StreamInterrupted, Unavailable


@dataclass
class Follower:
    """Rebuilds the held set from what its cursor gives, checking the numbers."""

    ledger: KvLedger
    cursor: KvCursor | None = None
    known: set[int] = field(default_factory=set)
    last: int = 0
    in_snapshot: bool = False
    # Whether what is known is all there was at ``last``; else only a snapshot helps.
    is_whole: bool = False

    def follow(self, start_sequence: int) -> None:
        self.leave()
        self.in_snapshot = False
        self.is_whole = self.is_whole and start_sequence > 0
        self.cursor = self.ledger.follow(start_sequence)

    def leave(self) -> None:
        if self.cursor is not None:
            self.cursor.close()

    def read(self) -> int:
        """Take one portion; how many items came. A follower cut off begins anew."""
        if self.cursor is None:
            self.follow(0)
        assert self.cursor is not None
        try:
            items = self.cursor.take()
        except StreamInterrupted:
            self.follow(0)
            return 1
        for item in items:
            if isinstance(item, SnapshotPart):
                self._load(item)
            else:
                assert not self.in_snapshot
                assert item.sequence == self.last + 1, "a gap"
                self.last = item.sequence
                self._apply(item.event)
        return len(items)

    def _load(self, part: SnapshotPart) -> None:
        if not self.in_snapshot:
            self.known.clear()
        self.known |= set(part.hashes)
        self.last, self.in_snapshot = part.sequence, part.more
        self.is_whole = not part.more

    def _apply(self, event: KvEvent) -> None:
        if isinstance(event, BlocksStored):
            self.known |= set(event.hashes)
        elif isinstance(event, BlocksRemoved):
            self.known -= set(event.hashes)
        else:
            self.known.clear()


NAMES = st.lists(st.integers(1, 12), min_size=1, max_size=7).map(tuple)
EVENTS = st.one_of(
    st.builds(BlocksStored, NAMES, st.none() | st.integers(1, 12)),
    st.builds(BlocksRemoved, NAMES),
    st.just(CacheCleared()),
)
TURNS = st.lists(EVENTS, min_size=1, max_size=4)
FOLLOWER = st.integers(0, 2)
OPERATIONS = st.one_of(
    st.tuples(st.just("turn"), TURNS),
    st.tuples(st.just("read"), FOLLOWER),
    st.tuples(st.just("return"), FOLLOWER),
    st.tuples(st.just("anew"), FOLLOWER),
)


@settings(deadline=None)
@given(st.lists(OPERATIONS, max_size=40))
def test_every_interleaving_ends_with_the_same_set(operations: list[tuple[str, object]]) -> None:
    """Slow, returning and cut-off followers all rebuild what a plain set of the events holds."""
    asyncio.run(_interleave(operations))


async def _interleave(operations: list[tuple[str, object]]) -> None:
    small_log = KvLedger(max_changes=5, max_hashes=12)
    followers = [Follower(small_log) for _ in range(3)]
    model: set[int] = set()
    with pytest.MonkeyPatch.context() as patch:
        # Parts and pieces of three names, so that there are many of them.
        patch.setattr(kv_ledger, "MAX_HASHES", 3)
        for kind, value in operations:
            if kind == "turn":
                assert isinstance(value, list)
                for event in value:
                    small_log.record(event)
                    _apply_plainly(model, event)
                await asyncio.sleep(0)
            else:
                assert isinstance(value, int)
                follower = followers[value]
                if kind == "read":
                    follower.read()
                elif kind == "anew" or not follower.is_whole:
                    follower.follow(0)
                else:
                    follower.follow(follower.last + 1)
        assert small_log.held() == model
        for follower in followers:
            while follower.read():
                pass
            assert follower.known == model


def _apply_plainly(model: set[int], event: KvEvent) -> None:
    if isinstance(event, BlocksStored):
        model.update(event.hashes)
    elif isinstance(event, BlocksRemoved):
        model.difference_update(event.hashes)
    else:
        model.clear()


async def recorded(ledger: KvLedger, events: Sequence[KvEvent]) -> None:
    """Record in one turn, and let the turn end."""
    for event in events:
        ledger.record(event)
    await asyncio.sleep(0)


async def test_a_turn_is_told_by_what_it_comes_to() -> None:
    """Whatever sequences did in one turn: one change for what is gone, one for what is new."""
    ledger = KvLedger()
    await recorded(ledger, [BlocksStored((3, 4)), BlocksStored((7,))])
    await recorded(
        ledger,
        [
            BlocksRemoved((3,)),
            BlocksStored((1,)),
            BlocksStored((2, 3), 1),
            BlocksRemoved((4,)),
            BlocksRemoved((2,)),
            BlocksStored((9,), 8),
        ],
    )
    cursor = ledger.follow(2)
    assert [change.event for change in cursor.take()] == [  # type: ignore[union-attr]
        BlocksRemoved((4,)),
        BlocksStored((1, 3, 9)),
    ]
    assert ledger.held() == {7, 1, 3, 9}


async def test_a_clear_forgets_what_its_turn_recorded_before() -> None:
    """Nobody is told of blocks that were gone before anyone could hear of them."""
    ledger = KvLedger()
    await recorded(ledger, [BlocksStored((1,)), CacheCleared(), BlocksStored((2,))])
    assert ledger.sequence == 2
    assert ledger.held() == {2}


async def test_the_log_is_bounded() -> None:
    """Whatever happens, no more changes and names are kept than the settings say."""
    ledger = KvLedger(max_changes=10, max_hashes=50)
    for number in range(200):
        await recorded(ledger, [BlocksStored((number, 1000 + number)), BlocksRemoved((number,))])
    assert len(ledger._log) <= 10
    assert sum(kv_ledger._size(change.event) for change in ledger._log) <= 50


async def test_a_follower_waits_and_is_woken() -> None:
    """Waiting ends with the next change, and with the end of the ledger."""
    ledger = KvLedger()
    cursor = ledger.follow(0)
    assert await cursor.wait()
    assert cursor.take() == [SnapshotPart(0, (), more=False)]
    waiting = asyncio.create_task(cursor.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    await recorded(ledger, [BlocksStored((1,))])
    assert await waiting
    assert len(cursor.take()) == 1
    waiting = asyncio.create_task(cursor.wait())
    await asyncio.sleep(0)
    ledger.close()
    assert not await waiting


async def test_too_many_followers_are_refused() -> None:
    """The next one is told to come back, and gets in once another has left."""
    ledger = KvLedger(max_followers=1)
    cursor = ledger.follow(0)
    with pytest.raises(Overloaded):
        ledger.follow(0)
    cursor.close()
    cursor.close()
    ledger.follow(0)
    with pytest.raises(Overloaded):
        ledger.follow(0)


async def test_a_closed_ledger_takes_no_followers() -> None:
    """A worker that drains says so."""
    ledger = KvLedger()
    ledger.close()
    with pytest.raises(Unavailable):
        ledger.follow(0)
