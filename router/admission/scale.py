"""How many workers a load asks for: a pure function, and a signal that does not flap.

The signal is for whoever starts and stops workers (KEDA, an HPA, Ray): up at once, by at most
a factor at a time; down only when nothing within a window asked for more, as the
Kubernetes HPA's stabilization window does it.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, cast

from router.admission.settings import ScaleSettings

Reason = Literal["none", "running", "offered", "waiting", "kv_cache", "bounds"]


@dataclass(frozen=True, slots=True)
class Demand:
    """What one model's lane sees.

    Attributes:
        workers: ready ones.
        slots: of all of them; 0: not known.
        running: sequences at workers.
        waiting: sequences that wait for their turn.
        arrivals_per_s: sequences asked for, those refused too.
        hold_s: how long one is held; 0: not known.
        kv_usage: share of KV blocks in use, the mean of the workers; None: not known.
    """

    workers: int
    slots: int
    running: int
    waiting: int = 0
    arrivals_per_s: float = 0.0
    hold_s: float = 0.0
    kv_usage: float | None = None


class ArrivalRate:
    """Arrivals a second, smoothed exponentially over the last moments.

    Args:
        tau_s: after this long an arrival counts 1/e of itself.
    """

    def __init__(self, tau_s: float) -> None:
        self._tau_s = tau_s
        self.per_s = 0.0

    def update(self, arrived: int, elapsed_s: float) -> float:
        """Take in how many came in the time since the last look; returns the rate."""
        share = -math.expm1(-elapsed_s / self._tau_s)
        self.per_s += share * (arrived / elapsed_s - self.per_s)
        return self.per_s


def desired_workers(demand: Demand, objectives: ScaleSettings) -> tuple[int, Reason]:
    """So many workers bring this demand within its objectives, and what asks for the most.

    Slots are needed for what runs, or for what arrives by Little's law (rate times duration),
    whichever is more: where many are refused the second is. A queue whose wait is
    beyond the objective needs as many more as empty it within ``drain_s``.
    """
    if not demand.workers or not demand.slots:
        return _bounded(max(1, demand.workers), "none", objectives)
    usable = demand.slots / demand.workers * objectives.target_utilization
    offered = demand.arrivals_per_s * demand.hold_s
    slots, reason = max((float(demand.running), "running"), (offered, "offered"))
    if demand.waiting * demand.hold_s / demand.slots > objectives.target_wait_s:
        slots += demand.waiting * demand.hold_s / objectives.drain_s
        reason = "waiting"
    number = math.ceil(slots / usable)
    if demand.kv_usage is not None:
        for_cache = math.ceil(demand.workers * demand.kv_usage / objectives.target_kv_usage)
        if for_cache > number:
            number, reason = for_cache, "kv_cache"
    return _bounded(number, cast("Reason", reason), objectives)


class ScaleSignal:
    """The signal of one model.

    Attributes:
        value: workers desired.
        reason: what asked for the most when it last changed upwards.
    """

    def __init__(self, workers: int, objectives: ScaleSettings) -> None:
        self.value = _bounded(max(1, workers), "none", objectives)[0]
        self.reason: Reason = "none"
        self._objectives = objectives
        self._raised_at = -math.inf
        # Falling values with their times: the first is the highest of the window.
        self._window: deque[tuple[float, int, Reason]] = deque()

    def update(self, demand: Demand, now: float) -> int:
        """Take in the demand of this moment; returns the new value."""
        wanted, reason = desired_workers(demand, self._objectives)
        while self._window and self._window[-1][1] <= wanted:
            self._window.pop()
        self._window.append((now, wanted, reason))
        while self._window[0][0] < now - self._objectives.down_after_s:
            self._window.popleft()
        _, highest, why = self._window[0]
        if wanted > self.value:
            self._raise(wanted, reason, now)
        elif highest < self.value:
            self.value, self.reason = highest, why
        return self.value

    def _raise(self, wanted: int, reason: Reason, now: float) -> None:
        if now - self._raised_at < self._objectives.up_interval_s:
            return
        most = math.ceil(self.value * self._objectives.max_growth)
        self.value = min(wanted, max(most, self.value + 1))
        self.reason, self._raised_at = reason, now


def _bounded(number: int, reason: Reason, objectives: ScaleSettings) -> tuple[int, Reason]:
    bounded = min(max(number, objectives.min_workers), objectives.max_workers)
    return bounded, reason if bounded == number else "bounds"
