"""Load on a running Sidecache, with real prompts.

    python -m benchmarks.load --target 127.0.0.1:7070 --streams 200 --concurrency 8 --json -

Sends chats whose prompts are drawn, seeded, from a file by a Zipf law, as users
ask: few questions often, many once. So some are exact hits, some differ only in
words, most are new. The key is read from SIDECACHE_API_KEY.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.statistics import quantile
from sidecache.client import CacheControl, SidecacheClient, Source
from sidecache.errors import SidecacheError

PROMPTS = Path(__file__).parent / "data" / "banking77_sample.jsonl"


@dataclass
class Outcome:
    """What came of the streams so far; times in seconds."""

    by_source: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    ttft_s: dict[str, list[float]] = field(default_factory=dict)
    tpot_s: list[float] = field(default_factory=list)
    tokens: int = 0
    engine_tokens: int = 0


def read_prompts(path: Path) -> list[str]:
    """The prompts of a .jsonl file: each line's ``text``, or the first of its ``turns``.

    Raises:
        SystemExit: the file cannot be read, or a line has neither.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from error
    prompts = [row.get("text") or (row.get("turns") or [""])[0] for row in rows]
    if not prompts or not all(prompts):
        raise SystemExit(f"{path}: every line needs a text, or turns with at least one")
    return prompts


def draw(prompts: list[str], count: int, skew: float, seed: int) -> list[str]:
    """``count`` prompts by a Zipf law of exponent ``skew`` over a shuffled order."""
    order = random.Random(seed)  # noqa: S311 - repeatable, not secret
    ranked = order.sample(prompts, len(prompts))
    weights = [1 / rank**skew for rank in range(1, len(ranked) + 1)]
    return order.choices(ranked, weights, k=count)


async def one(client: SidecacheClient, prompt: str, options: Any, outcome: Outcome) -> None:
    """Read one stream and note what came of it."""
    started = time.perf_counter()
    try:
        answer = await client.complete(
            prompt,
            model=options.model,
            max_tokens=options.max_tokens,
            cache=CacheControl(namespace=options.namespace),
        )
    except SidecacheError as error:
        outcome.errors[type(error).__name__] += 1
        return
    duration_s = time.perf_counter() - started
    outcome.by_source[answer.source.name] += 1
    outcome.tokens += len(answer.token_ids)
    if answer.ttft_s is None:
        return
    outcome.ttft_s.setdefault(answer.source.name, []).append(answer.ttft_s)
    if answer.source is Source.ENGINE:
        outcome.engine_tokens += len(answer.token_ids)
        if len(answer.token_ids) > 1:
            outcome.tpot_s.append((duration_s - answer.ttft_s) / (len(answer.token_ids) - 1))


async def run(options: Any) -> dict[str, Any]:
    """Send everything, ``concurrency`` streams at a time."""
    prompts = iter(draw(read_prompts(options.prompts), options.streams, options.skew, options.seed))
    outcome = Outcome()
    key = os.environ.get("SIDECACHE_API_KEY")
    async with SidecacheClient(options.target, api_key=key) as client:

        async def caller() -> None:
            for prompt in prompts:
                await one(client, prompt, options, outcome)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(options.concurrency):
                tasks.create_task(caller())
        return report(outcome, time.perf_counter() - started, options)


def report(outcome: Outcome, duration_s: float, options: Any) -> dict[str, Any]:
    """The figures: times in milliseconds, rates by the second."""
    answered = sum(outcome.by_source.values())
    return {
        "streams": options.streams,
        "concurrency": options.concurrency,
        "duration_s": duration_s,
        "by_source": dict(outcome.by_source),
        "hit_rate": 1 - outcome.by_source["ENGINE"] / answered if answered else None,
        "errors": dict(outcome.errors),
        "ttft_ms": {source: _spread(values) for source, values in outcome.ttft_s.items()},
        "tpot_ms": _spread(outcome.tpot_s) if outcome.tpot_s else None,
        "tokens_per_s": outcome.tokens / duration_s,
        "engine_tokens_per_s": outcome.engine_tokens / duration_s,
        "streams_per_s": answered / duration_s,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"p50": quantile(values, 0.5) * 1e3, "p99": quantile(values, 0.99) * 1e3}


def main() -> int:
    """Run from the command line; 1 when a stream failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", required=True, help="address of the router")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help=".jsonl with text or turns")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--model", default="")
    parser.add_argument("--skew", type=float, default=1.0, help="exponent of the Zipf law")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--namespace", default="load", help="cache namespace of the run")
    options = parser.parse_args()
    result = asyncio.run(run(options))
    text = json.dumps(result, indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
