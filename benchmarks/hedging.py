"""What a second worker for late first tokens saves, and what it costs.

    python -m benchmarks.hedging --json -

Six scripted workers, one of them slow, behind two routers: one that hedges and one that waits.
Both are asked the same number of new questions, in turns, so many at a time. Told of each: the
time to the first token, and how many generations the workers began for each request. Outlier
ejection is on in both; a worker that is slow by less than ``outliers.ttft_min_s`` stays in.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.herd import CountingEngine, Herd, counting_worker
from benchmarks.statistics import quantile
from benchmarks.streams import StreamClient, Timed
from chaos.process import ServiceProcess
from sidecache.v1 import inference_pb2 as pb

TOKENS = 16
# Of one router, before it is the other one's turn.
ROUND = 50
WARM_UP = 120

_serial = itertools.count()


@dataclass(frozen=True)
class Setting:
    """What is measured at; first tokens after so long, at a usual worker and at the slow one."""

    ttft_ms: float
    slow_ms: float
    workers: int
    streams: int
    in_flight: int
    after_ms: float | None
    share: float


def request() -> pb.GenerateRequest:
    """A short question that nobody has asked."""
    message = pb.ChatMessage(role="user", content=f"question {next(_serial)}")
    return pb.GenerateRequest(chat=pb.Chat(messages=[message]), max_tokens=TOKENS, n=1)


@asynccontextmanager
async def fleet(setting: Setting) -> AsyncIterator[tuple[list[str], list[CountingEngine]]]:
    """The workers; the first is the slow one."""
    async with AsyncExitStack() as stack:
        addresses, engines = [], []
        for number in range(setting.workers):
            ttft_s = (setting.ttft_ms if number else setting.slow_ms) / 1e3
            herd = Herd(256, TOKENS, 1000.0, single_flight=True, arrive_s=0.0, ttft_s=ttft_s)
            address, engine = await stack.enter_async_context(counting_worker(herd))
            addresses.append(address)
            engines.append(engine)
        yield addresses, engines


async def run(setting: Setting) -> dict[str, Any]:
    """Ask both routers in turns."""
    hedge = {"hedge__enabled": "true", "hedge__share": str(setting.share)}
    if setting.after_ms is not None:
        hedge["hedge__after_s"] = str(setting.after_ms / 1e3)
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hedging-")))
        addresses, engines = await stack.enter_async_context(fleet(setting))
        clients: dict[str, StreamClient] = {}
        for name, extra in (("waits", {}), ("hedges", hedge)):
            # Each worker gets its share; by load a slow one would get less.
            common = {"workers": json.dumps(addresses), "insecure": "true"}
            routing = {"routing__policy": "round_robin"}
            process = ServiceProcess.start("router", scratch, common | routing | extra, name=name)
            router = await stack.enter_async_context(process)
            clients[name] = StreamClient(router.address)
            stack.push_async_callback(clients[name].close)
        for client in clients.values():
            # Until the delay is learned; not measured.
            await client.streams([request() for _ in range(WARM_UP)], setting.in_flight)
        timed: dict[str, list[Timed]] = {name: [] for name in clients}
        begun = dict.fromkeys(clients, 0)
        for _ in range(setting.streams // ROUND):
            for name, client in clients.items():
                before = _generations(engines)
                asked = [request() for _ in range(ROUND)]
                timed[name] += await client.streams(asked, setting.in_flight)
                begun[name] += _generations(engines) - before
        return {name: _figures(timed[name], begun[name]) for name in clients}


def _generations(engines: list[CountingEngine]) -> int:
    return sum(engine.generations for engine in engines)


def _figures(timed: list[Timed], begun: int) -> dict[str, float]:
    times = [one.first_token_s * 1e3 for one in timed]
    return {
        "streams": len(timed),
        "whole": sum(one.tokens == TOKENS for one in timed),
        "first_token_ms_p50": quantile(times, 0.5),
        "first_token_ms_p90": quantile(times, 0.9),
        "first_token_ms_p99": quantile(times, 0.99),
        "generations_a_request": begun / len(timed),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    parser.add_argument("--ttft-ms", type=float, default=40.0, help="of a usual worker")
    parser.add_argument("--slow-ms", type=float, default=400.0, help="of the slow one")
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--streams", type=int, default=600, help="of each router")
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--after-ms", type=float, help="the delay; left out: learned")
    parser.add_argument("--share", type=float, default=0.25, help="hedges for each request")
    options = vars(parser.parse_args())
    path = options.pop("json")
    setting = Setting(**options)
    text = json.dumps({"setting": vars(setting), **uvloop.run(run(setting))}, indent=2)
    if path == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(path).write_text(text + "\n")


if __name__ == "__main__":
    main()
