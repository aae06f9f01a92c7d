"""Prefix routing from end to end: KV events, sidecar, hint, choice, and what the engine found.

Prefixes come to a worker by a direct call, or over another router, so that the router under
test cannot know of them by its own notes: whatever it does right, the sidecar told it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

import router.serve
from observability.settings import ServerSettings
from router.settings import RouterSettings, RoutingSettings
from router.tenant_salt import TenantSalt
from sidecache.client import SidecacheClient
from sidecache.generation import Completion
from sidecache.v1 import admin_pb2, cache_pb2, cache_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.stack import (
    KEYS,
    Stack,
    Worker,
    quiet_telemetry,
    scripted_stack,
    scripted_worker,
)
from tests.integration.test_prefix_path import PATIENT, QUICK

PREFIX = "A system prompt that is longer than a few blocks of thirty-two tokens. " * 12
BLOCK_SIZE = 32
BLOCKS = len(PREFIX) // BLOCK_SIZE


def salt_of(tenant: str) -> str:
    """The salt that routers with default settings give a tenant."""
    return TenantSalt(RoutingSettings()).of(tenant)


@dataclass
class Fleet:
    """Workers that stand before their router does, so that a test can restart one."""

    workers: dict[str, Worker]
    stack: Stack
    sidecar: "cache_pb2_grpc.CacheServiceAsyncStub"
    _own: dict[str, AsyncExitStack]
    _settings: dict[str, Any]

    async def restart(self, name: str) -> None:
        """Another process at the same address, as far as anybody can tell."""
        address = self.workers[name].server.address
        await self._own[name].aclose()
        self.workers[name] = await self._own[name].enter_async_context(
            scripted_worker(name, **self._settings | {"server": ServerSettings(listen=address)})
        )

    async def put(self, name: str, text: str = PREFIX, tenant: str = "acme", **more: Any) -> None:
        """Have a worker prefill a text, past every router."""
        request = pb.GenerateRequest(text=text, max_tokens=1, cache_salt=salt_of(tenant), **more)
        await prefill(self.workers[name], request)

    async def until_held(
        self, expected: dict[str, int], text: str = PREFIX, tenant: str = "acme", adapter: str = ""
    ) -> None:
        """Return once the sidecar knows exactly this: leading blocks by worker."""
        (model,) = await self.stack.client.models()
        query = cache_pb2.PrefixQuery(
            text=text, model=model.name, model_revision=model.revision,
            cache_salt=salt_of(tenant), adapter=adapter,
        )  # fmt: skip
        names = {worker.server.address: name for name, worker in self.workers.items()}
        while True:
            answer = await self.sidecar.Lookup(cache_pb2.LookupRequest(prefix=query))
            held = {names[each.worker]: each.blocks for each in answer.miss.prefix.held}
            if answer.miss.HasField("prefix") and held == expected:
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def fleet(
    folder: Path, *, count: int = 3, router_: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Fleet]:
    """Scripted workers, all with these settings, followed by a sidecar, behind a router."""
    async with AsyncExitStack() as stack:
        own, workers = {}, {}
        for name in [f"w{number}" for number in range(1, count + 1)]:
            own[name] = await stack.enter_async_context(AsyncExitStack())
            workers[name] = await own[name].enter_async_context(scripted_worker(name, **settings))
        addresses = [worker.server.address for worker in workers.values()]
        front = await stack.enter_async_context(
            scripted_stack(
                folder,
                workers=(),
                cache={"prefix": QUICK},
                router_=PATIENT | {"workers": addresses} | (router_ or {}),
            )
        )
        assert front.cache is not None
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(front.cache.address))
        stub: cache_pb2_grpc.CacheServiceAsyncStub = cache_pb2_grpc.CacheServiceStub(channel)
        while (await stub.GetStats(cache_pb2.GetStatsRequest())).prefix_workers_followed != count:
            await asyncio.sleep(0.005)
        yield Fleet(workers, front, stub, own, settings)


async def prefill(worker: Worker, request: pb.GenerateRequest) -> None:
    """Ask a worker, past every router."""
    async with (
        SidecacheClient(worker.server.address) as direct,
        direct.stream(request) as stream,
    ):
        await stream.complete()


async def ask(client: SidecacheClient, end: str, prefix: str = PREFIX, **more: Any) -> Completion:
    """A prompt that begins with the prefix and has an end of its own."""
    return await client.complete(text=f"{prefix} {end}", max_tokens=2, **more)


def cached(answer: Completion) -> int:
    assert answer.usage.HasField("cached_prompt_tokens")
    assert not answer.usage.cached_prompt_tokens_estimated
    return answer.usage.cached_prompt_tokens


async def test_a_prompt_goes_where_a_stranger_put_its_prefix(tmp_path: Path) -> None:
    """The sidecar's word alone brings it there; the engine finds every block that was promised."""
    async with fleet(tmp_path) as f:
        await f.put("w2")
        await f.until_held({"w2": BLOCKS})
        answer = await ask(f.stack.client, "What now?")
        assert answer.worker == "w2"
        assert cached(answer) == BLOCKS * BLOCK_SIZE
        assert (await ask(f.stack.client, "x", prefix="Something else.")).worker != "w2"


async def test_an_operator_sees_what_was_cached(tmp_path: Path) -> None:
    """By worker: blocks, their use, and how much of its prompts it found."""
    quick = {"routing": {"load_interval_s": 0.02}}
    async with fleet(tmp_path, count=2, router_=quick) as f:
        await f.put("w2")
        await f.until_held({"w2": BLOCKS})
        answer = await ask(f.stack.client, "What now?")
        async with f.stack.connect("operator") as operator:
            while not all(w.HasField("kv_blocks") for w in await operator.workers()):
                await asyncio.sleep(0.01)
            one, two = await operator.workers()
        assert (one.prompt_tokens, one.cached_prompt_tokens) == (0, 0)
        assert two.prompt_tokens == answer.usage.prompt_tokens
        assert two.cached_prompt_tokens == BLOCKS * BLOCK_SIZE
        assert (two.kv_blocks, two.kv_cache_usage) == (4096, 0.0)


async def test_warming_begins_with_who_holds_most(tmp_path: Path) -> None:
    """Wherever it came from: nobody else's blocks are pushed out for what is there already."""
    async with fleet(tmp_path) as f, f.stack.connect("operator") as operator:
        await f.put("w3")
        await f.until_held({"w3": BLOCKS})
        request = pb.GenerateRequest(text=PREFIX, max_tokens=1)
        wanted = admin_pb2.WarmPrefixRequest(tenant="acme", request=request, workers=1)
        (warmed,) = (await operator.warm_prefix(wanted)).workers
        assert warmed.worker == "w3"
        assert warmed.cached_tokens_before == BLOCKS * BLOCK_SIZE


async def test_without_hints_it_goes_elsewhere(tmp_path: Path) -> None:
    """What the test above proves is not the order of the workers."""
    off = {"lookup": PATIENT["lookup"] | {"prefix_hints": False}}
    async with scripted_stack(tmp_path, workers=({}, {}, {}), router_=off) as stack:
        request = pb.GenerateRequest(text=PREFIX, max_tokens=1, cache_salt=salt_of("acme"))
        await prefill(stack.workers[1], request)
        answer = await ask(stack.client, "What now?")
        assert (answer.worker, cached(answer)) == ("w1", 0)


async def test_a_restarted_worker_is_no_holder(tmp_path: Path) -> None:
    """A new epoch: nothing of what the old one held draws prompts there."""
    async with fleet(tmp_path) as f:
        await f.put("w2")
        await f.until_held({"w2": BLOCKS})
        await f.restart("w2")
        await f.until_held({})
        while await ready_workers(f.stack) < len(f.workers):
            await asyncio.sleep(0.01)
        answer = await ask(f.stack.client, "What now?")
        assert (answer.worker, cached(answer)) == ("w1", 0)


async def ready_workers(stack: Stack) -> int:
    """How many there are, as the router says."""
    ready = admin_pb2.WORKER_STATE_READY
    async with stack.connect("operator") as operator:
        return [worker.state for worker in await operator.workers()].count(ready)


async def test_a_cleared_cache_is_forgotten(tmp_path: Path) -> None:
    """An engine that empties its cache while it runs draws no prompts by what it had."""
    async with fleet(tmp_path) as f:
        await f.put("w2")
        await f.put("w3", PREFIX[: 4 * BLOCK_SIZE])
        await f.until_held({"w2": BLOCKS, "w3": 4})
        assert f.workers["w2"].engine.forget_prefixes()
        await f.until_held({"w3": 4})
        answer = await ask(f.stack.client, "What now?")
        assert (answer.worker, cached(answer)) == ("w3", 4 * BLOCK_SIZE)


async def test_what_one_router_placed_another_finds(tmp_path: Path) -> None:
    """Two routers with one sidecar: conversations move between them and stay where they are."""
    async with fleet(tmp_path) as f, second_router(f) as second:
        placed = {}
        for number in range(4):
            prefix = f"{number}: {PREFIX}"
            answer = await ask(f.stack.client, "Begin.", prefix)
            placed[prefix] = answer.worker
            await f.until_held({answer.worker: len(prefix) // BLOCK_SIZE}, prefix)
        assert len(set(placed.values())) > 1
        for prefix, worker in placed.items():
            answer = await ask(second, "Go on.", prefix)
            assert answer.worker == worker
            assert cached(answer) >= len(prefix) // BLOCK_SIZE * BLOCK_SIZE


@asynccontextmanager
async def second_router(f: Fleet) -> AsyncIterator[SidecacheClient]:
    """Another router of the same workers and sidecar, as the tenant acme sees it."""
    assert f.stack.cache is not None
    telemetry = quiet_telemetry("sidecache-router")
    settings: dict[str, Any] = PATIENT | {
        "server": ServerSettings(),
        "workers": [worker.server.address for worker in f.workers.values()],
        "cache": f.stack.cache.address,
        "keys_file": f.stack.keys_file,
    }
    async with router.serve.serve(RouterSettings(**settings), telemetry) as server:
        # A hint is asked for once the sidecar has heard of this router.
        while (
            await f.sidecar.GetStats(cache_pb2.GetStatsRequest())
        ).prefix_workers_followed != len(f.workers):
            await asyncio.sleep(0.005)
        async with SidecacheClient(server.address, api_key=KEYS["acme"]) as client:
            yield client
    await telemetry.aclose()


# A prompt of PREFIX takes .85 s cold; a warm one a thirtieth of that.
SLOW_PREFILL = {"scripted": {"prefill_tokens_per_s": 1000.0}}
COLD_S = BLOCKS * BLOCK_SIZE / 1000.0


async def test_no_tenant_can_time_anothers_prompts(tmp_path: Path) -> None:
    """A prompt another tenant has sent takes its whole prefill; one's own does not."""
    async with (
        fleet(tmp_path, count=2, **SLOW_PREFILL) as f,
        f.stack.connect("umbrella") as umbrella,
    ):
        first = await ask(f.stack.client, "mine")
        await f.until_held({first.worker: BLOCKS})
        await f.until_held({}, tenant="umbrella")
        probe = await ask(umbrella, "mine")
        assert cached(probe) == 0
        assert probe.ttft_s is not None
        assert probe.ttft_s >= COLD_S
        again = await ask(f.stack.client, "mine too")
        assert cached(again) >= BLOCKS * BLOCK_SIZE
        assert again.ttft_s is not None
        assert again.ttft_s < COLD_S / 2


async def test_with_the_salt_off_tenants_share(tmp_path: Path) -> None:
    """The switch: the operator gives the separation away for the shared blocks."""
    off = {"routing": {"tenant_salt": False}}
    async with (
        fleet(tmp_path, count=2, router_=off, **SLOW_PREFILL) as f,
        f.stack.connect("umbrella") as umbrella,
    ):
        first = await ask(f.stack.client, "mine")
        probe = await ask(umbrella, "mine")
        assert probe.worker == first.worker
        assert cached(probe) >= BLOCKS * BLOCK_SIZE
        assert probe.ttft_s is not None
        assert probe.ttft_s < COLD_S / 2


async def test_an_adapters_blocks_are_its_own(tmp_path: Path) -> None:
    """A prompt goes to the worker that holds it under its adapter, and finds nothing else."""
    async with fleet(tmp_path, scripted={"adapters": ["sql", "law"]}) as f:
        await f.put("w2", adapter="sql")
        await f.put("w3", adapter="law")
        await f.until_held({"w2": BLOCKS}, adapter="sql")
        await f.until_held({"w3": BLOCKS}, adapter="law")
        await f.until_held({})
        sql = await ask(f.stack.client, "What now?", adapter="sql")
        law = await ask(f.stack.client, "What now?", adapter="law")
        bare = await ask(f.stack.client, "What now?")
        assert (sql.worker, law.worker) == ("w2", "w3")
        assert cached(sql) == cached(law) == BLOCKS * BLOCK_SIZE
        assert cached(bare) == 0
        assert len({tuple(each.token_ids) for each in (sql, law, bare)}) == 3


async def test_a_pinned_prefix_survives_pressure(tmp_path: Path) -> None:
    """Asked to be kept, it is there after four times the cache has gone by; another is not."""
    async with fleet(tmp_path, count=2, scripted={"kv_blocks": 3 * BLOCKS}) as f:
        pinned = pb.GenerateRequest(text=PREFIX, max_tokens=1)
        pinned.retention.priority = 90
        async with f.stack.client.stream(pinned) as stream:
            await stream.complete()
        loose = f"Not kept. {PREFIX}"
        await ask(f.stack.client, "Begin.", loose)
        for number in range(24):
            await ask(f.stack.client, "Begin.", f"{number}. {PREFIX}")
        kept = await ask(f.stack.client, "Is it there?")
        gone = await ask(f.stack.client, "Is it there?", loose)
        assert cached(kept) == BLOCKS * BLOCK_SIZE
        assert cached(gone) == 0
