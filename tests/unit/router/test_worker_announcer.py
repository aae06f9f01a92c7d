"""The sidecar is told which workers there are: on change, again and again, and after a rest."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from router.settings import LookupSettings
from router.worker_announcer import WorkerAnnouncer
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from tests.fixtures.bare_cache import bare_cache
from tests.fixtures.cache import TurnedClock


class Listening(cache_pb2_grpc.CacheServiceServicer):
    """Takes in memberships; refuses them while a test says so."""

    def __init__(self) -> None:
        self.heard: list[cache_pb2.SetWorkersRequest] = []
        self.refusal: grpc.StatusCode | None = None
        self.asked = 0

    async def SetWorkers(self, request: Any, context: Any) -> cache_pb2.SetWorkersResponse:
        self.asked += 1
        if self.refusal is not None:
            await context.abort(self.refusal, "no")
        self.heard.append(request)
        return cache_pb2.SetWorkersResponse()

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("an announcer asks for nothing else")

    Lookup = Store = Invalidate = Feedback = GetStats = Explain = _unused
    HoldFlights = AwaitFlight = _unused


class Announced:
    """A running announcer, its sidecar, its clock, and the pool's addresses."""

    def __init__(self) -> None:
        self.sidecar = Listening()
        self.clock = TurnedClock()
        self.addresses = ("a", "b")
        self.announcer: WorkerAnnouncer

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await asyncio.sleep(0.001)

    def last(self) -> list[str]:
        return [target.address for target in self.sidecar.heard[-1].workers]


@asynccontextmanager
async def announcing() -> AsyncIterator[Announced]:
    parts = Announced()
    async with (
        bare_cache(parts.sidecar) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        parts.announcer = WorkerAnnouncer(
            channel, lambda: parts.addresses, LookupSettings(), parts.clock, look_interval_s=0.001
        )
        task = asyncio.create_task(parts.announcer.run())
        try:
            yield parts
        finally:
            task.cancel()
            await asyncio.wait((task,))


async def test_changes_are_told_at_once_and_the_rest_repeated() -> None:
    """Always as the same router, with all addresses."""
    async with announcing() as parts:
        await parts.until(lambda: parts.announcer.heard)
        assert parts.last() == ["a", "b"]
        parts.addresses = ("b", "c")
        await parts.until(lambda: len(parts.sidecar.heard) == 2)
        assert parts.last() == ["b", "c"]

        def is_told_again() -> bool:
            # Again and again: the sidecar hears of a change before the announcer knows that it did.
            parts.clock.now_s += LookupSettings().announce_interval_s
            return len(parts.sidecar.heard) > 2

        await parts.until(is_told_again)
        assert parts.last() == ["b", "c"]
        assert len({request.router for request in parts.sidecar.heard}) == 1


async def test_a_sidecar_that_was_away_is_told_again() -> None:
    """It may have forgotten everything; meanwhile no hint is asked of it."""
    async with announcing() as parts:
        await parts.until(lambda: parts.announcer.heard)
        parts.sidecar.refusal = grpc.StatusCode.UNAVAILABLE
        parts.clock.now_s += LookupSettings().announce_interval_s
        await parts.until(lambda: not parts.announcer.heard)
        parts.sidecar.refusal = None
        await parts.until(lambda: parts.announcer.heard)


async def test_a_sidecar_that_follows_nobody_is_left_alone_for_a_while() -> None:
    """It may be replaced by one that does."""
    async with announcing() as parts:
        parts.sidecar.refusal = grpc.StatusCode.UNIMPLEMENTED
        parts.clock.now_s += 3600
        await parts.until(lambda: parts.sidecar.asked > 0)
        asked = parts.sidecar.asked
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert parts.sidecar.asked <= asked + 1
        assert not parts.announcer.heard
        parts.sidecar.refusal = None
        parts.clock.now_s += 61
        await parts.until(lambda: parts.announcer.heard)
