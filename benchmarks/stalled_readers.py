"""Clients that stop reading: what they cost the services, and the clients beside them.

    python -m benchmarks.stalled_readers --json -

A worker with the scripted engine and a router as processes. Neighbours read short answers one
after the other, first alone, then beside clients that ask for a very long answer and take one
message of it. Given are the neighbours' time between two messages in both phases, the memory
of both services, and when the engine's slots of the stalled were free again: they are cut off
``--stall-s`` after the buffers on the way are full. The lines: p99 beside them at most 1.2 times
that alone, slots free within the stall time and two seconds.
"""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop

from benchmarks.cpu_time import resident_mb
from benchmarks.statistics import quantile
from chaos.process import ServiceProcess
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc, worker_pb2, worker_pb2_grpc

# A window that does not grow, so that what is not read backs up soon.
_NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))
_BURST = 128
_BURST_S = 0.02
_POLL_S = 0.02
# Neighbours come and go: few for a moment is not yet fewer.
_SETTLED_S = 1.0
_LONGEST_WAIT_S = 60.0
# Of the neighbours' p99; and until the buffers on the way are full.
MOST_RATIO = 1.2
_FILL_S = 2.0


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        stalled: clients that stop reading.
        neighbours: clients that read on.
        stall_s: after which the router cuts a reader off.
        phase_s: how long the neighbours are watched, alone and beside the stalled.
        max_tokens: of a stalled client's answer.
    """

    stalled: int = 8
    neighbours: int = 8
    stall_s: float = 5.0
    phase_s: float = 8.0
    max_tokens: int = 400_000


class Bench:
    """The services, and what is asked of them."""

    def __init__(self, plan: Plan, worker: ServiceProcess, router: ServiceProcess) -> None:
        self._plan = plan
        self._services = {"worker": worker, "router": router}
        self._numbers = itertools.count()

    async def run(self) -> dict[str, Any]:
        """Both phases."""
        plan = self._plan
        await self.watch(1.0)  # connections, caches and allocators warm up
        before = self._memory()
        alone = await self.watch(plan.phase_s)
        async with self._stalled():
            freed = asyncio.create_task(self._freed())
            beside, peak = await asyncio.gather(self.watch(plan.phase_s), self._peak())
            freed_s = await freed
        p99 = {"alone": quantile(alone, 0.99), "beside": quantile(beside, 0.99)}
        return {
            "gap_p50_alone_s": quantile(alone, 0.5),
            "gap_p50_beside_s": quantile(beside, 0.5),
            "gap_p99_alone_s": p99["alone"],
            "gap_p99_beside_s": p99["beside"],
            "gap_p99_ratio": p99["beside"] / p99["alone"],
            "freed_after_s": freed_s,
            **{f"{name}_mb_before": before[name] for name in before},
            **{f"{name}_mb_peak": peak[name] for name in peak},
            "plan": asdict(plan),
        }

    async def watch(self, seconds: float) -> list[float]:
        """Times between two messages of every neighbour, while so long."""
        until = time.perf_counter() + seconds
        gaps: list[float] = []

        async def neighbour() -> None:
            async with grpc.aio.insecure_channel(self._services["router"].address) as channel:
                while time.perf_counter() < until:
                    request = self._request(25 * _BURST)
                    last_s = None
                    async for _ in inference_pb2_grpc.InferenceServiceStub(channel).Generate(
                        request
                    ):
                        now_s = time.perf_counter()
                        if last_s is not None:
                            gaps.append(now_s - last_s)
                        last_s = now_s

        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.neighbours):
                group.create_task(neighbour())
        return gaps

    @asynccontextmanager
    async def _stalled(self) -> AsyncIterator[None]:
        """Clients that have read one message with tokens, and nothing since."""
        async with AsyncExitStack() as channels:
            for _ in range(self._plan.stalled):
                channel = grpc.aio.insecure_channel(self._services["router"].address, _NARROW)
                await channels.enter_async_context(channel)
                stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
                call = stub.Generate(self._request(self._plan.max_tokens), timeout=600)
                while not (await call.read()).delta.token_ids:
                    pass
                channels.callback(call.cancel)
            yield

    async def _freed(self) -> float:
        """Seconds until no more sequences run than neighbours can have, and stays so."""
        began = freed = time.perf_counter()
        async with grpc.aio.insecure_channel(self._services["worker"].address) as channel:
            stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
            request = worker_pb2.GetLoadRequest()
            async with asyncio.timeout(_LONGEST_WAIT_S):
                while time.perf_counter() < freed + _SETTLED_S:
                    if (await stub.GetLoad(request)).running_sequences > self._plan.neighbours:
                        freed = time.perf_counter()
                    await asyncio.sleep(_POLL_S)
        return freed - began

    async def _peak(self) -> dict[str, float]:
        """Most memory of each service during the phase."""
        peak = self._memory()
        until = time.perf_counter() + self._plan.phase_s
        while time.perf_counter() < until:
            await asyncio.sleep(_POLL_S * 5)
            now = self._memory()
            peak = {name: max(peak[name], now[name]) for name in now}
        return peak

    def _memory(self) -> dict[str, float]:
        return {name: resident_mb(service.pid) for name, service in self._services.items()}

    def _request(self, max_tokens: int) -> pb.GenerateRequest:
        # Stored or not is the caches' business: every question is new.
        return pb.GenerateRequest(text=f"question {next(self._numbers)}", max_tokens=max_tokens)


async def run(plan: Plan, folder: Path) -> dict[str, Any]:
    """Start a worker and a router, and measure.

    Raises:
        ServiceDied: a process did not start.
        TimeoutError: the stalled were not cut off.
    """
    room = str(plan.stalled + plan.neighbours)
    scripted = {
        "engine": "scripted",
        "max_sequences": room,
        "scripted__tokens_per_s": str(_BURST / _BURST_S),
        "scripted__burst": str(_BURST),
        "scripted__context_length": str(2 * plan.max_tokens),
        "coalesce_max_tokens": str(_BURST),
    }
    async with AsyncExitStack() as running:
        worker = await running.enter_async_context(
            ServiceProcess.start("inference_svc", folder, scripted)
        )
        fields = {
            "workers": json.dumps([worker.address]),
            "insecure": "true",
            "limits__reader_stall_s": str(plan.stall_s),
            # Room for all of them at once: their answers are far longer than the KV cache.
            "admission__max_running_tokens": str(2 * plan.stalled * plan.max_tokens),
        }
        router = await running.enter_async_context(ServiceProcess.start("router", folder, fields))
        return await Bench(plan, worker, router).run()


def main() -> int:
    """Read the command line, run, print; exit code 1 when a line was not crossed."""
    default = Plan()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--stalled", type=int, default=default.stalled)
    parser.add_argument("--neighbours", type=int, default=default.neighbours)
    parser.add_argument("--stall-s", type=float, default=default.stall_s)
    parser.add_argument("--phase-s", type=float, default=default.phase_s)
    parser.add_argument("--max-tokens", type=int, default=default.max_tokens)
    parser.add_argument("--json", required=True, metavar="PATH", help="- for stdout")
    options = vars(parser.parse_args())
    path = options.pop("json")
    plan = Plan(**options)
    with tempfile.TemporaryDirectory(prefix="stalled-") as folder:
        result = uvloop.run(run(plan, Path(folder)))
    text = json.dumps(result, indent=1)
    if path == "-":
        print(text)
    else:
        Path(path).write_text(text + "\n")
    within = result["freed_after_s"] <= plan.stall_s + _FILL_S
    return 0 if within and result["gap_p99_ratio"] <= MOST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
