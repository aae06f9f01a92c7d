"""A worker that starts before the cache has answered, over real servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chaos.faults import Direction, Latency
from chaos.proxy import FaultProxy
from sidecache.client import CacheControl, Source
from sidecache.errors import NotCached, NotFound
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import Stack, cache_sidecar, scripted_stack
from tests.integration.test_router_flights import busy, eventually, reference


@asynccontextmanager
async def far_cache(
    folder: Path, ttft_s: float, **lookup: Any
) -> AsyncIterator[tuple[Stack, FaultProxy]]:
    """A stack whose sidecar is reached through a proxy."""
    settings = {"speculative_start_s": 0.005, "lookup_timeout_s": 2.0, **lookup}
    fleet = [{"scripted": {"ttft_s": ttft_s}}]
    async with (
        cache_sidecar(folder) as sidecar,
        FaultProxy.open(sidecar.address) as proxy,
        scripted_stack(
            folder,
            workers=fleet,
            with_cache=False,
            router_={"cache": proxy.address, "lookup": settings},
        ) as stack,
    ):
        yield stack, proxy


async def stored(stack: Stack, prompt: str) -> list[int]:
    """Have an answer stored, and found."""
    ids = (await stack.client.complete(prompt, max_tokens=20)).token_ids
    async with asyncio.timeout(5):
        while (await stack.client.complete(prompt, max_tokens=20)).source is not Source.EXACT:
            await asyncio.sleep(0.01)
    return ids


async def test_a_slow_miss_costs_no_more_than_the_head_start(tmp_path: Path) -> None:
    """The worker's first token does not wait for the sidecar."""
    async with far_cache(tmp_path, ttft_s=0.0) as (stack, proxy):
        with proxy.during(Latency(1.0), Direction.DOWN):
            answer = await stack.client.complete("hello", max_tokens=20)
        assert answer.source is Source.ENGINE
        assert answer.token_ids == await reference(stack.client, "hello", 20)
        assert answer.ttft_s is not None
        assert answer.ttft_s < 0.9


async def test_a_hit_before_the_first_token_wins(tmp_path: Path) -> None:
    """The stored answer is served whole and alone, and the worker's slot is free at once."""
    async with far_cache(tmp_path, ttft_s=0.0) as (stack, proxy):
        ids = await stored(stack, "hello")
        stack.workers[0].engine._settings = stack.workers[0].engine._settings.model_copy(
            update={"ttft_s": 30.0}
        )
        with proxy.during(Latency(0.2), Direction.DOWN):
            asking = asyncio.create_task(stack.client.complete("hello", max_tokens=20))
            await eventually(lambda: busy(stack.workers[0]) == 1)
            answer = await asking
        assert (answer.source, answer.token_ids) == (Source.EXACT, ids)
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=1)


async def test_a_stream_that_lost_the_race_is_kept_for_nobody(tmp_path: Path) -> None:
    """Who may come back comes back to what he got: a hit, and never the worker's own answer."""
    async with far_cache(tmp_path, ttft_s=0.0) as (stack, proxy):
        ids = await stored(stack, "hello")
        stack.workers[0].engine._settings = stack.workers[0].engine._settings.model_copy(
            update={"ttft_s": 30.0}
        )
        with proxy.during(Latency(0.2), Direction.DOWN):
            async with stack.client.generate("hello", max_tokens=20, attach_window_s=20) as stream:
                answer = await stream.complete()
        assert (answer.source, answer.token_ids) == (Source.EXACT, ids)
        await eventually(lambda: busy(stack.workers[0]) == 0, within_s=1)
        with pytest.raises(NotFound):
            async with stack.client.attach(answer.request_id) as again:
                await again.complete()


async def test_a_miss_before_the_first_token_goes_on_with_the_worker_that_began(
    tmp_path: Path,
) -> None:
    """Nothing starts twice."""
    async with far_cache(tmp_path, ttft_s=0.4) as (stack, proxy):
        with proxy.during(Latency(0.1), Direction.DOWN):
            asking = asyncio.create_task(stack.client.complete("hello", max_tokens=20))
            most = 0
            while not asking.done():
                most = max(most, busy(stack.workers[0]))
                await asyncio.sleep(0.002)
        assert (await asking).token_ids == await reference(stack.client, "hello", 20)
        assert most == 1


async def test_a_fast_hit_wakes_no_worker(tmp_path: Path) -> None:
    """Within the head start the sidecar is alone."""
    async with far_cache(tmp_path, ttft_s=0.0, speculative_start_s=1.0) as (stack, _):
        await stored(stack, "hello")
        tokens_before = stack.workers[0].engine.load_figures()
        assert (await stack.client.complete("hello", max_tokens=20)).source is Source.EXACT
        assert stack.workers[0].engine.load_figures() == tokens_before


async def test_only_if_cached_starts_nothing(tmp_path: Path) -> None:
    """Who wants a stored answer or none gets no generation."""
    only = CacheControl(mode=pb.CACHE_MODE_ONLY_IF_CACHED)
    async with far_cache(tmp_path, ttft_s=5.0) as (stack, proxy):
        with proxy.during(Latency(0.1), Direction.DOWN):
            asking = asyncio.create_task(stack.client.complete("hello", max_tokens=20, cache=only))
            while not asking.done():
                assert busy(stack.workers[0]) == 0
                await asyncio.sleep(0.002)
        with pytest.raises(NotCached):
            await asking


async def test_a_client_that_leaves_the_race_frees_the_slot(tmp_path: Path) -> None:
    """Both runners stop."""
    async with far_cache(tmp_path, ttft_s=30.0) as (stack, proxy):
        with proxy.during(Latency(1.0), Direction.DOWN):
            asking = asyncio.create_task(stack.client.complete("hello", max_tokens=20))
            await eventually(lambda: busy(stack.workers[0]) == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await eventually(lambda: busy(stack.workers[0]) == 0, within_s=1)
