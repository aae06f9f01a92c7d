"""The part of the composition that asks the cache sidecar."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple

from observability import names
from observability.channel import open_channel
from observability.interceptors.client import ClientEdge
from observability.link import link_path
from observability.metrics.router import DroppedStoreMetrics, ParaphraseMetrics
from observability.telemetry import Telemetry
from router.background import in_background
from router.cache_client import CacheClient, NoCache
from router.cache_desk import CacheDesk
from router.cache_link import CacheLink
from router.held_flights import HeldFlights
from router.model import ServedModel
from router.paraphrases import Paraphrases
from router.pool import WorkerPool
from router.settings import FlightSettings, RouterSettings
from router.worker_announcer import WorkerAnnouncer
from sidecache.v1 import cache_pb2


class CacheSide(NamedTuple):
    """What asks the sidecar; ``paraphrases`` None: nobody waits for one."""

    client: CacheClient | NoCache
    desk: CacheDesk
    held: HeldFlights
    paraphrases: Paraphrases | None


@asynccontextmanager
async def cache_side(
    settings: RouterSettings, telemetry: Telemetry, pool: WorkerPool
) -> AsyncIterator[CacheSide]:
    """Join what asks the sidecar, until the block is left; without one nothing is ever found."""
    lookup, flights, clock = settings.lookup, settings.flights, time.monotonic
    if settings.cache is None:
        held = HeldFlights(None, None, flights, lookup, clock)
        yield CacheSide(NoCache(), CacheDesk(None, lookup), held, None)
        return
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(
            open_channel(settings.cache, telemetry, settings.channels)
        )
        wants_hint: Callable[[ServedModel], bool] = _never
        if lookup.prefix_hints:
            announcer = WorkerAnnouncer(channel, pool.addresses, lookup, clock)
            await stack.enter_async_context(in_background(announcer.run(), "WorkerAnnouncer"))
            wants_hint = partial(_wants_hint, announcer, pool)
        link = _link(settings, telemetry)
        if link is not None:
            await stack.enter_async_context(in_background(link.run(), "CacheLink"))
        claim = _claim(flights)
        client = CacheClient(channel, lookup, clock, wants_hint, claim, link)
        desk = CacheDesk(channel, lookup, lambda: client.stores_dropped)
        held = HeldFlights(channel, claim, flights, lookup, clock)
        DroppedStoreMetrics(telemetry.meter, lambda: client.stores_dropped)
        paraphrases = None
        if flights.paraphrase_wait_s is not None:
            metrics = ParaphraseMetrics(telemetry.meter)
            paraphrases = Paraphrases(channel, client, flights.paraphrase_wait_s, metrics)
        yield CacheSide(client, desk, held, paraphrases)


def _claim(flights: FlightSettings) -> cache_pb2.FlightClaim | None:
    """What the sidecar hears with each lookup; None: this router's generations are its own."""
    is_shared = bool(flights.advertise) and flights.mesh_key_file is not None
    is_awaited = flights.paraphrase_wait_s is not None
    if not is_shared and not is_awaited:
        return None
    return cache_pb2.FlightClaim(
        router=flights.advertise if is_shared else f"private-{secrets.token_hex(8)}",
        private=not is_shared,
        awaits_paraphrase=is_awaited,
        is_awaitable=is_awaited,
    )


def _link(settings: RouterSettings, telemetry: Telemetry) -> CacheLink | None:
    """To a sidecar on this host; one that is to prove who it is gets calls only."""
    target = settings.cache or ""
    path = link_path(target)
    if path is None or settings.channels.tls is not None:
        return None
    edge = ClientEdge(telemetry, target, names.LINK)
    return CacheLink(path, edge, settings.channels.max_message_bytes)


def _wants_hint(announcer: WorkerAnnouncer, pool: WorkerPool, model: ServedModel) -> bool:
    """Whether the sidecar can have a hint, and there is a choice that it could help."""
    return announcer.heard and pool.has_choice(model)


def _never(_model: ServedModel) -> bool:
    return False
