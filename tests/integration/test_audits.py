"""Audits and explored misses through a router, workers and a sidecar that really run."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from sidecache.client import Source
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from tests.fixtures.stack import Stack, scripted_stack

ASKED = "How do I reset my password?"
AGAIN = "How can I reset my password?"


def _semantic(minilm_path: Path, **bound: Any) -> dict[str, Any]:
    return {"semantic": {"embedder_path": minilm_path, "budget_s": 30, "bound": bound}}


# On a busy machine too a lookup is waited for: these tests are about what follows it.
_PATIENT = {"lookup": {"lookup_timeout_s": 30.0}}


@asynccontextmanager
async def _stats_of(stack: Stack) -> AsyncIterator["cache_pb2_grpc.CacheServiceAsyncStub"]:
    assert stack.cache is not None
    async with grpc.aio.insecure_channel(stack.cache.address) as channel:
        yield cache_pb2_grpc.CacheServiceStub(channel)


async def _wait_for(stub: "cache_pb2_grpc.CacheServiceAsyncStub", field: str, count: int) -> None:
    async with asyncio.timeout(20):
        while getattr(await stub.GetStats(cache_pb2.GetStatsRequest()), field) < count:
            await asyncio.sleep(0.01)


async def test_an_audited_hit_is_served_at_once_and_judged_behind_it(
    tmp_path: Path, minilm_path: Path
) -> None:
    """The caller gets the stored answer; a fresh one is generated, judged and kept after."""
    cache = _semantic(minilm_path, audit_share=1.0)
    async with (
        scripted_stack(tmp_path, cache=cache, router_=_PATIENT) as stack,
        _stats_of(stack) as stub,
    ):
        first = await stack.client.complete(ASKED, max_tokens=8)
        await _wait_for(stub, "stored", 1)
        second = await stack.client.complete(AGAIN, max_tokens=8)
        assert second.source is Source.SEMANTIC
        assert second.text == first.text
        await _wait_for(stub, "audited", 1)
        figures = await stub.GetStats(cache_pb2.GetStatsRequest())
        # The scripted engine answers each prompt differently: the judge must see that.
        assert figures.audited_wrong == 1
        assert figures.stored == 2
        third = await stack.client.complete(AGAIN, max_tokens=8)
        assert third.source is Source.EXACT
        assert third.text != first.text


async def test_a_busy_pool_is_left_alone(tmp_path: Path, minilm_path: Path) -> None:
    """No audit is generated while the only worker serves a client."""
    cache = _semantic(minilm_path, audit_share=1.0)
    slow = {"scripted": {"tokens_per_s": 20}}
    async with (
        scripted_stack(tmp_path, workers=[slow], cache=cache, router_=_PATIENT) as stack,
        _stats_of(stack) as stub,
    ):
        await stack.client.complete(ASKED, max_tokens=2)
        await _wait_for(stub, "stored", 1)
        client = asyncio.create_task(stack.client.complete("Tell me a story", max_tokens=20))
        async with asyncio.timeout(10):
            while not stack.workers[0].engine.load_figures().running_sequences:
                await asyncio.sleep(0.01)
        assert (await stack.client.complete(AGAIN, max_tokens=2)).source is Source.SEMANTIC
        await client
        await _wait_for(stub, "stored", 2)
        assert (await stub.GetStats(cache_pb2.GetStatsRequest())).audited == 0


async def test_a_scope_without_trust_explores(tmp_path: Path, minilm_path: Path) -> None:
    """Where the bound is too strict for what is known, a fresh answer comes at once."""
    cache = _semantic(minilm_path, audit_share=0.001, max_false_hit_rate=1e-6)
    async with (
        scripted_stack(tmp_path, cache=cache, router_=_PATIENT) as stack,
        _stats_of(stack) as stub,
    ):
        await stack.client.complete(ASKED, max_tokens=8)
        await _wait_for(stub, "stored", 1)
        answers = [
            await stack.client.complete(f"{AGAIN[:-1]} {'please ' * n}?", max_tokens=8)
            for n in range(1, 13)
        ]
        assert answers[0].source is Source.SEMANTIC
        assert answers[-1].source is Source.ENGINE
        assert (await stub.GetStats(cache_pb2.GetStatsRequest())).explored > 0
