"""Tells the sidecar which workers there are, so that it can follow their KV caches."""

import asyncio
import logging
import secrets
from collections.abc import Callable

import grpc

from router.settings import LookupSettings
from sidecache.v1 import cache_pb2, cache_pb2_grpc

log = logging.getLogger(__name__)

# How often the pool is looked at; a change is told at the next look.
_LOOK_INTERVAL_S = 0.5


class WorkerAnnouncer:
    """Repeats the pool's addresses to the sidecar, and tells it of changes.

    Args:
        addresses: those of the workers that the pool knows now.
        clock: seconds, monotonic.
        look_interval_s: between two looks at the pool.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        addresses: Callable[[], tuple[str, ...]],
        settings: LookupSettings,
        clock: Callable[[], float],
        look_interval_s: float = _LOOK_INTERVAL_S,
    ) -> None:
        self._stub = cache_pb2_grpc.CacheServiceStub(channel)
        self._addresses = addresses
        self._settings = settings
        self._clock = clock
        self._look_interval_s = look_interval_s
        # A restarted router is another one; the sidecar forgets the silent one.
        self._router = secrets.token_hex(8)
        self._told: tuple[str, ...] = ()
        self._told_at_s: float | None = None

    async def run(self) -> None:
        """Announce until cancelled, or until the sidecar says that it follows nobody."""
        while True:
            if self._is_due() and not await self._announce():
                return
            await asyncio.sleep(self._look_interval_s)

    def _is_due(self) -> bool:
        if self._told_at_s is None or self._addresses() != self._told:
            return True
        return self._clock() - self._told_at_s >= self._settings.announce_interval_s

    async def _announce(self) -> bool:
        """Say it once; False: there is no use in saying it again."""
        addresses = self._addresses()
        request = cache_pb2.SetWorkersRequest(
            router=self._router,
            workers=[cache_pb2.WorkerTarget(worker=each, address=each) for each in addresses],
        )
        try:
            await self._stub.SetWorkers(request, timeout=self._settings.store_timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                log.info("the sidecar follows no KV caches; routing goes by load")
                return False
            # A sidecar that was away may have forgotten everything.
            self._told_at_s = None
            return True
        self._told, self._told_at_s = addresses, self._clock()
        return True
