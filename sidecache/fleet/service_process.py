"""One service as a process of its own: started, asked for its health, stopped, never orphaned."""

import asyncio
import os
import signal
import sys
import time

from sidecache.client import SidecacheClient
from sidecache.errors import DeadlineExceeded, NotFound, SetupError, Unavailable
from sidecache.fleet.plan import ServiceSpec
from sidecache.fleet.service_log import ServiceLog

_HEALTH_POLL_S = 0.1
_HEALTH_TIMEOUT_S = 1.0


class ServiceProcess:
    """A service that can be started again after it died.

    Args:
        spec: what to run.
        log: where its output goes.
    """

    def __init__(self, spec: ServiceSpec, log: ServiceLog) -> None:
        self.spec = spec
        self.log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Its process id; None before the first start."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        """Whether its process exists."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start the process; says nothing about its health."""
        with self.log.open() as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "sidecache.fleet.leash", str(os.getpid()), self.spec.module),
                env={**os.environ, **self.spec.environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal is for `sidecache up` alone, which then
                # stops the services in an order that loses nothing.
                start_new_session=True,
            )

    async def wait_healthy(self, timeout_s: float) -> float:
        """Wait until it serves; the seconds that took.

        Raises:
            SetupError: it died, or was not healthy in time.
        """
        began = time.monotonic()
        died = asyncio.create_task(self.wait())
        healthy = asyncio.create_task(self._poll_health())
        try:
            await asyncio.wait(
                {died, healthy}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if died.done():
                raise SetupError(f"the {self.spec.title} {self.epitaph()}")
            if not healthy.done():
                raise SetupError(
                    f"the {self.spec.title} was not ready within {timeout_s:g} s; its log is "
                    f"{self.log.path}"
                )
            await healthy
        finally:
            died.cancel()
            healthy.cancel()
            await asyncio.gather(died, healthy, return_exceptions=True)
        return time.monotonic() - began

    async def wait(self) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        if self._process is None:
            raise RuntimeError("not started")
        return await self._process.wait()

    async def stop(self, grace_s: float) -> bool:
        """SIGTERM, then SIGKILL after ``grace_s``; whether it ended by itself."""
        if self._process is None or self._process.returncode is not None:
            return True
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
            return False
        return True

    def kill(self) -> None:
        """SIGKILL, at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def epitaph(self) -> str:
        """How it ended and what it said last, after it did."""
        code = self._process.returncode if self._process else None
        how = f"was killed by {_signal_name(-code)}" if code and code < 0 else f"ended ({code})"
        words = self.log.last_words()
        return f"{how}: {words} (log: {self.log.path})" if words else f"{how}; log: {self.log.path}"

    async def _poll_health(self) -> None:
        async with SidecacheClient(self.spec.address) as client:
            while not await self._is_healthy(client):  # noqa: ASYNC110  another process's state
                await asyncio.sleep(_HEALTH_POLL_S)

    @staticmethod
    async def _is_healthy(client: SidecacheClient) -> bool:
        try:
            return await client.health(timeout_s=_HEALTH_TIMEOUT_S)
        except (Unavailable, DeadlineExceeded, NotFound):
            return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
