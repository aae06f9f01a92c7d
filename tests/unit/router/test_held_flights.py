"""What a router says to the sidecar of its generations, and when."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from router import held_flights
from router.held_flights import HeldFlights
from router.settings import FlightSettings, LookupSettings
from router.tape import Tape
from sidecache.key import RequestKey
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from sidecache.v1 import inference_pb2 as pb
from tests.fixtures.bare_cache import bare_cache
from tests.fixtures.cache import TurnedClock
from tests.unit.router.flying import KEY, ticket

RENEW_S = 2.0


class Sidecar(cache_pb2_grpc.CacheServiceServicer):
    """Writes down what it is told; ``other`` has the lease, if anybody does."""

    def __init__(self) -> None:
        self.told: list[cache_pb2.HoldFlightsRequest] = []
        self.other = ""
        self.is_sick = False

    async def HoldFlights(self, request: Any, context: Any) -> cache_pb2.HoldFlightsResponse:
        if self.is_sick:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "sick")
        self.told.append(request)
        lease = cache_pb2.FlightLease(router=self.other)
        return cache_pb2.HoldFlightsResponse(leases=[lease] * len(request.held))

    async def _unused(self, request: Any, context: Any) -> Any:
        raise AssertionError("leases ask for nothing else")

    Lookup = Store = Invalidate = Feedback = SetWorkers = GetStats = Explain = _unused
    AwaitFlight = _unused


@asynccontextmanager
async def holding() -> AsyncIterator[tuple[Sidecar, HeldFlights, TurnedClock]]:
    sidecar, clock = Sidecar(), TurnedClock()
    async with bare_cache(sidecar) as address, grpc.aio.insecure_channel(address) as channel:
        settings = FlightSettings(renew_s=RENEW_S)
        lookup = LookupSettings(lookup_timeout_s=5.0)
        claim = cache_pb2.FlightClaim(router="me:1")
        yield sidecar, HeldFlights(channel, claim, settings, lookup, clock), clock


def tape(*, complete: bool) -> Tape:
    own = Tape(ticket(), 1 << 20, lambda: 0.0)
    if complete:
        own.finish(pb.Finished(reason=pb.FINISH_REASON_STOP))
    return own


async def test_a_long_generation_is_told_again_and_a_short_one_never() -> None:
    """Once in each interval; nothing is said of what ends before."""
    async with holding() as (sidecar, held, clock):
        with held.hold(ticket(), tape(complete=True)):
            await held.tell_news()
            assert not sidecar.told
            for number in (1, 2, 3):
                clock.now_s += RENEW_S
                await held.tell_news()
                await held.tell_news()
                assert len(sidecar.told) == number
            (kept,) = sidecar.told[-1].held
            assert (kept.tenant, kept.exact) == ("acme", KEY.exact)
            assert (sidecar.told[-1].router, kept.instead_of) == ("me:1", "")
        clock.now_s += RENEW_S
        await held.tell_news()
        assert len(sidecar.told) == 3


@pytest.mark.parametrize("complete", [True, False])
async def test_what_ends_without_an_answer_is_given_back(complete: bool) -> None:
    """At once; with an answer the lease ends when that is stored."""
    async with holding() as (sidecar, held, _):
        telling = asyncio.create_task(held.run())
        with held.hold(ticket(), tape(complete=complete)):
            pass
        async with asyncio.timeout(RENEW_S / 2):
            while not complete and not sidecar.told:
                await asyncio.sleep(0.001)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        assert [len(request.ended) for request in sidecar.told] == ([] if complete else [1])


async def test_one_answer_is_given_back_with_its_last_generation() -> None:
    """Two of one key at one router are one lease."""
    async with holding() as (sidecar, held, _):
        with held.hold(ticket("one"), tape(complete=False)):
            with held.hold(ticket("two"), tape(complete=False)):
                pass
            await held.tell_news()
            assert not sidecar.told
        await held.tell_news()
        assert len(sidecar.told) == 1


async def test_what_begins_again_is_not_given_back() -> None:
    """The lease is the next generation's, whose lookup has kept it."""
    async with holding() as (sidecar, held, _):
        with held.hold(ticket("one"), tape(complete=False)):
            pass
        with held.hold(ticket("two"), tape(complete=False)):
            await held.tell_news()
            assert not sidecar.told


async def test_the_end_of_a_generation_without_a_lease_leaves_the_next_one_its_own() -> None:
    """Another router had it in between; what this one has by now is kept."""
    async with holding() as (sidecar, held, clock):
        with ExitStack() as first:
            first.enter_context(held.hold(ticket("one"), tape(complete=False)))
            sidecar.other = "other:1"
            clock.now_s += RENEW_S
            await held.tell_news()
            sidecar.other = ""
            with held.hold(ticket("two"), tape(complete=False)):
                first.close()
                await held.tell_news()
                assert not any(request.ended for request in sidecar.told)
                clock.now_s += RENEW_S
                await held.tell_news()
                assert [kept.request_id for kept in sidecar.told[-1].held] == ["two"]


async def test_a_lease_that_another_has_by_now_is_let_go() -> None:
    """The generation goes on for its own callers, and is told no more."""
    async with holding() as (sidecar, held, clock):
        with held.hold(ticket(), tape(complete=False)):
            sidecar.other = "other:1"
            clock.now_s += RENEW_S
            await held.tell_news()
            clock.now_s += RENEW_S
            await held.tell_news()
            assert len(sidecar.told) == 1


async def test_a_takeover_names_who_was_lost() -> None:
    """And returns who was sooner, if anybody was."""
    async with holding() as (sidecar, held, _):
        assert await held.take_over(ticket(), "lost:1") is None
        assert sidecar.told[-1].held[0].instead_of == "lost:1"
        sidecar.other = "sooner:1"
        lease = await held.take_over(ticket(), "lost:1")
        assert lease
        assert lease.router == "sooner:1"


async def test_a_sidecar_that_is_lost_stops_nothing() -> None:
    """Whoever would take over generates; what is kept is told when it is back."""
    async with holding() as (sidecar, held, clock):
        sidecar.is_sick = True
        assert await held.take_over(ticket(), "lost:1") is None
        with held.hold(ticket(), tape(complete=False)):
            clock.now_s += RENEW_S
            await held.tell_news()
            sidecar.is_sick = False
            await held.tell_news()
            assert len(sidecar.told[-1].held) == 1


async def test_a_router_that_ends_gives_everything_back() -> None:
    """So that the others need not wait for the leases' end."""
    async with holding() as (sidecar, held, _):
        with held.hold(ticket(), tape(complete=False)):
            await held.aclose()
            assert [len(request.ended) for request in sidecar.told] == [1]


async def test_a_router_that_shares_nothing_says_so() -> None:
    """Or others would be sent to it in vain."""
    sidecar, clock = Sidecar(), TurnedClock()
    async with bare_cache(sidecar) as address, grpc.aio.insecure_channel(address) as channel:
        claim = cache_pb2.FlightClaim(router="me", private=True)
        held = HeldFlights(channel, claim, FlightSettings(), LookupSettings(), clock)
        await held.take_over(ticket(), "lost:1")
    assert sidecar.told[0].private


async def test_what_is_to_be_given_back_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar that does not answer costs no more memory than that; the rest ends by itself."""
    monkeypatch.setattr(held_flights, "_BATCH", 2)
    async with holding() as (sidecar, held, _):
        for number in range(4):
            own = replace(ticket(), key=RequestKey(b"s", bytes([number]), ""))
            with held.hold(own, tape(complete=False)):
                pass
        await held.tell_news()
        assert sum(len(request.ended) for request in sidecar.told) == 2
