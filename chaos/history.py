"""A history: everything a client saw, in order, with the time of each event.

It is the only evidence the checker (:mod:`chaos.checker`) uses: no server is
asked whether it did well. Events are kept as they were received.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from sidecache.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Received:
    """One event of a stream, and the monotonic time at which the client had it."""

    at_s: float
    event: pb.GenerateResponse


@dataclass(frozen=True, slots=True)
class Ended:
    """The status of a call.

    Attributes:
        code: name of the gRPC status, ``OK`` for a good end.
        reason: of the ErrorInfo that came with an error; empty when a transport
            failed and no server of ours has spoken.
        text: the status's message.
        by_client: the client itself gave up.
    """

    at_s: float
    code: str
    reason: str = ""
    text: str = ""
    by_client: bool = False


@dataclass(slots=True)
class Call:
    """One request and all that came of it.

    Attributes:
        number: of the call in its history, in the order they were sent.
        tenant: whose credentials it carried.
        phase: of the experiment, such as ``before`` or ``fault``.
        sent_s: monotonic time at which it was sent.
        entries: what the client saw, in the order it saw it.
    """

    number: int
    tenant: str
    request: pb.GenerateRequest
    sent_s: float
    phase: str = ""
    entries: list[Received | Ended] = field(default_factory=list)

    def events(self) -> Iterator[pb.GenerateResponse]:
        """The stream alone."""
        return (entry.event for entry in self.entries if isinstance(entry, Received))

    @property
    def ended(self) -> Ended | None:
        """Its first status; None while it is open."""
        return next((entry for entry in self.entries if isinstance(entry, Ended)), None)

    @property
    def code(self) -> str:
        """Name of the status it ended with; empty while it is open."""
        return self.ended.code if self.ended else ""

    @property
    def started(self) -> pb.Started | None:
        """Where the answer came from; None if it never started."""
        return next((event.started for event in self.events() if event.HasField("started")), None)

    @property
    def source(self) -> str:
        """``ENGINE``, ``EXACT``, ``SEMANTIC`` or ``COALESCED``; empty if it never started."""
        if self.started is None:
            return ""
        return pb.Source.Name(self.started.source).removeprefix("SOURCE_")

    @property
    def worker(self) -> str:
        """The worker that `started` named, or the last one the stream moved to."""
        moves = [event.migrated.to_worker for event in self.events() if event.HasField("migrated")]
        return moves[-1] if moves else self.started.worker if self.started else ""

    def gaps(self) -> Iterator[float]:
        """Seconds between two deltas with tokens of one choice."""
        last_s: dict[int, float] = {}
        for entry in self.entries:
            if isinstance(entry, Received) and entry.event.delta.token_ids:
                choice = entry.event.delta.choice
                if choice in last_s:
                    yield entry.at_s - last_s[choice]
                last_s[choice] = entry.at_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, of any choice; None if none came."""
        for entry in self.entries:
            if isinstance(entry, Received) and entry.event.delta.token_ids:
                return entry.at_s - self.sent_s
        return None


class HistoryFull(Exception):
    """The history's bound is reached: nothing more can be proved, so nothing more is sent."""


class History:
    """The calls of one run, bounded.

    Args:
        max_calls: calls it keeps.
        max_events: events it keeps of one call.
    """

    def __init__(self, *, max_calls: int = 20_000, max_events: int = 20_000) -> None:
        self.calls: list[Call] = []
        self.max_events = max_events
        self._max_calls = max_calls

    def open(self, request: pb.GenerateRequest, tenant: str, phase: str, at_s: float) -> Call:
        """Begin the record of a call that is about to be sent.

        Raises:
            HistoryFull: there are ``max_calls`` already.
        """
        if len(self.calls) >= self._max_calls:
            raise HistoryFull(f"the history holds {self._max_calls} calls and may hold no more")
        call = Call(len(self.calls), tenant, request, at_s, phase)
        self.calls.append(call)
        return call
