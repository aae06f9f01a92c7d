"""What the router costs: CPU and latency, beside a naive pass-through in the same run.

    python -m benchmarks.overhead --json -

Starts the scripted engine as a worker, the cache sidecar, the router with
everything on (keys, cache lookups and stores, metrics and 1 % of traces exported
to a collector) and the naive proxy, each as a process on 127.0.0.1, and sends
them the same 32-token streams in alternating rounds. CPU is that of the proxy's
or router's process alone. Compare ratios of one run, never figures of two.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.cpu_time import cpu_seconds, resident_mb
from benchmarks.otlp_sink import otlp_sink
from benchmarks.statistics import median, quantile
from benchmarks.streams import StreamClient
from chaos.process import ServiceProcess
from sidecache.v1 import inference_pb2 as pb

TOKENS = 32
KEY = "benchmark-key"
TRACE_SAMPLE_RATIO = "0.01"

_serial = itertools.count()


@dataclass(frozen=True)
class Load:
    """How much is sent."""

    rounds: int
    streams: int
    concurrency: int
    first_tokens: int


@dataclass(frozen=True)
class Stack:
    """The processes of one measurement, and a client to each."""

    router: ServiceProcess
    naive: ServiceProcess
    to_worker: StreamClient
    to_naive: StreamClient
    to_router: StreamClient


def requests(count: int) -> list[pb.GenerateRequest]:
    """Requests that nobody has seen before: each is a miss that is stored."""
    return [_request(f"question number {next(_serial)}") for _ in range(count)]


def _request(question: str) -> pb.GenerateRequest:
    message = pb.ChatMessage(role="user", content=question)
    return pb.GenerateRequest(chat=pb.Chat(messages=[message]), max_tokens=TOKENS)


@asynccontextmanager
async def stack(
    folder: Path, endpoint: str, tokens_per_message: int, *, semantic: bool
) -> AsyncIterator[Stack]:
    """Start everything; all of it ends with the block."""
    folder.mkdir()
    keys = folder / "keys.toml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    keys.write_text(f'[[keys]]\ntenant = "benchmark"\nsha256 = "{digest}"\n')
    telemetry = {
        "telemetry__otlp_endpoint": endpoint,
        "telemetry__trace_sample_ratio": TRACE_SAMPLE_RATIO,
    }
    async with AsyncExitStack() as running:

        async def start(module: str, settings: dict[str, str], prefix: str = "") -> ServiceProcess:
            return await running.enter_async_context(
                ServiceProcess.start(module, folder, settings, env_prefix=prefix)
            )

        worker_settings = {
            "engine": "scripted",
            "coalesce_max_tokens": str(tokens_per_message),
            "max_sequences": "64",
        }
        worker = await start("inference_svc", telemetry | worker_settings)
        cache = await start(
            "cache_svc",
            telemetry
            | {
                "server__listen": f"unix:{folder}/cache.sock",
                "semantic__enabled": str(semantic).lower(),
            },
        )
        router = await start(
            "router",
            telemetry
            | {
                "workers": json.dumps([worker.address]),
                "cache": cache.address,
                "keys_file": str(keys),
            },
        )
        naive = await start(
            "benchmarks.naive_proxy", {"upstream": worker.address}, prefix="NAIVE_PROXY_"
        )
        clients = [
            StreamClient(worker.address),
            StreamClient(naive.address),
            StreamClient(router.address, KEY),
        ]
        for client in clients:
            running.push_async_callback(client.close)
        yield Stack(router, naive, *clients)


async def cpu_us_a_stream(process: ServiceProcess, client: StreamClient, load: Load) -> float:
    """CPU microseconds of ``process`` for one stream, over one round."""
    sent = requests(load.streams)
    before = cpu_seconds(process.pid)
    done = await client.streams(sent, load.concurrency)
    spent = cpu_seconds(process.pid) - before
    check(all(timed.tokens == TOKENS for timed in done), "a stream was not whole")
    return spent / load.streams * 1e6


async def measure_streams(parts: Stack, load: Load) -> dict[str, Any]:
    """CPU a stream of both, in alternating rounds after one to warm up."""
    naive: list[float] = []
    router: list[float] = []
    for number in range(load.rounds + 1):
        pair = (
            await cpu_us_a_stream(parts.naive, parts.to_naive, load),
            await cpu_us_a_stream(parts.router, parts.to_router, load),
        )
        if number:
            naive.append(pair[0])
            router.append(pair[1])
    loop = asyncio.get_running_loop()
    started = loop.time()
    await parts.to_router.streams(requests(load.streams), load.concurrency)
    return {
        "naive_us": median(naive),
        "router_us": median(router),
        "ratio": median([r / n for r, n in zip(router, naive, strict=True)]),
        "streams_per_s": load.streams / (loop.time() - started),
    }


async def measure_first_tokens(parts: Stack, count: int) -> dict[str, Any]:
    """Time to the first token with one caller: worker, naive proxy and router in turn."""
    seconds: dict[str, list[float]] = {"direct": [], "naive": [], "router": []}
    clients = {"direct": parts.to_worker, "naive": parts.to_naive, "router": parts.to_router}
    for number in range(count + 10):
        for name, client in clients.items():
            timed = await client.stream(requests(1)[0])
            if number >= 10:  # noqa: PLR2004 - the first ten warm up
                seconds[name].append(timed.first_token_s * 1e3)
    p50 = {name: quantile(values, 0.5) for name, values in seconds.items()}
    p99 = {name: quantile(values, 0.99) for name, values in seconds.items()}
    return {
        "direct_first_token_ms": {"p50": p50["direct"], "p99": p99["direct"]},
        "naive_first_token_ms": {"p50": p50["naive"], "p99": p99["naive"]},
        "router_first_token_ms": {"p50": p50["router"], "p99": p99["router"]},
        "added_first_token_ms": {
            "p50": p50["router"] - p50["direct"],
            "p99": p99["router"] - p99["direct"],
        },
    }


async def measure_hits(parts: Stack, load: Load) -> dict[str, Any]:
    """Exact hits: how many a CPU-second of the router, and their whole duration."""
    known = [_request(f"known question {number}") for number in range(64)]
    await parts.to_router.streams(known, load.concurrency)
    await _until_stored(parts.to_router, known)
    rates: list[float] = []
    for _ in range(load.rounds):
        sent = list(_cycle(known, load.streams))
        before = cpu_seconds(parts.router.pid)
        done = await parts.to_router.streams(sent, load.concurrency)
        rates.append(load.streams / (cpu_seconds(parts.router.pid) - before))
        check(all(timed.source == pb.SOURCE_EXACT for timed in done), "a hit was none")
    whole = [
        (await parts.to_router.stream(request)).duration_s * 1e3
        for request in _cycle(known, load.first_tokens)
    ]
    return {
        "exact_hits_per_s": median(rates),
        "exact_hit_ms": {"p50": quantile(whole, 0.5), "p99": quantile(whole, 0.99)},
    }


def _cycle(items: list[pb.GenerateRequest], count: int) -> Iterator[pb.GenerateRequest]:
    return itertools.islice(itertools.cycle(items), count)


async def _until_stored(client: StreamClient, known: list[pb.GenerateRequest]) -> None:
    """Stores happen in the background: ask until every one is found."""
    async with asyncio.timeout(20):
        while True:
            found = await client.streams(known, 8)
            if all(timed.source == pb.SOURCE_EXACT for timed in found):
                return
            await asyncio.sleep(0.05)


def check(holds: bool, problem: str) -> None:
    """Stop rather than report figures of a broken run.

    Raises:
        RuntimeError: it does not hold.
    """
    if not holds:
        raise RuntimeError(problem)


async def run(load: Load, *, semantic: bool) -> dict[str, Any]:
    """Measure everything; the result's keys are described in docs/performance.md."""
    result: dict[str, Any] = {"naive_us": {}, "router_us": {}, "ratio": {}, "streams_per_s": {}}
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        async with otlp_sink() as (endpoint, received):
            for tokens in (1, 8):
                async with stack(
                    Path(scratch) / str(tokens), endpoint, tokens, semantic=semantic
                ) as parts:
                    figures = await measure_streams(parts, load)
                    for name, value in figures.items():
                        result[name][str(tokens)] = value
                    if tokens == 8:  # noqa: PLR2004 - what a loaded worker sends
                        result |= await measure_first_tokens(parts, load.first_tokens)
                        result |= await measure_hits(parts, load)
                        result["router_resident_mb"] = resident_mb(parts.router.pid)
            check(received.metric_exports > 0, "no metrics were exported")
            result["spans_exported"] = len(received.spans)
    naive, router = result["naive_us"], result["router_us"]
    result["router_8_over_naive_1"] = router["8"] / naive["1"]
    result["router_8_over_naive_8"] = result["ratio"]["8"]
    result["exact_hit_over_naive_first_token"] = (
        result["exact_hit_ms"]["p50"] / result["naive_first_token_ms"]["p50"]
    )
    result["semantic"] = semantic
    return result


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=400, help="streams of one round")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--first-tokens", type=int, default=300, help="streams of one caller")
    parser.add_argument(
        "--semantic", action="store_true", help="with the semantic tier on (needs its weights)"
    )
    options = parser.parse_args()
    load = Load(options.rounds, options.streams, options.concurrency, options.first_tokens)
    result = uvloop.run(run(load, semantic=options.semantic))
    text = json.dumps(result, indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
