"""Generations that count, readers that check what they hear, and flights to bring them together."""

import asyncio
from dataclasses import dataclass, field

import grpc

from router.flights import Flights
from router.model import ServedModel
from router.relay import Reader
from router.settings import FlightSettings
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import (
    EngineFailed,
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


async def steps(count: int = 60) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Gone:
    """A client that vanished."""

    async def write(self, message: pb.GenerateResponse) -> None:
        raise grpc.aio.InternalError("gone")


class Endless:
    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def __call__(self, reader: Reader) -> None:
        self._generation.running += 1
        try:
            await asyncio.Event().wait()
        finally:
            self._generation.running -= 1


class WithoutStarted:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def write(self, message: pb.GenerateResponse) -> None:
        if not message.HasField("started"):
            await self._reader.write(message)
