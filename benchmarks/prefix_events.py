"""Lookups of a sidecar while workers tell it of their KV blocks, and while they are silent.

    python -m benchmarks.prefix_events --events-per-s 100000 --json -

Sidecar and event sources are processes of their own. One caller asks for the hint of
a short prompt, again and again; ``quiet`` is the same sidecar with silent workers.
Event rates are of blocks, stored or removed; CPU is the sidecar's alone.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import uvloop

from benchmarks.cpu_time import cpu_seconds
from benchmarks.kv_source import MODEL, REVISION
from benchmarks.statistics import quantile
from chaos.process import ServiceProcess
from sidecache.v1 import cache_pb2, cache_pb2_grpc

PROMPT = "Tell me about the KV cache of a large language model. " * 4
PAUSE_S = 0.002


async def measure(
    events_per_s: int, workers: int, batch_blocks: int, seconds: float, folder: Path
) -> dict[str, Any]:
    """Lookup latency and the sidecar's CPU at this rate of events, all workers together."""
    folder.mkdir()
    source = {
        "blocks_per_s": str(events_per_s // workers),
        "batch_blocks": str(batch_blocks),
    }
    async with AsyncExitStack() as running:
        settings = {"semantic__enabled": "false"}
        cache = await running.enter_async_context(
            ServiceProcess.start("cache_svc", folder, settings)
        )
        sources = [
            await running.enter_async_context(
                ServiceProcess.start(
                    "benchmarks.kv_source",
                    folder,
                    source,
                    name=f"source{number}",
                    env_prefix="KV_SOURCE_",
                )
            )
            for number in range(workers)
        ]
        channel = await running.enter_async_context(grpc.aio.insecure_channel(cache.address))
        stub: cache_pb2_grpc.CacheServiceAsyncStub = cache_pb2_grpc.CacheServiceStub(channel)
        targets = [cache_pb2.WorkerTarget(address=each.address) for each in sources]
        await stub.SetWorkers(cache_pb2.SetWorkersRequest(router="r", workers=targets))
        await _until_following(stub, workers)
        return await _lookups(stub, cache.pid, seconds)


async def _until_following(stub: "cache_pb2_grpc.CacheServiceAsyncStub", workers: int) -> None:
    async with asyncio.timeout(20):
        while True:
            stats = await stub.GetStats(cache_pb2.GetStatsRequest())
            if stats.prefix_workers_followed == workers:
                return
            await asyncio.sleep(0.05)


async def _lookups(
    stub: "cache_pb2_grpc.CacheServiceAsyncStub", pid: int, seconds: float
) -> dict[str, Any]:
    query = cache_pb2.PrefixQuery(text=PROMPT, model=MODEL, model_revision=REVISION)
    request = cache_pb2.LookupRequest(prefix=query)
    took: list[float] = []
    without = 0
    before = await stub.GetStats(cache_pb2.GetStatsRequest())
    cpu, started = cpu_seconds(pid), time.perf_counter()
    while time.perf_counter() - started < seconds:
        asked = time.perf_counter()
        answer = await stub.Lookup(request, timeout=1)
        took.append(1e3 * (time.perf_counter() - asked))
        without += not answer.miss.HasField("prefix")
        await asyncio.sleep(PAUSE_S)
    lasted = time.perf_counter() - started
    spent = cpu_seconds(pid) - cpu
    after = await stub.GetStats(cache_pb2.GetStatsRequest())
    return {
        "events_per_s": round((after.prefix_events - before.prefix_events) / lasted),
        "lookup_p50_ms": round(quantile(took, 0.5), 3),
        "lookup_p99_ms": round(quantile(took, 0.99), 3),
        "lookups": len(took),
        "without_hint": without,
        "sidecar_cpu_share": round(spent / lasted, 3),
        "blocks": after.prefix_blocks,
        "resyncs": after.prefix_resyncs - before.prefix_resyncs,
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Quiet and flooded, each with processes of its own."""
    shape = (options.workers, options.batch_blocks, options.seconds)
    with tempfile.TemporaryDirectory(prefix="prefix-events-") as scratch:
        return {
            "workers": options.workers,
            "batch_blocks": options.batch_blocks,
            "quiet": await measure(0, *shape, Path(scratch) / "quiet"),
            "flooded": await measure(options.events_per_s, *shape, Path(scratch) / "flooded"),
        }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events-per-s", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-blocks", type=int, default=32, help="blocks of one message")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    options = parser.parse_args()
    text = json.dumps(uvloop.run(run(options)), indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
