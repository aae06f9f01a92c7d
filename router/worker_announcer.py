"""Tells the sidecar which workers there are, so that it can follow their KV caches."""

import asyncio
import math
import secrets
from collections.abc import Callable

import grpc

from router.settings import LookupSettings
from sidecache.v1 import cache_pb2, cache_pb2_grpc

# How often the pool is looked at; a change is told at the next look.
_LOOK_INTERVAL_S = 0.5
# A sidecar that follows nobody may be replaced by one that does.
_UNSUPPORTED_RETRY_S = 60.0


class WorkerAnnouncer:
    """Repeats the pool's addresses to the sidecar, and tells it of changes.

    Args:
        addresses: those of the workers that the pool knows now.
        clock: seconds, monotonic.
        look_interval_s: between two looks at the pool.

    Attributes:
        heard: whether the sidecar took in what it was told last, so that it has hints.
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
        self._due_at_s = -math.inf
        self.heard = False

    async def run(self) -> None:
        """Announce until cancelled."""
        while True:
            changed = self.heard and self._addresses() != self._told
            if changed or self._clock() >= self._due_at_s:
                await self._announce()
            await asyncio.sleep(self._look_interval_s)

    async def _announce(self) -> None:
        addresses = self._addresses()
        request = cache_pb2.SetWorkersRequest(
            router=self._router,
            workers=[cache_pb2.WorkerTarget(worker=each, address=each) for each in addresses],
        )
        try:
            await self._stub.SetWorkers(request, timeout=self._settings.store_timeout_s)
        except grpc.aio.AioRpcError as error:
            self.heard = False
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._due_at_s = self._clock() + _UNSUPPORTED_RETRY_S
        else:
            self._told, self.heard = addresses, True
            self._due_at_s = self._clock() + self._settings.announce_interval_s
