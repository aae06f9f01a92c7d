"""What a speculative start saves on a miss, and what it wastes on a hit.

    python -m benchmarks.speculative --json -

Two routers, one with ``lookup.speculative_start_s`` and one without, before the same
worker and the same sidecar, whose answers are held back by a given time. Asked in turn:
questions that nobody has stored (the time to the first token), and stored ones (the time
to the first token, and how many generations were begun for nothing). The head start is
learned from how lookups go: what that costs when a delay is new is ``while_learning``, of as
many stored questions as new ones asked in turn; the rest is measured after it.
"""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.herd import CountingEngine, Herd, counting_worker
from benchmarks.statistics import quantile
from benchmarks.streams import StreamClient
from chaos.faults import Direction, Latency
from chaos.process import ServiceProcess
from chaos.proxy import FaultProxy
from sidecache.v1 import inference_pb2 as pb

TOKENS = 16

_serial = itertools.count()


@dataclass(frozen=True)
class Setting:
    """What is measured at."""

    head_start_ms: float
    ttft_ms: float
    delays_ms: tuple[float, ...]
    streams: int
    learning: int


def request(question: str) -> pb.GenerateRequest:
    """A short chat."""
    message = pb.ChatMessage(role="user", content=question)
    return pb.GenerateRequest(chat=pb.Chat(messages=[message]), max_tokens=TOKENS, n=1)


async def misses(client: StreamClient, count: int) -> dict[str, float]:
    """Time to the first token of questions that are new, in ms."""
    asked = [request(f"new question {next(_serial)}") for _ in range(count)]
    times = [(await client.stream(one)).first_token_s * 1e3 for one in asked]
    return {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99)}


async def hits(client: StreamClient, engine: CountingEngine, count: int) -> dict[str, float]:
    """Time to the first token of stored answers, and what the worker did for them."""
    known = [request(f"known question {number}") for number in range(16)]
    before, spoken, times, served = engine.generations, engine.spoken, [], 0
    for one in itertools.islice(itertools.cycle(known), count):
        timed = await client.stream(one)
        times.append(timed.first_token_s * 1e3)
        served += timed.source == pb.SOURCE_EXACT
    return {
        "p50": quantile(times, 0.5),
        "p99": quantile(times, 0.99),
        "served_from_cache": served / count,
        "generations_begun": (engine.generations - before) / count,
        "came_to_a_token": (engine.spoken - spoken) / count,
    }


async def learn(client: StreamClient, engine: CountingEngine, count: int) -> dict[str, float]:
    """Ask new and stored questions in turn; what was begun for nothing meanwhile, of the hits."""
    begun = 0
    for number in range(count):
        await client.stream(request(f"new question {next(_serial)}"))
        before = engine.generations
        await client.stream(request(f"known question {number % 16}"))
        begun += engine.generations - before
    return {"requests": 2 * count, "generations_begun": begun / count if count else 0.0}


async def _store_known(client: StreamClient) -> None:
    known = [request(f"known question {number}") for number in range(16)]
    async with asyncio.timeout(20):
        # Stores happen in the background; only another look tells.
        while any(s.source != pb.SOURCE_EXACT for s in await client.streams(known, 4)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def run(setting: Setting) -> list[dict[str, Any]]:
    """Measure at each delay."""
    results: list[dict[str, Any]] = []
    herd = Herd(64, TOKENS, 1000.0, single_flight=True, arrive_s=0.0, ttft_s=setting.ttft_ms / 1e3)
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="speculative-")))
        address, engine = await stack.enter_async_context(counting_worker(herd))

        async def start(module: str, name: str, settings: dict[str, str]) -> ServiceProcess:
            return await stack.enter_async_context(
                ServiceProcess.start(module, scratch, settings, name=name)
            )

        sidecar = {"server__listen": f"unix:{scratch}/cache.sock", "semantic__enabled": "false"}
        cache = await start("cache_svc", "cache", sidecar)
        proxy = await stack.enter_async_context(FaultProxy.open(cache.address))
        common = {
            "workers": json.dumps([address]),
            "cache": proxy.address,
            "insecure": "true",
            "lookup__lookup_timeout_s": "0.5",
        }
        clients: dict[str, StreamClient] = {}
        head_start = {"lookup__speculative_start_s": str(setting.head_start_ms / 1e3)}
        for name, extra in (("waits", {}), ("speculates", head_start)):
            router = await start("router", name, common | extra)
            clients[name] = StreamClient(router.address)
            stack.push_async_callback(clients[name].close)
        await _store_known(clients["waits"])
        for delay_ms in setting.delays_ms:
            result: dict[str, Any] = {"lookup_delay_ms": delay_ms}
            with proxy.during(Latency(delay_ms / 1e3), Direction.DOWN):
                for name, client in clients.items():
                    result[name] = {
                        "while_learning": await learn(client, engine, setting.learning),
                        "miss_first_token_ms": await misses(client, setting.streams),
                        "hit_first_token_ms": await hits(client, engine, setting.streams),
                    }
            results.append(result)
    return results


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    parser.add_argument("--head-start-ms", type=float, default=5.0)
    parser.add_argument("--ttft-ms", type=float, default=40.0, help="of the worker")
    parser.add_argument("--delays-ms", type=float, nargs="+", default=[0.0, 10.0, 30.0, 100.0])
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--learning", type=int, default=48, help="hits, and as many misses")
    options = parser.parse_args()
    setting = Setting(
        options.head_start_ms,
        options.ttft_ms,
        tuple(options.delays_ms),
        options.streams,
        options.learning,
    )
    result = {
        "head_start_ms": setting.head_start_ms,
        "worker_first_token_ms": setting.ttft_ms,
        "at": uvloop.run(run(setting)),
    }
    text = json.dumps(result, indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
