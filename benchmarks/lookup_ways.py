"""What asking the sidecar costs: a gRPC call against a question over the link.

    python -m benchmarks.lookup_ways --json -

A real sidecar on a Unix socket, as a process, with its semantic tier off; this process asks
it for stored answers, in rounds that alternate between the two ways. CPU is that of each
process alone, so "asker" is what a router pays. Compare ratios of one run.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.cpu_time import cpu_seconds
from benchmarks.statistics import median, quantile
from chaos.process import ServiceProcess
from observability import names
from observability.channel import open_channel
from observability.interceptors.client import ClientEdge
from observability.link import link_path
from observability.settings import ChannelSettings, TelemetrySettings
from observability.telemetry import Telemetry
from router.cache_link import CacheLink
from sidecache.v1 import cache_pb2, cache_pb2_grpc
from sidecache.v1 import inference_pb2 as pb

TOKENS = 32
_TIMEOUT_S = 10.0

Ask = Callable[[cache_pb2.LookupRequest], Awaitable[cache_pb2.LookupResponse]]


@dataclass(frozen=True)
class Ways:
    """A sidecar's process, and how it can be asked."""

    sidecar: ServiceProcess
    by: dict[str, Ask]


def _key() -> cache_pb2.CacheKey:
    return cache_pb2.CacheKey(
        tenant="benchmark", model="model", scope=b"s" * 32, exact=b"e" * 32, semantic_text="why?"
    )


def _entry() -> cache_pb2.StoreEntry:
    delta = pb.Delta(token_ids=range(TOKENS), text="word " * TOKENS)
    finished = pb.Finished(reason=pb.FINISH_REASON_STOP)
    answer = cache_pb2.Answer(deltas=[delta], finished=[finished], worker="w")
    return cache_pb2.StoreEntry(key=_key(), answer=answer)


@asynccontextmanager
async def ways(folder: Path) -> AsyncIterator[Ways]:
    """A sidecar with one stored answer, reached both ways."""
    async with AsyncExitStack() as stack:
        settings = {"server__listen": f"unix:{folder}/cache.sock", "semantic__enabled": "false"}
        sidecar = await stack.enter_async_context(
            ServiceProcess.start("cache_svc", folder, settings)
        )
        telemetry = Telemetry.start("benchmark", TelemetrySettings())
        stack.push_async_callback(telemetry.aclose)
        address = sidecar.address
        channel = await stack.enter_async_context(open_channel(address, telemetry))
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        await stub.Store(cache_pb2.StoreRequest(entries=[_entry()]), timeout=_TIMEOUT_S)
        path = link_path(address)
        if path is None:
            raise RuntimeError(f"{address} can have no link")
        edge = ClientEdge(telemetry, address, names.LINK)
        link = CacheLink(path, edge, ChannelSettings().max_message_bytes)
        running = asyncio.create_task(link.run())
        stack.callback(running.cancel)
        async with asyncio.timeout(_TIMEOUT_S):
            await link.came_up.wait()
        yield Ways(
            sidecar,
            {
                "call": lambda request: stub.Lookup(request, timeout=_TIMEOUT_S),
                "link": lambda request: link.look_up(request, _TIMEOUT_S),
            },
        )


async def _round(ask: Ask, sidecar: int, lookups: int, callers: int) -> dict[str, float]:
    """CPU µs a lookup of both processes, and milliseconds of each lookup."""
    taken: list[float] = []
    request = cache_pb2.LookupRequest(key=_key())

    async def caller() -> None:
        for _ in range(lookups // callers):
            started = time.perf_counter()
            response = await ask(request)
            taken.append(time.perf_counter() - started)
            if not response.HasField("hit"):
                raise RuntimeError("a stored answer was not found")

    before = (cpu_seconds(os.getpid()), cpu_seconds(sidecar))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(caller())
    after = (cpu_seconds(os.getpid()), cpu_seconds(sidecar))
    return {
        "asker_us": (after[0] - before[0]) / len(taken) * 1e6,
        "sidecar_us": (after[1] - before[1]) / len(taken) * 1e6,
        "p50_ms": quantile(taken, 0.5) * 1e3,
        "p99_ms": quantile(taken, 0.99) * 1e3,
    }


async def run(rounds: int, lookups: int) -> dict[str, Any]:
    """Medians over the rounds, by number of callers and way."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ways-") as scratch:
        async with ways(Path(scratch)) as parts:
            for callers in (1, 16):
                found: dict[str, list[dict[str, float]]] = {way: [] for way in parts.by}
                for number in range(rounds + 1):
                    for way, ask in parts.by.items():
                        figures = await _round(ask, parts.sidecar.pid, lookups, callers)
                        if number:  # the first round warms up
                            found[way].append(figures)
                result[f"{callers}_callers"] = {
                    way: {name: median([each[name] for each in all_]) for name in all_[0]}
                    for way, all_ in found.items()
                }
    return result


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lookups", type=int, default=1600, help="of one round")
    options = parser.parse_args()
    text = json.dumps(uvloop.run(run(options.rounds, options.lookups)), indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
