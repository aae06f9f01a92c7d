"""The composition root: every part of the router, made once and joined."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import grpc

from observability.channel import open_channel
from observability.listening import is_local
from observability.metrics.router import (
    AdmissionMetrics,
    HedgeMetrics,
    RoutingMetrics,
    SpeculationMetrics,
    SplitMetrics,
)
from observability.server import RunningServer, open_server
from observability.telemetry import Telemetry
from router.account import Accounts
from router.admin import AdminServicer
from router.admission.gate import Admission
from router.admission.scaler import Scaler
from router.auditor import Auditor
from router.auth import Insecure
from router.background import in_background
from router.cache_client import CacheClient
from router.cache_side import cache_side
from router.dispatch import Dispatcher
from router.door import Door
from router.flights import Flights
from router.head_start import HeadStart
from router.hedging import Hedging
from router.held_flights import HeldFlights
from router.mesh import Mesh, read_key
from router.outliers import Outliers
from router.pool import WorkerPool
from router.reconfigure import Reconfigurer
from router.recovery import Recovery
from router.relay import Relay
from router.routing.configured import make_configured
from router.service import InferenceServicer
from router.settings import RouterSettings
from router.speculation import Speculation
from router.splits.shadow import Shadows
from router.splits.splits import Splits
from router.tenant_salt import TenantSalt
from router.warmer import Warmer
from router.watched_keys import WatchedKeys
from sidecache.errors import SetupError, StreamInterrupted
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
    outliers = Outliers(settings.outliers, clock)
    dispatcher = Dispatcher(make_configured(settings.routing), settings.routing, clock)
    pool = WorkerPool(
        settings.workers,
        settings.pool,
        settings.routing,
        dispatcher,
        lambda address: open_channel(address, telemetry, settings.channels),
        clock,
        settings.default_model,
        outliers,
        settings.quiet,
    )
    recovery = Recovery(settings.retries, settings.quarantine, outliers, telemetry.meter, clock)
    splits = Splits(settings.splits, pool, SplitMetrics(telemetry.meter), clock)
    salt = TenantSalt(settings.routing)
    callers = keys or Insecure()
    door = Door(callers, pool, settings.limits, clock, salt, splits)
    admission = Admission(
        settings.admission,
        clock,
        lambda: pool.workers,
        callers.limits_of,
        settings.routing.bytes_per_token,
    )
    scaler = Scaler(admission.lanes, lambda: pool.workers, settings.scale, clock)
    admission.report_to(
        AdmissionMetrics(telemetry.meter, admission.waiting, admission.tokens, scaler.desired)
    )
    async with AsyncExitStack() as stack:
        side = await stack.enter_async_context(cache_side(settings, telemetry, pool))
        cache, desk, held = side.client, side.desk, side.held
        for part in (pool, cache, keys, held):
            if part is not None:
                name = type(part).__name__
                await stack.enter_async_context(in_background(part.run(), name))
        for work in (admission.run(pool.wait_for_change), scaler.run()):
            await stack.enter_async_context(in_background(work, "Admission"))
        mesh = _mesh(settings, telemetry, held)
        if mesh is not None:
            stack.push_async_callback(mesh.aclose)
        await pool.wait_for_first_contact()
        routed = RoutingMetrics(telemetry.meter)
        hedging = _hedging(settings, telemetry, admission)
        relay = Relay(pool, settings.limits, settings.routing, recovery, routed, hedging)
        max_answer_bytes = settings.lookup.max_answer_bytes
        auditor = Auditor(relay, pool, cache, settings.audit, max_answer_bytes, clock)
        shadows = Shadows(splits, relay, pool, settings.limits, clock)
        flights = Flights(
            settings.flights,
            max_answer_bytes,
            settings.limits.reader_stall_s,
            settings.limits.max_request_s,
        )
        inference = InferenceServicer(
            door,
            admission,
            cache,
            desk,
            relay,
            pool,
            Accounts(telemetry, clock, splits),
            settings.limits,
            max_answer_bytes,
            clock,
            auditor,
            flights,
            splits,
            shadows,
            held,
            _speculation(settings, telemetry),
            mesh,
            side.paraphrases,
        )
        admin = AdminServicer(
            door, pool, desk, clock, Warmer(pool, cache, clock), splits, admission, scaler
        )

        def register(server: grpc.aio.Server) -> None:
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
            admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)

        async with (
            open_server(
                settings.server,
                telemetry,
                register,
                services=SERVICES,
                # To a client UNAVAILABLE would say that it has got nothing yet.
                cut_off=StreamInterrupted,
            ) as server,
            # Cancelled before the drain begins: an audit never keeps a router from ending.
            in_background(auditor.run(), "Auditor"),
            in_background(shadows.run(), "Shadows"),
        ):
            server.reconfigure = Reconfigurer(
                settings,
                keys=keys,
                pool=pool,
                dispatcher=dispatcher,
                door=door,
                admission=admission,
                relay=relay,
                flights=flights,
                auditor=auditor,
                splits=splits,
                shadows=shadows,
                inference=inference,
                mesh=mesh,
            ).apply
            yield server
        flights.close()
        await held.aclose()
        if isinstance(cache, CacheClient):
            # What finished streams left to store; bounded like any store call.
            with suppress(TimeoutError):
                async with asyncio.timeout(settings.lookup.store_timeout_s):
                    await cache.flush()


def _mesh(settings: RouterSettings, telemetry: Telemetry, held: HeldFlights) -> Mesh | None:
    flights = settings.flights
    if flights.mesh_key_file is None:
        return None
    key = read_key(flights.mesh_key_file)

    def dial(address: str) -> grpc.aio.Channel:
        return open_channel(address, telemetry, settings.channels)

    return Mesh(key, dial, flights, settings.limits, held)


def _hedging(
    settings: RouterSettings, telemetry: Telemetry, admission: Admission
) -> Hedging | None:
    if not settings.hedge.enabled:
        return None
    metrics = HedgeMetrics(telemetry.meter)
    return Hedging(
        settings.hedge, lambda model: admission.lane(model).has_room, metrics, time.monotonic
    )


def _speculation(settings: RouterSettings, telemetry: Telemetry) -> Speculation | None:
    lookup = settings.lookup
    if lookup.speculative_start_s is None:
        return None
    head_start = HeadStart(lookup.speculative_start_s, lookup.speculative_share)
    return Speculation(head_start, SpeculationMetrics(telemetry.meter))


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
