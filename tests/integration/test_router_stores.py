"""Storing answers in the background: batched, bounded, and never in a stream's way."""

import asyncio
from pathlib import Path
from typing import Any

from sidecache.client import Source
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from tests.fixtures.bare_cache import bare_cache
from tests.fixtures.stack import scripted_stack


class GatedCache(cache_pb2_grpc.CacheServiceServicer):
    """Misses every lookup, and stores only while its gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.batches: list[int] = []

    async def Lookup(self, request: Any, context: Any) -> cache_pb2.LookupResponse:
        return cache_pb2.LookupResponse(miss=cache_pb2.CacheMiss())

    async def Store(self, request: Any, context: Any) -> cache_pb2.StoreResponse:
        self.entered.set()
        await self.gate.wait()
        self.batches.append(len(request.entries))
        return cache_pb2.StoreResponse()

    async def GetStats(self, request: Any, context: Any) -> cache_pb2.GetStatsResponse:
        return cache_pb2.GetStatsResponse()

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("no router calls this")

    Invalidate = Feedback = SetWorkers = Explain = _unused
    HoldFlights = AwaitFlight = _unused


async def test_answers_that_wait_share_a_call_and_the_rest_is_dropped(tmp_path: Path) -> None:
    """A slow sidecar holds up no stream; the queue is bounded, and emptied in batches."""
    sidecar = GatedCache()
    async with bare_cache(sidecar) as address:
        settings = {
            "cache": address,
            "lookup": {"max_pending_stores": 8, "store_timeout_s": 30.0},
        }
        async with (
            scripted_stack(tmp_path, with_cache=False, router_=settings) as stack,
            stack.connect("operator") as operator,
        ):
            await stack.client.complete("first", max_tokens=4)
            await sidecar.entered.wait()
            for n in range(20):
                answer = await stack.client.complete(f"{n}", max_tokens=4)
                assert answer.source is Source.ENGINE
            # The operator is told what was let go of.
            assert (await operator.cache_stats()).stores_dropped == 12
            sidecar.gate.set()
        # The router stored what was waiting before it stopped.
    assert sidecar.batches == [1, 8]


async def test_a_large_answer_is_streamed_and_not_stored(tmp_path: Path) -> None:
    """An answer over the bound is let go of while it is streamed."""
    settings = {"lookup": {"max_answer_bytes": 500}}
    async with scripted_stack(tmp_path, router_=settings) as stack, stack.connect("operator") as op:
        for _ in range(3):
            answer = await stack.client.complete("long", max_tokens=1000)
            assert (answer.source, len(answer.token_ids)) == (Source.ENGINE, 1000)
        await stack.client.complete("short", max_tokens=4)
        async with asyncio.timeout(5):
            while (stats := await op.cache_stats()).stats.entries == 0:
                await asyncio.sleep(0.005)
        assert stats.stats.stored == 1


async def test_a_dns_target_is_a_worker_for_each_address(tmp_path: Path) -> None:
    """A name is resolved, and its worker serves."""
    async with scripted_stack(tmp_path) as other:
        port = other.workers[0].server.address.rpartition(":")[2]
        folder = tmp_path / "second"
        folder.mkdir()
        settings = {"workers": [f"dns:localhost:{port}"]}
        async with scripted_stack(folder, workers=[], router_=settings) as stack:
            assert (await stack.client.complete("x", max_tokens=2)).worker == "w1"
