"""How a sidecar follows workers over gRPC: what it believes of them, and when it forgets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from sidecache.kv_blocks import pack_hashes
from tests.fixtures.cache import Sidecar, open_sidecar
from tests.fixtures.followed import (
    QUICK,
    TEXT,
    announce,
    hint,
    names_of,
    until_following,
    until_held,
)
from tests.fixtures.kv_worker import Event, KvWorker, kv_worker


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[Sidecar]:
    async with open_sidecar(tmp_path, semantic={"enabled": False}, prefix=QUICK) as sidecar:
        yield sidecar


@pytest.fixture
async def workers() -> AsyncIterator[list[KvWorker]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(kv_worker()) for _ in range(2)]


async def until(probe: Callable[[], object]) -> None:
    """Return once it holds; the test's own time limit bounds the wait."""
    while not probe():
        await asyncio.sleep(0.005)


async def test_a_gap_is_closed_by_a_snapshot(sidecar: Sidecar, workers: list[KvWorker]) -> None:
    """A lost event is noticed by the next one, and the worker asked again."""
    worker, names = workers[0], names_of(TEXT)
    await announce(sidecar, worker)
    await until_following(sidecar, 1)
    worker.sequence += 1  # an event that nobody gets
    worker.held = set(names[:2])
    worker.store(names[2:4])
    await until_held(sidecar, {worker.address: 4})
    assert (await sidecar.stats()).prefix_resyncs == 1
    assert worker.subscriptions[-1].start_sequence == 0


async def test_how_far_behind_a_worker_is_followed(
    sidecar: Sidecar, workers: list[KvWorker]
) -> None:
    """By what its last message says of its changes; what an old worker does not say is 0."""
    worker, names = workers[0], names_of(TEXT)
    await announce(sidecar, worker)
    await until_following(sidecar, 1)
    worker.store(names[:1])
    worker.sequence += 1
    behind = Event(
        epoch=worker.epoch, sequence=worker.sequence, latest_sequence=worker.sequence + 40
    )
    behind.stored.block_hashes = pack_hashes(names[1:2])
    worker.say(behind)
    await until_held(sidecar, {worker.address: 2})
    (told,) = (await sidecar.stats()).prefix_followed
    assert (told.changes_behind, told.blocks, told.events) == (40, 2, 2)
    assert told.silence.ToNanoseconds() > 0
    worker.store(names[2:3])
    await until_held(sidecar, {worker.address: 3})
    assert (await sidecar.stats()).prefix_followed[0].changes_behind == 0


async def test_a_parent_that_nobody_knows_is_not_needed(
    sidecar: Sidecar, workers: list[KvWorker]
) -> None:
    """Names stand for their whole prefix: an odd parent adds and hides nothing."""
    worker, names = workers[0], names_of(TEXT)
    await announce(sidecar, worker)
    await until_following(sidecar, 1)
    for parent in (b"x" * 8, b"odd", pack_hashes(names[5:6])):
        worker.sequence += 1
        orphans = Event(epoch=worker.epoch, sequence=worker.sequence)
        orphans.stored.block_hashes = pack_hashes(names[2:4])
        orphans.stored.parent_hash = parent
        worker.say(orphans)
    worker.store(names[:1])
    await until_held(sidecar, {worker.address: 1})
    worker.store(names[1:2])
    await until_held(sidecar, {worker.address: 4})
    assert (await sidecar.stats()).prefix_resyncs == 0


async def test_a_stream_that_broke_goes_on_where_it_was(
    sidecar: Sidecar, workers: list[KvWorker]
) -> None:
    """Within the grace nothing is forgotten, and no snapshot is needed."""
    worker, names = workers[0], names_of(TEXT)
    worker.held = set(names[:3])
    await announce(sidecar, worker)
    await until_following(sidecar, 1)
    worker.end_streams()
    await until(lambda: len(worker.subscriptions) == 2)
    assert worker.subscriptions[1].epoch == worker.epoch
    assert worker.subscriptions[1].start_sequence == worker.sequence + 1
    worker.store(names[3:4])
    await until_held(sidecar, {worker.address: 4})
    assert (await sidecar.stats()).prefix_resyncs == 0


async def test_a_new_epoch_forgets_the_old_one(sidecar: Sidecar, workers: list[KvWorker]) -> None:
    """Blocks of a worker that was restarted are not credited to it."""
    worker, names = workers[0], names_of(TEXT)
    worker.held = set(names)
    await announce(sidecar, worker)
    await until_held(sidecar, {worker.address: len(names)})
    worker.restart("e2", names[:1])
    await until_held(sidecar, {worker.address: 1})


async def test_another_start_of_a_worker_is_believed_nothing_of_the_last(
    tmp_path: Path, workers: list[KvWorker]
) -> None:
    """At once, before it tells what it holds; and another model begins with a snapshot."""
    restarted, turned = workers
    names = names_of(TEXT)
    restarted.held = turned.held = set(names)
    # Only silence would have to last so long before it is forgotten for that.
    patient = QUICK | {"lost_grace_s": 60.0}
    async with open_sidecar(tmp_path, semantic={"enabled": False}, prefix=patient) as sidecar:
        await announce(sidecar, *workers)
        await until_held(sidecar, {each.address: len(names) for each in workers})
        restarted.refusal = grpc.StatusCode.UNAVAILABLE
        restarted.restart("e2", names)
        await until_held(sidecar, {turned.address: len(names)})
        turned.facts = {"revision": "r2"}
        turned.end_streams()
        await until_held(sidecar, {turned.address: len(names)}, model_revision="r2")
        assert turned.subscriptions[-1].start_sequence == 0
        await until_held(sidecar, {})


async def test_an_event_of_an_old_epoch_is_not_believed(
    sidecar: Sidecar, workers: list[KvWorker]
) -> None:
    """It does not take away or add a block; the worker is asked again."""
    worker, names = workers[0], names_of(TEXT)
    worker.held = set(names[:5])
    await announce(sidecar, worker)
    await until_held(sidecar, {worker.address: 5})
    worker.sequence += 1
    late = Event(epoch="e0", sequence=worker.sequence)
    late.cleared.SetInParent()
    worker.say(late)
    while not (await sidecar.stats()).prefix_resyncs:
        await asyncio.sleep(0.005)
    await until_held(sidecar, {worker.address: 5})


@pytest.mark.parametrize("garbage", [b"1234567", b"x" * 8001])
async def test_garbage_is_refused_and_asked_for_again(
    sidecar: Sidecar, workers: list[KvWorker], garbage: bytes
) -> None:
    """Names of a length that none have."""
    worker, names = workers[0], names_of(TEXT)
    worker.held = set(names[:2])
    await announce(sidecar, worker)
    await until_following(sidecar, 1)
    event = Event(epoch=worker.epoch, sequence=worker.sequence + 1)
    event.stored.block_hashes = garbage
    worker.say(event)
    await until(lambda: len(worker.subscriptions) == 2)
    await until_held(sidecar, {worker.address: 2})
    assert (await sidecar.stats()).prefix_resyncs == 1


async def test_a_worker_cannot_hold_more_than_its_cache(
    sidecar: Sidecar, workers: list[KvWorker]
) -> None:
    """A liar is cut again and again; an honest worker beside it is served."""
    liar, honest = workers
    names = names_of(TEXT)
    liar.kv_blocks, honest.kv_blocks = 4, len(names)
    liar.held = honest.held = set(names)
    await announce(sidecar, liar, honest)
    await until_held(sidecar, {honest.address: len(names)})
    await until(lambda: len(liar.subscriptions) >= 3)
    stats = await sidecar.stats()
    assert stats.prefix_resyncs >= 2
    assert stats.prefix_blocks <= 4 + len(names)


async def test_a_worker_without_events_is_asked_again_later(
    sidecar: Sidecar, workers: list[KvWorker]
) -> None:
    """Its tokenizer is of use meanwhile: the hint has ids and no holder."""
    worker, names = workers[0], names_of(TEXT)
    worker.held = set(names)
    worker.refusal = grpc.StatusCode.UNIMPLEMENTED
    await announce(sidecar, worker)
    await until(lambda: worker.subscriptions)
    found = await hint(sidecar)
    assert found is not None
    assert bytes(found.prompt_token_ids.ids) == TEXT.encode()
    assert not found.held
    worker.refusal = None
    await until_held(sidecar, {worker.address: len(names)})


async def test_a_worker_that_turns_into_something_else_keeps_nothing(
    sidecar: Sidecar, workers: list[KvWorker]
) -> None:
    """Without events from now on, or with another model under the same epoch."""
    silent, other = workers
    names = names_of(TEXT)
    silent.held = other.held = set(names)
    await announce(sidecar, silent, other)
    await until_held(sidecar, {each.address: len(names) for each in workers})
    silent.refusal = grpc.StatusCode.UNIMPLEMENTED
    other.facts = {"revision": "r2"}
    other.held = set(names[:2])
    silent.end_streams()
    other.end_streams()
    await until_held(sidecar, {other.address: 2}, model_revision="r2")
    await until_held(sidecar, {})


async def test_a_worker_that_is_gone_is_forgotten(sidecar: Sidecar) -> None:
    """After the grace; and at once when no router speaks of it any more."""
    names = names_of(TEXT)
    async with kv_worker(held=set(names)) as staying:
        async with kv_worker(held=set(names)) as dying:
            await announce(sidecar, staying, dying)
            both = {staying.address: len(names), dying.address: len(names)}
            await until_held(sidecar, both)
        await until_held(sidecar, {staying.address: len(names)})
        await announce(sidecar)
        await until_held(sidecar, {})
        assert (await sidecar.stats()).prefix_blocks == 0
