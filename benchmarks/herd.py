"""A herd with one question: what a thousand callers at once cost the engine.

    python -m benchmarks.herd --json -

Part a: so many identical requests at the same time, to a router with its sidecar, in
front of one scripted worker that counts its generations. Each answer is compared with
what the engine must say, token for token; its events' order and offsets are checked as a
client checks them. ``join_s`` is the time from the call to the first token. The callers
share the two cores with the router, so it is an upper bound of the router's own part.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.cpu_time import cpu_seconds, resident_mb
from benchmarks.statistics import quantile
from chaos.process import ServiceProcess
from chaos.reference import ScriptedReference
from inference_svc.engine import TokenDelta
from inference_svc.engines.scripted import ScriptedEngine
from inference_svc.kv_ledger import KvLedger
from inference_svc.reachable_blocks import ReachableBlocks
from inference_svc.serve import make_engine, serve_engine
from inference_svc.settings import ScriptedSettings, WorkerSettings
from observability.settings import TelemetrySettings
from observability.telemetry import Telemetry
from sidecache.client import SidecacheClient
from sidecache.errors import SidecacheError
from sidecache.v1 import inference_pb2 as pb

# Calls on one connection.
_STREAMS_A_CHANNEL = 100


@dataclass(frozen=True)
class Herd:
    """Who asks what."""

    callers: int
    tokens: int
    tokens_per_s: float
    single_flight: bool
    arrive_s: float
    ttft_s: float = 0.0


@dataclass
class Seen:
    """What came of it."""

    exact: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    join_s: list[float] = field(default_factory=list)
    duration_s: list[float] = field(default_factory=list)


class CountingEngine(ScriptedEngine):
    """Counts the generations it begins, and those that came to a token."""

    generations = 0
    spoken = 0

    @asynccontextmanager
    async def submit(self, request: Any) -> AsyncIterator[AsyncIterator[TokenDelta]]:
        self.generations += 1
        async with super().submit(request) as deltas:
            yield self._counted(deltas)

    async def _counted(self, deltas: AsyncIterator[TokenDelta]) -> AsyncIterator[TokenDelta]:
        is_first = True
        async for delta in deltas:
            self.spoken += is_first
            is_first = False
            yield delta


@asynccontextmanager
async def counting_worker(herd: Herd) -> AsyncIterator[tuple[str, CountingEngine]]:
    """A scripted worker in this process; it has next to nothing to do."""
    settings = WorkerSettings(
        engine="scripted",
        max_sequences=herd.callers,
        scripted=ScriptedSettings(tokens_per_s=herd.tokens_per_s, ttft_s=herd.ttft_s),
    )
    engine = make_engine(settings)
    engine.__class__ = CountingEngine
    assert isinstance(engine, CountingEngine)  # noqa: S101 - for the type checker
    telemetry = Telemetry.start("sidecache-worker", TelemetrySettings(log_level="ERROR"))
    ledger = KvLedger()
    engine.listen_kv(ReachableBlocks(ledger.record))
    await engine.load()
    try:
        async with serve_engine(engine, settings, telemetry, ledger) as server:
            yield server.address, engine
    finally:
        await engine.aclose()
        await telemetry.aclose()


def question(herd: Herd) -> pb.GenerateRequest:
    """The one that everybody asks."""
    message = pb.ChatMessage(role="user", content="What is the answer?")
    return pb.GenerateRequest(chat=pb.Chat(messages=[message]), max_tokens=herd.tokens, n=1)


async def ask(client: SidecacheClient, herd: Herd, wait_s: float, seen: Seen) -> None:
    """One caller; the client library checks order and offsets of what it gets."""
    await asyncio.sleep(wait_s)
    answer = ScriptedReference().answer(question(herd), 0)
    try:
        async with client.stream(question(herd)) as stream:
            got = await stream.complete()
    except SidecacheError as error:
        seen.errors[error.reason] += 1
        return
    seen.sources[got.source.name.lower()] += 1
    seen.exact += tuple(got.token_ids) == answer.token_ids and got.text == answer.text
    seen.join_s.append(got.ttft_s or 0.0)
    seen.duration_s.append(got.duration_s)


async def run(herd: Herd) -> dict[str, Any]:
    """Measure part a; the keys stand in docs/performance.md."""
    seen = Seen()
    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="herd-")))
        address, engine = await stack.enter_async_context(counting_worker(herd))

        async def start(module: str, settings: dict[str, str]) -> ServiceProcess:
            return await stack.enter_async_context(ServiceProcess.start(module, scratch, settings))

        cache = await start(
            "cache_svc",
            {"server__listen": f"unix:{scratch}/cache.sock", "semantic__enabled": "false"},
        )
        router = await start(
            "router",
            {
                "workers": json.dumps([address]),
                "cache": cache.address,
                "insecure": "true",
                "admission__max_streams": str(2 * herd.callers),
                "admission__max_streams_per_tenant": str(2 * herd.callers),
                "flights__max_readers": str(2 * herd.callers),
                "flights__single_flight": str(herd.single_flight).lower(),
            },
        )
        clients = [
            await stack.enter_async_context(SidecacheClient(router.address))
            for _ in range(-(-herd.callers // _STREAMS_A_CHANNEL))
        ]
        for client in clients:
            await client.models()
        cpu_before, began = cpu_seconds(router.pid), time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(herd.callers):
                wait_s = herd.arrive_s * number / herd.callers
                tasks.create_task(ask(clients[number % len(clients)], herd, wait_s, seen))
        return _result(herd, seen, engine) | {
            "seconds": time.perf_counter() - began,
            "router_cpu_ms_a_caller": (cpu_seconds(router.pid) - cpu_before) / herd.callers * 1e3,
            "router_resident_mb": resident_mb(router.pid),
        }


def _result(herd: Herd, seen: Seen, engine: CountingEngine) -> dict[str, Any]:
    return {
        "callers": herd.callers,
        "tokens": herd.tokens,
        "arrive_s": herd.arrive_s,
        "single_flight": herd.single_flight,
        "generations": engine.generations,
        "exact": seen.exact,
        "sources": dict(seen.sources),
        "errors": dict(seen.errors),
        "join_s": _spread(seen.join_s),
        "duration_s": _spread(seen.duration_s),
    }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"p50": quantile(values, 0.5), "p99": quantile(values, 0.99)}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    parser.add_argument("--callers", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--tokens-per-s", type=float, default=50.0)
    parser.add_argument("--arrive-s", type=float, default=0.0, help="spread the callers over this")
    parser.add_argument("--everybody-alone", action="store_true", help="without single flight")
    options = parser.parse_args()
    herd = Herd(
        options.callers,
        options.tokens,
        options.tokens_per_s,
        not options.everybody_alone,
        options.arrive_s,
    )
    text = json.dumps({"identical": uvloop.run(run(herd))}, indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
