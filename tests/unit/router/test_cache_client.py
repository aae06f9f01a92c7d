"""The router's side of the cache: whose fault a failed lookup is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from router.cache_client import CacheClient, Miss
from router.settings import LookupSettings
from router.ticket import Ticket
from sidecache.key import request_key
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
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
        return cache_pb2.LookupResponse(
            miss=cache_pb2.CacheMiss(reason=cache_pb2.MISS_REASON_ABSENT)
        )

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("a lookup asks for nothing else")

    Store = Invalidate = Feedback = SetWorkers = GetStats = Explain = _unused
    HoldFlights = AwaitFlight = _unused


@asynccontextmanager
async def moody_client() -> AsyncIterator[CacheClient]:
    server = grpc.aio.server()
    cache_pb2_grpc.add_CacheServiceServicer_to_server(Moody(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    settings = LookupSettings(lookup_timeout_s=0.2, failures_to_open=2, open_s=60.0)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield CacheClient(channel, settings, asyncio.get_running_loop().time)
    finally:
        await server.stop(None)


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
