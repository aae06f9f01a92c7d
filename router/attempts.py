"""What has been tried for one request, and whether anything is left to try."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from router.continuation import may_go_on_inexactly, why_not_continued
from router.lease import Lease
from router.pool import WorkerPool
from router.prompt import RoutedPrompt
from router.settings import LimitSettings
from router.tape import Tape
from router.ticket import Ticket
from router.worker import Worker
from sidecache.errors import NoHealthyWorker, SidecacheError, StreamInterrupted
from sidecache.v1 import inference_pb2 as pb


class Attempts:
    """The workers of one request, one after the other.

    Before the first token any other worker may begin again. After it, the next one
    goes on from the last token, where that is exact or the caller takes less.
    """

    def __init__(self, pool: WorkerPool, limits: LimitSettings, ticket: Ticket, tape: Tape) -> None:
        self._pool = pool
        self._limits = limits
        self._ticket = ticket
        self._tape = tape
        self._tried: list[Worker] = []
        self._moves = 0
        self._failure: SidecacheError | None = None
        self.why_not = why_not_continued(ticket)

    @contextmanager
    def lease(self, prompt: RoutedPrompt | None) -> Iterator[Lease]:
        """Hold the next worker.

        Raises:
            NoHealthyWorker: there is none, and nothing was sent yet.
            SidecacheError: what the last one failed with, if that says more.
        """
        avoid: list[Worker] = self._tried
        if self._tape.tokens and not self._untried():
            # One that failed is ready again: it was restarted, or only refused.
            avoid = []
        try:
            with self._pool.lease(self._ticket.model, avoid, prompt) as lease:
                self._tried.append(lease.worker)
                yield lease
        except NoHealthyWorker as error:
            raise self._failure or error from error

    def move_to(self, worker: Worker) -> pb.Migrated | None:
        """What the client is told with the next worker's first event; None: nothing."""
        if not self._tape.started or len(self._tried) < 2:  # noqa: PLR2004 - a move has two ends
            return None
        return pb.Migrated(
            from_worker=self._tried[-2].name,
            to_worker=worker.name,
            offset=self._tape.tokens,
            best_effort=self._tape.is_inexact,
        )

    async def failed(self, error: SidecacheError) -> None:
        """Return when another worker may be asked.

        Raises:
            SidecacheError: the error itself; nothing was sent, and nobody is left.
            StreamInterrupted: tokens were sent and the rest cannot come.
        """
        self._failure = error
        if not self._tape.tokens:
            if len(self._tried) >= self._limits.max_attempts:
                raise error
            return
        self._moves += 1
        why = self._why_it_ends()
        if why:
            raise StreamInterrupted(
                f"the worker was lost after {self._tape.tokens} tokens ({error}), and {why}"
            ) from error
        self._tape.is_inexact = self._tape.is_inexact or bool(self.why_not)
        await self._wait_for_a_worker(error)

    def _why_it_ends(self) -> str:
        if self.why_not and not may_go_on_inexactly(self._ticket.request):
            return f"the rest cannot be continued exactly: {self.why_not}"
        if self._moves > self._limits.max_migrations:
            return f"it may move {self._limits.max_migrations} times"
        return ""

    def _untried(self) -> list[Worker]:
        ready = self._pool.ready_workers(self._ticket.model)
        return [worker for worker in ready if worker not in self._tried]

    async def _wait_for_a_worker(self, error: SidecacheError) -> None:
        """A stream that has begun waits a little for a fleet that comes back."""
        try:
            async with asyncio.timeout(self._limits.migration_wait_s):
                while not self._pool.ready_workers(self._ticket.model):
                    await self._pool.wait_for_change()
        except TimeoutError:
            raise StreamInterrupted(
                f"the worker was lost after {self._tape.tokens} tokens ({error}), and no other"
                f" was ready within {self._limits.migration_wait_s:g} s"
            ) from error
