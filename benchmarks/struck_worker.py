"""One worker process that may be killed, stopped and started again."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

from chaos.process import ENV_PREFIX, ServiceDied, ServiceProcess

_POLL_S = 0.002
_READY_S = 20.0


class Launcher(Protocol):
    """Starts workers."""

    async def start(self, name: str, settings: Mapping[str, str]) -> "Struck":
        """Return once it serves."""


class Struck(Protocol):
    """A worker to strike at."""

    @property
    def address(self) -> str:
        """Where it serves."""

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""

    def hang(self) -> None:
        """SIGSTOP."""

    def resume(self) -> None:
        """SIGCONT."""


class ColdLauncher:
    """Starts each worker as a program of its own.

    Args:
        folder: for logs and ready files.
        timeout_s: bound of one start.
    """

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self._folder = folder
        self._timeout_s = timeout_s

    async def start(self, name: str, settings: Mapping[str, str]) -> Struck:
        """See :class:`Launcher`; raises ServiceDied when it does not serve in time."""
        life = AsyncExitStack()
        opening = ServiceProcess.start(
            "inference_svc",
            self._folder,
            settings,
            name=name,
            ready_timeout_s=self._timeout_s,
        )
        return _Cold(await life.enter_async_context(opening), life)


class _Cold:
    def __init__(self, process: ServiceProcess, life: AsyncExitStack) -> None:
        self._process = process
        self._life = life

    @property
    def address(self) -> str:
        return self._process.address

    async def kill(self) -> None:
        await self._life.aclose()

    def hang(self) -> None:
        self._process.hang()

    def resume(self) -> None:
        self._process.resume()


class WarmLauncher:
    """Has workers forked from a process that has imported everything; see warm_workers.

    Args:
        folder: for logs and ready files.
        nursery: that process.
    """

    def __init__(self, folder: Path, nursery: asyncio.subprocess.Process) -> None:
        self._folder = folder
        self._nursery = nursery
        self._one_at_a_time = asyncio.Lock()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator["WarmLauncher"]:
        """Start the nursery; its workers end with it."""
        leash = (sys.executable, "-m", "chaos.leash", str(os.getpid()))
        nursery = await asyncio.create_subprocess_exec(
            *leash,
            *(sys.executable, "-m", "benchmarks.warm_workers"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield cls(folder, nursery)
        finally:
            if nursery.returncode is None:
                nursery.kill()
            await nursery.wait()

    async def start(self, name: str, settings: Mapping[str, str]) -> Struck:
        """See :class:`Launcher`; raises ServiceDied when it does not serve in time."""
        ready = self._folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        fields = {"server__ready_file": str(ready), **settings}
        prefix = ENV_PREFIX["inference_svc"]
        order = {
            "environment": {prefix + field.upper(): value for field, value in fields.items()},
            "log": str(self._folder / f"{name}.log"),
        }
        pid = await self._order(order)
        try:
            async with asyncio.timeout(_READY_S):
                # Another process's file; there is no event to await.
                while not ready.exists():  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ServiceDied(f"{name} was not ready within {_READY_S:g} s") from None
        return _Warm(pid, ready.read_text().strip())

    async def _order(self, order: Mapping[str, object]) -> int:
        stdin, stdout = self._nursery.stdin, self._nursery.stdout
        if stdin is None or stdout is None:
            raise ServiceDied("the nursery has no pipes")
        async with self._one_at_a_time:
            stdin.write(json.dumps(order).encode() + b"\n")
            await stdin.drain()
            answer = await stdout.readline()
        if not answer:
            raise ServiceDied("the nursery ended")
        return int(answer)


class _Warm:
    def __init__(self, pid: int, address: str) -> None:
        self._pid = pid
        self.address = address

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        while Path(f"/proc/{self._pid}").exists():  # noqa: ASYNC110 - it is not our child
            await asyncio.sleep(_POLL_S)

    def hang(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)
