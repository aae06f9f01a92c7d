"""Who asks in other words what is just being answered: what waiting for it saves, and costs.

    python -m benchmarks.paraphrases --pairs pairs.jsonl --json -

Pairs of real questions, one JSON object a line with ``a``, ``b`` and ``same_answer``. Of
each pair somebody asks ``a``; as soon as he has a token, others ask ``b``. Each pair has a
namespace of its own, so that nothing but ``a`` can answer ``b``. Two routers in front of
one sidecar with its semantic tier and one scripted worker: one waits, one does not. The bound
on false hits trusts this tenant, so that the verifier decides.

``served``: answers to ``b`` that were those to ``a``, of pairs that deserve one answer and
(``wrong``) of those that do not. ``waited_in_vain``: answers to ``b`` that were generated
after ``a`` was over (a slow machine has some without any wait). ``late_s``: the times to
their first token.
"""

import argparse
import asyncio
import gzip
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.statistics import quantile
from chaos.process import ServiceProcess
from sidecache.client import CacheControl, Completion, SidecacheClient, Source
from sidecache.errors import SidecacheError
from sidecache.v1 import inference_pb2 as pb


@dataclass(frozen=True)
class Pair:
    """Two questions, and whether one answer does for both."""

    a: str
    b: str
    same: bool


@dataclass(frozen=True)
class Setting:
    """What is measured at."""

    pairs: list[Pair]
    callers: int
    tokens: int
    tokens_per_s: float
    similarity: float
    wait_s: float
    at_once: int


@dataclass
class Seen:
    """What came of the callers that asked ``b``; each list by whether the pair is the same."""

    asked: list[int] = field(default_factory=lambda: [0, 0])
    served: list[int] = field(default_factory=lambda: [0, 0])
    waited_in_vain: int = 0
    errors: int = 0
    generations: int = 0
    first_token_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)


def read_pairs(file: Path, limit: int) -> list[Pair]:
    """So many pairs of a .jsonl or .jsonl.gz file, evenly spread over it."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    step = max(1, len(rows) // limit)
    taken = rows[::step][:limit]
    return [Pair(row["a"], row["b"], bool(row["same_answer"])) for row in taken]


async def ask(
    client: SidecacheClient, setting: Setting, pair: Pair, namespace: str, seen: Seen
) -> None:
    """One pair: who asks ``a``, and after his first token all who ask ``b``."""
    cache = CacheControl(namespace=namespace)
    over_at = 0.0

    async def other() -> None:
        began_at = time.perf_counter()
        seen.asked[pair.same] += 1
        try:
            got = await client.complete(pair.b, max_tokens=setting.tokens, cache=cache)
        except SidecacheError:
            seen.errors += 1
            return
        _note(seen, pair, got, began_at, over_at)

    async with asyncio.TaskGroup() as tasks:
        async with client.generate(pair.a, max_tokens=setting.tokens, cache=cache) as stream:
            has_spoken = False
            async for event in stream:
                seen.generations += event.started.source == pb.SOURCE_ENGINE
                if event.delta.token_ids and not has_spoken:
                    has_spoken = True
                    for _ in range(setting.callers):
                        tasks.create_task(other())
        over_at = time.perf_counter()


def _note(seen: Seen, pair: Pair, got: Completion, began_at: float, over_at: float) -> None:
    first_s = got.ttft_s or 0.0
    seen.generations += got.source is Source.ENGINE
    seen.first_token_s.append(first_s)
    if got.source is Source.SEMANTIC:
        seen.served[pair.same] += 1
    elif got.source is Source.ENGINE and over_at and began_at + first_s > over_at:
        seen.waited_in_vain += 1
        seen.late_s.append(first_s)


@asynccontextmanager
async def routers(setting: Setting) -> AsyncIterator[dict[str, SidecacheClient]]:
    """A router that waits and one that does not, each with a sidecar of its own."""
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paraphrases-")))

        async def start(module: str, name: str, settings: dict[str, str]) -> str:
            service = ServiceProcess.start(module, scratch, settings, name=name)
            return (await stack.enter_async_context(service)).address

        worker = {"engine": "scripted", "max_sequences": "4096"}
        worker["scripted__tokens_per_s"] = str(setting.tokens_per_s)
        workers = json.dumps([await start("inference_svc", "worker", worker)])
        addresses = {}
        waiting = {"flights__paraphrase_wait_s": str(setting.wait_s)}
        for name, extra in (("alone", {}), ("waits", waiting)):
            sidecar = {
                "server__listen": f"unix:{scratch}/{name}.sock",
                "semantic__budget_s": "2",
                # As if there were evidence: a new tenant is trusted with a few hits only.
                "semantic__bound__trusted_false_hits": "1000",
                "flights__paraphrase_similarity": str(setting.similarity),
            }
            common = {
                "workers": workers,
                "cache": await start("cache_svc", f"cache-{name}", sidecar),
                "insecure": "true",
                "lookup__lookup_timeout_s": "2",
            }
            addresses[name] = await start("router", f"router-{name}", common | extra)
        # Only now: a process with gRPC's threads in it is no good one to fork.
        yield {
            name: await stack.enter_async_context(SidecacheClient(address))
            for name, address in addresses.items()
        }


async def run(setting: Setting) -> dict[str, Any]:
    """Ask every pair through both routers; a few at once, in the order of the file."""
    result: dict[str, Any] = {}
    async with routers(setting) as clients:
        for name, client in clients.items():
            seen, turn = Seen(), asyncio.Semaphore(setting.at_once)

            async def one(number: int, pair: Pair) -> None:
                async with turn:  # noqa: B023 - all are done before it changes
                    await ask(client, setting, pair, f"pair-{number}", seen)  # noqa: B023 - same

            async with asyncio.TaskGroup() as tasks:
                for number, pair in enumerate(setting.pairs):
                    tasks.create_task(one(number, pair))
            result[name] = _result(seen)
    return result


def _result(seen: Seen) -> dict[str, Any]:
    return {
        "generations": seen.generations,
        "asked_b": {"same": seen.asked[True], "different": seen.asked[False]},
        "served": seen.served[True],
        "wrong": seen.served[False],
        "waited_in_vain": seen.waited_in_vain,
        "errors": seen.errors,
        "first_token_s": _spread(seen.first_token_s),
        "late_s": _spread(seen.late_s),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {f"p{q:.0%}".rstrip("%"): quantile(values, q) for q in (0.5, 0.99)} if values else {}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True, metavar="FILE")
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    parser.add_argument("--limit", type=int, default=300, help="pairs taken from the file")
    parser.add_argument("--callers", type=int, default=5, help="who ask b, of each pair")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--tokens-per-s", type=float, default=50.0)
    parser.add_argument("--similarity", type=float, default=0.9)
    parser.add_argument("--wait-s", type=float, default=10.0)
    parser.add_argument("--at-once", type=int, default=4, help="pairs")
    options = parser.parse_args()
    setting = Setting(
        read_pairs(options.pairs, options.limit),
        options.callers,
        options.tokens,
        options.tokens_per_s,
        options.similarity,
        options.wait_s,
        options.at_once,
    )
    text = json.dumps(uvloop.run(run(setting)), indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
