"""A fleet on paper: streams of innocent and poisonous prompts, and workers lost at random.

The real quarantine and the real crowds; around them the relay's rules as router/attempts.py
has them, without time: a step is one thing that happens somewhere.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from router.quarantine import Quarantine
from router.settings import QuarantineSettings
from router.worker import Worker
from sidecache.errors import Quarantined
from tests.unit.router.fleet import Clock, make_worker

TOKENS = 80


@dataclass(eq=False)
class Part:
    """One stream; it is on one worker at a time, or waits for one."""

    key: bytes
    dies_at: int | None
    tokens: int = 0
    on_trial: bool = False
    has_progressed: bool = False
    worker: Worker | None = None
    waits: int = 0
    leave: Callable[["Part"], None] = lambda _part: None

    def leave_silent_worker(self) -> None:
        """Nobody is silent here."""

    @property
    def may_make_room(self) -> bool:
        """Whether it has begun."""
        return self.has_progressed

    def make_room(self) -> None:
        """Counted, or done."""
        if self.may_make_room:
            self.leave(self)


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        refused: innocent prompts that were confirmed.
        impossible: of those, by a death that was not theirs alone to explain.
        cost: workers that each poisonous prompt has ended.
        caught: of those, refused in the end.
    """

    refused: set[bytes] = field(default_factory=set)
    impossible: set[bytes] = field(default_factory=set)
    cost: dict[bytes, int] = field(default_factory=dict)
    caught: set[bytes] = field(default_factory=set)


class LossyFleet:
    """Some workers, their streams, and chance.

    Args:
        chance: all that is random.
        workers: how many.
        poisons: how many prompts end a worker, each at a place of its own.
        kill_share: of the steps that end a worker for no prompt's fault.
        streams: in flight.
    """

    def __init__(
        self, chance: random.Random, workers: int, poisons: int, kill_share: float, streams: int
    ) -> None:
        self._chance = chance
        self.clock = Clock()
        self.quarantine = Quarantine(QuarantineSettings(), self.clock)
        self._workers = [make_worker(f"w{number}") for number in range(workers)]
        self._poisons = [
            (b"poison %d" % number, chance.choice((0, 1, 7, 40))) for number in range(poisons)
        ]
        self._kill_share = kill_share
        self._wanted = streams
        self._parts: list[Part] = []
        self._number = 0
        self.outcome = Outcome(cost={key: 0 for key, _ in self._poisons})

    def run(self, steps: int) -> Outcome:
        """Let so many things happen."""
        for _ in range(steps):
            self.clock.now += 0.005
            if self._chance.random() < self._kill_share:
                self._lose(self._chance.choice(self._workers), None)
            if len(self._parts) < self._wanted:
                self._ask()
            part = self._chance.choice(self._parts) if self._parts else None
            if part is not None and part.worker is None:
                self._place(part)
            elif part is not None:
                self._advance(part)
        return self.outcome

    def _ask(self) -> None:
        self._number += 1
        key, dies_at = b"innocent %d" % self._number, None
        if self._poisons and self._chance.random() < 0.03:
            poison, place = self._chance.choice(self._poisons)
            # A second copy of it under way costs one more.
            if all(part.key != poison for part in self._parts):
                key, dies_at = poison, place
        self._parts.append(Part(key, dies_at, leave=self._leave))

    def _place(self, part: Part) -> None:
        quarantine, chance = self.quarantine, self._chance
        try:
            quarantine.check(part.key)
        except Quarantined:
            self._parts.remove(part)
            return
        free = [worker for worker in self._workers if not worker.crowd.is_taken]
        if quarantine.is_suspected(part.key):
            alone = quarantine.may_try(part.key, self._workers)
            if alone:
                free = alone
            elif part.waits < 10:
                part.waits += 1
                quarantine.reserve(part.key, self._workers)
                return
            elif not part.tokens or not quarantine.may_take_a_chance(part.key):
                quarantine.release(part.key)
                self._parts.remove(part)
                return
        quarantine.release(part.key)
        worker = chance.choice(free or self._workers)
        part.worker, part.has_progressed, part.waits = worker, False, 0
        worker.leases += 1
        quarantine.begins(part, worker.crowd)

    def _advance(self, part: Part) -> None:
        worker = part.worker
        assert worker is not None
        if part.dies_at is not None and part.tokens >= part.dies_at:
            self.outcome.cost[part.key] += 1
            self._lose(worker, part)
            return
        count = self._chance.randint(1, 12)
        if part.dies_at is not None:
            count = min(count, part.dies_at - part.tokens)
        part.tokens += count
        part.has_progressed = True
        self.quarantine.got_on(part, worker.crowd)
        if part.tokens >= TOKENS:
            self.quarantine.completed(part)
            self._leave(part)
            self._parts.remove(part)

    def _lose(self, worker: Worker, culprit: Part | None) -> None:
        """A worker is gone, and is back at once with nobody on it."""
        crowd = worker.crowd
        aboard = [part for part in self._parts if part.worker is worker]
        before = self._confirmed()
        self.quarantine.worker_lost(crowd)
        for key in self._confirmed() - before:
            if key in self.outcome.cost:
                self.outcome.caught.add(key)
                continue
            self.outcome.refused.add(key)
            if len(aboard) > 1 or culprit is not None:
                self.outcome.impossible.add(key)
        for part in aboard:
            self._leave(part)
        worker.crowd = type(crowd)()

    def _leave(self, part: Part) -> None:
        worker = part.worker
        assert worker is not None
        worker.leases -= 1
        self.quarantine.leaves(part, worker.crowd)
        part.on_trial, part.worker = False, None

    def _confirmed(self) -> set[bytes]:
        return {key for key, held in self.quarantine._prompts.items() if held.is_confirmed}
