"""The prefix tier of a sidecar: followers, index, tokenizers and hints, opened together."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from cache_svc.follow_tally import FollowState
from cache_svc.followed_models import FollowedModels
from cache_svc.kv_followers import KvFollowers
from cache_svc.owned_task import owned_task
from cache_svc.prefix_hints import PrefixHints
from cache_svc.prefix_settings import PrefixSettings
from cache_svc.tokenizers_kept import KeptTokenizers
from cache_svc.wire import check_name
from observability.channel import open_channel
from observability.metrics.cache import PrefixMetrics
from observability.telemetry import Telemetry
from sidecache.errors import InvalidRequest
from sidecache.v1 import cache_pb2


@dataclass(frozen=True, slots=True)
class PrefixTier:
    """What the service asks about the workers' KV caches."""

    models: FollowedModels
    followers: KvFollowers
    hints: PrefixHints
    max_workers: int

    def set_workers(self, request: cache_pb2.SetWorkersRequest) -> None:
        """Take in which workers a router has.

        Raises:
            InvalidRequest: no router, or an address that is none.
        """
        check_name(request.router, "router")
        if len(request.workers) > self.max_workers:
            raise InvalidRequest(
                f"are {len(request.workers)}, may be {self.max_workers}", field="workers"
            )
        for target in request.workers:
            check_name(target.address, "workers.address")
        self.followers.heard(request.router, (target.address for target in request.workers))

    def write_stats(self, response: cache_pb2.GetStatsResponse) -> None:
        """Add this tier's figures."""
        states = self.followers.states()
        response.prefix_blocks = self.models.blocks
        response.prefix_workers_followed = states[FollowState.FOLLOWING]
        response.prefix_workers = states.total()
        response.prefix_resyncs = self.followers.tally.resyncs.total()
        response.prefix_events = self.followers.tally.blocks
        response.prefix_followed.extend(self.followers.describe())


@asynccontextmanager
async def open_prefix_tier(
    settings: PrefixSettings, telemetry: Telemetry
) -> AsyncIterator[PrefixTier | None]:
    """Follow workers, once routers name some, until the block is left."""
    if not settings.enabled:
        yield None
        return
    models = FollowedModels(settings.max_blocks_per_worker, settings.max_blocks)
    tokenizers = KeptTokenizers(
        settings.max_tokenizers, settings.max_tokenizer_bytes, settings.kept_segment_bytes
    )
    followers = KvFollowers(
        models,
        tokenizers,
        settings,
        lambda address: open_channel(address, telemetry, settings.channels),
        time.monotonic,
    )
    metrics = _metrics(telemetry, models, followers)
    async with AsyncExitStack() as stack:
        executor = ThreadPoolExecutor(settings.threads, thread_name_prefix="tokenize")
        stack.push_async_callback(_shut_down, executor)
        hints = PrefixHints(models, tokenizers, settings, executor, metrics)
        await stack.enter_async_context(owned_task(followers.run(), "followers of KV caches"))
        yield PrefixTier(models, followers, hints, settings.max_workers)


async def _shut_down(executor: ThreadPoolExecutor) -> None:
    """Drop what waits; the prompt that a thread is at takes a second at most."""
    await asyncio.to_thread(executor.shutdown, cancel_futures=True)


def _metrics(telemetry: Telemetry, models: FollowedModels, followers: KvFollowers) -> PrefixMetrics:
    return PrefixMetrics(
        telemetry.meter,
        lambda: models.blocks,
        # Every state, or one that emptied would keep its last figure.
        lambda: {state.value: followers.states()[state] for state in FollowState},
        lambda: {fault.value: times for fault, times in followers.tally.resyncs.items()},
        lambda: followers.tally.blocks,
        lambda: followers.changes_behind,
    )
