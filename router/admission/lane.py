"""One model's lane: who runs, who waits, and who is told at once that it would take too long."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from router.admission.capacity import Capacity
from router.admission.fair_queue import Claim, FairQueue
from router.admission.priority import PriorityClass
from sidecache.errors import Overloaded

# Weight of the newest stream in the averages.
_SMOOTHING = 0.05
_MIN_RETRY_S = 0.01
# Of the time a claim has, how much its expected wait may take: who is let in shall not
# wait in vain because the estimate was a little short.
_CAUTION = 0.85


class LateRefusal(Overloaded):
    """Refused after a wait: time was up, or the place was needed for another tenant."""


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """How much may wait, and for how long."""

    max_claims: int
    max_tokens: int
    max_wait_s: float


class _Pace:
    """How fast work ends, by Little's law: held tokens over the time that a token is held."""

    def __init__(self) -> None:
        self._cost = 0.0
        self._cost_seconds = 0.0

    def ended(self, cost: int, held_s: float) -> None:
        """A claim of this cost was held for so long."""
        if not self._cost:
            self._cost, self._cost_seconds = float(cost), cost * held_s
            return
        self._cost += _SMOOTHING * (cost - self._cost)
        self._cost_seconds += _SMOOTHING * (cost * held_s - self._cost_seconds)

    def tokens_per_s(self, held_tokens: int) -> float | None:
        """None: nothing has ended yet, or in no time."""
        if not self._cost or not self._cost_seconds or not held_tokens:
            return None
        return held_tokens * self._cost / self._cost_seconds

    @property
    def mean_hold_s(self) -> float:
        """How long a token is held; 0: nothing has ended yet."""
        return self._cost_seconds / self._cost if self._cost else 0.0


class Lane:
    """Holds as many claims as the workers take; the others wait for their turn.

    Args:
        capacity: what may be held now.
        bounds: of the queue.
        class_weights: of every priority class.
        clock: monotonic seconds.

    Attributes:
        held_slots: sequences of those that are held.
        held_tokens: that they reserve.
        asked_slots: sequences asked for so far.
        refused_slots: of those, refused because they could not start in time.
    """

    def __init__(
        self,
        capacity: Callable[[], Capacity],
        bounds: QueueBounds,
        class_weights: dict[PriorityClass, float],
        clock: Callable[[], float],
    ) -> None:
        self._capacity = capacity
        self._bounds = bounds
        self._clock = clock
        self._queue = FairQueue(class_weights)
        self._turns: dict[Claim, asyncio.Future[bool]] = {}
        self._since: dict[Claim, float] = {}
        self._pace = _Pace()
        self.held_slots = 0
        self.held_tokens = 0
        self.asked_slots = 0
        self.refused_slots = 0

    def reconfigure(self, bounds: QueueBounds, class_weights: dict[PriorityClass, float]) -> None:
        """Put other bounds and weights in force; who waits keeps his place."""
        self._bounds = bounds
        self._queue.reweigh(class_weights)

    @property
    def waiting(self) -> int:
        """Claims that wait."""
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        """Their tokens."""
        return self._queue.tokens

    @property
    def waiting_slots(self) -> int:
        """Sequences that they will run as."""
        return sum(claim.slots for claim in self._queue)

    @property
    def running(self) -> int:
        """Claims that are held."""
        return len(self._since)

    @property
    def capacity(self) -> Capacity:
        """What may be held now."""
        return self._capacity()

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens that end each second at this load, reserved ones; None: not known yet."""
        return self._pace.tokens_per_s(self.held_tokens)

    @property
    def mean_hold_s(self) -> float:
        """How long a claim is held, weighed by tokens; 0: nothing has ended yet."""
        return self._pace.mean_hold_s

    @property
    def backlog_s(self) -> float:
        """How long it takes until everything that waits has started; 0: nothing is known."""
        rate = self.tokens_per_s
        return self._queue.tokens / rate if rate else 0.0

    @property
    def has_room(self) -> bool:
        """Whether nobody waits, and one sequence more would start at once."""
        slots = self._capacity().slots
        return not self._queue and (slots is None or self.held_slots < slots)

    def expected_wait_s(self, claim: Claim) -> float:
        """How long a new claim would wait; 0 where nothing is known."""
        rate = self.tokens_per_s
        if rate is None:
            return 0.0
        return (self._queue.work_before(claim) + claim.cost) / rate

    async def acquire(self, claim: Claim, remaining_s: float) -> float:
        """Hold the claim, and return how many seconds that took.

        Args:
            claim: to be given back with :meth:`release`, if this returns.
            remaining_s: until its caller's deadline.

        Raises:
            Overloaded: it could not start in time, or too many wait.
        """
        self.asked_slots += claim.slots
        capacity = self._capacity()
        # Without a worker there is nothing to wait for: who leases one says so.
        if (not self._queue and self._fits(claim, capacity)) or not capacity.workers:
            self._start(claim, waited=False)
            return 0.0
        allowed_s = min(remaining_s, self._bounds.max_wait_s)
        try:
            self._refuse_what_is_late(claim, allowed_s)
            self._make_room(claim)
            return await self._wait(claim, allowed_s)
        except Overloaded:
            self.refused_slots += claim.slots
            raise

    def release(self, claim: Claim, used_tokens: int) -> None:
        """The claim is over, and used this much of what it reserved."""
        self.held_slots -= claim.slots
        self.held_tokens -= claim.cost
        self._pace.ended(claim.cost, self._clock() - self._since.pop(claim))
        self._queue.settle(claim, used_tokens)
        if self._queue:
            self.let_in()
        elif not self._since:
            self._queue.forget_idle()

    def let_in(self) -> None:
        """Start whoever's turn it is, as far as there is room."""
        capacity = self._capacity()
        while (claim := self._queue.first()) is not None and self._fits(claim, capacity):
            self._start(claim, waited=True)
            self._tell(claim, has_started=True)

    def _fits(self, claim: Claim, capacity: Capacity) -> bool:
        if not capacity.workers:
            return False
        if not self._since:
            return True  # whatever its size: alone it is the engine's to refuse
        if capacity.slots is not None and self.held_slots + claim.slots > capacity.slots:
            return False
        return capacity.tokens is None or self.held_tokens + claim.cost <= capacity.tokens

    def _start(self, claim: Claim, *, waited: bool) -> None:
        self._queue.start(claim, waited=waited)
        self.held_slots += claim.slots
        self.held_tokens += claim.cost
        self._since[claim] = self._clock()

    def _refuse_what_is_late(self, claim: Claim, allowed_s: float) -> None:
        expected_s = self.expected_wait_s(claim)
        if expected_s > allowed_s * _CAUTION:
            raise Overloaded(
                f"it would start in {expected_s:.1f} s, and may wait {max(0.0, allowed_s):.1f} s",
                retry_after_s=max(_MIN_RETRY_S, expected_s - allowed_s * _CAUTION),
            )

    def _make_room(self, claim: Claim) -> None:
        """Refuse this claim or the one that is most over its share, if too many wait.

        Raises:
            Overloaded: it is this one's own tenant that fills the queue.
        """
        bounds = self._bounds
        while self._queue and (
            len(self._queue) >= bounds.max_claims
            or self._queue.tokens + claim.cost > bounds.max_tokens
        ):
            worst = self._queue.most_excessive()
            if worst is None or worst.tenant == claim.tenant:
                raise Overloaded(
                    f"{len(self._queue)} requests with {self._queue.tokens} tokens wait already",
                    retry_after_s=max(_MIN_RETRY_S, self.expected_wait_s(claim)),
                )
            self._queue.remove(worst)
            self._tell(worst, has_started=False)

    async def _wait(self, claim: Claim, allowed_s: float) -> float:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[bool] = loop.create_future()
        since = self._clock()
        self._queue.push(claim)
        self._turns[claim] = turn
        timer = loop.call_later(allowed_s, self._expire, claim)
        try:
            if await turn:
                return self._clock() - since
        except asyncio.CancelledError:
            self._leave(claim)
            raise
        finally:
            timer.cancel()
        waited_s = self._clock() - since
        raise LateRefusal(
            f"it could not start within {waited_s:.1f} s",
            retry_after_s=max(_MIN_RETRY_S, self.expected_wait_s(claim)),
        )

    def _expire(self, claim: Claim) -> None:
        if claim in self._turns:
            self._queue.remove(claim)
            self._tell(claim, has_started=False)
            self.let_in()

    def _tell(self, claim: Claim, *, has_started: bool) -> None:
        turn = self._turns.pop(claim)
        # A cancelled caller has not run yet; when he does, he gives back what he got.
        if not turn.done():
            turn.set_result(has_started)

    def _leave(self, claim: Claim) -> None:
        """The caller is gone: while it waited, or just as its turn came."""
        if self._turns.pop(claim, None) is not None:
            self._queue.remove(claim)
            self.let_in()
        elif claim in self._since:
            self.release(claim, 0)
