"""Leases of generations across routers: kept, given back, and taken over from the dead."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import router.serve
import router.settings
from chaos.process import ServiceProcess
from inference_svc.engines.scripted import ScriptedEngine
from observability.server import RunningServer
from observability.settings import ServerSettings
from sidecache.client import SidecacheClient, Source
from sidecache.errors import SidecacheError
from tests.fixtures.stack import (
    KEYS,
    Worker,
    cache_sidecar,
    quiet_telemetry,
    scripted_worker,
    write_keys,
)
from tests.integration.test_router_flights import busy, eventually, reference
from tests.integration.test_router_mesh import free_address

TOKENS = 120


@dataclass
class Fleet:
    """Some routers that share a sidecar and two workers.

    Attributes:
        leader: a router that runs as a process of its own.
        clients: of it, and of the other routers.
    """

    workers: list[Worker]
    cache: RunningServer
    leader: ServiceProcess
    clients: list[SidecacheClient]
    begun: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def generations(self) -> int:
        """Begun so far."""
        return int(repr(self.begun)[6:-1])

    @property
    def busy(self) -> int:
        return sum(map(busy, self.workers))

    async def ask(self, number: int, prompt: str = "hello") -> "Heard":
        """Ask a router, and note when each token came."""
        heard = Heard()
        async with self.clients[number].generate(prompt, max_tokens=TOKENS) as stream:
            async for event in stream:
                if event.HasField("started"):
                    heard.source = Source(event.started.source)
                if event.delta.token_ids:
                    heard.ids += event.delta.token_ids
                    heard.at.append(time.monotonic())
        return heard


@dataclass
class Heard:
    """What a caller got, and when."""

    source: Source | None = None
    ids: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    @property
    def gap_s(self) -> float:
        """Longest time between two messages with tokens."""
        return max(b - a for a, b in itertools.pairwise(self.at))


def count_generations(engine: ScriptedEngine, counter: "itertools.count[int]") -> None:
    """Count what the engine is asked for."""
    submit = engine.submit

    def counted(request: Any) -> Any:
        next(counter)
        return submit(request)

    engine.submit = counted  # type: ignore[method-assign]  # the one way to see every call


@asynccontextmanager
async def fleet(
    folder: Path,
    others: int = 1,
    lease_s: float = 60.0,
    renew_s: float = 2.0,
    remote_wait_s: float = 0.25,
    tokens_per_s: float = 100.0,
) -> AsyncIterator[Fleet]:
    """One router as a process, and others in this one."""
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                scripted_worker(name, scripted={"tokens_per_s": tokens_per_s})
            )
            for name in ("w1", "w2")
        ]
        cache = await stack.enter_async_context(cache_sidecar(folder, flights={"lease_s": lease_s}))
        (folder / "mesh").write_text("k" * 32)
        keys = write_keys(folder / "keys.toml")
        addresses = [worker.server.address for worker in workers]
        own = free_address()
        leader = await stack.enter_async_context(
            ServiceProcess.start(
                "router",
                folder,
                {
                    "server__listen": own,
                    "workers": json.dumps(addresses),
                    "cache": cache.address,
                    "keys_file": str(keys),
                    "flights__advertise": own,
                    "flights__mesh_key_file": str(folder / "mesh"),
                    "flights__renew_s": str(renew_s),
                },
            )
        )
        routers = [leader.address]
        for _ in range(others):
            address = free_address()
            settings = router.settings.RouterSettings(
                server=ServerSettings(listen=address),
                workers=addresses,
                cache=cache.address,
                keys_file=keys,
                flights=router.settings.FlightSettings(
                    advertise=address,
                    mesh_key_file=folder / "mesh",
                    renew_s=renew_s,
                    remote_wait_s=remote_wait_s,
                ),
            )
            telemetry = quiet_telemetry("sidecache-router")
            stack.push_async_callback(telemetry.aclose)
            server = await stack.enter_async_context(router.serve.serve(settings, telemetry))
            routers.append(server.address)
        clients = [
            await stack.enter_async_context(SidecacheClient(address, api_key=KEYS["acme"]))
            for address in routers
        ]
        running = Fleet(workers, cache, leader, clients)
        for worker in workers:
            count_generations(worker.engine, running.begun)
        yield running


async def read_until(stream: Any, tokens: int) -> list[int]:
    """Read at least so many."""
    ids: list[int] = []
    async for event in stream:
        ids += event.delta.token_ids
        if len(ids) >= tokens:
            break
    return ids


async def test_a_long_answer_outlives_the_first_lease(tmp_path: Path) -> None:
    """Kept while it is generated, so that who asks late still shares it."""
    async with fleet(tmp_path, lease_s=1.0, renew_s=0.1, tokens_per_s=60.0) as running:
        async with running.clients[0].generate("hello", max_tokens=TOKENS) as first:
            await read_until(first, TOKENS * 2 // 3)  # longer than the lease, at sixty a second
            late = asyncio.create_task(running.ask(1))
            await read_until(first, TOKENS)
        heard = await late
        assert heard.source is Source.COALESCED
        assert heard.ids == await reference(running.clients[1], "hello", TOKENS)
        assert running.generations == 1


async def test_the_followers_of_a_killed_router_go_on_together(tmp_path: Path) -> None:
    """One of them generates the rest and the others follow him; no token is lost or repeated."""
    async with fleet(tmp_path, others=3) as running:
        first = asyncio.create_task(running.ask(0))
        await eventually(lambda: running.busy == 1)
        followers = [asyncio.create_task(running.ask(n)) for n in (1, 2, 3, 1, 2, 3)]
        async with running.clients[1].generate("hello", max_tokens=TOKENS) as stream:
            await read_until(stream, TOKENS // 3)
        await running.leader.kill()
        heard = await asyncio.gather(*followers)
        with pytest.raises(SidecacheError):
            await first
        ids = await reference(running.clients[1], "hello", TOKENS)
        assert all(one.ids == ids for one in heard)
        assert all(one.source is Source.COALESCED for one in heard)
        assert running.generations == 2
        # The time in which nothing came; two cores run all of this.
        assert max(one.gap_s for one in heard) < 2.0


async def test_a_killed_routers_lease_is_nobodys_obstacle(tmp_path: Path) -> None:
    """Who asks next takes it over, and who comes after him shares that."""
    async with fleet(tmp_path, others=2) as running:
        first = asyncio.create_task(running.ask(0))
        await eventually(lambda: running.busy == 1)
        await running.leader.kill()
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.create_task(running.ask(1))
        await eventually(lambda: running.generations == 2)
        third = await running.ask(2)
        assert ((await second).source, third.source) == (Source.ENGINE, Source.COALESCED)
        assert running.generations == 2


async def answered_by_the_second(running: Fleet) -> None:
    """Have an answer of the second router's own; who asks before the lease is free asks again."""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(4):
                assert (await running.ask(1)).source is Source.ENGINE
                return


async def test_a_generation_that_is_given_up_leaves_no_lease(tmp_path: Path) -> None:
    """The next router begins at once, and is not sent to look for it."""
    async with fleet(tmp_path, remote_wait_s=60.0) as running, asyncio.timeout(20):
        first = asyncio.create_task(running.ask(0))
        await eventually(lambda: running.busy == 1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await eventually(lambda: running.busy == 0)
        await answered_by_the_second(running)
        # It holds the lease now: the first router follows it.
        async with running.clients[1].generate("another", max_tokens=TOKENS) as stream:
            await read_until(stream, 10)
            assert (await running.ask(0, "another")).source is Source.COALESCED


async def test_without_the_sidecar_everyone_generates_alone(tmp_path: Path) -> None:
    """Nobody waits for a lease that cannot be had; a follower goes on by himself."""
    async with fleet(tmp_path, others=2) as running:
        first = asyncio.create_task(running.ask(0))
        await eventually(lambda: running.busy == 1)
        followers = [asyncio.create_task(running.ask(n)) for n in (1, 2)]
        async with running.clients[1].generate("hello", max_tokens=TOKENS) as stream:
            await read_until(stream, TOKENS // 3)
        await running.cache.drain(0)
        await running.leader.kill()
        heard = await asyncio.gather(*followers)
        await asyncio.gather(first, return_exceptions=True)
        ids = await reference(running.clients[1], "hello", TOKENS)
        assert all(one.ids == ids for one in heard)
        assert running.generations == 3
