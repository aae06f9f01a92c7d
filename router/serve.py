"""The composition root: every part of the router, made once and joined."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import grpc

from observability.channel import open_channel
from observability.listening import is_local
from observability.metrics import DroppedStoreMetrics
from observability.server import RunningServer, open_server
from observability.telemetry import Telemetry
from router.account import Accounts
from router.admin import AdminServicer
from router.admission import Admission
from router.auditor import Auditor
from router.auth import Insecure
from router.cache_client import CacheClient, NoCache
from router.cache_desk import CacheDesk
from router.door import Door
from router.policy import LeastLoaded
from router.pool import WorkerPool
from router.relay import Relay
from router.service import InferenceServicer
from router.settings import RouterSettings
from router.watched_keys import WatchedKeys
from sidecache.errors import SetupError
from sidecache.v1 import admin_pb2_grpc, inference_pb2_grpc

log = logging.getLogger(__name__)

SERVICES = ("sidecache.v1.InferenceService", "sidecache.v1.AdminService")


@asynccontextmanager
async def serve(settings: RouterSettings, telemetry: Telemetry) -> AsyncIterator[RunningServer]:
    """Run a router until the block is left.

    Raises:
        SetupError: a setting that cannot work: the keys file, a target, the address.
    """
    clock = time.monotonic
    keys = _credentials(settings)
    pool = WorkerPool(
        settings.workers,
        settings.pool,
        LeastLoaded(),
        lambda address: open_channel(address, telemetry, settings.channels),
        clock,
        settings.default_model,
    )
    door = Door(keys or Insecure(), pool, settings.limits, clock)
    async with AsyncExitStack() as stack:
        cache, desk = await stack.enter_async_context(_cache(settings, telemetry))
        for part in (pool, cache, keys):
            if part is not None:
                name = type(part).__name__
                await stack.enter_async_context(_in_background(part.run(), name))
        await pool.wait_for_first_contact()
        relay = Relay(pool, settings.limits)
        max_answer_bytes = settings.lookup.max_answer_bytes
        auditor = Auditor(relay, pool, cache, settings.audit, max_answer_bytes, clock)
        inference = InferenceServicer(
            door,
            Admission(settings.admission, clock),
            cache,
            desk,
            relay,
            pool,
            Accounts(telemetry, clock),
            settings.limits,
            max_answer_bytes,
            clock,
            auditor,
        )
        admin = AdminServicer(door, pool, desk, clock)

        def register(server: grpc.aio.Server) -> None:
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
            admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)

        async with (
            open_server(settings.server, telemetry, register, services=SERVICES) as server,
            # Cancelled before the drain begins: an audit never keeps a router from ending.
            _in_background(auditor.run(), "Auditor"),
        ):
            yield server
        if isinstance(cache, CacheClient):
            # What finished streams left to store; bounded like any store call.
            with suppress(TimeoutError):
                async with asyncio.timeout(settings.lookup.store_timeout_s):
                    await cache.flush()


@asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    """Run until the block is left; a task that ends by an error says so at once."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_report)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%s ended by a bug", task.get_name(), exc_info=error)


def _credentials(settings: RouterSettings) -> WatchedKeys | None:
    if settings.keys_file is not None:
        return WatchedKeys(settings.keys_file, settings.keys_interval_s)
    if not is_local(settings.server.listen):
        raise SetupError(
            f"insecure=true with server.listen={settings.server.listen!r}:"
            " without credentials a router serves loopback or a Unix socket only"
        )
    log.warning("serving without credentials: every caller is the tenant 'default'")
    return None


@asynccontextmanager
async def _cache(
    settings: RouterSettings, telemetry: Telemetry
) -> AsyncIterator[tuple[CacheClient | NoCache, CacheDesk]]:
    if settings.cache is None:
        yield NoCache(), CacheDesk(None, settings.lookup)
        return
    async with open_channel(settings.cache, telemetry, settings.channels) as channel:
        client = CacheClient(channel, settings.lookup, time.monotonic)
        DroppedStoreMetrics(telemetry.meter, lambda: client.stores_dropped)
        yield client, CacheDesk(channel, settings.lookup, lambda: client.stores_dropped)
