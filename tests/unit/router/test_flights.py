"""Flights under every interleaving of joining, leaving, stalling and failing."""

import asyncio
from dataclasses import dataclass, field, replace

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.cache_client import Miss
from router.flight import Flight
from router.flight_log import FlightLog
from router.flights import Flights
from router.model import ServedModel
from router.relay import Reader
from router.settings import FlightSettings
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import (
    EngineFailed,
    InvalidRequest,
    NotFound,
    SidecacheError,
    StreamInterrupted,
)
from sidecache.key import RequestKey
from sidecache.stream_events import single_events
from sidecache.stream_order import StreamOrder
from sidecache.v1 import inference_pb2 as pb
from tests.unit.router.fleet import MODEL

TOKENS = 24
KEY = RequestKey(b"s", b"e", "")


def ticket(request_id: str = "leader", **request: object) -> Ticket:
    return Ticket(
        request_id,
        "acme",
        pb.GenerateRequest(n=1, **request),  # type: ignore[arg-type]  # field names
        ServedModel.from_worker(MODEL),
        KEY,
        may_look_up=True,
        may_store=True,
        timeout_s=10.0,
        opened_at=0.0,
    )


@dataclass
class Listener:
    """A reader that takes a message when it is let, checks its order, and keeps it.

    Attributes:
        stalls_at: takes no more than so many tokens.
    """

    stalls_at: int = TOKENS + 1
    order: StreamOrder = field(default_factory=StreamOrder)
    ids: list[int] = field(default_factory=list)
    text: str = ""
    started: pb.Started | None = None
    messages: int = 0

    async def write(self, message: pb.GenerateResponse) -> None:
        await asyncio.sleep(0)
        if len(self.ids) >= self.stalls_at:
            await asyncio.Event().wait()
        self.messages += 1
        for event in single_events(message):
            self.order.check(event)
            if event.HasField("started"):
                self.started = event.started
            self.ids += event.delta.token_ids
            self.text += event.delta.text


class Generation:
    """Says 0, 1, 2, … one or two tokens a message; fails, if told, after so many."""

    def __init__(self, fails_after: int = TOKENS + 1) -> None:
        self.fails_after = fails_after
        self.begun = 0
        self.running = 0
        self.tape = Tape(ticket(), 1 << 20, lambda: 0.0)

    async def __call__(self, reader: Reader) -> None:
        self.begun += 1
        self.running += 1
        try:
            started = pb.Started(request_id="leader", source=pb.SOURCE_ENGINE)
            await reader.write(pb.GenerateResponse(started=started))
            token = 0
            while token < TOKENS:
                await asyncio.sleep(0)
                if token >= self.fails_after:
                    raise EngineFailed("the worker is lost")
                ids = range(token, min(token + 1 + token % 2, TOKENS))
                text = "".join(f"{i} " for i in ids)
                delta = pb.Delta(offset=token, token_ids=ids, text=text)
                self.tape.take(delta)
                await reader.write(pb.GenerateResponse(delta=delta))
                token += len(ids)
            end = pb.Finished(reason=pb.FINISH_REASON_STOP)
            self.tape.finish(end)
            await reader.write(pb.GenerateResponse(finished=end))
        finally:
            self.running -= 1


def make_flights(**more: object) -> Flights:
    return Flights(FlightSettings(**more), 1 << 20, reader_stall_s=30.0, max_flight_s=60.0)  # type: ignore[arg-type]  # settings


async def ask(flights: Flights, generation: Generation, name: str, reader: Listener) -> None:
    """What the request path does with a miss."""
    mine = ticket(name)
    flight = flights.to_join(mine)
    if flight is None:
        await flights.fly(mine, generation.tape, reader, generation)
    else:
        await flights.join(flight, mine, reader)


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


async def steps(count: int = 60) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


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
    with pytest.raises(StreamInterrupted, match="others wait"):
        await asking


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
        await generation(_WithoutStarted(reader))

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


class _WithoutStarted:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def write(self, message: pb.GenerateResponse) -> None:
        if not message.HasField("started"):
            await self._reader.write(message)


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
            flights.fly(mine, generation.tape, Gone(), _Endless(generation))
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
    for tenant, by_router in (("umbrella", True), ("acme", False)):
        with pytest.raises(NotFound):
            await flights.attach(tenant, "leader", 0, Listener(), by_router=by_router)
    other = Listener()
    await flights.attach("acme", "leader", 0, other, by_router=True)
    assert other.ids == list(range(TOKENS))
    await asking


class Gone:
    """A client that vanished."""

    async def write(self, message: pb.GenerateResponse) -> None:
        raise grpc.aio.InternalError("gone")


class _Endless:
    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def __call__(self, reader: Reader) -> None:
        self._generation.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self._generation.running -= 1


def _delta(offset: int, *ids: int, text: str = "x") -> pb.GenerateResponse:
    return pb.GenerateResponse(delta=pb.Delta(offset=offset, token_ids=ids, text=text))


def test_a_log_forgets_its_oldest() -> None:
    """Bounded in bytes; positions keep their meaning."""
    log = FlightLog(max_bytes=2000)
    for offset in range(400):
        log.append(_delta(offset, offset, text="abcdefgh"))
    assert log.end == 400
    assert log.trimmed > 0
    assert log.size <= 2000 + 32 * 20
    position = log.trimmed
    ids: list[int] = []
    while position < log.end:
        position, message = log.take(position)
        ids += message.delta.token_ids
    assert ids == list(range(log.trimmed, 400))


def test_a_log_is_read_on_from_a_token() -> None:
    """At the start of any message; elsewhere the text could not be cut."""
    log = FlightLog(max_bytes=2000)
    for message in (_delta(0, 5, 6), _delta(2, 7), pb.GenerateResponse(finished=pb.Finished())):
        log.append(message)
    assert log.take(log.position_of(2, 3))[1].delta.token_ids == [7]
    assert log.take(log.position_of(3, 3))[1].HasField("finished")
    with pytest.raises(InvalidRequest, match="only at 2"):
        log.position_of(1, 3)
    with pytest.raises(InvalidRequest, match="has 3 tokens so far"):
        log.position_of(4, 3)
    whole = FlightLog(max_bytes=2000)
    whole.append(_delta(0, 5, 6, 7))
    with pytest.raises(InvalidRequest, match="only at 3"):
        whole.position_of(1, 3)


def test_events_keep_their_order_in_a_merged_message() -> None:
    """What a message's fixed order would turn around stays in two."""
    log = FlightLog(max_bytes=2000)
    log.append(_delta(0, 5))
    log.append(pb.GenerateResponse(migrated=pb.Migrated(offset=1)))
    log.append(_delta(1, 6))
    log.append(pb.GenerateResponse(finished=pb.Finished()))
    position, first = log.take(0)
    assert (position, first.HasField("migrated")) == (1, False)
    position, rest = log.take(position)
    assert position == log.end
    assert (rest.migrated.offset, rest.delta.offset) == (1, 1)
    assert rest.HasField("finished")


def test_a_flight_needs_no_task_before_it_takes_off() -> None:
    """Cancelling one that never flew does nothing."""

    async def play() -> None:
        flight = Flight(ticket(), Generation().tape, 1000)
        await flight.cancel()
        flight.give_up()

    asyncio.run(play())
