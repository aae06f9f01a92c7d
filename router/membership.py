"""Which workers there are: every target is followed, and every address it names is watched."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

import grpc

from router.health_watch import HealthWatch
from router.roster import Roster
from router.settings import PoolSettings
from router.targets import FILE_PREFIX, check_target, is_fixed, resolve
from router.worker import Worker
from sidecache.errors import SetupError

log = logging.getLogger(__name__)


class Membership:
    """Lets workers join and leave as their targets say.

    A worker that leaves gets no new stream; its running ones finish, within a grace.

    Args:
        targets: what :mod:`router.targets` reads.
        roster: gets the workers.
        settings: pauses and bounds.
        connect: opens an instrumented channel to an address.
        clock: monotonic seconds.
        on_found: awaited for each worker that has introduced itself, before its first stream.
        on_left: told of each worker that is gone for good.

    Raises:
        SetupError: something that cannot be a target.
    """

    def __init__(
        self,
        targets: Iterable[str],
        roster: Roster,
        settings: PoolSettings,
        connect: Callable[[str], grpc.aio.Channel],
        clock: Callable[[], float],
        on_found: Callable[[Worker], Awaitable[None]],
        on_left: Callable[[Worker], None],
    ) -> None:
        self._on_left = on_left
        self._targets = tuple(check_target(target) for target in targets)
        self._roster = roster
        self._settings = settings
        self._connect = connect
        self._clock = clock
        self._health = HealthWatch(roster, settings, on_found)
        self._retargeted = asyncio.Event()
        # By address; of all targets.
        self._watches: dict[str, asyncio.Task[None]] = {}

    @property
    def targets(self) -> tuple[str, ...]:
        """What is followed now."""
        return self._targets

    def follow(self, targets: Iterable[str]) -> None:
        """Follow these targets from now on; workers that no other names leave.

        Raises:
            SetupError: something that cannot be a target; the old ones stay.
        """
        self._targets = tuple(check_target(target) for target in targets)
        self._retargeted.set()

    async def run(self) -> None:
        """Follow every target until cancelled, then close every channel."""
        async with asyncio.TaskGroup() as tasks:
            seen: dict[str, frozenset[str] | None] = {}
            looks: dict[str, asyncio.Task[None]] = {}
            while True:
                self._retargeted.clear()
                for target in looks.keys() - set(self._targets):
                    looks.pop(target).cancel()
                    seen.pop(target, None)
                for target in self._targets:
                    if target not in looks:
                        looks[target] = tasks.create_task(self._look(target, seen))
                self._settle(seen, tasks)
                await self._wait()

    async def _wait(self) -> None:
        """Return at news of a target, or when it is time to see who has left for good."""
        try:
            async with asyncio.timeout(self._settings.file_interval_s):
                await self._retargeted.wait()
        except TimeoutError:
            pass

    async def _look(self, target: str, seen: dict[str, frozenset[str] | None]) -> None:
        """Keep what one target stands for up to date; None: it never could be told."""
        settings, complaint = self._settings, ""
        is_file = target.startswith(FILE_PREFIX)
        interval_s = settings.file_interval_s if is_file else settings.resolve_interval_s
        while True:
            try:
                seen_now: frozenset[str] | None
                seen_now, trouble = await resolve(target), ""
            except (OSError, SetupError) as error:
                # What was last known stays: a slip of an editor must not empty the fleet.
                seen_now, trouble = seen.get(target), str(error)
            if trouble and trouble != complaint:
                log.warning("the old workers of %s stay: %s", target, trouble)
            complaint = trouble
            if target not in seen or seen[target] != seen_now:
                seen[target] = seen_now
                self._retargeted.set()
            if is_fixed(target):
                return
            await asyncio.sleep(interval_s)

    def _settle(self, seen: dict[str, frozenset[str] | None], tasks: asyncio.TaskGroup) -> None:
        """Watch whoever came; let those go whom no target names."""
        # A dict keeps the order of the targets.
        named = dict.fromkeys(a for t in self._targets for a in sorted(seen.get(t) or ()))
        for address in named:
            is_new = address not in self._watches
            if is_new and len(self._roster) < self._settings.max_workers:
                worker = Worker(address, self._connect(address), self._clock)
                self._roster.add(worker)
                self._watches[address] = tasks.create_task(self._watch(worker))
        if seen.keys() >= set(self._targets):
            self._roster.all_found()
        # Those that come are to have answered, or failed to, before others go.
        met = self._roster.have_met(named.keys() & self._watches.keys())
        known = all(seen.get(target) is not None for target in self._targets)
        for address, watch in list(self._watches.items()):
            if self._has_left(address, address not in named, may_leave=met and known):
                watch.cancel()
                del self._watches[address]

    def _has_left(self, address: str, unnamed: bool, *, may_leave: bool) -> bool:
        """Give a worker that leaves no new stream; whether its running ones are over too."""
        worker = self._roster.get(address)
        if worker is None:
            return unnamed
        leaves = unnamed and (may_leave or worker.leaving_since is not None)
        if leaves is not (worker.leaving_since is not None):
            log.info("worker %s", "leaves" if leaves else "stays", extra={"worker": worker.name})
            worker.leaving_since = self._clock() if leaves else None
            self._roster.index()
        if worker.leaving_since is None:
            return False
        over = self._clock() - worker.leaving_since >= self._settings.leave_grace_s
        return over or not worker.leases

    async def _watch(self, worker: Worker) -> None:
        """Keep one worker's state true for as long as its address is known."""
        try:
            await self._health.follow(worker)
        finally:
            self._roster.remove(worker)
            self._on_left(worker)
            await worker.channel.close(grace=None)
