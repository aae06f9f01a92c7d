"""What an operator asks of a router and tells it. Every call needs an admin key."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import duration_pb2

from router.cache_client import CacheClient
from router.door import Door
from router.pool import WorkerPool
from router.worker import State, Worker
from sidecache.errors import InvalidRequest
from sidecache.v1 import admin_pb2, admin_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_STATES = {
    State.CONNECTING: admin_pb2.WORKER_STATE_CONNECTING,
    State.READY: admin_pb2.WORKER_STATE_READY,
    State.UNHEALTHY: admin_pb2.WORKER_STATE_UNHEALTHY,
}


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Shows and steers the router's workers."""

    def __init__(
        self,
        door: Door,
        pool: WorkerPool,
        cache: CacheClient | None,
        clock: Callable[[], float],
    ) -> None:
        self._door = door
        self._pool = pool
        self._cache = cache
        self._clock = clock

    async def ListWorkers(
        self, request: admin_pb2.ListWorkersRequest, context: Context
    ) -> admin_pb2.ListWorkersResponse:
        self._door.identify(context).require_admin()
        return admin_pb2.ListWorkersResponse(
            workers=[self._describe(worker) for worker in self._pool.workers]
        )

    async def SetCordon(
        self, request: admin_pb2.SetCordonRequest, context: Context
    ) -> admin_pb2.SetCordonResponse:
        self._door.identify(context).require_admin()
        if not request.worker:
            raise InvalidRequest("empty; name a worker of ListWorkers", field="worker")
        worker = self._pool.set_cordon(request.worker, cordoned=request.cordoned)
        return admin_pb2.SetCordonResponse(worker=self._describe(worker))

    async def GetCacheStats(
        self, request: admin_pb2.GetCacheStatsRequest, context: Context
    ) -> admin_pb2.GetCacheStatsResponse:
        self._door.identify(context).require_admin()
        stats = await self._cache.stats() if self._cache is not None else None
        return admin_pb2.GetCacheStatsResponse(reachable=stats is not None, stats=stats)

    def _describe(self, worker: Worker) -> admin_pb2.WorkerStatus:
        age = duration_pb2.Duration()
        age.FromNanoseconds(int((self._clock() - worker.state_since) * 1e9))
        cordoned = worker.cordoned and worker.state is State.READY
        model = worker.model
        return admin_pb2.WorkerStatus(
            worker=worker.name,
            address=worker.address,
            state=admin_pb2.WORKER_STATE_CORDONED if cordoned else _STATES[worker.state],
            model=model.name if model else "",
            model_revision=model.revision if model else "",
            engine=model.engine if model else "",
            leases=worker.leases,
            epoch=worker.epoch,
            state_age=age,
        )
