"""Followers of workers, and what becomes of one that breaks."""

import asyncio
import time
from collections.abc import Callable

import grpc
import pytest

from cache_svc.followed_models import FollowedModels
from cache_svc.kv_follower import KvFollower
from cache_svc.kv_followers import KvFollowers
from cache_svc.prefix_settings import PrefixSettings
from cache_svc.tokenizers_kept import KeptTokenizers
from tests.fixtures.kv_worker import kv_worker

QUICK = PrefixSettings(min_backoff_s=0.01, max_backoff_s=0.05)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.005)


async def test_a_follower_that_broke_asks_for_all_blocks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it knew of its worker went with it; changes alone would leave it nearly nothing."""
    models, tokenizers = FollowedModels(1 << 20, 1 << 20), KeptTokenizers(4, 1 << 20, 0)
    connect = grpc.aio.insecure_channel
    followers = KvFollowers(models, tokenizers, QUICK, connect, time.monotonic)
    following = asyncio.create_task(followers.run())

    async with kv_worker() as worker:

        def blocks() -> int:
            model = models.of_worker(worker.address)
            return 0 if model is None else model.index.blocks(worker.address)

        def broken(_follower: KvFollower) -> None:
            monkeypatch.undo()
            raise ZeroDivisionError("a bug")

        try:
            worker.held = {1, 2, 3}
            followers.heard("r1", [worker.address])
            await until(lambda: blocks() == 3)
            monkeypatch.setattr(KvFollower, "_in_step", broken)
            worker.store([4])
            await until(lambda: len(worker.subscriptions) == 2)
            await until(lambda: blocks() == 4)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
