"""How good the semantic tier is: pairs with traps, and streams under a stated error.

    python -m benchmarks.semantic_quality --pairs FILE … --stream FILE --delta 0.02 --json -

Beside our own verifier, bound and index run, on the same vectors and in the same
orders: static thresholds, GPTCache's default and vCache. A pair is two requests
of a tenant of its own, first a, then b. A stream starts with an empty cache.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.semantic.data import Embeddings, PairSet, Stream, read_pairs, read_stream
from benchmarks.semantic.methods import Method, World, gptcache, in_order, make_world, static
from benchmarks.semantic.ours import Sidecache
from benchmarks.semantic.strictness import fact_reader
from benchmarks.semantic.vcache import vcache
from benchmarks.statistics import quantile
from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.learned_verifier import LearnedVerifier
from cache_svc.lexical_guard import LexicalGuard
from cache_svc.open_embedder import MINILM_WEIGHTS
from cache_svc.settings import SemanticSettings
from sidecache import weights

THRESHOLDS = (0.75, 0.80, 0.82, 0.84, 0.86, 0.87, 0.88, 0.89, 0.90, 0.91, 0.92, 0.93, 0.95)
# vCache's δ bounds errors over requests; its best is looked for on both sides of ours.
VCACHE_DELTAS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05)
# A stream's requests see the stored ones among so many nearest of all.
_NEIGHBORS = 256

Row = dict[str, Any]
# Makes a method afresh for a run; the argument is the run's seed.
Maker = Callable[[int], Method]


class Bench(NamedTuple):
    """What every measurement needs."""

    embeddings: Embeddings
    makers: dict[str, Maker]
    facts_differ: Callable[[str, str], bool]


def measure_pairs(bench: Bench, pairs: PairSet) -> Iterator[Row]:
    """A row for each method: each pair in a tenant of its own."""
    worlds = []
    for a, b, same_answer, _ in pairs.pairs:
        senses = (0, 0 if same_answer else 1)
        worlds.append(make_world((a, b), senses, bench.embeddings.of((a, b)), 1))
    for name, maker in bench.makers.items():
        seconds: list[float] = []
        categories: dict[str, dict[str, int]] = {}
        hits = false = strict = 0
        for seed, (pair, world) in enumerate(zip(pairs.pairs, worlds, strict=True)):
            trace = maker(seed).run(world)
            served = int(trace.served[1]) == 0
            wrong = served and not pair.same_answer
            counts = categories.setdefault(pair.category, {"pairs": 0, "served": 0, "wrong": 0})
            counts["pairs"] += 1
            counts["served"] += served
            counts["wrong"] += wrong
            hits += served
            false += wrong
            strict += wrong or (served and bench.facts_differ(pair.a, pair.b))
            seconds.extend(trace.lookup_s[1:])
        yield _row(pairs.name, name, 0, len(worlds), (hits, false, strict), seconds, categories)


def measure_stream(bench: Bench, stream: Stream, orders: int) -> Iterator[Row]:
    """A row for each method and order; order 0 is the first shuffle, not the file's."""
    names = {intent: number for number, intent in enumerate(dict.fromkeys(stream.intents))}
    senses = [names[intent] for intent in stream.intents]
    vectors = bench.embeddings.of(stream.texts)
    world = make_world(stream.texts, senses, vectors, _NEIGHBORS)
    for order in range(orders):
        shuffled = in_order(world, np.random.default_rng(order).permutation(len(senses)))
        for name, maker in bench.makers.items():
            started = time.perf_counter()
            trace = maker(order).run(shuffled)
            counts = _count(shuffled, trace.served, bench.facts_differ)
            yield _row(stream.name, name, order, len(senses), counts, trace.lookup_s, {})
            _tell(f"{stream.name} {name} {order}: {time.perf_counter() - started:.1f} s")


def _count(
    world: World, served: "np.typing.NDArray[np.int64]", facts_differ: Callable[[str, str], bool]
) -> tuple[int, int, int]:
    """Hits, those of another sense, and those of another sense or of other facts."""
    hits = false = strict = 0
    for i in np.flatnonzero(served >= 0).tolist():
        j = int(served[i])
        wrong = world.senses[i] != world.senses[j]
        hits += 1
        false += wrong
        strict += wrong or facts_differ(world.texts[i], world.texts[j])
    return hits, false, strict


def _row(
    dataset: str,
    method: str,
    order: int,
    requests: int,
    counts: tuple[int, int, int],
    seconds: Sequence[float],
    categories: dict[str, dict[str, int]],
) -> Row:
    hits, false, strict = counts
    return {
        "dataset": dataset,
        "method": method,
        "order": order,
        "requests": requests,
        "hits": hits,
        "false_hits": false,
        "strict_false_hits": strict,
        "lookup_p50_ms": round(1e3 * quantile(seconds, 0.5), 4) if seconds else None,
        "lookup_p99_ms": round(1e3 * quantile(seconds, 0.99), 4) if seconds else None,
        "categories": categories,
    }


def all_makers(delta: float, settings: SemanticSettings) -> dict[str, Maker]:
    """Every method that is compared, by its name."""
    guard = LexicalGuard(kept_readings=20_000)
    verifier = guard if settings.verifier == "rules" else LearnedVerifier(guard=guard)
    makers: dict[str, Maker] = {
        "sidecache": lambda seed: Sidecache(verifier, settings, delta, seed)
    }
    makers |= {f"static-{threshold:.2f}": _static(threshold) for threshold in THRESHOLDS}
    makers["gptcache"] = lambda _: gptcache()
    makers |= {f"vcache-{vcache_delta:g}": _vcache(vcache_delta) for vcache_delta in VCACHE_DELTAS}
    return makers


def _static(threshold: float) -> Maker:
    return lambda _: static(threshold)


def _vcache(delta: float) -> Maker:
    return lambda seed: vcache(delta, seed)


def wilson(count: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    if not total:
        return 0.0, 1.0
    z, p = 1.96, count / total
    center = p + z * z / (2 * total)
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return (center - spread) / scale, (center + spread) / scale


def within_bound(false: int, hits: int, delta: float) -> bool:
    """Whether so many false hits are within binomial tolerance (one-sided, 5 %) of δ."""
    below = 0.0
    for k in range(false):
        below += math.exp(
            math.lgamma(hits + 1)
            - math.lgamma(k + 1)
            - math.lgamma(hits - k + 1)
            + k * math.log(delta)
            + (hits - k) * math.log1p(-delta)
        )
    return 1.0 - below > 0.05  # noqa: PLR2004  # the test's level


def summarize(rows: Sequence[Row], delta: float) -> str:
    """A table for people: each method over all orders, and whether the bound was kept."""
    lines = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        lines.append(f"\n{dataset}")
        for method in dict.fromkeys(row["method"] for row in rows if row["dataset"] == dataset):
            runs = [r for r in rows if (r["dataset"], r["method"]) == (dataset, method)]
            hits, false = sum(r["hits"] for r in runs), sum(r["false_hits"] for r in runs)
            requests = sum(r["requests"] for r in runs)
            strict = sum(r["strict_false_hits"] for r in runs)
            shares = [r["hits"] / r["requests"] for r in runs]
            low, high = wilson(false, hits)
            kept = sum(within_bound(r["false_hits"], r["hits"], delta) for r in runs)
            lines.append(
                f"  {method:13} hits {hits / requests:6.1%}"
                f" ({min(shares):.1%} to {max(shares):.1%})"
                f"  false/requests {false / requests:6.2%}"
                f"  false/hits {false / max(1, hits):6.2%} [{low:.2%}, {high:.2%}]"
                f"  strict {strict / max(1, hits):6.2%}  bound kept {kept}/{len(runs)}"
                f"  p50 {runs[0]['lookup_p50_ms']} ms, p99 {runs[0]['lookup_p99_ms']} ms"
            )
            for name, counts in runs[0]["categories"].items() if hits else ():
                low, high = wilson(counts["served"], counts["pairs"])
                lines.append(
                    f"      {name:14} served {counts['served']} of {counts['pairs']}"
                    f" [{low:.1%}, {high:.1%}], {counts['wrong']} wrong"
                )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, nargs="*", default=[], help="pair sets")
    parser.add_argument("--stream", type=Path, nargs="*", default=[], help="streams")
    parser.add_argument("--delta", type=float, default=0.02, help="max_false_hit_rate")
    parser.add_argument("--orders", type=int, default=5, help="orders of each stream")
    parser.add_argument("--verifier", choices=("learned", "rules"), help="default: the setting's")
    parser.add_argument("--min-similarity", type=float, help="floor; default: the setting's")
    parser.add_argument("--methods", help="only those whose names begin so, with commas between")
    parser.add_argument("--embeddings-cache", type=Path, help="a file that keeps vectors (.npz)")
    parser.add_argument("--json", help="where the rows go; -: standard output")
    asked = parser.parse_args(arguments)
    settings = SemanticSettings()
    if asked.verifier is not None:
        settings = settings.model_copy(update={"verifier": asked.verifier})
    if asked.min_similarity is not None:
        settings = settings.model_copy(update={"min_similarity": asked.min_similarity})
    makers = all_makers(asked.delta, settings)
    if asked.methods:
        wanted = tuple(asked.methods.split(","))
        makers = {name: maker for name, maker in makers.items() if name.startswith(wanted)}
    embedder = OnnxEmbedder(
        settings.embedder_path or weights.locate(MINILM_WEIGHTS),
        window_tokens=settings.window_tokens,
        threads=settings.embedder_threads,
    )
    bench = Bench(Embeddings(embedder, asked.embeddings_cache), makers, fact_reader())
    rows: list[Row] = []
    for path in asked.pairs:
        rows.extend(measure_pairs(bench, read_pairs(path)))
    for path in asked.stream:
        rows.extend(measure_stream(bench, read_stream(path), asked.orders))
    _tell(summarize(rows, asked.delta))
    if asked.json == "-":
        print(json.dumps(rows))
    elif asked.json:
        Path(asked.json).write_text(json.dumps(rows), encoding="utf-8")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
