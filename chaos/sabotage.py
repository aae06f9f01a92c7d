"""The checker's negative control: a server that lies in one exact way.

Each lie is a pure function on the events of a whole stream. :class:`Saboteur`
stands between a client and a server and tells one of them over the wire, to
prove that a verdict of "nothing wrong" comes from looking.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from chaos.violations import (
    AfterTerminal,
    Lost,
    Malformed,
    ManyTerminals,
    NoTerminal,
    NotStarted,
    Overlong,
    Reordered,
    Repeated,
    StartedTwice,
    UnexplainedHit,
    Violation,
    WrongMigration,
    WrongReason,
    WrongText,
    WrongToken,
    WrongUsage,
)
from sidecache.stream_events import single_events
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc

Events = list[pb.GenerateResponse]
Lie = Callable[[Events], Events]
Context = grpc.aio.ServicerContext[Any, Any]


def _deltas(events: Events) -> list[int]:
    return [at for at, event in enumerate(events) if event.delta.token_ids]


def _last(events: Events) -> pb.Finished:
    return next(event.finished for event in reversed(events) if event.HasField("finished"))


def lose_a_delta(events: Events) -> Events:
    """The second delta of the stream never arrives."""
    del events[_deltas(events)[1]]
    return events


def lose_the_tail(events: Events) -> Events:
    """The last delta never arrives, but the end does."""
    del events[_deltas(events)[-1]]
    return events


def repeat_a_delta(events: Events) -> Events:
    """A delta is sent twice."""
    at = _deltas(events)[1]
    return [*events[: at + 1], copy.deepcopy(events[at]), *events[at + 1 :]]


def swap_two_deltas(events: Events) -> Events:
    """Two deltas change places."""
    first, second = _deltas(events)[:2]
    events[first], events[second] = events[second], events[first]
    return events


def change_a_token(events: Events) -> Events:
    """One token id is another's."""
    delta = events[_deltas(events)[1]].delta
    delta.token_ids[0] += 1
    return events


def change_a_letter(events: Events) -> Events:
    """One letter of the text is another."""
    delta = events[_deltas(events)[1]].delta
    delta.text = delta.text.swapcase()
    return events


def hurry_the_text(events: Events) -> Events:
    """Text comes before the tokens it belongs to."""
    first, second = (events[at].delta for at in _deltas(events)[:2])
    first.text, second.text = first.text + second.text, ""
    return events


def go_on_too_long(events: Events) -> Events:
    """One token more than was asked for."""
    at = _deltas(events)[-1]
    last = events[at].delta
    more = pb.Delta(choice=last.choice, offset=last.offset + len(last.token_ids), token_ids=[1])
    _last(events).usage.completion_tokens += 1
    return [*events[: at + 1], pb.GenerateResponse(delta=more), *events[at + 1 :]]


def start_late(events: Events) -> Events:
    """A delta comes before `started`."""
    return [events[1], events[0], *events[2:]]


def start_twice(events: Events) -> Events:
    """`started` comes again."""
    return [events[0], copy.deepcopy(events[0]), *events[1:]]


def never_finish(events: Events) -> Events:
    """OK without `finished`."""
    return [event for event in events if not event.HasField("finished")]


def finish_twice(events: Events) -> Events:
    """A choice finishes twice."""
    return [*events, copy.deepcopy(events[-1])]


def finish_early(events: Events) -> Events:
    """The end comes before the last delta."""
    at = _deltas(events)[-1]
    return [*events[:at], *events[at + 1 :], events[at]]


def change_the_reason(events: Events) -> Events:
    """The end is said to be another."""
    last = _last(events)
    stop, length = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH
    last.reason = stop if last.reason == length else length
    return events


def overcharge(events: Events) -> Events:
    """Usage counts a token that was not delivered."""
    _last(events).usage.completion_tokens += 1
    return events


def misplace_a_migration(events: Events) -> Events:
    """The stream claims to go on at another offset than it does."""
    at = _deltas(events)[1]
    moved = pb.GenerateResponse(migrated=pb.Migrated(from_worker="a", to_worker="b", offset=1000))
    return [*events[:at], moved, *events[at:]]


def invent_a_choice(events: Events) -> Events:
    """A delta of a choice nobody asked for."""
    stray = pb.GenerateResponse(delta=pb.Delta(choice=99, token_ids=[1]))
    return [*events[:2], stray, *events[2:]]


def claim_a_hit(events: Events) -> Events:
    """An answer said to be from the cache, where none can be."""
    events[0].started.source = pb.SOURCE_EXACT
    events[0].started.cache_entry_id = "invented"
    return events


# Every lie, and what a checker worth its name must call it.
LIES: dict[Lie, type[Violation]] = {
    lose_a_delta: Lost,
    lose_the_tail: Lost,
    repeat_a_delta: Repeated,
    swap_two_deltas: Reordered,
    change_a_token: WrongToken,
    change_a_letter: WrongText,
    hurry_the_text: WrongText,
    go_on_too_long: Overlong,
    start_late: NotStarted,
    start_twice: StartedTwice,
    never_finish: NoTerminal,
    finish_twice: ManyTerminals,
    finish_early: AfterTerminal,
    change_the_reason: WrongReason,
    overcharge: WrongUsage,
    misplace_a_migration: WrongMigration,
    invent_a_choice: Malformed,
    claim_a_hit: UnexplainedHit,
}


class _Relay(inference_pb2_grpc.InferenceServiceServicer):
    """Passes on what a liar leaves alone."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = inference_pb2_grpc.InferenceServiceStub(channel)

    async def Attach(self, request: pb.AttachRequest, context: Context) -> None:
        async for event in self._stub.Attach(request, timeout=context.time_remaining()):
            await context.write(event)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        return await self._stub.ListModels(request, timeout=context.time_remaining())

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        return await self._stub.Tokenize(request, timeout=context.time_remaining())

    async def ReportWrongAnswer(
        self, request: pb.ReportWrongAnswerRequest, context: Context
    ) -> pb.ReportWrongAnswerResponse:
        return await self._stub.ReportWrongAnswer(request, timeout=context.time_remaining())


class Saboteur(_Relay):
    """Passes streams on, told as ``lie`` tells them.

    Attributes:
        lie: applied to each whole stream; None: the truth.
        streams: streams that were lied about.
    """

    def __init__(self, channel: grpc.aio.Channel, lie: Lie | None = None) -> None:
        super().__init__(channel)
        self.lie = lie
        self.streams = 0

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        call = self._stub.Generate(request, timeout=context.time_remaining())
        events = [event async for message in call for event in single_events(message)]
        if self.lie is not None:
            self.streams += 1
            events = self.lie(events)
        for event in events:
            await context.write(event)


class AnswerSwapper(_Relay):
    """Answers every request after the first with the first one's answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)
        self._first: Sequence[pb.GenerateResponse] = ()

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        if not self._first:
            call = self._stub.Generate(request, timeout=context.time_remaining())
            self._first = [event async for event in call]
        for event in self._first:
            await context.write(event)
