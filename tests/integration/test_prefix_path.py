"""From a real worker's KV cache over the sidecar's index to the hint of the next request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from sidecache.client import SidecacheClient
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import Stack, scripted_stack

PROMPT = "A system prompt that is longer than a few blocks of thirty-two tokens. " * 6
QUICK = {"min_backoff_s": 0.01, "max_backoff_s": 0.1, "lost_grace_s": 0.3, "budget_s": 20.0}
PATIENT = {"lookup": {"lookup_timeout_s": 20.0, "announce_interval_s": 0.2}}


async def stats_until(
    stub: "cache_pb2_grpc.CacheServiceAsyncStub", **expected: Any
) -> cache_pb2.GetStatsResponse:
    """The sidecar's figures, once these are as expected."""
    while True:
        stats = await stub.GetStats(cache_pb2.GetStatsRequest())
        if all(getattr(stats, name) == value for name, value in expected.items()):
            return stats
        await asyncio.sleep(0.01)


async def hinted(
    stub: "cache_pb2_grpc.CacheServiceAsyncStub", query: cache_pb2.PrefixQuery, holders: int
) -> cache_pb2.PrefixHint:
    """The hint, once so many workers are known to hold something of the prompt."""
    while True:
        answer = await stub.Lookup(cache_pb2.LookupRequest(prefix=query))
        if len(answer.miss.prefix.held) == holders:
            return answer.miss.prefix
        await asyncio.sleep(0.01)


@asynccontextmanager
async def followed(
    folder: Path, *workers: dict[str, Any]
) -> AsyncIterator[tuple[Stack, "cache_pb2_grpc.CacheServiceAsyncStub"]]:
    """A stack whose workers are followed, and the sidecar's stub."""
    cache = {"prefix": QUICK}
    async with scripted_stack(folder, workers=workers, cache=cache, router_=PATIENT) as stack:
        assert stack.cache is not None
        async with grpc.aio.insecure_channel(stack.cache.address) as channel:
            stub: cache_pb2_grpc.CacheServiceAsyncStub = cache_pb2_grpc.CacheServiceStub(channel)
            await stats_until(stub, prefix_workers_followed=len(workers))
            yield stack, stub


async def query_of(stack: Stack, **prompt: Any) -> cache_pb2.PrefixQuery:
    (model,) = await stack.client.models()
    return cache_pb2.PrefixQuery(model=model.name, model_revision=model.revision, **prompt)


async def test_what_a_worker_holds_is_known_for_the_next_request(tmp_path: Path) -> None:
    """The router names the workers, they tell their blocks, the sidecar says who has them."""
    async with followed(tmp_path, {}, {}) as (stack, stub):
        holder = stack.workers[1].server.address
        # Straight to the worker: a router may salt its tenants' prompts.
        async with SidecacheClient(holder) as direct:
            await direct.complete(PROMPT, max_tokens=4)
            ids = await direct.tokenize(PROMPT)
        chat = pb.Chat(messages=[pb.ChatMessage(role="user", content=PROMPT)])
        hint = await hinted(stub, await query_of(stack, chat=chat), holders=1)
        assert list(hint.prompt_token_ids.ids) == ids
        assert hint.prompt_blocks == len(ids) // hint.block_size
        (held,) = hint.held
        assert held.worker == holder
        assert held.blocks == hint.prompt_blocks > 10


async def test_a_full_cache_says_what_it_evicts(tmp_path: Path) -> None:
    """The index never has more than the caches can hold, and loses what they lost."""
    small = {"scripted": {"kv_blocks": 40}}
    async with followed(tmp_path, small, small) as (stack, stub):
        for number in range(12):
            await stack.client.complete(f"{number} {PROMPT}", max_tokens=4)
            stats = await stub.GetStats(cache_pb2.GetStatsRequest())
            assert stats.prefix_blocks <= 80
            assert stats.prefix_resyncs == 0


async def test_one_routers_word_takes_nothing_from_another(tmp_path: Path) -> None:
    """A second router without workers leaves the first one's followed."""
    async with followed(tmp_path, {}, {}) as (_, stub):
        await stub.SetWorkers(cache_pb2.SetWorkersRequest(router="another"))
        stats = await stub.GetStats(cache_pb2.GetStatsRequest())
        assert stats.prefix_workers == 2
