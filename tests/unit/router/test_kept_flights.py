"""Flights without their first reader, or after their end: who may read, and what is kept."""

import asyncio
from dataclasses import replace

import grpc
import pytest

from router.cache_client import Miss
from router.flights import Flights
from router.relay import Reader
from router.settings import FlightSettings
from sidecache.errors import (
    NotFound,
)
from tests.unit.router.flying import (
    KEY,
    TOKENS,
    Endless,
    Generation,
    Gone,
    Listener,
    ask,
    make_flights,
    steps,
    ticket,
)


async def test_an_ended_stream_is_shared_until_its_answer_is_stored() -> None:
    """Only with who has missed in the cache, and not for long."""
    flights, generation = make_flights(linger_s=60), Generation()
    await ask(flights, generation, "leader", Listener())
    assert flights.to_join(ticket("early")) is None
    flight = flights.to_join(ticket("missed"), Miss("absent"))
    assert flight
    late = Listener()
    await flights.join(flight, ticket("missed"), late)
    assert late.ids == list(range(TOKENS))
    after = replace(ticket("after"), opened_at=flight.ended_at + 1)
    assert flights.to_join(after, Miss("absent")) is None
    assert flights.to_join(after, Miss("unavailable")) is flight
    flight.ended_at -= 61
    assert flights.to_join(ticket("too late"), Miss("absent")) is None


async def test_what_is_kept_for_the_lost_is_bounded_in_bytes() -> None:
    """A stream that nobody reads counts as what it may become."""
    flights = Flights(FlightSettings(max_kept_bytes=3 << 20), 1 << 20, 30.0, 60.0)
    generations = [Generation() for _ in range(5)]
    for number, generation in enumerate(generations):
        mine = replace(ticket(f"r{number}"), attach_window_s=60.0, key=None)
        asking = asyncio.create_task(
            flights.fly(mine, generation.tape, Gone(), Endless(generation))
        )
        await steps(5)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await steps()
    assert [generation.running for generation in generations] == [0, 0, 1, 1, 1]
    flights.close()
    await steps()
    assert not any(generation.running for generation in generations)


async def test_a_vanished_client_who_may_return_ends_nothing() -> None:
    """The write that fails is his alone; the stream goes on, and waits for him."""
    flights, generation = make_flights(), Generation()
    mine = replace(ticket(), attach_window_s=60.0)
    with pytest.raises(grpc.aio.InternalError):
        await flights.fly(mine, generation.tape, Gone(), generation)
    await steps(200)
    assert generation.tape.tokens == TOKENS
    returned = Listener()
    await flights.attach("acme", "leader", 0, returned)
    assert returned.ids == list(range(TOKENS))
    flights.close()


async def test_a_router_reads_only_what_may_be_shared() -> None:
    """And a tenant nothing at all by that way; a private stream is not there for either."""
    flights, generation = make_flights(), Generation()
    asking = asyncio.create_task(ask(flights, generation, "leader", Listener()))
    await steps(5)
    with pytest.raises(NotFound):
        await flights.attach("acme", "leader", 0, Listener())
    for tenant, exact in (("umbrella", KEY.exact), ("acme", b"another")):
        with pytest.raises(NotFound, match="no such answer"):
            await flights.show(tenant, exact, Listener())
    other = Listener()
    await flights.show("acme", KEY.exact, other)
    assert other.ids == list(range(TOKENS))
    await asking


async def test_a_router_reads_nothing_that_went_on_inexactly() -> None:
    """Who asks it has not said that such an answer would do."""
    flights, generation = make_flights(), Generation()
    asking = asyncio.create_task(ask(flights, generation, "leader", Listener()))
    await steps(5)
    generation.tape.is_inexact = True
    with pytest.raises(NotFound):
        await flights.show("acme", KEY.exact, Listener())
    await asking


async def test_a_router_reads_only_what_is_generated_here() -> None:
    """What is itself read along elsewhere is not there, or two routers would wait in a ring."""
    flights, generation = make_flights(), Generation()
    asking = asyncio.create_task(ask(flights, generation, "leader", Listener()))
    await steps(5)
    generation.tape.is_relayed = True
    with pytest.raises(NotFound):
        await flights.show("acme", KEY.exact, Listener())
    generation.tape.is_relayed = False
    other = Listener()
    await flights.show("acme", KEY.exact, other)
    assert other.ids == list(range(TOKENS))
    await asking


async def test_who_reads_along_while_a_return_is_awaited_gets_the_whole_stream() -> None:
    """The window of who was lost ends his own hope, and not another caller's answer."""
    flights, generation = make_flights(), Generation()
    may_speak = asyncio.Event()

    async def later(reader: Reader) -> None:
        await may_speak.wait()
        await generation(reader)

    mine = replace(ticket(), attach_window_s=0.01)
    asking = asyncio.create_task(flights.fly(mine, generation.tape, Listener(), later))
    await steps(5)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    flight = flights.to_join(ticket("other"))
    assert flight
    other = Listener()
    reading = asyncio.create_task(flights.join(flight, ticket("other"), other))
    await asyncio.wait((reading,), timeout=0.05)
    may_speak.set()
    await reading
    assert other.ids == list(range(TOKENS))
    flights.close()
