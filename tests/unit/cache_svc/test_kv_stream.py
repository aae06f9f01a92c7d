"""KV events against a plain model of what a worker holds, however the stream behaves."""

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_svc.followed_models import FollowedModels, ModelIdentity
from cache_svc.kv_stream import SLICE_BLOCKS, Fault, KvStream, OutOfStep
from cache_svc.prompt_tokenizer import Fingerprints
from sidecache.kv_blocks import pack_hashes
from sidecache.v1 import worker_pb2 as pb

IDENTITY = ModelIdentity("m", "r1", 4, Fingerprints("t", "c"), 4096, 256, salted=True)
NAMES = st.lists(st.integers(1, 12), max_size=6)
LIMIT = 10


def followed(max_blocks: int = 1 << 16) -> tuple[KvStream, FollowedModels]:
    """A stream of worker "w" that has said nothing yet."""
    models = FollowedModels(max_blocks, max_blocks)
    models.join("w", IDENTITY)
    return stream_of(models), models


def stream_of(models: FollowedModels, next_sequence: int = 0) -> KvStream:
    model = models.of_worker("w")
    assert model is not None
    return KvStream("w", model, models, "e1", next_sequence)


def event(sequence: int, epoch: str = "e1", **kind: object) -> pb.SubscribeKvEventsResponse:
    return pb.SubscribeKvEventsResponse(epoch=epoch, sequence=sequence, **kind)  # type: ignore[arg-type]


def snapshot(
    sequence: int, names: Iterable[int], *, more: bool = False
) -> pb.SubscribeKvEventsResponse:
    held = pb.KvSnapshot(block_hashes=pack_hashes([*names]), more=more)
    return event(sequence, snapshot=held)


def stored(sequence: int, names: Iterable[int]) -> pb.SubscribeKvEventsResponse:
    return event(sequence, stored=pb.KvBlocksStored(block_hashes=pack_hashes([*names])))


def removed(sequence: int, names: Iterable[int]) -> pb.SubscribeKvEventsResponse:
    return event(sequence, removed=pb.KvBlocksRemoved(block_hashes=pack_hashes([*names])))


def held(models: FollowedModels) -> set[int]:
    """What the index says that "w" holds."""
    model = models.of_worker("w")
    assert model is not None
    return {name for name in range(1, 20_000) if model.index.match([name])}


async def apply(stream: KvStream, *events: pb.SubscribeKvEventsResponse) -> Fault | None:
    """Apply in order; what put the stream out of step, if anything did."""
    for each in events:
        try:
            await stream.apply(each)
        except OutOfStep as error:
            return error.fault
    return None


async def test_a_snapshot_in_parts_replaces_what_was_known() -> None:
    """Parts add up; the stream is in step after the last one only."""
    stream, models = followed()
    assert await apply(stream, snapshot(3, [9])) is None
    stream = stream_of(models)
    assert await apply(stream, snapshot(7, [1, 2], more=True)) is None
    in_step_before = stream.in_step
    assert await apply(stream, snapshot(7, [3]), stored(8, [4]), removed(9, [1])) is None
    assert (in_step_before, stream.in_step) == (False, True)
    assert held(models) == {2, 3, 4}


async def test_an_empty_worker_begins_at_its_first_change() -> None:
    """A snapshot of nothing has sequence 0, and change 1 follows it."""
    stream, models = followed()
    assert await apply(stream, snapshot(0, []), stored(1, [5])) is None
    assert held(models) == {5}


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([stored(1, [1])], Fault.GAP),
        ([snapshot(0, []), stored(2, [1])], Fault.GAP),
        ([snapshot(4, [1], more=True), stored(5, [2])], Fault.GAP),
        ([snapshot(4, [1], more=True), snapshot(6, [2])], Fault.GAP),
        ([snapshot(0, []), event(1, "e0", cleared=pb.KvCacheCleared())], Fault.EPOCH),
        ([snapshot(0, []), event(1)], Fault.MALFORMED),
        (
            [snapshot(0, []), event(1, stored=pb.KvBlocksStored(block_hashes=b"seven.."))],
            Fault.MALFORMED,
        ),
        ([event(0, snapshot=pb.KvSnapshot(block_hashes=b"x"))], Fault.MALFORMED),
        ([snapshot(0, range(1, LIMIT + 2))], Fault.TOO_MANY_BLOCKS),
        ([snapshot(0, range(1, LIMIT + 1)), stored(1, [99])], Fault.TOO_MANY_BLOCKS),
    ],
)
async def test_what_cannot_be_true_puts_the_stream_out_of_step(
    events: list[pb.SubscribeKvEventsResponse], fault: Fault
) -> None:
    """Each is told by its name, and none of it is believed half."""
    stream, _ = followed(LIMIT)
    assert await apply(stream, *events) is fault


async def test_a_repeated_event_changes_nothing() -> None:
    """A removed block does not come back because its storing is told again."""
    stream, models = followed()
    first = stored(1, [1, 2])
    assert await apply(stream, snapshot(0, []), first, removed(2, [2]), first, first) is None
    assert held(models) == {1}
    assert stream.repeated == 2


async def test_all_workers_together_are_bounded() -> None:
    """Beyond what is kept in all, a worker is cut even within its own limit."""
    models = FollowedModels(max_blocks_per_worker=100, max_blocks=LIMIT)
    models.join("v", IDENTITY)
    models.join("w", IDENTITY)
    other = models.of_worker("v")
    assert other is not None
    other.index.stored("v", range(6))
    assert await apply(stream_of(models), snapshot(0, range(1, 6))) is Fault.TOO_MANY_BLOCKS
    assert models.blocks == 6


async def test_large_events_let_others_have_their_turn() -> None:
    """A snapshot of many blocks is applied in slices, between which the loop runs."""
    stream, models = followed()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    try:
        assert await apply(stream, snapshot(0, range(1, 3 * SLICE_BLOCKS + 1))) is None
    finally:
        beside.cancel()
    assert turns >= 3
    assert models.blocks == 3 * SLICE_BLOCKS


class Engine:
    """What a worker truly holds, and its true stream of events."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.told = [snapshot(0, [])]

    def change(self, kind: str, names: list[int]) -> None:
        sequence = len(self.told)
        if kind == "stored" and len(self.held | set(names)) <= LIMIT:
            self.held |= set(names)
            self.told.append(stored(sequence, names))
        elif kind == "removed":
            self.held -= set(names)
            self.told.append(removed(sequence, names))
        else:
            self.held.clear()
            self.told.append(event(sequence, cleared=pb.KvCacheCleared()))


CHANGES = st.lists(st.tuples(st.sampled_from(["stored", "removed", "cleared"]), NAMES))
# Which event is delivered next, of those there are; and whether as one of an old epoch.
FATES = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["e1", "e1", "e0"])), max_size=25)


@given(changes=CHANGES, fates=FATES)
@settings(max_examples=300)
def test_a_stream_in_step_holds_what_the_worker_held_then(
    changes: list[tuple[str, list[int]]], fates: list[tuple[int, str]]
) -> None:
    """Lost, repeated, reordered and old events never make the index believe another set."""
    engine, sets = Engine(), [set[int]()]
    for kind, names in changes:
        engine.change(kind, names)
        sets.append(set(engine.held))

    async def deliver() -> None:
        stream, models = followed(LIMIT)
        for at, epoch in fates:
            each = pb.SubscribeKvEventsResponse()
            each.CopyFrom(engine.told[at % len(engine.told)])
            each.epoch = epoch
            if await apply(stream, each) is not None:
                models.leave("w")
                models.join("w", IDENTITY)
                stream = stream_of(models)
            assert models.blocks <= LIMIT
            if stream.in_step:
                assert held_of(models) == sets[stream.next_sequence - 1]

    asyncio.run(deliver())


def held_of(models: FollowedModels) -> set[int]:
    model = models.of_worker("w")
    assert model is not None
    return {name for name in range(1, 13) if model.index.match([name])}
