"""Admission over the wire: queue, refusals, limits, priorities, and what the operator sees."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from sidecache.client import CacheControl, SidecacheClient, Source
from sidecache.errors import (
    Forbidden,
    InvalidRequest,
    Overloaded,
    QuotaExceeded,
    Unauthenticated,
)
from sidecache.keys_file import create_key
from sidecache.keys_limits import set_limits
from sidecache.v1 import admin_pb2, inference_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import KEYS, Stack, Worker, scripted_stack
from tests.integration.test_routing import heard_by

BYPASS = CacheControl(mode=pb.CACHE_MODE_BYPASS)
ONE_SLOT = {"max_sequences": 1, "scripted": {"ttft_s": 0.02, "tokens_per_s": 50.0}}


async def eventually(is_so: object, within_s: float = 5.0) -> None:
    assert callable(is_so)
    async with asyncio.timeout(within_s):
        while not is_so():
            await asyncio.sleep(0.001)


def busy(worker: Worker) -> int:
    return worker.engine.load_figures().running_sequences


@contextlib.asynccontextmanager
async def occupied(stack: Stack, tenant: str = "acme") -> AsyncIterator[None]:
    """The only slot is taken by a long stream of this tenant."""
    async with stack.connect(tenant) as client:
        long = asyncio.create_task(client.complete("long", max_tokens=4000, cache=BYPASS))
        await eventually(lambda: busy(stack.workers[0]) == 1)
        yield
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)


async def top(stack: Stack, *arguments: str) -> str:
    """What `sidecache top` prints for the operator."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecache", "top", *arguments, "-a", stack.router.address),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"SIDECACHE_API_KEY": KEYS["operator"], "COLUMNS": "120"},
    )
    async with asyncio.timeout(30):
        stdout, _ = await process.communicate()
    assert process.returncode == 0
    return stdout.decode()


async def waiting(operator: SidecacheClient, model: str = "scripted") -> admin_pb2.ScaleSignal:
    signals = (await operator.scale_signal()).signals
    return next((s for s in signals if s.model == model), admin_pb2.ScaleSignal())


async def until_waiting(operator: SidecacheClient, count: int) -> None:
    async with asyncio.timeout(5):
        while (await waiting(operator)).waiting != count:
            await asyncio.sleep(0.005)


async def test_a_hit_and_a_follower_need_no_slot(tmp_path: Path) -> None:
    """With every slot taken a stored answer comes at once, and a flight takes no second place."""
    settings = {"scale": {"interval_s": 0.02}}
    async with (
        scripted_stack(tmp_path, workers=[ONE_SLOT], router_=settings) as stack,
        stack.connect("operator") as operator,
    ):
        await stack.client.complete("known", max_tokens=4)
        async with asyncio.timeout(5):
            while (await stack.client.complete("known", max_tokens=4)).source != Source.EXACT:
                pass
        async with occupied(stack):
            assert (await stack.client.complete("known", max_tokens=4)).source is Source.EXACT
            herd = [
                asyncio.create_task(stack.client.complete("new", max_tokens=4)) for _ in range(5)
            ]
            await until_waiting(operator, 1)
        answers = await asyncio.gather(*herd)
        assert len({tuple(answer.token_ids) for answer in answers}) == 1
        sources = sorted(answer.source.name for answer in answers)
        assert sources == ["COALESCED"] * 4 + ["ENGINE"]


async def test_a_client_that_leaves_leaves_the_queue(tmp_path: Path) -> None:
    """A cancel while waiting frees its place at once; the slot is its successor's."""
    settings = {"scale": {"interval_s": 0.02}}
    async with (
        scripted_stack(tmp_path, workers=[ONE_SLOT], router_=settings) as stack,
        stack.connect("operator") as operator,
    ):
        async with occupied(stack):
            leaving = asyncio.create_task(stack.client.complete("a", max_tokens=2, cache=BYPASS))
            staying = asyncio.create_task(stack.client.complete("b", max_tokens=2, cache=BYPASS))
            await until_waiting(operator, 2)
            leaving.cancel()
            await until_waiting(operator, 1)
        assert len((await staying).token_ids) == 2
        async with asyncio.timeout(5):
            while (await waiting(operator)).running_tokens:
                await asyncio.sleep(0.005)


async def test_what_cannot_start_in_time_is_refused_early(tmp_path: Path) -> None:
    """The pace is known: a deadline that the queue cannot keep is refused with a RetryInfo."""
    settings = {"scale": {"interval_s": 0.02}}
    async with (
        scripted_stack(tmp_path, workers=[ONE_SLOT], with_cache=False, router_=settings) as stack,
        stack.connect("operator") as operator,
    ):
        for n in range(3):
            await stack.client.complete(f"pace {n}", max_tokens=20)
        queued = [
            asyncio.create_task(stack.client.complete(f"queue {n}", max_tokens=20))
            for n in range(5)
        ]
        await until_waiting(operator, 4)
        started = asyncio.get_running_loop().time()
        with pytest.raises(Overloaded, match="it would start in") as refused:
            await stack.client.complete("late", max_tokens=20, timeout_s=0.9)
        assert asyncio.get_running_loop().time() - started < 0.5
        assert 0 < refused.value.retry_after_s < 5
        assert all(len(answer.token_ids) == 20 for answer in await asyncio.gather(*queued))


async def test_limits_are_told_refused_and_reloaded(tmp_path: Path) -> None:
    """Every answer of a limited tenant says what is left; a change of the file is in force soon."""
    settings = {"keys_interval_s": 0.02}
    async with scripted_stack(tmp_path, router_=settings) as stack:
        channel = grpc.aio.insecure_channel(stack.router.address)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)

        async def ask(prompt: str) -> dict[str, str]:
            call = stub.Generate(
                pb.GenerateRequest(text=prompt, max_tokens=50),
                metadata=(("authorization", f"Bearer {KEYS['acme']}"),),
            )
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
            found = {str(k): str(v) for k, v in await call.trailing_metadata()}
            return {k: v for k, v in found.items() if k.startswith("x-ratelimit")}

        assert await ask("without") == {}
        limits = {"tokens_per_minute": 100, "requests_per_minute": 1000}
        set_limits(stack.keys_file, tenant="acme", limits=limits)
        async with asyncio.timeout(5):
            while not (told := await ask("without")):
                await asyncio.sleep(0.01)
        # An answer from the cache costs no tokens.
        assert told["x-ratelimit-limit-tokens"] == "100"
        assert told["x-ratelimit-remaining-tokens"] == "100"
        first = await ask("one")
        assert 35 <= int(first["x-ratelimit-remaining-tokens"]) <= 50
        second = await ask("two")
        assert int(second["x-ratelimit-remaining-tokens"]) <= 51
        assert second["x-ratelimit-reset-tokens"].endswith("s")
        with pytest.raises(QuotaExceeded, match="100 tokens a minute") as refused:
            await stack.client.complete("three", max_tokens=90)
        assert refused.value.subject == "tenant:acme"
        assert refused.value.retry_after_s > 1
        await channel.close()


async def test_a_key_says_what_its_requests_may_ask_for(tmp_path: Path) -> None:
    """Priorities above the key's or beyond all are refused, each with its own status."""
    async with scripted_stack(tmp_path, with_cache=False) as stack:
        for asked, error in ((1, Forbidden), (31, InvalidRequest), (-31, InvalidRequest)):
            with pytest.raises(error, match="priority"):
                await stack.client.complete("hello", max_tokens=1, priority=asked)
        assert (await stack.client.complete("hello", max_tokens=1, priority=-30)).text


async def test_a_keys_class_is_the_workers_to_see(tmp_path: Path) -> None:
    """The engine gets a priority in its class's band."""
    keys = tmp_path / "keys.toml"
    settings = {"keys_interval_s": 0.02}
    async with scripted_stack(tmp_path, with_cache=False, router_=settings) as stack:
        with heard_by(stack.workers[0]) as requests:
            await _ask_as_batch(stack, keys)
            await stack.client.complete("b", max_tokens=1)
        assert [request.priority for request in requests] == [-60, 0]


async def _ask_as_batch(stack: Stack, keys: Path) -> None:
    """One request of a new key of class batch, as soon as the router knows the key."""
    key = create_key(keys, tenant="acme", priority_class="batch", max_priority=5)
    async with SidecacheClient(stack.router.address, api_key=key) as batch, asyncio.timeout(5):
        while True:
            try:
                await batch.complete("a", max_tokens=1, priority=5)
            except Unauthenticated:
                await asyncio.sleep(0.01)
            else:
                return


async def test_the_operator_sees_it_all(tmp_path: Path) -> None:
    """GetScaleSignal and `sidecache top`; not for tenants."""
    settings = {"scale": {"interval_s": 0.02, "up_interval_s": 0}}
    async with (
        scripted_stack(tmp_path, workers=[ONE_SLOT], router_=settings) as stack,
        stack.connect("operator") as operator,
    ):
        with pytest.raises(Forbidden):
            await stack.client.scale_signal()
        async with occupied(stack):
            queued = [
                asyncio.create_task(stack.client.complete(f"{n}", max_tokens=2, cache=BYPASS))
                for n in range(4)
            ]
            await until_waiting(operator, 4)
            async with asyncio.timeout(5):
                while (signal := await waiting(operator)).desired_workers < 2:
                    await asyncio.sleep(0.005)
            assert (signal.ready_workers, signal.slots, signal.running) == (1, 1, 1)
            assert signal.waiting_tokens > 0
            assert signal.running_tokens >= 4000
            assert json.loads(await top(stack, "--json"))["signals"][0]["waiting"] == 4
            shown = await top(stack)
            assert "1 of 1" in shown
            assert "acme" in shown
        await asyncio.gather(*queued)
