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
# One that is slow is waited for so many times its slowest answer of late.
_FACTOR = 3
# But no longer than so many times the bound; so long at once, where it missed the last one:
# whoever answers at all is to be heard.
_LATE = 4


class LoadWatch:
    """Polls GetLoad: of ready workers, for routing and admission.

    A worker that does not answer gets no new stream while others do, until it answers
    again: idle, it has no stream whose silence could tell.

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
        self._asking: set[Worker] = set()

    async def run(self) -> None:
        """Ask on the interval, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                # Routers that started together must not ask together for ever.
                jitter = random.uniform(0.8, 1.2)  # noqa: S311 - no secret
                await asyncio.sleep(self.settings.load_interval_s * jitter)
                for worker in self._workers():
                    if worker not in self._asking:
                        self._asking.add(worker)
                        # Of its own: a worker that hangs, or leaves and has its channel
                        # closed under the call, keeps no other from being asked.
                        tasks.create_task(self._ask_again(worker))

    async def _ask_again(self, worker: Worker) -> None:
        try:
            await self.ask(worker)
        except Exception:
            # What goes wrong with one must not end the polls of all.
            log.exception("asking a worker for its load failed", extra={"worker": worker.name})
        finally:
            self._asking.discard(worker)

    async def ask(self, worker: Worker) -> None:
        """Ask one worker; no answer, or one of another epoch, is no report."""
        report: worker_pb2.GetLoadResponse | None = None
        async with self._slots:
            asked_at = self._clock()
            try:
                report = await worker.facts.GetLoad(
                    worker_pb2.GetLoadRequest(), timeout=self._patience_s(worker)
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    self._missed(worker, asked_at)
            except grpc.aio.UsageError:
                return  # it left while this waited for its turn
        if report is not None:
            worker.answered(self._clock() - asked_at)
        if report is not None and report.epoch != worker.epoch:
            report = None
        worker.load.hear(report, worker.leases, self.settings.max_foreign_tokens, worker.block_size)

    def _missed(self, worker: Worker, asked_at: float) -> None:
        if worker.heard_at > asked_at or worker.misses_polls:
            return
        worker.misses_polls = True
        took_s = self._clock() - asked_at
        log.warning("worker answers no poll for %.1f s", took_s, extra={"worker": worker.name})

    def _patience_s(self, worker: Worker) -> float:
        """How long its answer may take."""
        bound_s = self.settings.load_timeout_s
        if worker.misses_polls:
            return _LATE * bound_s
        return min(max(bound_s, _FACTOR * (worker.answers_in_s or 0.0)), _LATE * bound_s)
