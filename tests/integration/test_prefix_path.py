"""From a real worker's KV cache over the sidecar's index to the hint of the next request."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

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


async def revision_of(stack: Stack) -> tuple[str, str]:
    model = (await stack.client.list_models())[0]
    return model.name, model.revision


@pytest.mark.timeout(60)
async def test_what_a_worker_holds_is_known_for_the_next_request(tmp_path: Path) -> None:
    """The router names the workers, they tell their blocks, the sidecar says who has them."""
    stacked = scripted_stack(tmp_path, workers=[{}, {}], cache={"prefix": QUICK}, router_=PATIENT)
    async with stacked as stack:
        assert stack.cache is not None
        async with grpc.aio.insecure_channel(stack.cache.address) as channel:
            stub = cache_pb2_grpc.CacheServiceStub(channel)
            await stats_until(stub, prefix_workers_followed=2)
            served = await stack.client.complete(pb.GenerateRequest(text=PROMPT, max_tokens=4))
            holder = next(w for w in stack.workers if w.server.address and served)
            name, revision = await revision_of(stack)
            query = cache_pb2.PrefixQuery(text=PROMPT, model=name, model_revision=revision)
            while True:
                answer = await stub.Lookup(cache_pb2.LookupRequest(prefix=query))
                if answer.miss.prefix.held:
                    break
                await asyncio.sleep(0.01)
            (held,) = answer.miss.prefix.held
            assert holder
            assert held.blocks == len(PROMPT) // 32
