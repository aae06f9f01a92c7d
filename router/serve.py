"""The composition root: every part of the router, made once and joined."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import grpc

from observability.channel import open_channel
from observability.listening import is_local
from observability.metrics import DroppedStoreMetrics, RoutingMetrics
from observability.server import RunningServer, open_server
from observability.telemetry import Telemetry
from router.account import Accounts
from router.admin import AdminServicer
from router.admission import Admission
from router.auditor import Auditor
from router.auth import Insecure
from router.cache_client import CacheClient, NoCache
from router.cache_desk import CacheDesk
from router.dispatch import Dispatcher
from router.door import Door
from router.flights import Flights
from router.model import ServedModel
from router.pool import WorkerPool
from router.relay import Relay
from router.routing.choice import make_policy
from router.routing.cost import Weights
from router.service import InferenceServicer
from router.settings import RouterSettings, RoutingSettings
from router.tenant_salt import TenantSalt
from router.warmer import Warmer
from router.watched_keys import WatchedKeys
from router.worker_announcer import WorkerAnnouncer
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
        settings.routing,
        _dispatcher(settings.routing, clock),
        lambda address: open_channel(address, telemetry, settings.channels),
        clock,
        settings.default_model,
    )
    door = Door(keys or Insecure(), pool, settings.limits, clock, TenantSalt(settings.routing))
    async with AsyncExitStack() as stack:
        cache, desk = await stack.enter_async_context(_cache(settings, telemetry, pool))
        for part in (pool, cache, keys):
            if part is not None:
                name = type(part).__name__
                await stack.enter_async_context(_in_background(part.run(), name))
        await pool.wait_for_first_contact()
        relay = Relay(pool, settings.limits, settings.routing, RoutingMetrics(telemetry.meter))
        max_answer_bytes = settings.lookup.max_answer_bytes
        auditor = Auditor(relay, pool, cache, settings.audit, max_answer_bytes, clock)
        flights = Flights(settings.flights, max_answer_bytes, settings.limits.reader_stall_s)
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
            flights,
        )
        admin = AdminServicer(door, pool, desk, clock, Warmer(pool, cache, clock))

        def register(server: grpc.aio.Server) -> None:
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
            admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)

        async with (
            open_server(settings.server, telemetry, register, services=SERVICES) as server,
            # Cancelled before the drain begins: an audit never keeps a router from ending.
            _in_background(auditor.run(), "Auditor"),
        ):
            yield server
        flights.close()
        if isinstance(cache, CacheClient):
            # What finished streams left to store; bounded like any store call.
            with suppress(TimeoutError):
                async with asyncio.timeout(settings.lookup.store_timeout_s):
                    await cache.flush()


def _dispatcher(settings: RoutingSettings, clock: Callable[[], float]) -> Dispatcher:
    """Routers draw differently, or power of two choices would not spread them."""
    weights = Weights(**settings.weights.model_dump())
    policy = make_policy(settings.policy, weights, seed=secrets.randbits(64))
    return Dispatcher(policy, settings, clock)


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
    settings: RouterSettings, telemetry: Telemetry, pool: WorkerPool
) -> AsyncIterator[tuple[CacheClient | NoCache, CacheDesk]]:
    if settings.cache is None:
        yield NoCache(), CacheDesk(None, settings.lookup)
        return
    lookup = settings.lookup
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(
            open_channel(settings.cache, telemetry, settings.channels)
        )
        wants_hint: Callable[[ServedModel], bool] = _never
        if lookup.prefix_hints:
            announcer = WorkerAnnouncer(channel, pool.addresses, lookup, time.monotonic)
            await stack.enter_async_context(_in_background(announcer.run(), "WorkerAnnouncer"))
            wants_hint = partial(_wants_hint, announcer, pool)
        client = CacheClient(channel, lookup, time.monotonic, wants_hint)
        DroppedStoreMetrics(telemetry.meter, lambda: client.stores_dropped)
        yield client, CacheDesk(channel, lookup, lambda: client.stores_dropped)


def _wants_hint(announcer: WorkerAnnouncer, pool: WorkerPool, model: ServedModel) -> bool:
    """Whether the sidecar can have a hint, and there is a choice that it could help."""
    return announcer.heard and pool.has_choice(model)


def _never(_model: ServedModel) -> bool:
    return False
