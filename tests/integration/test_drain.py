"""SIGTERM under load, and what callers are told meanwhile."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from benchmarks.drain import Plan, measure
from sidecache.client import CacheControl, SidecacheClient
from sidecache.errors import Draining, StreamInterrupted
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import KEYS, scripted_stack, scripted_worker

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
SLOW = {"scripted": {"tokens_per_s": 50.0}}


async def test_nothing_is_lost_when_a_worker_and_a_router_are_replaced() -> None:
    """Real processes, SIGTERM to each in turn: every stream ends whole and right, exit code 0."""
    plan = Plan(
        targets=("worker-1", "router-1"), clients=6, tokens=60, workers=2, every_s=0.4, grace_s=0.3
    )
    figures = await measure(plan)
    assert figures.exit_codes == [0, 0]
    assert (figures.lost, figures.wrong, figures.refused_before_first) == (0, 0, 0)
    assert figures.exact == figures.streams > 6
    assert figures.migrated >= 1


async def test_a_draining_worker_refuses_by_name_and_ends_what_is_left(tmp_path: Path) -> None:
    """DRAINING for a new call; the running one gets it too when the grace is over."""
    del tmp_path
    async with (
        scripted_worker("w1", **SLOW) as worker,
        SidecacheClient(worker.server.address) as client,
        client.generate("x", max_tokens=1000) as stream,
    ):
        await anext(aiter(stream))
        drain = asyncio.create_task(worker.server.drain(0.4, 0.05))
        async with asyncio.timeout(5):
            with pytest.raises(Draining, match="ask another"):
                while True:
                    await client.complete("y", max_tokens=1)
            with pytest.raises(Draining, match="grace is over"):
                await stream.complete()
            await drain
        assert worker.engine.load_figures().running_sequences == 0


async def test_a_router_that_must_end_says_that_tokens_were_sent(tmp_path: Path) -> None:
    """A client's stream that outlasts the grace ends with ABORTED: it has begun."""
    async with (
        scripted_stack(tmp_path, workers=(SLOW,), with_cache=False) as stack,
        stack.client.generate("x", max_tokens=1000) as stream,
    ):
        await anext(aiter(stream))
        drain = asyncio.create_task(stack.router.drain(0.1))
        with pytest.raises(StreamInterrupted):
            await stream.complete()
        await drain


async def test_a_client_of_two_routers_does_not_notice_a_drain(tmp_path: Path) -> None:
    """Running streams end where they are, new calls go to the other router."""
    (tmp_path / "two").mkdir()
    async with (
        scripted_stack(tmp_path, workers=(SLOW,), with_cache=False) as one,
        scripted_stack(
            tmp_path / "two",
            workers=(),
            with_cache=False,
            router_={"workers": [one.workers[0].server.address]},
        ) as two,
        SidecacheClient([one.router.address, two.router.address], api_key=KEYS["acme"]) as client,
    ):
        async with client.generate("x", max_tokens=40) as stream:
            await anext(aiter(stream))
            drain = asyncio.create_task(one.router.drain(10.0, 0.2))
            for n in range(5):
                answer = await client.complete(f"{n}", max_tokens=1, cache=BYPASS)
                assert len(answer.token_ids) == 1
            assert (await stream.complete()).choices[0].finish_reason
            assert stream.num_tokens == 40
            await drain
        assert await client.models()


async def test_a_second_router_on_the_same_port_takes_over(tmp_path: Path) -> None:
    """With reuse_port a client of one address finds the new router once the old one has ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared: dict[str, Any] = {"listen": f"127.0.0.1:{port}", "reuse_port": True}
    (tmp_path / "two").mkdir()
    async with scripted_stack(
        tmp_path, workers=({},), with_cache=False, router_={"server": shared}
    ) as one:
        await one.client.complete("x", max_tokens=1)
        two = scripted_stack(
            tmp_path / "two",
            workers=(),
            with_cache=False,
            router_={"server": shared, "workers": [one.workers[0].server.address]},
        )
        async with two:
            await one.router.drain(5.0, 0.1)
            async with asyncio.timeout(10):
                while True:
                    try:
                        answer = await one.client.complete("y", max_tokens=1, cache=BYPASS)
                    except Draining:
                        continue
                    break
            assert answer.worker == "w1"
