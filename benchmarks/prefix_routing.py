"""Routing policies on a recorded trace: hit rate, time to first token, balance.

    python -m benchmarks.prefix_routing --trace FILE --format mooncake --json -

Replays the trace through the project's own prefix index and policies on simulated
workers (benchmarks/fleet_replay.py says how they behave); simulated time, so the
machine's speed changes nothing. A row a policy; beside the rows, on standard error, the
hit rate of one pooled LRU with the blocks of all workers, for reference: a policy may
slip past it a little.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.fleet_replay import Fleet, Replay, pooled_hit_rate
from benchmarks.traces import NATIVE_BLOCKS, TraceRequest, load_trace
from cache_svc.prefix_index import PrefixIndex
from router.routing.choice import DEFAULT_POLICY, POLICIES, make_policy
from router.routing.cost import PrefixCost, Weights
from router.routing.policy import Candidate, PromptShape, RoutingPolicy

_DEFAULTS = Fleet()


class SessionHash:
    """A conversation's hash modulo the number of workers: no bound on load at all."""

    def choose(self, candidates: Sequence[Candidate], prompt: PromptShape) -> Candidate:
        return candidates[prompt.affinity % len(candidates)]


def policies(weights: Weights) -> dict[str, RoutingPolicy]:
    """Every policy of the router, and two that are only compared with."""
    made: dict[str, RoutingPolicy] = {name: make_policy(name, weights) for name in POLICIES}
    return made | {"cost_1": PrefixCost(1.0, 1.0), "session_hash": SessionHash()}


def run(
    trace: Sequence[TraceRequest], fleet: Fleet, chosen: dict[str, RoutingPolicy]
) -> Iterator[dict[str, Any]]:
    """Replay the trace with each policy; yield a row each."""
    for name, policy in chosen.items():
        figures = Replay(fleet, policy, PrefixIndex()).run(trace)
        yield {"policy": name, "default": name == DEFAULT_POLICY, **asdict(figures)}


def half_of(trace: Sequence[TraceRequest], half: str) -> Sequence[TraceRequest]:
    """The requests before or after the middle of the trace's time; "" is all of it."""
    middle_s = (trace[0].at_s + trace[-1].at_s) / 2
    wanted = {"first": True, "second": False}
    return [r for r in trace if half not in wanted or (r.at_s <= middle_s) is wanted[half]]


def main() -> None:
    """Run from the command line."""
    options = _parser().parse_args()
    trace = half_of(
        load_trace(options.trace, options.format, options.block_size, options.tenants),
        options.half,
    )
    fleet = Fleet(
        workers=options.workers,
        blocks=options.blocks,
        block_size=options.block_size,
        prefill_tps=options.prefill_tps,
        tpot_s=options.tpot_ms / 1e3,
        event_delay_s=options.event_delay_ms / 1e3,
        lost_events=options.lost_events,
        ttft_limit_s=options.ttft_limit_s,
        note_s=options.note_s,
        max_queue_s=options.max_queue_s,
    )
    weights = Weights(*options.weights) if options.weights else Weights()
    every = policies(weights)
    chosen = {name: every[name] for name in options.policies or every}
    pooled = pooled_hit_rate(trace, fleet.workers * fleet.blocks)
    sys.stderr.write(f"pooled reference: hit rate {pooled:.4f}\n")
    text = json.dumps(list(run(trace, fleet, chosen)), indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--trace", type=Path, required=True, help="JSON lines, or those gzipped")
    add("--format", choices=sorted(NATIVE_BLOCKS), required=True)
    add("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    add("--workers", type=int, default=4)
    add("--blocks", type=int, default=4000, help="of each worker's cache")
    add("--block-size", type=int, default=512, help="tokens")
    add("--prefill-tps", type=float, default=20_000, help="tokens a second a worker")
    add("--tpot-ms", type=float, default=20, help="of a decoded token")
    add("--event-delay-ms", type=float, default=0, help="until the index hears of a change")
    add("--lost-events", type=float, default=0, help="share that the index never hears of")
    add("--note-s", type=float, default=_DEFAULTS.note_s, help="memory of own routes; 0: none")
    add("--ttft-limit-s", type=float, default=_DEFAULTS.ttft_limit_s, help="what goodput counts to")
    add(
        "--max-queue-s",
        type=float,
        default=_DEFAULTS.max_queue_s,
        help="refuse beyond; none: never",
    )
    add("--tenants", type=int, default=1, help="deal conversations to tenants with own salts")
    add("--half", choices=["first", "second"], default="", help="of the trace's time")
    add("--policies", nargs="+", metavar="NAME", help="only these")
    add(
        "--weights",
        nargs=5,
        type=float,
        metavar=("ACTIVE", "RECENT", "SEQUENCE", "LOYALTY", "PATIENCE"),
        help="of the policy prefix",
    )
    return parser


if __name__ == "__main__":
    main()
