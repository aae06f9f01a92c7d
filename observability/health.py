"""grpc.health.v1 for one server: a state that changes at once, watchers that end."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):
    """One state for the whole server and for each of its services.

    Unlike grpcio's own, watchers end when the server drains: their streams
    would otherwise use up the whole grace.

    Args:
        services: full names, e.g. sidecache.v1.CacheService.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._names = frozenset(("", *services))
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Change the state; ignored once closed."""
        if not self._closed and serving != self._serving:
            self._serving = serving
            self._notify()

    def close(self) -> None:
        """NOT_SERVING for good: watchers are told, then their streams end."""
        self.set_serving(False)
        self._closed = True
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> Any:
        if service not in self._names:
            return SERVICE_UNKNOWN
        return SERVING if self._serving else NOT_SERVING

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this server has no such service")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:
        told = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                try:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                except grpc.aio.InternalError:
                    return  # the watcher vanished
                told = status
            if self._closed:
                return
            await changed.wait()
