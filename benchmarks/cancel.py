"""From a client's cancel, or its deadline, to a free slot of the engine.

    python -m benchmarks.cancel --json -
    python -m benchmarks.cancel --engine openvino --model PATH --streams 30 --json -

A worker and a router as processes. A stream is read up to its first token and then
cancelled, or left to its deadline; GetLoad of the worker says when its slot is free. What
asking costs is part of the figure. With a real engine a step is added to the bound: the
median time between two tokens, which is measured first.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import uvloop

from benchmarks.statistics import median, quantile
from chaos.process import ServiceProcess
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc, worker_pb2, worker_pb2_grpc

BOUND_S = 0.1
DEADLINE_S = 0.5
ENDLESS = 4000


class Bench:
    """A client of a router, and a look into its only worker."""

    def __init__(self, router: grpc.aio.Channel, worker: grpc.aio.Channel) -> None:
        self._router = inference_pb2_grpc.InferenceServiceStub(router)
        self._worker = worker_pb2_grpc.WorkerServiceStub(worker)

    async def cancel(self, number: int) -> float:
        """Seconds from a cancel in mid-stream to the free slot."""
        call = self._router.Generate(_request(number), timeout=60)
        async for event in call:
            if event.delta.token_ids:
                break
        began = time.perf_counter()
        call.cancel()
        await self._free()
        return time.perf_counter() - began

    async def expire(self, number: int) -> float:
        """Seconds from a deadline in mid-stream to the free slot."""
        began = time.perf_counter()
        try:
            async for _ in self._router.Generate(_request(number), timeout=DEADLINE_S):
                pass
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
        await self._free()
        return max(0.0, time.perf_counter() - began - DEADLINE_S)

    async def step_s(self) -> float:
        """Median time between two messages of one stream alone."""
        call = self._router.Generate(_request(-1, tokens=48), timeout=60)
        times = [time.perf_counter() async for event in call if event.delta.token_ids]
        return median([b - a for a, b in itertools.pairwise(times)] or [0.0])

    async def _free(self) -> None:
        request = worker_pb2.GetLoadRequest()
        while (await self._worker.GetLoad(request, timeout=10)).running_sequences:
            pass


def _request(number: int, tokens: int = ENDLESS) -> pb.GenerateRequest:
    bypass = pb.CacheControl(mode=pb.CACHE_MODE_BYPASS)
    request = pb.GenerateRequest(max_tokens=tokens, cache=bypass)
    request.chat.messages.add(role="user", content=f"Count upwards from {number} for ever.")
    return request


async def run(engine: str, model: str, streams: int, folder: Path) -> dict[str, Any]:
    """Measure both ways, one stream at a time.

    Raises:
        ServiceDied: a process did not start.
    """
    settings = {"engine": engine, "scripted__tokens_per_s": "50"}
    if model:
        settings["model_path"] = model
    async with AsyncExitStack() as running:
        worker = await running.enter_async_context(
            ServiceProcess.start("inference_svc", folder, settings, ready_timeout_s=120)
        )
        fields = {"workers": json.dumps([worker.address]), "insecure": "true"}
        router = await running.enter_async_context(ServiceProcess.start("router", folder, fields))
        channels = [
            await running.enter_async_context(grpc.aio.insecure_channel(service.address))
            for service in (router, worker)
        ]
        bench = Bench(*channels)
        step_s = await bench.step_s()
        result: dict[str, Any] = {"engine": engine, "streams": streams, "step_s": step_s}
        for name, ask in (("cancel", bench.cancel), ("deadline", bench.expire)):
            result |= await _measure(name, ask, streams)
        bound_s = BOUND_S + (step_s if engine != "scripted" else 0.0)
        return result | {"bound_s": bound_s}


async def _measure(
    name: str, ask: Callable[[int], Awaitable[float]], streams: int
) -> dict[str, float]:
    times = [await ask(number) for number in range(streams)]
    return {f"{name}_p50_s": quantile(times, 0.5), f"{name}_p99_s": quantile(times, 0.99)}


def main() -> int:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--engine", choices=("scripted", "openvino"), default="scripted")
    parser.add_argument("--model", default="", help="of a real engine")
    parser.add_argument("--streams", type=int, default=100, help="of each kind")
    parser.add_argument("--json", required=True, metavar="PATH", help="- for stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cancel-") as folder:
        result = uvloop.run(run(options.engine, options.model, options.streams, Path(folder)))
    text = json.dumps(result, indent=1)
    if options.json == "-":
        print(text)
    else:
        Path(options.json).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
