"""Audits: a semantic hit that was served is generated again, in the background.

The sidecar picks hits at random and judges the fresh answer against the one that
was served. No client waits for an audit, and no client's stream ever waits
behind one: audits run only on workers that have nothing else to do, are dropped
when there is no such worker, and end when the router drains.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from router.cache_client import Cache, Hit
from router.pool import WorkerPool
from router.relay import Relay
from router.settings import AuditSettings
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import SidecacheError
from sidecache.v1 import inference_pb2 as pb

log = logging.getLogger(__name__)


class _Nobody:
    """The reader of an audit: its answer goes to the sidecar only."""

    async def write(self, message: pb.GenerateResponse) -> None:
        # The relay writes in a loop; a client's stream must get its turn between.
        await asyncio.sleep(0)


class Auditor:
    """Generates audited hits again; open for work while :meth:`run` runs."""

    def __init__(
        self,
        relay: Relay,
        pool: WorkerPool,
        cache: Cache,
        settings: AuditSettings,
        max_answer_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._relay = relay
        self._pool = pool
        self._cache = cache
        self._settings = settings
        self._max_answer_bytes = max_answer_bytes
        self._clock = clock
        self._tasks: asyncio.TaskGroup | None = None
        self.running = 0
        self.dropped = 0

    def reconfigure(self, settings: AuditSettings) -> None:
        """Take new settings; audits under way go on."""
        self._settings = settings

    async def run(self) -> None:
        """Let audits in until cancelled, and cancel those under way."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None

    def audit_soon(self, ticket: Ticket, hit: Hit) -> None:
        """Generate a hit again if it was picked and nobody is held up by that."""
        if not hit.audit or not ticket.may_store or ticket.only_if_cached:
            return
        full = self.running >= self._settings.max_audits
        if self._tasks is None or full or not self._pool.has_idle_worker(ticket.model):
            self.dropped += 1
            return
        self.running += 1
        self._tasks.create_task(self._audit(ticket, hit.entry_id), name="audit")

    async def _audit(self, ticket: Ticket, entry_id: str) -> None:
        try:
            await self._generate(self._low_priority(ticket), ticket, entry_id)
        except SidecacheError as error:
            # One observation less; the worker's own failure is told of elsewhere.
            self.dropped += 1
            log.debug("an audit was given up: %s", error.reason)
        finally:
            self.running -= 1

    async def _generate(self, again: Ticket, ticket: Ticket, entry_id: str) -> None:
        tape = Tape(again, self._max_answer_bytes, self._clock)
        worker = await self._relay.stream(again, tape, _Nobody(), to_idlest=True)
        answer = tape.answer(worker.name, again.model.revision)
        self._cache.store_soon(ticket, answer, audits_entry_id=entry_id)

    def _low_priority(self, ticket: Ticket) -> Ticket:
        """The same request as a low one of its own; its cache key stays what it was."""
        request = pb.GenerateRequest()
        request.CopyFrom(ticket.request)
        request.priority = min(request.priority, self._settings.priority)
        return replace(
            ticket,
            request=request,
            request_id=f"{ticket.request_id}-audit",
            timeout_s=self._settings.timeout_s,
            opened_at=self._clock(),
        )
