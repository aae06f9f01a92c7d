"""The replay: its figures against a second, simpler account of the same semantics."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fleet_replay import Fleet, Replay, pooled_hit_rate
from benchmarks.prefix_routing import policies, run
from benchmarks.traces import TraceRequest, load_trace
from cache_svc.prefix_index import PrefixIndex
from router.routing.cost import Weights

WORKERS, BLOCKS, SPEED, TPOT_S = 3, 40, 5000.0, 0.02


def synthetic(requests: int = 400) -> list[dict[str, Any]]:
    """Conversations of several turns over a shared first block, at a load that makes queues."""
    chance = random.Random(3)  # noqa: S311 - a trace, no secret
    rows, at_ms = [], 0.0
    turns = [0] * 30
    for _ in range(requests):
        at_ms += chance.expovariate(1 / 150)
        conversation = chance.randrange(30)
        turns[conversation] = turns[conversation] % 6 + 1
        ids = [0] + [100 * (conversation + 1) + n for n in range(turns[conversation])]
        length = len(ids) * 512 - chance.randrange(500)
        rows.append(
            {
                "timestamp": int(at_ms),
                "input_length": length,
                "output_length": chance.randrange(1, 1200),
                "hash_ids": ids,
            }
        )
    return rows


def plain_account(rows: list[dict[str, Any]], policy: str) -> dict[str, float]:
    """Each worker as a list of what it holds, newest last, and of all it was ever given."""
    held: list[list[int]] = [[] for _ in range(WORKERS)]
    given: list[list[tuple[float, float, float]]] = [[] for _ in range(WORKERS)]
    free = [0.0] * WORKERS
    work = [0.0] * WORKERS
    hits = total = 0
    ttft = []
    for number, row in enumerate(rows):
        now, ids = row["timestamp"] / 1e3, row["hash_ids"]
        cached = []
        for blocks in held:
            count = 0
            while count < len(ids) and ids[count] in blocks:
                count += 1
            cached.append(count)
        queued = [max(0.0, free[w] - now) * SPEED / 512 for w in range(WORKERS)]
        active = [sum(size for end, size, _ in given[w] if end > now) for w in range(WORKERS)]

        def cost(w: int, uncached: float, busy: float) -> tuple[float, int]:
            blocks = len(ids) - cached[w]  # noqa: B023 - called at once
            return uncached * blocks + queued[w] + busy * active[w], len(given[w])  # noqa: B023

        if policy == "round_robin":
            worker = number % WORKERS
        elif policy == "least_loaded":
            worker = min(range(WORKERS), key=lambda w: cost(w, 0, 1))
        elif policy == "cost_1":
            worker = min(range(WORKERS), key=lambda w: cost(w, 1, 1))
        else:
            worker = min(range(WORKERS), key=lambda w: cost(w, 4, 0.25))
        hits, total = hits + cached[worker], total + len(ids)
        uncached = max(row["input_length"] - 512 * cached[worker], 1)
        kept = [block for block in held[worker] if block not in ids]
        held[worker] = (kept + ids[::-1])[-BLOCKS:]
        work[worker] += uncached
        free[worker] = max(now, free[worker]) + uncached / SPEED
        ttft.append(free[worker] - now)
        size = len(ids) + row["output_length"] // 512
        given[worker].append((free[worker] + row["output_length"] * TPOT_S, size, now))
    ttft.sort()
    return {
        "hit_rate": hits / total,
        "ttft_mean_s": sum(ttft) / len(ttft),
        "ttft_p99_s": ttft[int(len(ttft) * 0.99)],
        "imbalance": max(work) * WORKERS / sum(work),
    }


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in synthetic())
    return path


@pytest.mark.parametrize("policy", ["round_robin", "least_loaded", "cost_1", "cost"])
def test_figures_are_those_of_a_plain_account(trace_file: Path, policy: str) -> None:
    """Through index, events and policies, the figures are those of lists and loops."""
    fleet = Fleet(workers=WORKERS, blocks=BLOCKS, prefill_tps=SPEED, tpot_s=TPOT_S)
    trace = load_trace(trace_file, "mooncake")
    (row,) = run(trace, fleet, {policy: policies(Weights())[policy]})
    plain = plain_account(synthetic(), policy)
    assert {name: row[name] for name in plain} == pytest.approx(plain)
    assert row["refused"] == 0


def test_every_policy_has_a_row_and_one_is_the_default(trace_file: Path) -> None:
    """The keys that readers of the JSON rely on."""
    fleet = Fleet(workers=WORKERS, blocks=BLOCKS, prefill_tps=SPEED)
    rows = list(run(load_trace(trace_file, "mooncake"), fleet, policies(Weights())))
    assert [row["policy"] for row in rows if row["default"]] == ["prefix"]
    keys = {
        "policy", "default", "hit_rate", "ttft_mean_s", "ttft_p99_s", "imbalance", "goodput",
        "refused",
    }  # fmt: skip
    assert all(row.keys() == keys for row in rows)


def test_sessions_are_cut_to_blocks_of_512_tokens(tmp_path: Path) -> None:
    """Every eighth 64-token id names a block; other kinds of lines are not requests."""
    session = {
        "start_s": 10.0,
        "requests": [
            {"t": 1.5, "type": "n", "in": 1100, "out": 7, "hash_rle": [[0, 10], [50, 8]]},
            {"t": 2.0, "type": "tool"},
            {"t": 3.0, "type": "s", "in": 100, "hash_rle": [[0, 2]]},
            {"t": 4000.0, "type": "n", "in": 1100, "hash_rle": [[0, 16]]},
        ],
    }
    path = tmp_path / "sessions.jsonl"
    path.write_text(f"{json.dumps(session)}\n{json.dumps(session)}\n")
    first, second = load_trace(path, "sessions")
    assert (first.at_s, first.input_tokens, first.output_tokens) == (11.5, 1100, 7)
    assert len(first.blocks) == 2
    # Ids are local to a session.
    assert not set(first.blocks) & set(second.blocks)
    assert first.affinity != second.affinity


def test_tenants_share_no_blocks(trace_file: Path) -> None:
    """The salt's cost can be seen: the shared first block is held once a tenant."""
    alone = load_trace(trace_file, "mooncake")
    apart = load_trace(trace_file, "mooncake", tenants=4)
    assert len({request.blocks[0] for request in alone}) == 1
    assert 1 < len({request.blocks[0] for request in apart}) <= 4
    assert pooled_hit_rate(apart, 120) < pooled_hit_rate(alone, 120)


def burst(requests: int) -> list[TraceRequest]:
    """A conversation whose prompts come faster than events do."""
    return [
        TraceRequest(n * 0.01, 8 * 512, 1, tuple(range(1, 9)), affinity=1) for n in range(requests)
    ]


def test_own_routes_bridge_late_events() -> None:
    """Until the events come, the router's own memory keeps a burst together."""
    late = Fleet(workers=4, blocks=100, event_delay_s=60.0, note_s=0.0)
    bridged = Fleet(workers=4, blocks=100, event_delay_s=60.0, note_s=2.0)
    policy = policies(Weights())["prefix"]
    assert Replay(late, policy, PrefixIndex()).run(burst(40)).hit_rate == pytest.approx(36 / 40)
    assert Replay(bridged, policy, PrefixIndex()).run(burst(40)).hit_rate == pytest.approx(39 / 40)


def test_lost_events_cost_hits_and_never_the_replay() -> None:
    """Where nothing is heard, blocks are still cached, only not looked for."""
    fleet = Fleet(workers=4, blocks=100, lost_events=1.0, note_s=0.0)
    figures = Replay(fleet, policies(Weights())["prefix"], PrefixIndex()).run(burst(40))
    assert figures.hit_rate == pytest.approx(36 / 40)


def test_a_full_fleet_refuses_and_refusals_are_no_goodput() -> None:
    """With a bound on queues, requests beyond it are counted and not served."""
    fleet = Fleet(workers=1, blocks=4, prefill_tps=512.0, max_queue_s=1.0, ttft_limit_s=100.0)
    trace = [TraceRequest(0.0, 512, 1, (n,), affinity=n) for n in range(10)]
    figures = Replay(fleet, policies(Weights())["prefix"], PrefixIndex()).run(trace)
    assert figures.refused == 8
    assert figures.goodput == pytest.approx(0.2)
