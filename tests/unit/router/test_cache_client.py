"""The router's side of the cache: whose fault a failed lookup is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from cache_svc.link import LinkServer
from router.cache_client import CacheClient, Hit, Miss
from router.cache_link import CacheLink
from router.settings import LookupSettings
from router.ticket import Ticket
from sidecache.key import request_key
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.bare_cache import bare_cache
from tests.unit.cache_svc.test_link import Answers, linked, served
from tests.unit.router.test_tape import MODEL


class Moody(cache_pb2_grpc.CacheServiceServicer):
    """Hangs in namespace "slow", refuses in "odd", breaks in "sick", else misses."""

    async def Lookup(self, request: Any, context: Any) -> cache_pb2.LookupResponse:
        match request.key.namespace:
            case "slow":
                await asyncio.Event().wait()
            case "odd":
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "odd")
            case "sick":
                await context.abort(grpc.StatusCode.INTERNAL, "sick")
            case "new reason":
                return cache_pb2.LookupResponse(miss=cache_pb2.CacheMiss(reason=99))  # type: ignore[arg-type]
            case "new tier":
                answer = cache_pb2.Answer(finished=[pb.Finished()])
                hit = cache_pb2.CacheHit(tier=99, answer=answer)  # type: ignore[arg-type]
                return cache_pb2.LookupResponse(hit=hit)
        return cache_pb2.LookupResponse(
            miss=cache_pb2.CacheMiss(reason=cache_pb2.MISS_REASON_ABSENT)
        )

    def __init__(self) -> None:
        self.stored = self.store_calls = 0

    async def Store(self, request: Any, context: Any) -> cache_pb2.StoreResponse:
        self.store_calls += 1
        self.stored += len(request.entries)
        return cache_pb2.StoreResponse()

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("the cache client asks for nothing else")

    Invalidate = Feedback = SetWorkers = GetStats = Explain = _unused
    HoldFlights = AwaitFlight = _unused


@asynccontextmanager
async def moody_client(
    link: CacheLink | None = None, moody: Moody | None = None
) -> AsyncIterator[CacheClient]:
    settings = LookupSettings(lookup_timeout_s=0.2, failures_to_open=2, open_s=60.0)
    clock = asyncio.get_running_loop().time
    async with bare_cache(moody or Moody()) as address, grpc.aio.insecure_channel(address) as to:
        yield CacheClient(to, settings, clock, link=link)


def ticket(namespace: str, timeout_s: float) -> Ticket:
    request = pb.GenerateRequest(text="x", max_tokens=1, n=1)
    request.cache.namespace = namespace
    key = request_key(request, tenant="acme", model=MODEL.name, revision=MODEL.revision)
    return Ticket("id", "acme", request, MODEL, key, True, True, timeout_s, 0.0)


@pytest.mark.parametrize(
    ("namespace", "timeout_s", "reason", "opens"),
    [
        ("slow", 0.01, "deadline_exceeded", False),
        ("odd", 10.0, "invalid_argument", False),
        ("slow", 10.0, "deadline_exceeded", True),
        ("sick", 10.0, "internal", True),
    ],
    ids=["a hurried caller", "a refused request", "a slow sidecar", "a sick sidecar"],
)
async def test_only_the_sidecars_own_failures_open_the_breaker(
    namespace: str, timeout_s: float, reason: str, opens: bool
) -> None:
    """No caller shuts the cache for the others by asking in haste or amiss."""
    async with moody_client() as client:
        assert await client.lookup(ticket("", 10.0)) == Miss("absent")
        for _ in range(2):
            assert await client.lookup(ticket(namespace, timeout_s)) == Miss(reason)
        assert await client.lookup(ticket("", 10.0)) == Miss("open" if opens else "absent")


@pytest.mark.parametrize("namespace", ["new reason", "new tier"])
async def test_what_a_newer_sidecar_says_is_a_miss(namespace: str) -> None:
    """In a rolling change its words are not all known here; no request fails of that."""
    async with moody_client() as client:
        outcome = await client.lookup(ticket(namespace, 10.0))
        assert outcome == Miss("unspecified")
        assert outcome.is_told


@asynccontextmanager
async def linked_client(
    folder: Path, answers: Answers, moody: Moody | None = None
) -> AsyncIterator[tuple[CacheClient, CacheLink, LinkServer]]:
    """A client with both ways: answers come over the link, moods by call."""
    async with (
        served(folder, answers) as (address, server),
        linked(address) as link,
        moody_client(link, moody) as client,
    ):
        yield client, link, server


async def test_the_link_is_asked_while_it_is_up_and_calls_are_made_otherwise(
    tmp_path: Path,
) -> None:
    """A link that was lost costs one lookup at most; what comes after goes by call."""
    async with linked_client(tmp_path, Answers()) as (client, link, server):
        hit = await client.lookup(ticket("at once", 10.0))
        assert isinstance(hit, Hit)
        assert hit.entry_id == "at once"
        server.close()
        while link.is_up:
            await asyncio.sleep(0)
        assert await client.lookup(ticket("at once", 10.0)) == Miss("absent")


@pytest.mark.parametrize(
    ("namespace", "timeout_s", "reason", "opens"),
    [
        ("slow", 0.01, "deadline_exceeded", False),
        ("odd", 10.0, "invalid_argument", False),
        ("slow", 10.0, "deadline_exceeded", True),
        ("bug", 10.0, "internal", True),
    ],
)
async def test_the_breaker_hears_of_the_links_failures_as_of_a_calls(
    tmp_path: Path, namespace: str, timeout_s: float, reason: str, opens: bool
) -> None:
    """The same failures open it, and no others."""
    answers = Answers()
    answers.may_answer.clear()
    async with linked_client(tmp_path, answers) as (client, _, _):
        for _ in range(2):
            assert await client.lookup(ticket(namespace, timeout_s)) == Miss(reason)
        outcome = await client.lookup(ticket("at once", 10.0))
        assert (outcome == Miss("open")) is opens


async def test_what_is_large_is_a_call(tmp_path: Path) -> None:
    """So that no lookup waits behind it on the link; what is small takes the link."""
    moody, answers = Moody(), Answers()
    async with linked_client(tmp_path, answers, moody) as (client, _, _):
        large = replace(ticket("at once", 10.0), tenant="x" * (1 << 17))
        assert await client.lookup(large) == Miss("absent")
        running = asyncio.create_task(client.run())
        for text in ("short", "x" * (1 << 17)):
            delta = pb.Delta(token_ids=[1], text=text)
            client.store_soon(ticket("", 10.0), cache_pb2.Answer(deltas=[delta]))
            await asyncio.wait_for(client.flush(), 10)
        running.cancel()
        await asyncio.wait((running,))
    assert (answers.stored, moody.stored) == (1, 1)


async def test_stores_that_follow_one_another_closely_go_together() -> None:
    """The first at once; what comes soon after it in one call."""
    moody = Moody()
    async with moody_client(moody=moody) as client:
        running = asyncio.create_task(client.run())
        answer = cache_pb2.Answer(deltas=[pb.Delta(token_ids=[1])])
        client.store_soon(ticket("", 10.0), answer)
        await asyncio.wait_for(client.flush(), 10)
        assert (moody.store_calls, moody.stored) == (1, 1)
        for _ in range(5):
            client.store_soon(ticket("", 10.0), answer)
            await asyncio.sleep(0)
        await asyncio.wait_for(client.flush(), 10)
        running.cancel()
        await asyncio.wait((running,))
    assert (moody.store_calls, moody.stored) == (2, 6)


async def test_a_sidecar_that_starts_a_moment_later_misses_no_answer(tmp_path: Path) -> None:
    """A store waits, within its bound, for a connection that is not up yet."""
    moody, path = Moody(), f"unix:{tmp_path}/late.sock"
    settings = LookupSettings(store_timeout_s=20.0)
    clock = asyncio.get_running_loop().time
    server = grpc.aio.server()
    cache_pb2_grpc.add_CacheServiceServicer_to_server(moody, server)
    soon = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100)]
    async with grpc.aio.insecure_channel(path, soon) as channel:
        client = CacheClient(channel, settings, clock)
        assert await client.lookup(ticket("", 10.0)) == Miss("unavailable")
        client.store_soon(ticket("", 10.0), cache_pb2.Answer(deltas=[pb.Delta(token_ids=[1])]))
        running = asyncio.create_task(client.run())
        # A call that does not wait has failed by then.
        await asyncio.sleep(0.1)
        server.add_insecure_port(path)
        await server.start()
        try:
            await asyncio.wait_for(client.flush(), 20)
        finally:
            running.cancel()
            await asyncio.wait((running,))
            await server.stop(None)
    assert (moody.stored, client.stores_dropped) == (1, 0)
