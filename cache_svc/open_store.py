"""The answer store that the settings ask for, and what is done to it again and again."""

import asyncio
from contextlib import AsyncExitStack

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
    """The store on disk with all its answers, or None where memory is all there is."""
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
    opened = await asyncio.to_thread(opening.__enter__)
    stack.push(opening.__exit__)
    return opened


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
