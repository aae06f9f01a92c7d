"""How many workers a load asks for: a pure function, and a signal that does not flap.

The signal is for whoever starts and stops workers (KEDA, an HPA, Ray): up at once, by at most
a factor at a time; down only when nothing within a window asked for more, as the
Kubernetes HPA's stabilization window does it.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

from router.settings import ScaleSettings

Reason = Literal["none", "running", "waiting", "refused", "kv_cache", "bounds"]


@dataclass(frozen=True, slots=True)
class Demand:
    """What one model's lane sees.

    Attributes:
        workers: ready ones.
        slots: of all of them; 0: not known.
        running: sequences at workers.
        waiting: sequences that wait for their turn.
        expected_wait_s: of one more request.
        refused: sequences that would run beside them now, had they not been refused.
        kv_usage: share of KV blocks in use, the mean of the workers; None: not known.
    """

    workers: int
    slots: int
    running: int
    waiting: int = 0
    expected_wait_s: float = 0.0
    refused: float = 0.0
    kv_usage: float | None = None


def desired_workers(demand: Demand, objectives: ScaleSettings) -> tuple[int, Reason]:
    """So many workers bring this demand within its objectives, and what asks for the most.

    Those that run take their share of slots; of those that wait as many more workers as it
    takes to start them within ``target_wait_s``, and never more than would run all of them
    at once.
    """
    if not demand.workers or not demand.slots:
        return _bounded(max(1, demand.workers), "none", objectives)
    usable = demand.slots / demand.workers * objectives.target_utilization
    found: list[tuple[int, Reason]] = [(math.ceil(demand.running / usable), "running")]
    if demand.waiting:
        at_once = math.ceil((demand.running + demand.waiting) / usable)
        in_time = math.ceil(demand.workers * demand.expected_wait_s / objectives.target_wait_s)
        found.append((min(at_once, max(in_time, found[0][0])), "waiting"))
    if demand.refused:
        everybody = demand.running + demand.waiting + demand.refused
        found.append((math.ceil(everybody / usable), "refused"))
    if demand.kv_usage is not None:
        wanted = demand.workers * demand.kv_usage / objectives.target_kv_usage
        found.append((math.ceil(wanted), "kv_cache"))
    number, reason = max(found, key=lambda pair: pair[0])
    return _bounded(number, reason, objectives)


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
