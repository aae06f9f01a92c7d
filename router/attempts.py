"""What has been tried for one request, and whether anything is left to try."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property

from router.continuation import may_go_on_inexactly, why_not_continued
from router.passage import Passage
from router.pool import WorkerPool
from router.prompt import RoutedPrompt
from router.quarantine import SAME_PLACE_TOKENS, prompt_key
from router.recovery import Recovery
from router.rival import Rival
from router.settings import LimitSettings
from router.tape import Tape
from router.ticket import Ticket
from router.worker import Worker
from sidecache.errors import (
    EngineFailed,
    NoHealthyWorker,
    Quarantined,
    SidecacheError,
    StreamInterrupted,
)
from sidecache.v1 import inference_pb2 as pb

# Between two rounds of asking workers that were all full or draining.
_ROUND_S = 0.05


class Attempts:
    """The workers of one request, one after the other.

    Before the first token any other worker may begin again. After it, the next one
    goes on from the last token, where that is exact or the caller takes less.

    Attributes:
        why_not: what keeps it from being exact; None: nothing.
        rival: the second worker that may begin before the first token; None: none does.
    """

    def __init__(
        self,
        pool: WorkerPool,
        limits: LimitSettings,
        recovery: Recovery,
        ticket: Ticket,
        tape: Tape,
    ) -> None:
        self._pool = pool
        self._limits = limits
        self._recovery = recovery
        self._ticket = ticket
        self._tape = tape
        # Each with its epoch: one that was restarted since is another.
        self._tried: list[tuple[Worker, str]] = []
        # The last whose events were passed on.
        self._served_by: Worker | None = None
        self._moves = 0
        self._failure: SidecacheError | None = None
        # Where and when the stream stood still last.
        self._stopped_tokens = -1
        self._stopped_at = 0.0
        self._waits_since = 0.0
        self.why_not = why_not_continued(ticket)
        self.rival: Rival | None = None
        recovery.budget.asked()

    @contextmanager
    def lease(self, prompt: RoutedPrompt | None) -> Iterator[Passage]:
        """Hold the next worker, for this request's part of a stream.

        Raises:
            NoHealthyWorker: there is none, and nothing was sent yet.
            StreamInterrupted: there is none, and something was.
            SidecacheError: what the last one failed with, if that says more.
        """
        passage = self.rival.take() if self.rival is not None else None
        if self.rival is not None and passage is not None:
            passage.takes_over(self._move_to(passage.worker))
            self._served_by = passage.worker
            with self.rival.stack:
                yield passage
            return
        quarantine, begun = self._recovery.quarantine, bool(self._tape.tokens)
        avoid = self._avoided() if self._tried or not quarantine.is_empty else ()
        if not quarantine.is_empty and quarantine.is_suspected(self._key):
            prompt = None  # to the worker with the fewest others
        try:
            with self._leased(avoid, prompt) as passage:
                self._served_by = passage.worker
                yield passage
        except NoHealthyWorker as error:
            if begun:
                raise self._interrupted("no other was ready", "no_worker") from error
            raise self._failure or error from error

    @contextmanager
    def standing_by(self, passage: Passage) -> Iterator[None]:
        """Let a rival begin while the block waits for the first token, where there is one."""
        if self.rival is None or self._tape.tokens or not self._recovery.quarantine.is_empty:
            yield
            return
        self.rival.stand_by(passage, self._ready())
        try:
            yield
        finally:
            self.rival.stand_down()

    @contextmanager
    def lease_beside(self, prompt: RoutedPrompt | None) -> Iterator[Passage]:
        """Hold another worker than those that were tried, and one that has a slot.

        Raises:
            NoHealthyWorker: there is none.
        """
        tried = [worker for worker, _ in self._tried]
        avoid = [w for w in self._ready() if w in tried or w.is_full or w.is_hushed]
        with self._leased(avoid, prompt) as passage:
            yield passage

    @contextmanager
    def _leased(self, avoid: Sequence[Worker], prompt: RoutedPrompt | None) -> Iterator[Passage]:
        recovery, begun = self._recovery, bool(self._tape.tokens)
        with self._pool.lease(self._ticket.model, avoid, prompt, goes_on=begun) as lease:
            move = self._move_to(lease.worker)
            self._tried.append((lease.worker, lease.worker.epoch))
            is_exact = self.why_not is None
            passage = Passage(
                lease, self._ticket, self._tape, move, recovery.clock, is_exact=is_exact
            )
            recovery.quarantine.begins(passage, passage.crowd)
            try:
                yield passage
            finally:
                recovery.quarantine.leaves(passage, passage.crowd)

    async def may_go_on(self) -> None:
        """Return when a worker may be asked: at once, where all is well.

        Raises:
            Quarantined: none may ever; nothing was sent yet.
            NoHealthyWorker: no worker could be had for a suspected prompt alone.
            StreamInterrupted: something was sent, and it is refused, or no worker was ready.
        """
        if self._recovery.quarantine.is_empty and not self._tape.tokens:
            return
        if self.rival is not None and self.rival.has_won():
            return
        self._waits_since = self._recovery.clock()
        began = self._stopped_at if self._tape.tokens else self._waits_since
        left_s = began + self._limits.migration_wait_s - self._recovery.clock()
        try:
            async with asyncio.timeout(max(0.0, left_s)):
                while not self._may_ask():
                    await self._news()
        except Quarantined as error:
            if self._tape.tokens:
                raise self._interrupted(error.text, "quarantined") from error
            raise
        except TimeoutError:
            self._give_up()
        finally:
            # The lease follows at once; whatever it takes is taken by its trial from then on.
            if self._recovery.quarantine.has_reserved:
                self._recovery.quarantine.release(self._key)

    def _may_ask(self) -> bool:
        """Whether there is a worker; for a suspected prompt, one to try it on."""
        ready, quarantine = self._ready(), self._recovery.quarantine
        if quarantine.is_empty:
            return bool(ready)
        quarantine.check(self._key)
        if not ready:
            # Before the first token the refusal is the lease's.
            return not self._tape.tokens
        if not quarantine.is_suspected(self._key):
            may_ask = not all(worker.crowd.is_taken for worker in ready)
        else:
            may_ask = bool(quarantine.may_try(self._key, ready))
            if not may_ask:
                quarantine.reserve(self._key, ready)
        if not may_ask and self._recovery.clock() - self._waits_since >= quarantine.trial_wait_s:
            self._give_up()
            return True
        return may_ask

    async def _news(self) -> None:
        if self._ready():
            # A reserved worker empties without a word.
            with suppress(TimeoutError):
                async with asyncio.timeout(_ROUND_S):
                    await self._recovery.quarantine.wait_for_a_verdict()
        else:
            await self._pool.wait_for_change()

    def _give_up(self) -> None:
        """Raise, if there is still nobody; a stream that has begun takes one chance instead."""
        quarantine = self._recovery.quarantine
        why = "workers were lost under this prompt, and none is free to try it alone"
        is_suspected = not quarantine.is_empty and quarantine.is_suspected(self._key)
        if not self._tape.tokens:
            if is_suspected:
                raise self._failure or NoHealthyWorker(why)
            return  # beside a trial that takes long
        if is_suspected and not quarantine.may_take_a_chance(self._key):
            self._recovery.metrics.migrated("suspected")
            raise self._interrupted(why, "suspected") from self._failure
        if not self._ready():
            self._recovery.metrics.migrated("no_worker")
            why = f"no other was ready within {self._limits.migration_wait_s:g} s"
            raise self._interrupted(why, "no_worker") from self._failure

    async def failed(self, error: SidecacheError) -> None:
        """Return when another worker may be asked.

        Raises:
            SidecacheError: the error itself; nothing was sent, and nobody is left.
            StreamInterrupted: tokens were sent and the rest cannot come.
        """
        self._failure = error
        if self.rival is not None and not self._tape.tokens and await self.rival.winner():
            return
        if not self._tape.tokens:
            self._may_begin_again(error)
            return
        metrics, is_refusal = self._recovery.metrics, not isinstance(error, EngineFailed)
        if is_refusal and self._tape.tokens == self._stopped_tokens:
            # It stands where it stood: nothing was moved, so this counts as no move.
            if not self._wanted():
                await asyncio.sleep(_ROUND_S)
            return
        if self._tape.tokens > self._stopped_tokens + SAME_PLACE_TOKENS:
            # It got on in between: the fleet is bad, and not this stream.
            self._moves = 0
        self._moves += 1
        self._stopped_tokens = self._tape.tokens
        self._stopped_at = self._recovery.clock()
        if self.why_not is not None and not may_go_on_inexactly(self._ticket.request):
            metrics.migrated("not_exact")
            text = f"the rest cannot be continued exactly: {self.why_not.text}"
            raise self._interrupted(text, self.why_not.label) from error
        if self._moves > self._limits.max_migrations:
            metrics.migrated("too_many")
            text = f"it may move {self._limits.max_migrations} times without getting on"
            raise self._interrupted(text, "too_many_moves") from error
        self._tape.is_inexact = self._tape.is_inexact or self.why_not is not None
        metrics.migrated("best_effort" if self._tape.is_inexact else "exact")

    @cached_property
    def _key(self) -> bytes:
        """Of the prompt; worked out only while something is held against some prompt."""
        return prompt_key(self._ticket)

    def _may_begin_again(self, error: SidecacheError) -> None:
        """Raise the error if it is the last one; a refusal cost no engine anything."""
        if not self._recovery.quarantine.is_empty:
            self._recovery.quarantine.check(self._key)
        if len(self._tried) >= self._limits.max_attempts:
            raise error
        if isinstance(error, EngineFailed) and not self._recovery.budget.take():
            self._recovery.metrics.retried("refused")
            raise error
        self._recovery.metrics.retried("made")

    def _move_to(self, worker: Worker) -> pb.Migrated | None:
        """What the client is told with the next worker's first event; None: nothing."""
        if not self._tape.started or self._served_by is None:
            return None
        return pb.Migrated(
            from_worker=self._served_by.name,
            to_worker=worker.name,
            offset=self._tape.tokens,
            best_effort=self._tape.is_inexact,
        )

    def _avoided(self) -> list[Worker]:
        """Whom not to ask now."""
        wanted, ready = self._wanted(), self._ready()
        if not wanted and self._tape.tokens:
            # One that failed is ready again, or only refused.
            return []
        return [worker for worker in ready if worker not in wanted]

    def _wanted(self) -> Sequence[Worker]:
        """The best of those that are ready and were not tried; where nobody is better, all."""
        tried = [worker for worker, epoch in self._tried if worker.epoch == epoch]
        wanted: Sequence[Worker] = [w for w in self._ready() if w not in tried]
        quarantine = self._recovery.quarantine
        if not quarantine.is_empty:
            if quarantine.is_suspected(self._key):
                return quarantine.may_try(self._key, wanted or self._ready())
            # Whoever goes beside a suspect may be lost with it.
            wanted = [w for w in wanted if not w.crowd.is_taken] or wanted
        if self._tried:
            wanted = self._pool.liveliest(wanted)
        return wanted

    def _ready(self) -> Sequence[Worker]:
        return self._pool.ready_workers(self._ticket.model)

    def _interrupted(self, why: str, label: str) -> StreamInterrupted:
        tokens = self._tape.tokens
        text = f"the worker was lost after {tokens} tokens ({self._failure}), and {why}"
        return StreamInterrupted(text, why=label, offset=tokens)
