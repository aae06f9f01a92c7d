"""The services of one fleet together: started, kept alive, stopped in order."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sidecache.errors import SetupError
from sidecache.fleet.service_process import ServiceProcess

Report = Callable[[str], None]
"""Told one line whenever something happened that an operator should know."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a fleet waits, and how often it tries again.

    Attributes:
        start_s: for a service to become healthy.
        drain_s: for a service to end after SIGTERM, before SIGKILL.
        first_backoff_s: before the first restart; doubled for each one after it.
        max_backoff_s: the longest such wait.
        max_restarts: of one service within ``window_s``; one more death ends the fleet.
        window_s: deaths older than this are forgotten.
        log_check_s: between two looks at the sizes of the logs.
    """

    start_s: float = 120.0
    drain_s: float = 15.0
    first_backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    max_restarts: int = 5
    window_s: float = 600.0
    log_check_s: float = 5.0


class Fleet:
    """Services that live and die together; leaving the block stops them all.

    Args:
        services: from the back of a request to its front. They start together
            and stop from the front: the router drains first, while the workers
            still generate for it.
        report: told about deaths and restarts.
        patience: every bound.
    """

    def __init__(
        self, services: Sequence[ServiceProcess], report: Report, patience: Patience | None = None
    ) -> None:
        self.services = services
        self._report = report
        self._patience = patience or Patience()
        self._stopping = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self, on_ready: Callable[[ServiceProcess, float], None]) -> None:
        """Start all at once and wait until each is healthy.

        Args:
            on_ready: told the service and the seconds it took.

        Raises:
            SetupError: one died or was late; says which, and its last words.
        """

        async def one(service: ServiceProcess) -> None:
            await service.start()
            on_ready(service, await service.wait_healthy(self._patience.start_s))

        try:
            async with asyncio.TaskGroup() as group:
                for service in self.services:
                    group.create_task(one(service))
        except* SetupError as group_error:
            # The first cause; others were cancelled or died of it.
            raise _first(group_error) from None

    async def watch(self) -> None:
        """Restart what dies, and bound the logs, until cancelled.

        Raises:
            SetupError: a service died again and again.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._bound_logs())
                for service in self.services:
                    group.create_task(self._keep_alive(service))
        except* SetupError as group_error:
            raise _first(group_error) from None

    async def stop(self) -> None:
        """SIGTERM, front to back, each with its bound; nothing is left running."""
        self._stopping = True
        for _, peers in itertools.groupby(reversed(self.services), lambda s: s.spec.module):
            await asyncio.gather(*(self._stop(service) for service in peers))

    def kill(self) -> None:
        """SIGKILL everything: the operator does not want to wait."""
        self._stopping = True
        for service in self.services:
            service.kill()

    async def _stop(self, service: ServiceProcess) -> None:
        if not await service.stop(self._patience.drain_s):
            self._report(
                f"the {service.spec.title} did not stop within "
                f"{self._patience.drain_s:g} s and was killed"
            )

    async def _keep_alive(self, service: ServiceProcess) -> None:
        patience = self._patience
        deaths: list[float] = []
        while True:
            await service.wait()
            if self._stopping:
                return
            now = time.monotonic()
            deaths = [death for death in deaths if now - death < patience.window_s] + [now]
            epitaph = f"the {service.spec.title} {service.epitaph()}"
            if len(deaths) > patience.max_restarts:
                raise SetupError(
                    f"{epitaph}; it died {len(deaths)} times within {patience.window_s:g} s, "
                    "giving up"
                )
            backoff_s = patience.first_backoff_s * 2 ** (len(deaths) - 1)
            backoff_s = min(backoff_s, patience.max_backoff_s)
            self._report(f"{epitaph}; restarting it in {backoff_s:g} s")
            await asyncio.sleep(backoff_s)
            await self._restart(service)

    async def _restart(self, service: ServiceProcess) -> None:
        await service.start()
        try:
            took_s = await service.wait_healthy(self._patience.start_s)
        except SetupError:
            # Dead: its end is waited for and counted. Late: it counts as dead.
            service.kill()
        else:
            self._report(f"the {service.spec.title} is back after {took_s:.1f} s")

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(self._patience.log_check_s)
            for service in self.services:
                await asyncio.to_thread(service.log.rotate_if_large)


def _first(group: BaseExceptionGroup[SetupError]) -> SetupError:
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise RuntimeError("an exception group holds at least one exception")
