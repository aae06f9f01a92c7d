"""The scale signal on a bursty load, simulated: how soon it reacts, and how far it overshoots.

    python -m benchmarks.scale --json -
    python -m benchmarks.scale --trace FILE --format mooncake --json -

With ``--trace`` the arrivals and lengths of a recorded load take the place of the made ones.
Simulated time; the signal is the router's own code. A fleet of workers with slots serves first
come, first served; a worker that the signal asks for serves a provisioning time later, one that
it no longer asks for goes as soon as it is idle. What could not start within ``max_wait_s`` is
refused, as the router does it.
"""

import argparse
import heapq
import json
import sys
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.arrivals import Arrival, Burstiness, arrivals, step
from benchmarks.statistics import quantile
from benchmarks.traces import NATIVE_BLOCKS, load_trace
from router.admission.scale import ArrivalRate, Demand, ScaleSignal
from router.admission.settings import ScaleSettings


@dataclass(frozen=True)
class Fleet:
    """What a worker can do, and how long it takes to get one."""

    slots: int = 8
    prefill_tokens_per_s: float = 4000.0
    tokens_per_s: float = 40.0
    provision_s: float = 60.0
    max_wait_s: float = 10.0

    def service_s(self, arrival: Arrival) -> float:
        """How long a request holds its slot."""
        prefill_s = arrival.prompt_tokens / self.prefill_tokens_per_s
        return prefill_s + arrival.answer_tokens / self.tokens_per_s


@dataclass
class Seen:
    """What happened, by the second of the look."""

    times: list[float] = field(default_factory=list)
    desired: list[int] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)


class Simulation:
    """One fleet under one load, in steps of a tenth of a second.

    Args:
        workers: at the start.
        fixed: their number stays what it is, whatever the signal says.
    """

    _STEP_S = 0.1

    def __init__(self, fleet: Fleet, settings: ScaleSettings, workers: int, *, fixed: bool) -> None:
        self._fleet = fleet
        self._settings = settings
        self._workers = workers
        self._fixed = fixed
        self._signal = ScaleSignal(workers, settings)
        self._rate = ArrivalRate(settings.rate_tau_s)
        self._ends: list[float] = []
        self._waiting: deque[Arrival] = deque()
        self._coming: deque[float] = deque()
        self._hold_s = 0.0
        self._seen = Seen()

    def run(self, load: Sequence[Arrival]) -> Seen:
        """Let the load come, and return what happened."""
        now, at, looked_at = 0.0, 0, 0
        look = self._settings.interval_s
        while now < load[-1].at_s:
            now += self._STEP_S
            while at < len(load) and load[at].at_s <= now:
                self._waiting.append(load[at])
                at += 1
            self._serve(now)
            if now >= look:
                look += self._settings.interval_s
                self._look(now, at - looked_at)
                looked_at = at
        return self._seen

    def _serve(self, now: float) -> None:
        while self._coming and self._coming[0] <= now:
            self._coming.popleft()
            self._workers += 1
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        while self._waiting and len(self._ends) < self._workers * self._fleet.slots:
            each = self._waiting.popleft()
            service_s = self._fleet.service_s(each)
            self._hold_s += 0.05 * (service_s - self._hold_s)
            heapq.heappush(self._ends, now + service_s)
            self._seen.waits.append((each.at_s, now - each.at_s))
        while self._waiting and self._expected_wait_s() > self._fleet.max_wait_s:
            self._seen.refused.append(self._waiting.pop().at_s)

    def _expected_wait_s(self) -> float:
        return self._hold_s * len(self._waiting) / max(1, len(self._ends))

    def _look(self, now: float, arrived: int) -> None:
        demand = Demand(
            workers=self._workers,
            slots=self._workers * self._fleet.slots,
            running=len(self._ends),
            waiting=len(self._waiting),
            arrivals_per_s=self._rate.update(arrived, self._settings.interval_s),
            hold_s=self._hold_s,
        )
        desired = self._signal.update(demand, now)
        self._seen.times.append(now)
        self._seen.desired.append(desired)
        self._seen.workers.append(self._workers)
        if not self._fixed:
            self._provision(desired, now)

    def _provision(self, desired: int, now: float) -> None:
        planned = self._workers + len(self._coming)
        self._coming.extend([now + self._fleet.provision_s] * max(0, desired - planned))
        while self._coming and self._workers + len(self._coming) > desired:
            self._coming.pop()
        if self._workers > desired:
            # An idle worker can go; one that is busy finishes first.
            self._workers = max(desired, -(-len(self._ends) // self._fleet.slots))


def reaction(fleet: Fleet, settings: ScaleSettings, factor: float, seed: int) -> dict[str, Any]:
    """One jump of the rate: seconds to the right signal, its overshoot, and to a short queue."""
    jump_s, rate = 300.0, 2.0
    load = step(rate, factor, jump_s, 1200.0, seed)
    mean_s = fleet.service_s(load[0])
    needed = rate * factor * mean_s / fleet.slots
    workers = max(1, round(rate * mean_s / fleet.slots / settings.target_utilization + 0.5))
    seen = Simulation(fleet, settings, workers, fixed=False).run(load)
    after = [(t, d) for t, d in zip(seen.times, seen.desired, strict=True) if t >= jump_s]
    enough = next((t - jump_s for t, d in after if d >= needed), None)
    late = [t for t, wait in seen.waits if t >= jump_s and wait > settings.target_wait_s]
    late += [t for t in seen.refused if t >= jump_s]
    return {
        "workers_needed": needed / settings.target_utilization,
        "signal_enough_after_s": enough,
        "most_desired_over_needed": max(d for _, d in after)
        / (needed / settings.target_utilization),
        "back_in_objective_after_s": max(late, default=jump_s) - jump_s,
        "provision_s": fleet.provision_s,
    }


def bursts(
    fleet: Fleet, settings: ScaleSettings, load: Burstiness, duration_s: float, seed: int
) -> dict[str, Any]:
    """Hours of bursts that are made from a seed."""
    requests = list(arrivals(load, duration_s, seed))
    mean_s = sum(fleet.service_s(r) for r in requests) / len(requests)
    peak = load.rate * load.burst_factor * mean_s / fleet.slots
    return followed(fleet, settings, requests, peak)


def recorded(fleet: Fleet, settings: ScaleSettings, path: Path, form: str) -> dict[str, Any]:
    """A recorded load; its peak is the busiest minute."""
    requests = [
        Arrival(each.at_s, each.input_tokens, each.output_tokens) for each in load_trace(path, form)
    ]
    minutes: Counter[int] = Counter()
    for each in requests:
        minutes[int(each.at_s // 60)] += 1
    mean_s = sum(fleet.service_s(r) for r in requests) / len(requests)
    return followed(fleet, settings, requests, max(minutes.values()) / 60 * mean_s / fleet.slots)


def followed(
    fleet: Fleet, settings: ScaleSettings, requests: Sequence[Arrival], peak_load: float
) -> dict[str, Any]:
    """A load with the signal followed, and beside it two fleets of a fixed size.

    One is for the mean load, and one for ``peak_load``: workers that would be busy all
    the time at the peak.
    """
    duration_s = requests[-1].at_s
    mean_s = sum(fleet.service_s(r) for r in requests) / len(requests)
    mean_load = len(requests) / duration_s * mean_s / fleet.slots
    peak = peak_load / settings.target_utilization
    sizes = {"mean": max(1, round(mean_load + 0.5)), "peak": max(1, round(peak + 0.5))}
    result: dict[str, Any] = {"requests": len(requests)}
    for name, workers in {"followed": sizes["mean"], **sizes}.items():
        seen = Simulation(fleet, settings, workers, fixed=name != "followed").run(requests)
        waits = [wait for _, wait in seen.waits]
        changes = sum(a != b for a, b in zip(seen.desired, seen.desired[1:], strict=False))
        result[name] = {
            "mean_workers": sum(seen.workers) / len(seen.workers),
            "most_workers": max(seen.workers),
            "in_objective": sum(w <= settings.target_wait_s for w in waits) / len(requests),
            "refused": len(seen.refused) / len(requests),
            "wait_p99_s": quantile(waits, 0.99),
        }
        if name == "followed":
            result[name]["signal_changes_an_hour"] = changes / duration_s * 3600
    return result


def run(seed: int, hours: float, trace: Path | None, form: str) -> dict[str, Any]:
    """All of it; its keys are described in docs/performance.md."""
    fleet, settings = Fleet(), ScaleSettings()
    if trace is not None:
        return {"recorded": recorded(fleet, settings, trace, form)}
    return {
        "jump": {f"x{f:g}": reaction(fleet, settings, f, seed) for f in (2.0, 5.0, 10.0)},
        "bursts": bursts(fleet, settings, Burstiness(), hours * 3600, seed),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=4.0, help="of bursts")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="a recorded load")
    parser.add_argument("--format", choices=sorted(NATIVE_BLOCKS), default="mooncake")
    options = parser.parse_args()
    text = json.dumps(run(options.seed, options.hours, options.trace, options.format), indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
