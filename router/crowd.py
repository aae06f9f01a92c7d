"""The streams on one worker, for as long as it lives: who was there when it was lost."""

from typing import Protocol


class Aboard(Protocol):
    """One worker's part of a stream."""

    on_trial: bool

    @property
    def key(self) -> bytes:
        """Of its prompt; see router.quarantine."""

    @property
    def tokens(self) -> int:
        """Tokens of the whole stream so far."""

    @property
    def has_progressed(self) -> bool:
        """Whether this worker sent any of them."""

    @property
    def may_make_room(self) -> bool:
        """Whether it could go on elsewhere at once, and lose nothing by it."""

    def leave_silent_worker(self) -> None:
        """Go on elsewhere, if that can be done."""

    def make_room(self) -> None:
        """The same, for a prompt that has to be tried alone."""


class Crowd:
    """Who is on a worker. A worker that was lost gets a new one.

    Attributes:
        members: the streams.
        trials: those among them that stand under suspicion.
        reserved_for: a prompt under suspicion that waits until nobody is left here.
        is_lost: the worker was; whoever is told so first has judged the crowd.
    """

    __slots__ = ("_had_company", "is_lost", "members", "reserved_for", "trials")

    def __init__(self) -> None:
        self.members: set[Aboard] = set()
        self.trials = 0
        self.reserved_for: bytes | None = None
        self.is_lost = False
        self._had_company = False

    @property
    def is_taken(self) -> bool:
        """Whether a trial goes on here, or is to: nobody else should come."""
        return bool(self.trials) or self.reserved_for is not None

    def join(self, stream: Aboard) -> None:
        """The stream is on the worker from now on."""
        # Of a crowd that empties and fills again, only what is there together counts.
        self._had_company = bool(self.members)
        self.members.add(stream)
        self.trials += stream.on_trial
        if stream.on_trial:
            self.reserved_for = None

    def has_only_had(self, stream: Aboard) -> bool:
        """Whether nobody else was here from when this stream came."""
        return not self._had_company and self.members == {stream}

    def leave(self, stream: Aboard) -> None:
        """It is not any more."""
        self.members.discard(stream)
        self.trials -= stream.on_trial

    def acquit(self, stream: Aboard) -> None:
        """It is under suspicion no longer."""
        if stream.on_trial:
            stream.on_trial = False
            self.trials -= 1
