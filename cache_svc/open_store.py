"""The answer store that the settings ask for, and what is done to it again and again."""

import asyncio
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial

from cache_svc.departures import Departures
from cache_svc.durable.opening import Opened, open_durable_store
from cache_svc.durable.store import DurableStore
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.learnt import Learnt, lineage
from cache_svc.settings import CacheSettings
from cache_svc.store import AnswerStore, Clock, MemoryStore


async def open_durable(
    stack: AsyncExitStack,
    settings: CacheSettings,
    queue: EmbeddingQueue | None,
    clock: Clock,
    departures: Departures,
) -> Opened | None:
    """The store on disk with all its answers, or None where memory is all there is.

    Cancelled, it waits for the disk, and gives the folder back before it ends.
    """
    if settings.store.path is None:
        return None
    opening = open_durable_store(
        settings.store.path,
        settings.max_bytes,
        clock,
        departures,
        fingerprint="" if queue is None else queue.fingerprint,
        lineage=b"" if queue is None else lineage(settings.semantic.bound, queue.fingerprint),
        durability=settings.store.durability,
        on_corrupt=settings.store.on_corrupt,
        max_waiting_bytes=settings.store.max_waiting_bytes,
    )
    # A million answers take some seconds, in which a signal must be heard.
    entering = asyncio.get_running_loop().run_in_executor(None, opening.__enter__)
    try:
        opened = await asyncio.shield(entering)
    except asyncio.CancelledError:
        # The thread cannot be stopped: what it holds in the end is given back.
        entering.add_done_callback(partial(_give_back, opening))
        await asyncio.wait([entering])
        raise
    stack.push(opening.__exit__)
    return opened


def _give_back(opening: AbstractContextManager[Opened], entering: "asyncio.Future[Opened]") -> None:
    if entering.exception() is None:
        opening.__exit__(None, None, None)


def open_store(
    settings: CacheSettings, durable: Opened | None, clock: Clock, departures: Departures
) -> AnswerStore:
    """The one on disk where there is one, else one in memory."""
    if durable is not None:
        return durable.store
    return MemoryStore(settings.max_bytes, clock, departures)


async def keep_learnt(store: DurableStore, learnt: Learnt | None, interval_s: float) -> None:
    """Write hits and what was learnt again and again, and once more at the end."""
    try:
        while True:
            await asyncio.sleep(interval_s)
            store.write_uses()
            if learnt is not None:
                learnt.write()
    finally:
        store.write_uses()
        if learnt is not None:
            learnt.write()


async def keep_swept(store: AnswerStore, interval_s: float) -> None:
    """Give back the memory of answers past their time, asked for or not."""
    while True:
        await asyncio.sleep(interval_s)
        store.expire()
