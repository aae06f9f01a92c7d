"""Asks the workers how busy they are, so that other routers' streams count too."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

import grpc

from router.settings import RoutingSettings
from router.worker import Worker
from sidecache.v1 import worker_pb2

log = logging.getLogger(__name__)

_AT_ONCE = 16


class LoadWatch:
    """Polls GetLoad: of ready workers, for routing and admission.

    Args:
        workers: those to ask, asked anew each time.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        workers: Callable[[], Sequence[Worker]],
        settings: RoutingSettings,
        clock: Callable[[], float],
    ) -> None:
        self._workers = workers
        self._clock = clock
        self.settings = settings
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Ask on the interval, until cancelled."""
        while True:
            # Routers that started together must not ask together for ever.
            jitter = random.uniform(0.8, 1.2)  # noqa: S311 - no secret
            await asyncio.sleep(self.settings.load_interval_s * jitter)
            asked = (self.ask(worker) for worker in self._workers())
            # Who leaves meanwhile has his question cancelled with his channel; it is not ours.
            for ended in await asyncio.gather(*asked, return_exceptions=True):
                if isinstance(ended, Exception):
                    log.error("asking a worker for its load failed", exc_info=ended)

    async def ask(self, worker: Worker) -> None:
        """Ask one worker; no answer, or one of another epoch, is no report."""
        report: worker_pb2.GetLoadResponse | None
        async with self._slots:
            asked_at = self._clock()
            try:
                report = await worker.facts.GetLoad(
                    worker_pb2.GetLoadRequest(), timeout=self.settings.load_timeout_s
                )
            except (grpc.aio.AioRpcError, grpc.aio.UsageError):
                # The other is what a closed channel says, of a worker that has just left.
                report = None
        if report is not None:
            worker.answered(self._clock() - asked_at)
        if report is not None and report.epoch != worker.epoch:
            report = None
        worker.load.hear(report, worker.leases, self.settings.max_foreign_tokens, worker.block_size)
