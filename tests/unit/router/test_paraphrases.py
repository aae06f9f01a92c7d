"""How long a caller waits for another question's answer, and who asks for him."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from observability.metrics.router import ParaphraseMetrics
from router.cache_client import Hit, Miss
from router.paraphrases import Paraphrases
from router.ticket import Ticket
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from tests.fixtures.bare_cache import bare_cache
from tests.fixtures.stack import quiet_telemetry
from tests.unit.router.flying import ticket

NAMED = Miss("absent", paraphrase=cache_pb2.FlightParaphrase(exact=b"p" * 32, similarity=0.95))


class Sidecar(cache_pb2_grpc.CacheServiceServicer):
    """Ends the waits when a test says so."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.asked = 0
        self.waiting = 0
        self.is_full = False

    async def AwaitFlight(self, request: Any, context: Any) -> cache_pb2.AwaitFlightResponse:
        self.asked += 1
        if self.is_full:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many wait")
        self.waiting += 1
        try:
            await self.ended.wait()
        finally:
            self.waiting -= 1
        return cache_pb2.AwaitFlightResponse(answered=True)

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("a wait asks for nothing else")

    Lookup = Store = Invalidate = Feedback = SetWorkers = GetStats = Explain = _unused
    HoldFlights = _unused


class Lookups:
    """A cache that gives these outcomes, one after the other."""

    def __init__(self, *outcomes: Hit | Miss) -> None:
        self.outcomes = list(outcomes)
        self.awaits: list[bool] = []

    async def lookup(self, _ticket: Ticket, *, awaits: bool = True) -> Hit | Miss:
        self.awaits.append(awaits)
        return self.outcomes.pop(0)

    def store_soon(self, *_: Any, **__: Any) -> None:
        raise AssertionError("a wait stores nothing")

    async def run(self) -> None:
        raise AssertionError("a wait has no work of its own")


class AlwaysNaming(Lookups):
    """Names another question to whoever may wait."""

    async def lookup(self, _ticket: Ticket, *, awaits: bool = True) -> Hit | Miss:
        return NAMED if awaits else Miss("absent")


@asynccontextmanager
async def waiting(cache: Lookups, wait_s: float) -> AsyncIterator[tuple[Sidecar, Paraphrases]]:
    sidecar, telemetry = Sidecar(), quiet_telemetry("sidecache-router")
    async with bare_cache(sidecar) as address, grpc.aio.insecure_channel(address) as channel:
        metrics = ParaphraseMetrics(telemetry.meter)
        yield sidecar, Paraphrases(channel, cache, wait_s, metrics)
    await telemetry.aclose()


def nothing() -> None:
    pass


async def until(is_so: Any) -> None:
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0.001)


async def test_callers_that_wait_for_one_question_share_a_call() -> None:
    """And each asks the cache again for himself."""
    hit = Hit(cache_pb2.TIER_SEMANTIC, "e", Duration(), cache_pb2.Answer())
    cache = Lookups(*[hit] * 3)
    async with waiting(cache, 30.0) as (sidecar, paraphrases):
        asking = [
            asyncio.create_task(paraphrases.settle(ticket(name), NAMED, nothing)) for name in "abc"
        ]
        await until(lambda: sidecar.waiting)
        sidecar.ended.set()
        assert await asyncio.gather(*asking) == [hit] * 3
        assert sidecar.asked == 1


async def test_a_caller_in_a_hurry_waits_for_half_of_his_time() -> None:
    """The rest is left to generate in; the others go on waiting, and the last one's call ends."""
    cache = Lookups(Miss("absent"))
    async with waiting(cache, 30.0) as (sidecar, paraphrases):
        patient = asyncio.create_task(paraphrases.settle(ticket(), NAMED, nothing))
        await until(lambda: sidecar.waiting)
        hurried = replace(ticket("hurried"), timeout_s=0.1)
        async with asyncio.timeout(5):
            assert await paraphrases.settle(hurried, NAMED, nothing) == Miss("absent")
        # He is not told to wait once more.
        assert cache.awaits == [False]
        assert not patient.done()
        patient.cancel()
        await asyncio.gather(patient, return_exceptions=True)
        await until(lambda: not sidecar.waiting)


async def test_all_waits_of_a_caller_together_are_bounded() -> None:
    """However often another question is named."""
    async with waiting(AlwaysNaming(), 0.3) as (sidecar, paraphrases):
        sidecar.ended.set()
        async with asyncio.timeout(5):
            assert await paraphrases.settle(ticket(), NAMED, nothing) == Miss("absent")


async def test_who_cannot_wait_does_not_ask_again_and_again() -> None:
    """A sidecar with too many waits already would be asked as fast as it refuses."""
    cache = Lookups(*[Miss("absent")] + [NAMED] * 50)
    async with waiting(cache, 0.5) as (sidecar, paraphrases):
        sidecar.is_full = True
        async with asyncio.timeout(5):
            assert await paraphrases.settle(ticket(), NAMED, nothing) == Miss("absent")
        assert cache.awaits == [False]
        assert sidecar.asked == 1
