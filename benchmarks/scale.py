"""The scale signal on a bursty load, simulated: how soon it reacts, and how far it overshoots.

    python -m benchmarks.scale --json -

Simulated time; the signal is the router's own code. A fleet of workers with slots serves first
come, first served; a worker that the signal asks for serves a provisioning time later, one that
it no longer asks for goes as soon as it is idle. What could not start within ``max_wait_s`` is
refused, as the router does it.
"""

import argparse
import heapq
import json
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.arrivals import Arrival, Burstiness, arrivals, step
from benchmarks.statistics import quantile
from router.admission.scale import ArrivalRate, Demand, ScaleSignal
from router.settings import ScaleSettings


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
    needed: list[float] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)


def simulate(
    load: Sequence[Arrival], fleet: Fleet, settings: ScaleSettings, workers: int, *, fixed: bool
) -> Seen:
    """Run the load; ``fixed``: the number of workers stays what it is."""
    seen, signal = Seen(), ScaleSignal(workers, settings)
    rate = ArrivalRate(settings.rate_tau_s)
    running: list[float] = []
    waiting: deque[Arrival] = deque()
    coming: deque[float] = deque()
    hold_s, at, looked_at = 0.0, 0, 0
    now, end = 0.0, load[-1].at_s
    tick = 0.1
    look = settings.interval_s
    while now < end:
        now += tick
        while coming and coming[0] <= now:
            coming.popleft()
            workers += 1
        while running and running[0] <= now:
            heapq.heappop(running)
        while at < len(load) and load[at].at_s <= now:
            waiting.append(load[at])
            at += 1
        while waiting and len(running) < workers * fleet.slots:
            each = waiting.popleft()
            service_s = fleet.service_s(each)
            hold_s += 0.05 * (service_s - hold_s)
            heapq.heappush(running, now + service_s)
            seen.waits.append((each.at_s, now - each.at_s))
        expected_s = hold_s * len(waiting) / max(1, len(running))
        while waiting and expected_s > fleet.max_wait_s:
            seen.refused.append(waiting.pop().at_s)
            expected_s = hold_s * len(waiting) / max(1, len(running))
        if now < look:
            continue
        look += settings.interval_s
        arrived, looked_at = at - looked_at, at
        demand = Demand(
            workers=workers,
            slots=workers * fleet.slots,
            running=len(running),
            waiting=len(waiting),
            arrivals_per_s=rate.update(arrived, settings.interval_s),
            hold_s=hold_s,
        )
        desired = signal.update(demand, now)
        seen.times.append(now)
        seen.desired.append(desired)
        seen.workers.append(workers)
        if not fixed:
            planned = workers + len(coming)
            coming.extend([now + fleet.provision_s] * max(0, desired - planned))
            while coming and workers + len(coming) > desired:
                coming.pop()
            if workers > desired:
                # An idle worker can go; one that is busy finishes first.
                workers = max(desired, -(-len(running) // fleet.slots))
    return seen


def reaction(fleet: Fleet, settings: ScaleSettings, factor: float, seed: int) -> dict[str, Any]:
    """One jump of the rate: seconds to the right signal, its overshoot, and to a short queue."""
    jump_s, rate = 300.0, 2.0
    load = step(rate, factor, jump_s, 1200.0, seed)
    mean_s = fleet.service_s(load[0])
    needed = rate * factor * mean_s / fleet.slots
    workers = max(1, round(rate * mean_s / fleet.slots / settings.target_utilization + 0.5))
    seen = simulate(load, fleet, settings, workers, fixed=False)
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
    """Hours of bursts: followed, and beside them two fleets of a fixed size."""
    requests = list(arrivals(load, duration_s, seed))
    mean_s = sum(fleet.service_s(r) for r in requests) / len(requests)
    mean_load = len(requests) / duration_s * mean_s / fleet.slots
    peak = load.rate * load.burst_factor * mean_s / fleet.slots / settings.target_utilization
    sizes = {"mean": max(1, round(mean_load + 0.5)), "peak": max(1, round(peak + 0.5))}
    result: dict[str, Any] = {"requests": len(requests)}
    for name, workers in {"followed": sizes["mean"], **sizes}.items():
        seen = simulate(requests, fleet, settings, workers, fixed=name != "followed")
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


def run(seed: int, hours: float) -> dict[str, Any]:
    """All of it; its keys are described in docs/performance.md."""
    fleet, settings = Fleet(), ScaleSettings()
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
    options = parser.parse_args()
    text = json.dumps(run(options.seed, options.hours), indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
