"""One worker's part of a stream, on its way to the client."""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import grpc

from router.crowd import Crowd
from router.lease import Lease
from router.quarantine import prompt_key
from router.stall import StallGuard
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import Draining, EngineFailed
from sidecache.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from router.rival import Rival


class Passage:
    """One worker's part of a stream, on its way to the client.

    Args:
        lease: of the worker.
        ticket: what was asked for.
        tape: of the whole stream.
        move: what the client is to be told with the first event; None: nothing.
        clock: monotonic seconds.
        is_exact: the next worker would go on token for token.

    Attributes:
        crowd: the streams this one runs beside.
        on_trial: its prompt stands under suspicion.
        began_at: the clock's time at which the worker was asked.
        first_token_s: from then to the worker's first token; None: none came yet.
        is_answered: the first token has been counted.
        worker_hangs: it sent nothing on any stream for a while.
        guard: of the two waits, while the worker is listened to.
        rival: may begin, or has begun, while this one has no token.
        call: to the worker, once it was asked; ``held``: events of it that wait to be passed on.
        has_ids: the worker was sent the prompt's token ids.
        worker_is_lost: the stream failed, and everything on its worker did.
    """

    def __init__(
        self,
        lease: Lease,
        ticket: Ticket,
        tape: Tape,
        move: pb.Migrated | None,
        clock: Callable[[], float],
        *,
        is_exact: bool,
    ) -> None:
        self.lease = lease
        self.worker = lease.worker
        self.ticket = ticket
        self.tape = tape
        self.crowd: Crowd = lease.worker.crowd
        self.on_trial = False
        self.began_at = clock()
        self.first_token_s: float | None = None
        self.is_answered = False
        self.worker_is_lost = False
        self.worker_hangs = False
        self.guard: StallGuard | None = None
        self.rival: Rival | None = None
        self.call: grpc.aio.UnaryStreamCall[Any, pb.GenerateResponse] | None = None
        self.has_ids = False
        self.held: list[pb.GenerateResponse] = []
        self._clock = clock
        self._is_exact = is_exact
        self._move = move
        self._tokens_before = tape.tokens

    @cached_property
    def key(self) -> bytes:
        """Of its prompt; worked out only when a worker was lost."""
        return prompt_key(self.ticket)

    @property
    def tokens(self) -> int:
        """Tokens of the whole stream so far."""
        return self.tape.tokens

    @property
    def waited_s(self) -> float:
        """Since the worker was asked."""
        return self._clock() - self.began_at

    def takes_over(self, move: pb.Migrated | None) -> None:
        """It goes on for another worker, and the client is to be told so."""
        self._move = move

    @property
    def has_progressed(self) -> bool:
        """Whether this worker sent any of them."""
        return self.tape.tokens > self._tokens_before

    def leave_silent_worker(self) -> None:
        """Go on elsewhere now rather than wait, unless that would cost the client anything."""
        if self.guard is not None and (self._is_exact or not self.tape.tokens):
            self.worker_hangs = True
            self.guard.leave(EngineFailed(f"worker {self.worker.name} answers nobody"))

    @property
    def may_make_room(self) -> bool:
        """Whether it could go on elsewhere at once, token for token, with a token in hand."""
        has_begun = self.has_progressed and not self.tape.is_complete
        return self.guard is not None and self._is_exact and has_begun

    def make_room(self) -> None:
        """Leave the worker to a prompt that has to be tried alone, as if it were draining."""
        if self.guard is not None and self.may_make_room:
            self.guard.leave(Draining(f"worker {self.worker.name} is needed for a trial"))

    def heard_tokens(self) -> None:
        """A delta came; said again, it changes nothing."""
        if self.first_token_s is None:
            self.first_token_s = self.waited_s
            self.lease.first_token()
            if self.rival is not None:
                self.rival.first_spoke()

    def takes(self, event: pb.GenerateResponse) -> bool:
        """Note what a message says; whether anything of it is for the client.

        Raises:
            EngineFailed: another checkpoint answers than was asked for.
            BrokenInvariant: the worker lost, repeated or reordered tokens.
        """
        tape, passes = self.tape, True
        if event.HasField("started"):
            self.lease.answered()
            model = self.ticket.model
            if (event.started.model, event.started.model_revision) != (model.name, model.revision):
                # It was restarted with another checkpoint since it was chosen.
                raise EngineFailed(f"worker {event.started.worker} serves another revision")
            if tape.started:
                event.ClearField("started")
                passes = bool(event.ListFields())
            tape.started = True
        if event.HasField("delta"):
            tape.take(event.delta)
        if event.HasField("finished"):
            tape.finish(event.finished)
        if passes and self._move is not None:
            event.migrated.CopyFrom(self._move)
            self._move = None
        return passes
