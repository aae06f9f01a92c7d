"""A follower for each worker that a router speaks of."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable

from cache_svc.follow_tally import FollowState, FollowTally
from cache_svc.followed_models import FollowedModels
from cache_svc.kv_follower import Connect, KvFollower
from cache_svc.membership import Membership
from cache_svc.prefix_settings import PrefixSettings
from cache_svc.tokenizers_kept import KeptTokenizers
from sidecache.v1 import cache_pb2

log = logging.getLogger(__name__)

# How often silence is looked for; what a router says is acted on at once.
_LOOK_INTERVAL_S = 1.0


class KvFollowers:
    """Starts and ends followers as routers come, change their fleets, and go.

    Args:
        connect: opens a channel to an address.
        clock: seconds, monotonic; for the silence of routers.
        look_interval_s: between two looks for routers that fell silent.
    """

    def __init__(
        self,
        models: FollowedModels,
        tokenizers: KeptTokenizers,
        settings: PrefixSettings,
        connect: Connect,
        clock: Callable[[], float],
        look_interval_s: float = _LOOK_INTERVAL_S,
    ) -> None:
        self._models = models
        self._tokenizers = tokenizers
        self._settings = settings
        self._connect = connect
        self._look_interval_s = look_interval_s
        self._membership = Membership(
            settings.router_silence_s, settings.max_routers, settings.max_workers, clock
        )
        self._followers: dict[str, KvFollower] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._chance = random.Random()  # noqa: S311 - spreads waits, keeps no secret
        self.tally = FollowTally()

    def heard(self, router: str, addresses: Iterable[str]) -> None:
        """A router said which workers it has; acted on by :meth:`run`."""
        self._membership.heard(router, addresses)
        self._changed.set()

    def states(self) -> Counter[FollowState]:
        """How many workers are followed in which way."""
        return Counter(follower.state for follower in self._followers.values())

    @property
    def changes_behind(self) -> int:
        """Changes not applied yet, of the worker furthest behind."""
        followers = self._followers.values()
        return max((follower.changes_behind for follower in followers), default=0)

    def describe(self) -> list[cache_pb2.FollowedWorker]:
        """Each worker, for an operator."""
        return [follower.describe() for follower in self._followers.values()]

    async def run(self) -> None:
        """Follow until cancelled; leaves no follower behind."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                self._adjust(self._membership.addresses(), group)
                try:
                    async with asyncio.timeout(self._look_interval_s):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    def _adjust(self, wanted: list[str], group: asyncio.TaskGroup) -> None:
        for address in self._followers.keys() - set(wanted):
            self._tasks.pop(address).cancel()
            del self._followers[address]
        for address in wanted:
            if address not in self._followers:
                follower = self._follower(address)
                self._followers[address] = follower
                self._tasks[address] = group.create_task(self._run(follower))

    def _follower(self, address: str) -> KvFollower:
        return KvFollower(
            address,
            self._connect,
            self._models,
            self._tokenizers,
            self._settings,
            self.tally,
            self._chance,
        )

    async def _run(self, follower: KvFollower) -> None:
        while True:
            try:
                await follower.run()
            except Exception:
                # One worker's odd answer must not end the others' followers.
                log.exception("following a worker failed", extra={"worker": follower.address})
                await asyncio.sleep(self._settings.max_backoff_s)
