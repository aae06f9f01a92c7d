"""A sidecar that follows workers over gRPC: what its lookups say of them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from sidecache.errors import InvalidRequest, Unsupported, from_rpc_error
from sidecache.v1 import cache_pb2, inference_pb2
from tests.fixtures.cache import Sidecar, open_sidecar, wire_key
from tests.fixtures.followed import (
    QUICK,
    TEXT,
    announce,
    held,
    hint,
    names_of,
    until_following,
    until_held,
)
from tests.fixtures.kv_worker import BLOCK_SIZE, MODEL, REVISION, KvWorker, kv_worker


@pytest.fixture
async def sidecar(tmp_path: Path) -> AsyncIterator[Sidecar]:
    async with open_sidecar(tmp_path, semantic={"enabled": False}, prefix=QUICK) as sidecar:
        yield sidecar


@pytest.fixture
async def workers() -> AsyncIterator[list[KvWorker]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(kv_worker()) for _ in range(2)]


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
