"""A SIGTERM under load: what is lost when a router or a worker is replaced. Nothing may be.

    python -m benchmarks.drain --json -

Real processes: scripted workers, two routers, clients that know both routers and never
rest, all streams recorded and proved by the chaos history checker. Every second one
process gets SIGTERM (workers and routers in turn), drains, exits with 0 and is started
again at its address.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc

from chaos.checker import check
from chaos.history import Call, History
from chaos.process import ServiceProcess
from chaos.recorder import Recorder
from chaos.reference import ScriptedReference
from sidecache.failover import FailOverChannel
from sidecache.v1 import inference_pb2 as pb

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


@dataclass(frozen=True)
class Plan:
    """What is played.

    Attributes:
        targets: names of those that get a SIGTERM, one after the other.
        grace_s: how long a process lets its streams finish.
    """

    targets: tuple[str, ...]
    clients: int = 20
    tokens: int = 100
    tokens_per_s: float = 50.0
    workers: int = 3
    every_s: float = 1.0
    grace_s: float = 1.0


@dataclass
class Figures:
    """What came of it."""

    streams: int = 0
    exact: int = 0
    migrated: int = 0
    refused_before_first: int = 0
    lost: int = 0
    wrong: int = 0
    sigterms: int = 0
    exit_codes: list[int] = field(default_factory=list)
    longest_drain_s: float = 0.0
    ends: dict[str, int] = field(default_factory=dict)


class Drill:
    """The processes, and the clients that ask them."""

    def __init__(self, plan: Plan, folder: Path, stack: AsyncExitStack) -> None:
        self._plan = plan
        self._folder = folder
        self._stack = stack
        self._services: dict[str, ServiceProcess] = {}
        self._settings: dict[str, tuple[str, dict[str, str]]] = {}
        self._history = History()
        self._asked = 0
        self._is_over = False
        self.figures = Figures()

    async def play(self) -> Figures:
        """Start everything, strike, and let the last streams end."""
        plan = self._plan
        drain = {"server__drain_grace_s": str(plan.grace_s), "telemetry__log_level": "ERROR"}
        for n in range(1, plan.workers + 1):
            scripted = {"engine": "scripted", "name": f"worker-{n}", **drain}
            scripted["scripted__tokens_per_s"] = str(plan.tokens_per_s)
            await self._start(f"worker-{n}", "inference_svc", scripted)
        targets = json.dumps([service.address for service in self._services.values()])
        for n in (1, 2):
            settings = {"workers": targets, "insecure": "true", **drain}
            # A router's streams are its clients': it waits until they have ended.
            settings["server__drain_grace_s"] = "30"
            await self._start(f"router-{n}", "router", settings)
        async with asyncio.TaskGroup() as group:
            for _ in range(plan.clients):
                group.create_task(self._ask_on())
            for name in plan.targets:
                await asyncio.sleep(plan.every_s)
                await self._replace(name)
            await asyncio.sleep(plan.every_s)
            self._is_over = True
        self._judge()
        return self.figures

    async def _start(self, name: str, module: str, settings: dict[str, str]) -> None:
        self._settings[name] = (module, settings)
        self._services[name] = await self._stack.enter_async_context(
            ServiceProcess.start(module, self._folder, settings, name=name)
        )

    async def _replace(self, name: str) -> None:
        service, started = self._services[name], time.monotonic()
        self.figures.exit_codes.append(await service.terminate(within_s=40.0))
        drained_s = time.monotonic() - started
        self.figures.longest_drain_s = max(self.figures.longest_drain_s, drained_s)
        self.figures.sigterms += 1
        module, settings = self._settings[name]
        await self._start(name, module, settings | {"server__listen": service.address})

    async def _ask_on(self) -> None:
        routers = [self._services[f"router-{n}"].address for n in (1, 2)]
        channels = [grpc.aio.insecure_channel(address, _OPTIONS) for address in routers]
        async with FailOverChannel(channels) as channel:
            recorder = Recorder(channel, self._history, metadata=())
            while not self._is_over:
                self._asked += 1
                await recorder.generate(
                    pb.GenerateRequest(text=f"drill {self._asked}", max_tokens=self._plan.tokens)
                )

    def _judge(self) -> None:
        figures, calls = self.figures, self._history.calls
        report = check(calls, ScriptedReference())
        figures.streams = len(calls)
        wrong = {violation.call for violation in report.violations}
        figures.wrong = len(wrong)
        for call in calls:
            code = call.code or "none"
            has_tokens = any(event.HasField("delta") for event in call.events())
            figures.migrated += any(event.HasField("migrated") for event in call.events())
            figures.exact += code == "OK" and call.number not in wrong
            figures.refused_before_first += code == "UNAVAILABLE" and not has_tokens
            end = code if code == "OK" else f"{code} {_reason(call)}".strip()
            figures.ends[end] = figures.ends.get(end, 0) + 1
        figures.lost = figures.streams - figures.exact - figures.refused_before_first


def _reason(call: Call) -> str:
    return call.ended.reason if call.ended else ""


async def measure(plan: Plan) -> Figures:
    """Play one plan in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="sidecache-drain-") as folder:
        async with AsyncExitStack() as stack:
            return await Drill(plan, Path(folder), stack).play()


def main(arguments: Sequence[str]) -> int:
    """Print the figures; 1 when anything was lost, wrong, or did not exit with 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3, help="of all workers and routers")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--every-s", type=float, default=1.0)
    parser.add_argument("--grace-s", type=float, default=1.0, help="of a worker")
    parser.add_argument("--json", metavar="FILE", help="- is standard output")
    chosen = parser.parse_args(arguments)
    names = [f"worker-{n}" for n in range(1, chosen.workers + 1)] + ["router-1", "router-2"]
    plan = Plan(
        targets=tuple(names * chosen.rounds),
        clients=chosen.clients,
        tokens=chosen.tokens,
        workers=chosen.workers,
        every_s=chosen.every_s,
        grace_s=chosen.grace_s,
    )
    figures = asyncio.run(measure(plan))
    text = json.dumps(asdict(figures), indent=2)
    if chosen.json and chosen.json != "-":
        Path(chosen.json).write_text(f"{text}\n")
    else:
        print(text)
    return int(bool(figures.lost or figures.wrong or any(figures.exit_codes)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
