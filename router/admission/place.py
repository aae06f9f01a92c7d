"""A place among a model's running generations: waited for, held, and settled."""

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from observability.metrics.router import AdmissionOutcome
from router.admission.fair_queue import Claim
from router.admission.lane import Lane, LateRefusal
from router.admission.quotas import TenantQuota
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import Overloaded, QuotaExceeded


class Count(Protocol):
    """Tells the metrics how one request fared, and how many seconds it waited."""

    def __call__(self, outcome: AdmissionOutcome, ticket: Ticket, waited_s: float = 0.0) -> None:
        """Take one."""


class Place:
    """One generation's claim: waits for its turn on entering, and settles on leaving.

    Args:
        tape: tells what was really used.
        claim: what it takes of the lane and of the tenant's tokens.
        prompt_tokens: as the claim counts them.
        clock: monotonic seconds.

    Attributes:
        ticket: with what is left of its time after the wait.
    """

    __slots__ = (
        "_claim",
        "_clock",
        "_count",
        "_lane",
        "_prompt_tokens",
        "_quota",
        "_tape",
        "ticket",
    )

    def __init__(
        self,
        ticket: Ticket,
        tape: Tape,
        claim: Claim,
        prompt_tokens: int,
        lane: Lane,
        quota: TenantQuota,
        clock: Callable[[], float],
        count: Count,
    ) -> None:
        self.ticket = ticket
        self._tape = tape
        self._claim = claim
        self._prompt_tokens = prompt_tokens
        self._lane = lane
        self._quota = quota
        self._clock = clock
        self._count = count

    async def __aenter__(self) -> Self:
        """Wait for the turn.

        Raises:
            QuotaExceeded: the tenant's tokens are used up.
            Overloaded: it could not start in time.
        """
        ticket, claim = self.ticket, self._claim
        try:
            self._quota.take_tokens(claim.cost)
        except QuotaExceeded:
            self._count("tenant_tokens", ticket)
            raise
        remaining_s = ticket.opened_at + ticket.timeout_s - self._clock()
        try:
            waited_s = await self._lane.acquire(claim, remaining_s)
        except BaseException as error:
            self._quota.settle_tokens(claim.cost, 0)
            self._count(_why(error), ticket)
            raise
        self._count("admitted", ticket, waited_s)
        if waited_s:
            self.ticket = replace(ticket, timeout_s=max(0.0, ticket.timeout_s - waited_s))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        used = self._used()
        self._lane.release(self._claim, used)
        self._quota.settle_tokens(self._claim.cost, used)

    def _used(self) -> int:
        """What the workers said, or as much as is known of a stream that was cut off."""
        if not self._tape.started:
            return 0
        prompt_tokens = self._prompt_tokens
        for finished in self._tape.finished:
            prompt_tokens = finished.usage.prompt_tokens
        return prompt_tokens + self._tape.tokens


def _why(error: BaseException) -> AdmissionOutcome:
    if isinstance(error, LateRefusal):
        return "waited_too_long"
    return "too_late" if isinstance(error, Overloaded) else "left"
