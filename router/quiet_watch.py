"""Finds a worker that has stopped as a whole, before each of its streams does so alone.

A stream's own patience has to outlast whatever one stream may wait for. A worker with many
streams says something all the time; when it has said nothing on any of them for several
times what is usual for it, it gets nothing new and is asked whether it lives. An answer ends
that: it is slow, and its streams wait as long as ever. No answer, and all that can go on
elsewhere do so together.
"""

import asyncio
import logging
import statistics
from collections.abc import Callable, Iterable

import grpc
from grpc_health.v1 import health_pb2

from router.settings import QuietSettings
from router.silence import Finding, Silence
from router.worker import State, Worker

log = logging.getLogger(__name__)

# Looks in the shortest silence that counts.
_LOOKS = 5
# The answer is awaited for so many times its bound: late, it still ends the hush.
_LATE = 4
# No word of the worker itself: the connection's, or our own.
_NO_ANSWER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


class QuietWatch:
    """Looks at all workers many times a second; costs nothing a message.

    Args:
        workers: all that are known, asked anew at each look.
        settings: what is quiet, and how long an answer may take.
        clock: monotonic seconds.
        gone: told of a worker that does not answer, again at each look while it is so.
    """

    def __init__(
        self,
        workers: Callable[[], Iterable[Worker]],
        settings: QuietSettings,
        clock: Callable[[], float],
        gone: Callable[[Worker], None],
    ) -> None:
        self._workers = workers
        self._settings = settings
        self._clock = clock
        self._gone = gone
        self._silences: dict[Worker, Silence] = {}
        self._asking: dict[Worker, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Look on until cancelled."""
        interval_s = self._settings.quiet_s / _LOOKS
        async with asyncio.TaskGroup() as tasks:
            before = self._clock()
            while True:
                await asyncio.sleep(interval_s)
                now = self._clock()
                # Where this process itself stood still, words of the workers lie unread.
                self._look(min(now - before, 2 * interval_s), tasks)
                before = now

    def _look(self, elapsed_s: float, tasks: asyncio.TaskGroup) -> None:
        ready = [worker for worker in self._workers() if worker.state is State.READY]
        for worker in self._silences.keys() - set(ready):
            del self._silences[worker]
            self._end_hush(worker)
        # The median worker's: a machine or a network that is slow is slow for this one too.
        answers = [worker.answers_in_s for worker in ready if worker.answers_in_s is not None]
        slowest_s = statistics.median(answers) if answers else None
        for worker in ready:
            silence = self._silences.get(worker)
            if silence is None:
                silence = self._silences[worker] = Silence(self._settings)
            finding = silence.look(
                worker.heard_at,
                elapsed_s,
                is_due=worker.words_due > 0,
                answers_in_s=slowest_s,
            )
            if finding is Finding.ASK:
                worker.owes_words = True
                self._asking[worker] = tasks.create_task(self._ask(worker, silence))
            elif finding is Finding.GONE:
                self._gone(worker)
            elif finding is Finding.SPEAKS and worker.owes_words:
                self._end_hush(worker)

    def _end_hush(self, worker: Worker) -> None:
        worker.owes_words = False
        asking = self._asking.pop(worker, None)
        if asking is not None:
            asking.cancel()

    async def _ask(self, worker: Worker, silence: Silence) -> None:
        """Ask the worker for its health: whatever it answers, it lives."""
        asked_at = self._clock()
        try:
            await worker.health.Check(  # type: ignore[attr-defined]  # its stubs lack Check
                health_pb2.HealthCheckRequest(), timeout=_LATE * self._settings.answer_s
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in _NO_ANSWER:
                return
        except grpc.aio.UsageError:
            return  # its channel was closed meanwhile: it has left
        worker.answered(self._clock() - asked_at)
        log.debug("quiet for %.2f s, and alive", silence.silent_s, extra={"worker": worker.name})
        silence.answered()
        worker.owes_words = False
        self._asking.pop(worker, None)
