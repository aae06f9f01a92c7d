"""A sidecar that follows workers over gRPC: what it knows of them, and when it forgets."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from sidecache.errors import InvalidRequest, Unsupported, from_rpc_error
from sidecache.kv_blocks import BlockHasher, pack_hashes
from sidecache.v1 import cache_pb2, inference_pb2
from tests.fixtures.cache import Sidecar, open_sidecar, wire_key
from tests.fixtures.kv_worker import BLOCK_SIZE, MODEL, REVISION, Event, KvWorker, kv_worker

TEXT = "The quick brown fox jumps over the lazy dog"
# Waits short enough for a test, and one budget that a busy machine does not exceed.
QUICK = {
    "min_backoff_s": 0.01,
    "max_backoff_s": 0.05,
    "unsupported_retry_s": 0.05,
    "lost_grace_s": 0.3,
    "budget_s": 20.0,
}


def names_of(text: str, salt: str = "") -> list[int]:
    """The blocks of a text in the byte tokenizer's ids."""
    return BlockHasher(BLOCK_SIZE, salt=salt).hashes([*text.encode()])


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[Sidecar]:
    async with open_sidecar(tmp_path, semantic={"enabled": False}, prefix=QUICK) as sidecar:
        yield sidecar


@pytest.fixture
async def workers() -> AsyncIterator[list[KvWorker]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(kv_worker()) for _ in range(2)]


async def announce(sidecar: Sidecar, *workers: KvWorker, router: str = "r1") -> None:
    targets = [cache_pb2.WorkerTarget(worker="w", address=each.address) for each in workers]
    await sidecar.stub.SetWorkers(cache_pb2.SetWorkersRequest(router=router, workers=targets))


async def hint(sidecar: Sidecar, text: str = TEXT, **query: object) -> cache_pb2.PrefixHint | None:
    """The hint of a lookup that asks for nothing else."""
    fields: dict[str, object] = {"text": text, "model": MODEL, "model_revision": REVISION}
    request = cache_pb2.LookupRequest(prefix=cache_pb2.PrefixQuery(**fields | query))  # type: ignore[arg-type]
    miss = (await sidecar.stub.Lookup(request)).miss
    return miss.prefix if miss.HasField("prefix") else None


async def held(sidecar: Sidecar, text: str = TEXT, **query: object) -> dict[str, int]:
    """Leading blocks by worker."""
    found = await hint(sidecar, text, **query)
    return {} if found is None else {each.worker: each.blocks for each in found.held}


async def until(probe: Callable[[], object]) -> None:
    """Return once it holds; the test's own time limit bounds the wait."""
    while not probe():
        await asyncio.sleep(0.005)


async def until_held(
    sidecar: Sidecar, expected: dict[str, int], text: str = TEXT, **query: object
) -> None:
    while await held(sidecar, text, **query) != expected:
        await asyncio.sleep(0.005)


async def until_following(sidecar: Sidecar, workers: int) -> None:
    while (await sidecar.stats()).prefix_workers_followed != workers:
        await asyncio.sleep(0.005)


async def test_a_hint_says_who_holds_how_much(sidecar: Sidecar, workers: list[KvWorker]) -> None:
    """Ids, fingerprints and blocks of every worker, from snapshot and later events."""
    first, second = workers
    names = names_of(TEXT)
    first.held = set(names[:6])
    await announce(sidecar, first, second)
    await until_following(sidecar, 2)
    second.store(names[:3])
    await until_held(sidecar, {first.address: 6, second.address: 3})
    found = await hint(sidecar)
    assert found is not None
    assert bytes(found.prompt_token_ids.ids) == TEXT.encode()
    assert (found.block_size, found.prompt_blocks) == (BLOCK_SIZE, len(names))
    first.remove(names[2:6])
    second.clear()
    await until_held(sidecar, {first.address: 2})
    stats = await sidecar.stats()
    assert (stats.prefix_blocks, stats.prefix_workers, stats.prefix_resyncs) == (2, 2, 0)


async def test_chat_ids_and_salts(sidecar: Sidecar, workers: list[KvWorker]) -> None:
    """A chat is rendered as the worker does; one salt's blocks are nobody else's."""
    worker = workers[0]
    rendered = "system: Be brief.\nuser: hi\nassistant:"
    worker.held = set(names_of(rendered, "acme"))
    await announce(sidecar, worker)
    await until_following(sidecar, 1)
    turns = [("system", "Be brief."), ("user", "hi")]
    messages = [inference_pb2.ChatMessage(role=role, content=text) for role, text in turns]
    chat = inference_pb2.Chat(messages=messages)
    query = cache_pb2.PrefixQuery(
        chat=chat, model=MODEL, model_revision=REVISION, cache_salt="acme"
    )
    found = (await sidecar.stub.Lookup(cache_pb2.LookupRequest(prefix=query))).miss.prefix
    assert bytes(found.prompt_token_ids.ids) == rendered.encode()
    assert [each.blocks for each in found.held] == [len(rendered) // BLOCK_SIZE]
    query.cache_salt = "umbrella"
    found = (await sidecar.stub.Lookup(cache_pb2.LookupRequest(prefix=query))).miss.prefix
    assert not found.held
    ids = inference_pb2.TokenIds(ids=rendered.encode())
    query = cache_pb2.PrefixQuery(
        token_ids=ids, model=MODEL, model_revision=REVISION, cache_salt="acme"
    )
    found = (await sidecar.stub.Lookup(cache_pb2.LookupRequest(prefix=query))).miss.prefix
    assert not found.prompt_token_ids.ids
    assert [each.blocks for each in found.held] == [len(rendered) // BLOCK_SIZE]


async def test_a_lookup_with_a_key_gets_both(sidecar: Sidecar, workers: list[KvWorker]) -> None:
    """A miss carries the hint; a hit does not."""
    workers[0].held = set(names_of(TEXT))
    await announce(sidecar, workers[0])
    await until_following(sidecar, 1)
    query = cache_pb2.PrefixQuery(text=TEXT, model=MODEL, model_revision=REVISION)
    request = cache_pb2.LookupRequest(key=wire_key(TEXT), prefix=query)
    answer = await sidecar.stub.Lookup(request)
    assert [each.blocks for each in answer.miss.prefix.held] == [len(names_of(TEXT))]
    await sidecar.store(TEXT, "answer")
    assert (await sidecar.stub.Lookup(request)).HasField("hit")


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


async def test_models_are_kept_apart(sidecar: Sidecar) -> None:
    """Another revision of the model has an index of its own; an unknown one no hint."""
    names = names_of(TEXT)
    async with (
        kv_worker(held=set(names)) as old,
        kv_worker(held=set(names[:2]), facts={"revision": "r2"}) as new,
    ):
        await announce(sidecar, old, new)
        await until_held(sidecar, {old.address: len(names)})
        await until_held(sidecar, {new.address: 2}, model_revision="r2")
        assert await hint(sidecar, model_revision="r3") is None
        assert await hint(sidecar, model="other") is None


@pytest.mark.parametrize(
    "facts",
    [{"block_size": 0}, {"block_size": 1 << 20}, {"revision": ""}],
    ids=["no blocks", "absurd blocks", "no revision"],
)
async def test_a_model_without_usable_blocks_gets_no_hint(
    sidecar: Sidecar, facts: dict[str, object]
) -> None:
    """Nothing is followed, nothing breaks."""
    async with kv_worker(facts=facts) as worker:
        await announce(sidecar, worker)
        while (await sidecar.stats()).prefix_workers != 1:
            await asyncio.sleep(0.005)
        assert await hint(sidecar) is None


@pytest.mark.parametrize(
    "change",
    [{"files": {}}, {"facts": {"tokenizer_fingerprint": "0" * 64}}],
    ids=["no file", "another file"],
)
async def test_a_tokenizer_that_is_not_the_announced_one_is_not_used(
    sidecar: Sidecar, change: dict[str, object]
) -> None:
    """No ids rather than wrong ones; a prompt that comes in ids still gets its hint."""
    names = names_of(TEXT)
    async with kv_worker(held=set(names), **change) as worker:
        await announce(sidecar, worker)
        await until_following(sidecar, 1)
        assert await hint(sidecar) is None
        ids = inference_pb2.TokenIds(ids=TEXT.encode())
        query = cache_pb2.PrefixQuery(token_ids=ids, model=MODEL, model_revision=REVISION)
        found = (await sidecar.stub.Lookup(cache_pb2.LookupRequest(prefix=query))).miss.prefix
        assert [each.blocks for each in found.held] == [len(names)]


@pytest.mark.parametrize(
    "limit",
    [{"max_tokenizer_bytes": 10}, {"channels": {"max_message_bytes": 4096}}],
    ids=["by its size", "by the message's"],
)
async def test_a_tokenizer_that_is_too_large_is_not_read(
    tmp_path: Path, limit: dict[str, object]
) -> None:
    """The worker is followed all the same, and not asked for its files again."""
    off, names = {"enabled": False}, names_of(TEXT)
    large = {"sidecache-byte-tokenizer.json": b" " * 8192}
    async with (
        open_sidecar(tmp_path, semantic=off, prefix=QUICK | limit) as sidecar,
        kv_worker(held=set(names), files=large) as worker,
    ):
        await announce(sidecar, worker)
        await until_following(sidecar, 1)
        assert await hint(sidecar) is None
        assert (await sidecar.stats()).prefix_blocks == len(names)


async def test_a_prompt_of_a_million_tokens_gets_no_hint_and_hurts_nobody(
    sidecar: Sidecar, workers: list[KvWorker]
) -> None:
    """Too long to tokenize in time; others are answered meanwhile."""
    worker, names = workers[0], names_of(TEXT)
    worker.held = set(names)
    await announce(sidecar, worker)
    await until_held(sidecar, {worker.address: len(names)})
    assert await hint(sidecar, "word " * 300_000) is None
    assert await held(sidecar) == {worker.address: len(names)}


async def test_a_flood_of_events_delays_no_lookup_for_long(
    sidecar: Sidecar, workers: list[KvWorker]
) -> None:
    """While 200,000 blocks come and go, every lookup is answered, and truthfully."""
    worker, names = workers[0], names_of(TEXT)
    worker.held = set(names)
    await announce(sidecar, worker)
    await until_held(sidecar, {worker.address: len(names)})
    for number in range(1_000):
        flood = range(number * 1_000 + 1, number * 1_000 + 101)
        worker.store(flood)
        worker.remove(flood)
    answers = [await held(sidecar) for _ in range(50)]
    assert all(answer == {worker.address: len(names)} for answer in answers)
    stats = await sidecar.stats()
    assert stats.prefix_resyncs == 0


@pytest.mark.parametrize(
    ("router", "addresses", "field"),
    [("", [], "router"), ("r", [""], "workers.address"), ("r", ["a"] * 1025, "workers")],
)
async def test_bad_memberships_are_refused(
    sidecar: Sidecar, router: str, addresses: Sequence[str], field: str
) -> None:
    """With the field that is wrong."""
    targets = [cache_pb2.WorkerTarget(address=each) for each in addresses]
    request = cache_pb2.SetWorkersRequest(router=router, workers=targets)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await sidecar.stub.SetWorkers(request)
    error = from_rpc_error(raised.value)
    assert isinstance(error, InvalidRequest)
    assert error.field == field


async def test_a_sidecar_that_follows_nobody_says_so(tmp_path: Path) -> None:
    """Switched off, it refuses memberships and gives no hints."""
    off = {"enabled": False}
    async with open_sidecar(tmp_path, semantic=off, prefix=off) as sidecar:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await sidecar.stub.SetWorkers(cache_pb2.SetWorkersRequest(router="r"))
        assert isinstance(from_rpc_error(raised.value), Unsupported)
        assert await hint(sidecar) is None
