"""What an operator asks of a router and tells it. Every call needs an admin key.

An admin may name any tenant: such a key is the operator's, not a tenant's.
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import duration_pb2

from router.admission.gate import Admission
from router.admission.scaler import Scaler
from router.admission.wire import scale_response
from router.cache_client import wire_key
from router.cache_control import why_not_looked_up, why_not_stored
from router.cache_desk import CacheDesk
from router.door import Door
from router.pool import WorkerPool
from router.splits.splits import Splits
from router.warmer import Warmer, as_prefill
from router.worker import State, Worker
from sidecache.errors import InvalidRequest
from sidecache.key import why_not_compared
from sidecache.v1 import admin_pb2, admin_pb2_grpc, cache_pb2

Context = grpc.aio.ServicerContext[Any, Any]

_STATES = {
    State.CONNECTING: admin_pb2.WORKER_STATE_CONNECTING,
    State.READY: admin_pb2.WORKER_STATE_READY,
    State.UNHEALTHY: admin_pb2.WORKER_STATE_UNHEALTHY,
}


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Shows and steers the router's workers and its cache."""

    def __init__(
        self,
        door: Door,
        pool: WorkerPool,
        desk: CacheDesk,
        clock: Callable[[], float],
        warmer: Warmer,
        splits: Splits,
        admission: Admission,
        scaler: Scaler,
    ) -> None:
        self._splits = splits
        self._admission = admission
        self._scaler = scaler
        self._warmer = warmer
        self._door = door
        self._pool = pool
        self._desk = desk
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
        stats = await self._desk.stats()
        return admin_pb2.GetCacheStatsResponse(
            reachable=stats is not None, stats=stats, stores_dropped=self._desk.stores_dropped()
        )

    async def InvalidateCache(
        self, request: admin_pb2.InvalidateCacheRequest, context: Context
    ) -> admin_pb2.InvalidateCacheResponse:
        principal = self._door.identify(context)
        principal.require_admin()
        wanted = cache_pb2.InvalidateRequest(
            tenant=request.tenant or principal.tenant,
            entry_id=request.entry_id,
            tag=request.tag,
            model=request.model,
            namespace=request.namespace if request.HasField("namespace") else None,
            all=request.all,
            dry_run=request.dry_run,
        )
        entries = await self._desk.invalidate(wanted)
        return admin_pb2.InvalidateCacheResponse(tenant=wanted.tenant, entries=entries)

    async def ExplainCache(
        self, request: admin_pb2.ExplainCacheRequest, context: Context
    ) -> admin_pb2.ExplainCacheResponse:
        principal = self._door.identify(context)
        principal.require_admin()
        # The same door as a real request: the same defaults, checks and key.
        tenant = request.tenant or principal.tenant
        ticket = self._door.open_for(tenant, request.request, context)
        return admin_pb2.ExplainCacheResponse(
            tenant=tenant,
            key=None if ticket.key is None else wire_key(ticket),
            not_asked=why_not_looked_up(ticket.request),
            not_stored=why_not_stored(ticket.request),
            not_compared=why_not_compared(ticket.request),
            explained=await self._desk.explain(ticket) if ticket.may_look_up else None,
        )

    async def WarmPrefix(
        self, request: admin_pb2.WarmPrefixRequest, context: Context
    ) -> admin_pb2.WarmPrefixResponse:
        principal = self._door.identify(context)
        principal.require_admin()
        tenant = request.tenant or principal.tenant
        ticket = self._door.open_for(tenant, as_prefill(request.request), context)
        warmed = await self._warmer.warm(ticket, request.workers)
        return admin_pb2.WarmPrefixResponse(tenant=tenant, workers=warmed)

    async def ListSplits(
        self, request: admin_pb2.ListSplitsRequest, context: Context
    ) -> admin_pb2.ListSplitsResponse:
        self._door.identify(context).require_admin()
        described = [self._splits.describe(split) for split in self._splits.all]
        return admin_pb2.ListSplitsResponse(splits=described)

    async def SetSplitWeights(
        self, request: admin_pb2.SetSplitWeightsRequest, context: Context
    ) -> admin_pb2.SetSplitWeightsResponse:
        self._door.identify(context).require_admin()
        split = self._splits.get(request.model)
        if not request.weights:
            raise InvalidRequest("empty; give a variant its weight", field="weights")
        split.set_weights(request.weights)
        return admin_pb2.SetSplitWeightsResponse(split=self._splits.describe(split))

    async def ResetSplit(
        self, request: admin_pb2.ResetSplitRequest, context: Context
    ) -> admin_pb2.ResetSplitResponse:
        self._door.identify(context).require_admin()
        split = self._splits.get(request.model)
        split.reset()
        return admin_pb2.ResetSplitResponse(split=self._splits.describe(split))

    async def GetScaleSignal(
        self, request: admin_pb2.GetScaleSignalRequest, context: Context
    ) -> admin_pb2.GetScaleSignalResponse:
        self._door.identify(context).require_admin()
        return scale_response(self._scaler, self._admission)

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
            kv_cache_usage=worker.load.kv_cache_usage,
            kv_blocks=worker.load.kv_blocks,
            prompt_tokens=worker.prompt_tokens,
            cached_prompt_tokens=worker.cached_prompt_tokens,
        )
