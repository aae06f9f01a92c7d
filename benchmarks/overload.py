"""Four times more than the workers can do: what is still done, for whom, and who hears no.

    python -m benchmarks.overload --json -

Scripted workers of a known pace, one router, no cache; every prompt is new, and answers are
of half to one and a half times the mean length. What the workers can do is measured first, by
as many callers as there are slots that ask the workers directly, one stream after another. Requests
arrive as a Poisson process at a multiple of the capacity, whatever became of those before
(open loop), and nobody tries again. Three runs on one stack:

- ``goodput``: 1,000 prompts of one tenant; tokens delivered, beside what the workers can do,
  from the moment they are full until the last arrival;
- ``shares``: a greedy tenant beside a quiet one that asks for little more than its half;
- ``weights``: two tenants of weights 3 and 1 that both ask for too much.
"""

import argparse
import asyncio
import hashlib
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop

from benchmarks.statistics import quantile
from chaos.process import ServiceProcess
from sidecache.errors import Overloaded, from_rpc_error
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc

WEIGHTS = {"single": 1.0, "greedy": 1.0, "quiet": 1.0, "heavy": 3.0, "light": 1.0}
_CHANNELS = 4
_PATIENCE_S = 60.0

_serial = itertools.count()


@dataclass(frozen=True)
class Shape:
    """The fleet and the load."""

    workers: int
    slots: int
    tokens: int
    tokens_per_s: float
    first_token_s: float
    factor: float
    requests: int
    max_wait_s: float
    seed: int

    @property
    def stream_s(self) -> float:
        """Duration of a stream of mean length, by the workers' settings."""
        return self.first_token_s + (self.tokens - 1) / self.tokens_per_s

    @property
    def slo_s(self) -> float:
        """Time to the first token that is in order: the longest wait, the prefill, a little."""
        return self.max_wait_s + self.first_token_s + 0.1 * self.max_wait_s


@dataclass
class Sent:
    """One request and what became of it; times are the loop's own."""

    tenant: str
    sent_at: float
    tokens: int
    token_times: list[float] = field(default_factory=list)
    ended_at: float = 0.0
    error: str = ""
    retry_after_s: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether all of its tokens came."""
        return len(self.token_times) == self.tokens

    @property
    def first_token_s(self) -> float:
        """From its sending; only of one that has a token."""
        return self.token_times[0] - self.sent_at


class Crowd:
    """Sends requests without waiting for those before.

    Args:
        address: of the router or a worker.
        keys: by tenant.
        tokens: of an answer, the mean.
        seed: of the lengths.
    """

    def __init__(self, address: str, keys: Mapping[str, str], tokens: int, seed: int) -> None:
        self._keys = keys
        self._tokens = tokens
        self._draw = random.Random(seed)  # noqa: S311 - repeatable, not secret
        self._channels = [
            grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(_CHANNELS)
        ]
        self._stubs = [inference_pb2_grpc.InferenceServiceStub(c) for c in self._channels]

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def send(self, arrivals: list[tuple[float, str]]) -> list[Sent]:
        """Send at these seconds from now for these tenants; returns when all have ended."""
        started = time.perf_counter()
        tasks: list[asyncio.Task[Sent]] = []
        async with asyncio.TaskGroup() as group:
            for at_s, tenant in arrivals:
                await asyncio.sleep(started + at_s - time.perf_counter())
                tasks.append(group.create_task(self._one(tenant)))
        return [task.result() for task in tasks]

    async def keep_busy(self, callers: int, seconds: float) -> list[Sent]:
        """So many callers, each with one stream after another; returns what ended in that time."""
        until = time.perf_counter() + seconds
        done: list[Sent] = []

        async def call_again() -> None:
            while time.perf_counter() < until:
                done.append(await self._one("single"))

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(call_again())
        return done

    async def _one(self, tenant: str) -> Sent:
        number = next(_serial)
        tokens = self._draw.randint(self._tokens // 2, self._tokens + self._tokens // 2)
        request = pb.GenerateRequest(text=f"question {number:06}", max_tokens=tokens)
        sent = Sent(tenant, time.perf_counter(), tokens)
        call = self._stubs[number % _CHANNELS].Generate(
            request,
            timeout=_PATIENCE_S,
            metadata=(("authorization", f"Bearer {self._keys[tenant]}"),),
        )
        try:
            async for message in call:
                now = time.perf_counter()
                sent.token_times += [now] * len(message.delta.token_ids)
        except grpc.aio.AioRpcError as failed:
            error = from_rpc_error(failed)
            sent.error = error.reason
            if isinstance(error, Overloaded):
                sent.retry_after_s = error.retry_after_s
        sent.ended_at = time.perf_counter()
        return sent


def poisson(draw: random.Random, tenant: str, rate: float, count: int) -> list[tuple[float, str]]:
    """So many arrivals of one tenant, in seconds from the start."""
    at_s, arrivals = 0.0, []
    for _ in range(count):
        at_s += draw.expovariate(rate)
        arrivals.append((at_s, tenant))
    return arrivals


@asynccontextmanager
async def stack(folder: Path, shape: Shape) -> AsyncIterator[tuple[Crowd, list[Crowd]]]:
    """Workers and router, and a crowd before the router and each worker; ends with the block."""
    keys = {tenant: f"key-of-{tenant}" for tenant in WEIGHTS}
    lines = []
    for tenant, key in keys.items():
        digest = hashlib.sha256(key.encode()).hexdigest()
        lines.append(f'[[keys]]\ntenant = "{tenant}"\nsha256 = "{digest}"\n')
        lines.append(f'[[tenants]]\ntenant = "{tenant}"\nweight = {WEIGHTS[tenant]}\n')
    keys_file = folder / "keys.toml"
    keys_file.write_text("".join(lines))
    async with AsyncExitStack() as running:
        workers = [
            await running.enter_async_context(
                ServiceProcess.start(
                    "inference_svc",
                    folder,
                    {
                        "engine": "scripted",
                        "max_sequences": str(shape.slots),
                        "scripted__ttft_s": str(shape.first_token_s),
                        "scripted__tokens_per_s": str(shape.tokens_per_s),
                    },
                    name=f"worker{number}",
                )
            )
            for number in range(shape.workers)
        ]
        router = await running.enter_async_context(
            ServiceProcess.start(
                "router",
                folder,
                {
                    "workers": json.dumps([worker.address for worker in workers]),
                    "keys_file": str(keys_file),
                    "admission__max_wait_s": str(shape.max_wait_s),
                },
            )
        )
        addresses = [router.address, *(worker.address for worker in workers)]
        crowds = [Crowd(address, keys, shape.tokens, shape.seed) for address in addresses]
        for crowd in crowds:
            running.push_async_callback(crowd.close)
        yield crowds[0], crowds[1:]


async def measure_capacity(direct: list[Crowd], shape: Shape) -> float:
    """Tokens a second of the workers with every slot taken, and nobody between."""
    seconds = 8 * shape.stream_s
    busy = [crowd.keep_busy(shape.slots, seconds) for crowd in direct]
    started = time.perf_counter()
    done = [sent for part in await asyncio.gather(*busy) for sent in part]
    begin = started + 2 * shape.stream_s
    return delivered(done, begin, started + seconds) / (started + seconds - begin)


def delivered(done: list[Sent], begin: float, end: float, tenant: str = "") -> int:
    """Tokens that arrived in an interval, everybody's or one tenant's."""
    return sum(
        begin <= at < end
        for sent in done
        if not tenant or sent.tenant == tenant
        for at in sent.token_times
    )


def told(done: list[Sent], shape: Shape, capacity: float) -> dict[str, Any]:
    """What became of one run's requests; the capacity is in tokens a second."""
    # From when every slot is taken and has turned over, to the last arrival.
    begin = done[0].sent_at + 2 * shape.stream_s
    end = done[-1].sent_at
    whole = [sent for sent in done if sent.is_whole]
    refused = [sent for sent in done if sent.error]
    early = [sent for sent in refused if sent.ended_at - sent.sent_at < shape.max_wait_s / 2]
    first = [sent.first_token_s for sent in whole]
    good = [sent for sent in whole if sent.first_token_s <= shape.slo_s]
    rate = delivered(good, begin, end) / (end - begin)
    tenants = sorted({sent.tenant for sent in done})
    parts = {tenant: delivered(whole, begin, end, tenant) for tenant in tenants}
    return {
        "requests": len(done),
        "completed": len(whole),
        "refused": len(refused),
        "refused_with_retry_info": sum(sent.retry_after_s > 0 for sent in refused),
        "refused_early": len(early),
        "refused_after_ms_p50_p99": [
            quantile([(s.ended_at - s.sent_at) * 1e3 for s in refused], q) if refused else None
            for q in (0.5, 0.99)
        ],
        "retry_after_s_p50": quantile([s.retry_after_s for s in refused], 0.5) if refused else None,
        "other": len(done) - len(whole) - len(refused),
        "errors": sorted({sent.error for sent in refused}),
        "goodput_of_capacity": rate / capacity,
        "slo_s": shape.slo_s,
        "first_token_s_p50_p99": [quantile(first, 0.5), quantile(first, 0.99)],
        "admitted_within_slo": len(good) / len(whole),
        "saturated_s": end - begin,
        "share": {tenant: parts[tenant] / sum(parts.values()) for tenant in tenants},
        "served_of_asked": {
            tenant: sum(s.tenant == tenant for s in whole) / sum(s.tenant == tenant for s in done)
            for tenant in tenants
        },
    }


async def run(shape: Shape) -> dict[str, Any]:
    """All three runs on one stack; its keys are described in docs/performance.md."""
    draw = random.Random(shape.seed)  # noqa: S311 - repeatable, not secret
    mixes = {
        "goodput": {"single": shape.factor},
        "shares": {"greedy": shape.factor - 0.7, "quiet": 0.7},
        "weights": {"heavy": shape.factor / 2, "light": shape.factor / 2},
    }
    result: dict[str, Any] = {"factor": shape.factor}
    with tempfile.TemporaryDirectory(prefix="overload-") as scratch:
        async with stack(Path(scratch), shape) as (crowd, direct):
            tokens_per_s = await measure_capacity(direct, shape)
            rate = tokens_per_s / shape.tokens
            result["capacity_tokens_per_s"] = tokens_per_s
            # Pace and connections are known to a router that has been up for a while.
            await crowd.send([(0.0, "single")] * (shape.workers * shape.slots))
            for name, mix in mixes.items():
                arrivals: list[tuple[float, str]] = []
                for tenant, factor in mix.items():
                    count = round(shape.requests * factor / shape.factor)
                    arrivals += poisson(draw, tenant, factor * rate, count)
                result[name] = told(await crowd.send(sorted(arrivals)), shape, tokens_per_s)
    return result


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", default="-", help="where to write; - is stdout")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=8, help="sequences of each worker")
    parser.add_argument("--tokens", type=int, default=20, help="of an answer")
    parser.add_argument("--tokens-per-s", type=float, default=20.0, help="of a sequence")
    parser.add_argument("--first-token-s", type=float, default=0.05)
    parser.add_argument("--factor", type=float, default=4.0, help="arrivals, in capacities")
    parser.add_argument("--requests", type=int, default=1000, help="of each run")
    parser.add_argument("--max-wait-s", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    shape = Shape(**{k: v for k, v in vars(options).items() if k != "json"})
    text = json.dumps(uvloop.run(run(shape)), indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
