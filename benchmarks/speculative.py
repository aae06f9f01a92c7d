"""What a speculative start saves on a miss, and what it wastes on a hit.

    python -m benchmarks.speculative --json -

Two routers, one with ``lookup.speculative_start_s`` and one without, before the same
worker and the same sidecar, whose answers are held back by a given time: all of them, or
with ``--late-every`` one in so many (an odd number strikes both kinds alike). Asked in turn:
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
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
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
    late_every: int


class Lateness:
    """Holds back the sidecar's answer to one lookup in so many; lookups are asked in turn."""

    def __init__(self, proxy: FaultProxy, delay_s: float, every: int) -> None:
        self._proxy = proxy
        self._latency = Latency(delay_s)
        self._every = every
        self._lookups = 0

    def next(self) -> AbstractContextManager[object]:
        """What the next lookup is asked under."""
        self._lookups += 1
        if self._lookups % self._every:
            return nullcontext()
        return self._proxy.during(self._latency, Direction.DOWN)


def _spread(times_ms: list[float]) -> dict[str, float]:
    return {f"p{percent}": quantile(times_ms, percent / 100) for percent in (50, 95, 99)}


def request(question: str) -> pb.GenerateRequest:
    """A short chat."""
    message = pb.ChatMessage(role="user", content=question)
    return pb.GenerateRequest(chat=pb.Chat(messages=[message]), max_tokens=TOKENS, n=1)


async def misses(client: StreamClient, late: Lateness, count: int) -> dict[str, float]:
    """Time to the first token of questions that are new, in ms."""
    times = []
    for one in [request(f"new question {next(_serial)}") for _ in range(count)]:
        with late.next():
            times.append((await client.stream(one)).first_token_s * 1e3)
    return _spread(times)


async def hits(
    client: StreamClient, engine: CountingEngine, late: Lateness, count: int
) -> dict[str, float]:
    """Time to the first token of stored answers, and what the worker did for them."""
    known = [request(f"known question {number}") for number in range(16)]
    before, spoken, times, served = engine.generations, engine.spoken, [], 0
    for one in itertools.islice(itertools.cycle(known), count):
        with late.next():
            timed = await client.stream(one)
        times.append(timed.first_token_s * 1e3)
        served += timed.source == pb.SOURCE_EXACT
    return {
        **_spread(times),
        "served_from_cache": served / count,
        "generations_begun": (engine.generations - before) / count,
        "came_to_a_token": (engine.spoken - spoken) / count,
    }


async def learn(
    client: StreamClient, engine: CountingEngine, late: Lateness, count: int
) -> dict[str, float]:
    """Ask new and stored questions in turn; what was begun for nothing meanwhile, of the hits."""
    begun = 0
    for number in range(count):
        with late.next():
            await client.stream(request(f"new question {next(_serial)}"))
        before = engine.generations
        with late.next():
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
            for name, client in clients.items():
                late = Lateness(proxy, delay_ms / 1e3, setting.late_every)
                result[name] = {
                    "while_learning": await learn(client, engine, late, setting.learning),
                    "miss_first_token_ms": await misses(client, late, setting.streams),
                    "hit_first_token_ms": await hits(client, engine, late, setting.streams),
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
    parser.add_argument(
        "--late-every", type=int, default=1, help="one lookup in so many is held back"
    )
    options = parser.parse_args()
    setting = Setting(
        options.head_start_ms,
        options.ttft_ms,
        tuple(options.delays_ms),
        options.streams,
        options.learning,
        options.late_every,
    )
    result = {
        "head_start_ms": setting.head_start_ms,
        "worker_first_token_ms": setting.ttft_ms,
        "late_every": setting.late_every,
        "at": uvloop.run(run(setting)),
    }
    text = json.dumps(result, indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
