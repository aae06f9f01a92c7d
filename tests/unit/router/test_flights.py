"""Flights under every interleaving of joining, leaving, stalling and failing."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.flight import Flight
from router.relay import Reader
from router.ticket import Ticket
from sidecache.errors import (
    SidecacheError,
    StreamInterrupted,
)
from sidecache.key import RequestKey
from sidecache.v1 import inference_pb2 as pb
from tests.unit.router.flying import (
    TOKENS,
    Generation,
    Listener,
    WithoutStarted,
    ask,
    make_flights,
    steps,
    ticket,
)


@given(
    callers=st.lists(
        st.tuples(
            st.integers(0, 40),  # the step at which he comes
            st.none() | st.integers(0, 60),  # and at which he leaves
            st.none() | st.integers(0, TOKENS - 1),  # tokens after which he stalls
        ),
        min_size=1,
        max_size=8,
    ),
    fails_after=st.none() | st.integers(0, TOKENS - 1),
)
@settings(max_examples=150, deadline=None)
def test_whoever_stays_has_the_whole_stream(
    callers: list[tuple[int, int | None, int | None]], fails_after: int | None
) -> None:
    """Exact tokens for each, or the failure; one generation at a time; nobody left, none runs."""
    asyncio.run(_play(callers, fails_after))


async def _play(callers: list[tuple[int, int | None, int | None]], fails_after: int | None) -> None:
    flights = make_flights(linger_s=0)
    generations: list[Generation] = []
    listeners = [Listener(TOKENS + 1 if stall is None else stall) for _, _, stall in callers]
    tasks: dict[int, asyncio.Task[None]] = {}
    for step in range(400):
        for number, (comes, leaves, _) in enumerate(callers):
            if step == comes:
                generations.append(Generation(TOKENS + 1 if fails_after is None else fails_after))
                tasks[number] = asyncio.create_task(
                    ask(flights, generations[-1], f"r{number}", listeners[number])
                )
            elif leaves is not None and step == comes + leaves and not tasks[number].done():
                tasks[number].cancel()
        await asyncio.sleep(0)
    for number, (_, leaves, stall) in enumerate(callers):
        listener, task = listeners[number], tasks[number]
        assert listener.ids == list(range(len(listener.ids)))
        assert listener.text == "".join(f"{i} " for i in listener.ids)
        if leaves is None and stall is None and task.done():
            error = task.exception()
            if fails_after is None:
                assert error is None
                assert len(listener.ids) == TOKENS
                listener.order.check_end()
            else:
                assert isinstance(error, SidecacheError)
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert not any(generation.running for generation in generations)
    assert not flights._shared


async def test_a_follower_is_told_whose_stream_it_is() -> None:
    """His own request id, and that the answer is another caller's."""
    flights, generation = make_flights(), Generation()
    leader, follower = Listener(), Listener()
    asking = asyncio.create_task(ask(flights, generation, "leader", leader))
    await steps(10)
    await ask(flights, Generation(), "r2", follower)
    await asking
    assert follower.started
    assert (follower.started.request_id, follower.started.source) == ("r2", pb.SOURCE_COALESCED)
    assert leader.started
    assert (leader.started.request_id, leader.started.source) == ("leader", pb.SOURCE_ENGINE)


async def test_who_comes_late_catches_up_in_few_messages() -> None:
    """A message costs far more than the tokens in it."""
    flights, generation = make_flights(), Generation()
    asking = asyncio.create_task(ask(flights, generation, "leader", Listener()))
    while generation.tape.tokens < TOKENS - 4:
        await asyncio.sleep(0)
    late = Listener()
    await ask(flights, Generation(), "late", late)
    await asking
    assert late.ids == list(range(TOKENS))
    assert late.messages < 8


async def test_a_stalled_first_reader_is_cut_off_where_others_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message he does not take holds up nobody for long."""
    monkeypatch.setattr("router.flight._HELD_UP_S", 0.01)
    flights, generation = make_flights(), Generation()
    asking = asyncio.create_task(ask(flights, generation, "leader", Listener(stalls_at=4)))
    while generation.tape.tokens < 5:
        await asyncio.sleep(0)
    await steps()
    follower = Listener()
    async with asyncio.timeout(5):
        await ask(flights, Generation(), "follower", follower)
    assert follower.ids == list(range(TOKENS))
    with pytest.raises(StreamInterrupted, match="others wait") as cut:
        await asking
    assert cut.value.why == "reader_stalled"


async def test_nobody_joins_behind_a_message_that_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A caller gets his own generation rather than a place behind a stalled one."""
    monkeypatch.setattr("router.flight._SLOW_WRITE_S", 0.0)
    flights, generation, own = make_flights(), Generation(), Generation()
    asking = asyncio.create_task(ask(flights, generation, "leader", Listener(stalls_at=4)))
    while generation.tape.tokens < 5:
        await asyncio.sleep(0)
    await steps()
    await ask(flights, own, "second", Listener())
    assert own.begun == 1
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert generation.running == 0


async def test_the_generation_keeps_pace_with_its_fastest_reader() -> None:
    """Slow readers bound the memory: the engine is not let run far ahead of them all."""
    flights, generation = make_flights(), Generation()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("router.flight._MAX_AHEAD", 4)
        tasks = [
            asyncio.create_task(ask(flights, generation, name, Listener(stalls_at=2)))
            for name in ("one", "two")
        ]
        await steps(200)
        assert generation.tape.tokens < TOKENS
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert generation.running == 0


async def test_an_inexact_rest_is_only_for_who_takes_it() -> None:
    """Who began the stream may take what a follower does not."""
    flights, generation = make_flights(), Generation()

    async def moves(reader: Reader) -> None:
        await steps(20)
        moved = pb.Migrated(from_worker="a", to_worker="b", offset=0, best_effort=True)
        await reader.write(pb.GenerateResponse(started=pb.Started(request_id="leader")))
        await reader.write(pb.GenerateResponse(migrated=moved))
        await generation(WithoutStarted(reader))

    takes = ticket("leader", on_worker_loss=pb.ON_WORKER_LOSS_BEST_EFFORT)
    leader = Listener()
    asking = asyncio.create_task(flights.fly(takes, generation.tape, leader, moves))
    await steps(5)
    flight = flights.to_join(ticket("strict"))
    assert flight
    with pytest.raises(StreamInterrupted, match="may differ"):
        await flights.join(flight, ticket("strict"), Listener())
    await asking
    assert leader.ids == list(range(TOKENS))


@pytest.mark.parametrize(
    ("mine", "joins"),
    [
        (ticket("hurried", priority=5), False),
        (ticket("patient", priority=-5), True),
        (ticket("cached", cache=pb.CacheControl(mode=pb.CACHE_MODE_ONLY_IF_CACHED)), False),
        (replace(ticket("fresh"), may_look_up=False), False),
        (replace(ticket("other"), key=RequestKey(b"s", b"another", "")), False),
    ],
    ids=lambda value: value.request_id if isinstance(value, Ticket) else "",
)
async def test_who_may_join(mine: Ticket, joins: bool) -> None:
    """Only whom the stream suits: its pace, its freshness, its question."""
    flights = make_flights()

    async def waits(_reader: Reader) -> None:
        await asyncio.Event().wait()

    asking = asyncio.create_task(flights.fly(ticket(), Generation().tape, Listener(), waits))
    await steps(3)
    assert (flights.to_join(mine) is not None) is joins
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


def test_a_flight_needs_no_task_before_it_takes_off() -> None:
    """Cancelling one that never flew does nothing."""

    async def play() -> None:
        flight = Flight(ticket(), Generation().tape, 1000)
        await flight.cancel()
        flight.give_up()

    asyncio.run(play())
