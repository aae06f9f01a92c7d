"""Workers that are struck one after the other, a router in front of them, and nothing else."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.struck_worker import ColdLauncher, Launcher, Struck, WarmLauncher
from chaos.process import ServiceProcess

_START_S = 120.0


@dataclass(frozen=True)
class StagePlan:
    """What is started, and how it is struck.

    Attributes:
        workers: how many.
        worker: settings of each.
        router: settings over those that join the parts.
        kill_every_s: one worker is struck each time; 0: none ever.
        signal: ``KILL``, after which it is started again at once, or ``STOP``.
        stopped_s: for how long a stopped worker hangs.
        is_warm: start workers by a fork; only the scripted engine can be started so.
    """

    workers: int
    worker: Mapping[str, str]
    router: Mapping[str, str]
    kill_every_s: float
    signal: str = "KILL"
    stopped_s: float = 2.0
    is_warm: bool = True


@dataclass
class Strikes:
    """What was done to the workers.

    Attributes:
        struck: workers killed or stopped.
        held_back: strikes left out because too many were down.
        back_s: from a kill to the worker's ready file.
    """

    struck: int = 0
    held_back: int = 0
    back_s: list[float] = field(default_factory=list)


class Stage:
    """The running processes."""

    def __init__(self, plan: StagePlan, launcher: Launcher) -> None:
        self._plan = plan
        self._launcher = launcher
        self._workers: dict[str, Struck] = {}
        self.strikes = Strikes()
        self.router: ServiceProcess

    @classmethod
    @asynccontextmanager
    async def open(cls, plan: StagePlan, folder: Path) -> AsyncIterator["Stage"]:
        """Start everything; all of it ends with the block.

        Raises:
            ServiceDied: something did not start; says why.
        """
        async with AsyncExitStack() as running:
            launcher: Launcher = ColdLauncher(folder, _START_S)
            if plan.is_warm:
                launcher = await running.enter_async_context(WarmLauncher.open(folder))
            stage = cls(plan, launcher)
            running.push_async_callback(stage._end_workers)
            for number in range(1, plan.workers + 1):
                await stage._start(f"w{number}", "127.0.0.1:0")
            addresses = [worker.address for worker in stage._workers.values()]
            stage.router = await running.enter_async_context(
                ServiceProcess.start(
                    "router",
                    folder,
                    {"workers": json.dumps(addresses), "insecure": "true", **plan.router},
                )
            )
            yield stage

    async def strike_on(self) -> None:
        """Strike one worker after the other until cancelled.

        None while it is still down, or while half of them are: where starts take longer
        than the interval, nothing would be left to move to.
        """
        busy: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            for name in itertools.cycle(self._workers):
                await asyncio.sleep(self._plan.kill_every_s)
                down = [one for one, strike in busy.items() if not strike.done()]
                if name in down or 2 * len(down) >= len(self._workers):
                    self.strikes.held_back += 1
                    continue
                self.strikes.struck += 1
                strike = self._stop if self._plan.signal == "STOP" else self._kill
                busy[name] = tasks.create_task(strike(name))

    async def _kill(self, name: str) -> None:
        address = self._workers[name].address
        began = time.monotonic()
        await self._workers[name].kill()
        await self._start(name, address)
        self.strikes.back_s.append(time.monotonic() - began)

    async def _stop(self, name: str) -> None:
        worker = self._workers[name]
        worker.hang()
        try:
            await asyncio.sleep(self._plan.stopped_s)
        finally:
            worker.resume()

    async def _start(self, name: str, address: str) -> None:
        settings = {"name": name, "server__listen": address, **self._plan.worker}
        self._workers[name] = await self._launcher.start(name, settings)

    async def _end_workers(self) -> None:
        for worker in self._workers.values():
            await worker.kill()
