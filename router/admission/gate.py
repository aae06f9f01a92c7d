"""Admission in two stages: every request at the door, then whatever has to be generated.

At the door: streams in flight, and the tenant's requests. A cache hit and a follower of a
flight need no more than that. Whoever needs a worker claims tokens and a slot of his model's
lane, and waits there for his turn or is told at once that it would come too late.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from observability.metrics.router import AdmissionMetrics, AdmissionOutcome
from router.admission.capacity import CachedCapacity
from router.admission.fair_queue import Claim
from router.admission.lane import Lane, QueueBounds
from router.admission.place import Place
from router.admission.priority import PriorityClass
from router.admission.quotas import Quotas, TenantQuota
from router.admission.settings import AdmissionSettings
from router.model import ServedModel
from router.prefix import PrefixHint
from router.tape import Tape
from router.tenant_limits import LimitsOf, unlimited
from router.ticket import Ticket
from router.worker import Worker
from sidecache.errors import Overloaded, QuotaExceeded

# Weight of the newest stream in the average duration.
_SMOOTHING = 0.1
_LET_IN_INTERVAL_S = 0.5

Tell = Callable[[tuple[tuple[str, str], ...]], object]


class Admission:
    """Lets work in, in the order of its turns and within its bounds.

    Args:
        clock: monotonic seconds.
        workers: all that the pool knows; none: nothing is known, so nothing waits.
        limits_of: what a tenant may use.
        bytes_per_token: of a prompt that nobody has counted.
    """

    def __init__(
        self,
        settings: AdmissionSettings,
        clock: Callable[[], float],
        workers: Callable[[], Iterable[Worker]] = tuple,
        limits_of: LimitsOf = unlimited,
        bytes_per_token: float = 4.0,
    ) -> None:
        self._clock = clock
        self._workers = workers
        self._limits_of = limits_of
        self._quotas = Quotas(limits_of, clock)
        self._metrics: AdmissionMetrics | None = None
        self._bytes_per_token = bytes_per_token
        self._lanes: dict[ServedModel, Lane] = {}
        self._capacities: dict[ServedModel, CachedCapacity] = {}
        self._streams = 0
        self._mean_duration_s = 1.0
        self.reconfigure(settings)

    def reconfigure(self, settings: AdmissionSettings) -> None:
        """Put these bounds in force; nobody who is in, or waits, is put out."""
        self._settings = settings
        self._bounds = QueueBounds(
            settings.max_queue, settings.max_queue_tokens, settings.max_wait_s
        )
        self._class_weights = {
            kind: float(getattr(settings.class_weights, kind.value)) for kind in PriorityClass
        }
        for lane in self._lanes.values():
            lane.reconfigure(self._bounds, self._class_weights)
        for capacity in self._capacities.values():
            capacity.reconfigure(settings)

    @property
    def streams(self) -> int:
        """Requests in flight now, waiting ones too."""
        return self._streams

    @property
    def lanes(self) -> Mapping[ServedModel, Lane]:
        """Of every model that was asked for."""
        return self._lanes

    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return sum(lane.waiting for lane in self._lanes.values())

    def tokens(self) -> dict[str, int]:
        """Tokens reserved by requests that run, and by those that wait."""
        return {
            "running": sum(lane.held_tokens for lane in self._lanes.values()),
            "waiting": sum(lane.waiting_tokens for lane in self._lanes.values()),
        }

    async def run(self, wait_for_change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Let in who waits whenever the fleet changes, until cancelled.

        Args:
            wait_for_change: returns when a worker came or went.
        """
        while True:
            change = asyncio.ensure_future(wait_for_change())
            try:
                # Also by the clock: a worker's word on its slots changes no worker's state.
                await asyncio.wait((change,), timeout=_LET_IN_INTERVAL_S)
            finally:
                change.cancel()
            for capacity in self._capacities.values():
                capacity.forget()
            for lane in self._lanes.values():
                lane.let_in()

    @contextmanager
    def admit(self, ticket: Ticket, tell: Tell) -> Iterator[None]:
        """Hold one place at the door for the length of the block.

        Args:
            ticket: of the request.
            tell: takes the trailing metadata of the call, if there is any.

        Raises:
            Overloaded: the router is full; retry_after_s is when a place is
                expected to be free.
            QuotaExceeded: this tenant is at a limit of its own.
        """
        quota = self._quotas.of(ticket.tenant)
        try:
            self._check_places(ticket.tenant, ticket.priority_class, quota)
            self._take_request(ticket, quota)
            with self._in_flight(quota):
                yield
        finally:
            if quota.is_limited:
                tell(quota.metadata())

    @contextmanager
    def readmit(self, tenant: str) -> Iterator[None]:
        """Hold one place at the door for a caller who comes back to a stream of his.

        Raises:
            Overloaded: the router is full.
            QuotaExceeded: this tenant has as many streams in flight as it may.
        """
        quota = self._quotas.of(tenant)
        self._check_places(tenant, PriorityClass.STANDARD, quota)
        with self._in_flight(quota):
            yield

    def claim(self, ticket: Ticket, tape: Tape, hint: PrefixHint | None) -> Place:
        """A place among the running ones of the ticket's model; enter it to wait for it.

        Args:
            ticket: what is to be generated.
            tape: tells what was really used.
            hint: may have the prompt's tokens; without them they are estimated.
        """
        counted = len(hint.prompt_token_ids) if hint is not None else 0
        prompt_tokens = counted or self._estimate(ticket)
        cost = prompt_tokens + ticket.request.max_tokens * ticket.request.n
        claim = Claim(
            tenant=ticket.tenant,
            priority_class=ticket.priority_class,
            weight=self._limits_of(ticket.tenant).weight,
            cost=cost,
            slots=ticket.request.n,
            priority=ticket.request.priority,
        )
        lane, quota = self.lane(ticket.model), self.quota(ticket.tenant)
        return Place(ticket, tape, claim, prompt_tokens, lane, quota, self._clock, self.count)

    def lane(self, model: ServedModel) -> Lane:
        """The lane of a model."""
        lane = self._lanes.get(model)
        if lane is None:
            self._forget_empty_lanes()
            capacity = CachedCapacity(self._workers, model, self._settings, self._clock)
            self._capacities[model] = capacity
            lane = Lane(capacity, self._bounds, self._class_weights, self._clock)
            self._lanes[model] = lane
        return lane

    @property
    def quotas(self) -> Quotas:
        """What each tenant has left."""
        return self._quotas

    def quota(self, tenant: str) -> TenantQuota:
        """What a tenant has left."""
        return self._quotas.of(tenant)

    def report_to(self, metrics: AdmissionMetrics) -> None:
        """Count every decision there from now on."""
        self._metrics = metrics

    def count(self, outcome: AdmissionOutcome, ticket: Ticket, waited_s: float = 0.0) -> None:
        """Tell the metrics how one request fared."""
        self._count(outcome, ticket.priority_class, waited_s)

    def _count(self, outcome: AdmissionOutcome, kind: PriorityClass, waited_s: float = 0.0) -> None:
        if self._metrics is not None:
            self._metrics.decided(outcome, kind.value, waited_s)

    def _check_places(self, tenant: str, kind: PriorityClass, quota: TenantQuota) -> None:
        if self._streams >= self._settings.max_streams:
            self._count("router_full", kind)
            raise Overloaded(
                f"the router is at its bound of {self._settings.max_streams} streams",
                retry_after_s=self._time_to_a_place(self._streams),
            )
        limit = self._limits_of(tenant).max_in_flight
        limit = limit or self._settings.max_streams_per_tenant
        if quota.in_flight >= limit:
            self._count("tenant_full", kind)
            raise QuotaExceeded(
                f"at the bound of {limit} streams in flight",
                subject=f"tenant:{tenant}",
                retry_after_s=self._time_to_a_place(quota.in_flight),
            )

    def _take_request(self, ticket: Ticket, quota: TenantQuota) -> None:
        try:
            quota.take_request()
        except QuotaExceeded:
            self.count("tenant_rate", ticket)
            raise

    @contextmanager
    def _in_flight(self, quota: TenantQuota) -> Iterator[None]:
        started = self._clock()
        self._streams += 1
        quota.in_flight += 1
        try:
            yield
        finally:
            self._streams -= 1
            quota.in_flight -= 1
            duration_s = self._clock() - started
            self._mean_duration_s += _SMOOTHING * (duration_s - self._mean_duration_s)

    def _estimate(self, ticket: Ticket) -> int:
        request = ticket.request
        if request.WhichOneof("prompt") == "token_ids":
            return len(request.token_ids.ids)
        return max(1, int(request.ByteSize() / self._bytes_per_token))

    def _time_to_a_place(self, streams: int) -> float:
        """Expected seconds until one of ``streams`` ends (Little's law)."""
        return max(0.01, self._mean_duration_s / max(1, streams))

    def _forget_empty_lanes(self) -> None:
        """Of checkpoints that nobody asks for any more."""
        for model, lane in list(self._lanes.items()):
            if not lane.running and not lane.waiting:
                del self._lanes[model], self._capacities[model]
