"""What an operator asks of a router; every call needs a key with admin rights."""

from collections.abc import Mapping
from typing import Unpack

from sidecache.client_connection import UNARY_TIMEOUT_S, ClientConnection
from sidecache.generate_request import GenerateOptions, Prompt, build_request
from sidecache.v1 import admin_pb2
from sidecache.v1 import inference_pb2 as pb

# Two prefills of a long prompt.
WARM_TIMEOUT_S = 120.0


class OperatorCalls(ClientConnection):
    """The calls of the admin service."""

    async def workers(self, *, timeout_s: float = UNARY_TIMEOUT_S) -> list[admin_pb2.WorkerStatus]:
        """The router's workers and their state; needs a key with admin rights."""
        stub = self._open.admin.ListWorkers
        response = await self._call(stub, admin_pb2.ListWorkersRequest(), timeout_s)
        return list(response.workers)

    async def set_cordon(
        self, worker: str, *, cordoned: bool, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.WorkerStatus:
        """Give a worker no new streams, or again some; needs a key with admin rights."""
        stub = self._open.admin.SetCordon
        request = admin_pb2.SetCordonRequest(worker=worker, cordoned=cordoned)
        return (await self._call(stub, request, timeout_s)).worker

    async def cache_stats(
        self, *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.GetCacheStatsResponse:
        """The cache sidecar's figures, and whether it is reachable; needs admin rights."""
        stub = self._open.admin.GetCacheStats
        return await self._call(stub, admin_pb2.GetCacheStatsRequest(), timeout_s)

    async def invalidate_cache(
        self, request: admin_pb2.InvalidateCacheRequest, *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.InvalidateCacheResponse:
        """Remove stored answers, or count them; needs a key with admin rights.

        Raises:
            InvalidRequest: no criterion, and not ``all``.
        """
        return await self._call(self._open.admin.InvalidateCache, request, timeout_s)

    async def explain_cache(
        self,
        prompt: Prompt | None = None,
        *,
        tenant: str = "",
        timeout_s: float = UNARY_TIMEOUT_S,
        **options: Unpack[GenerateOptions],
    ) -> admin_pb2.ExplainCacheResponse:
        """Why a request would hit or miss, without generating; needs admin rights.

        Args:
            prompt: and ``options``: as :meth:`generate` takes them.
            tenant: who would ask; empty: your own tenant.
            timeout_s: the deadline of the call.
        """
        request = build_request(prompt, options)
        return await self.explain_cache_request(request, tenant=tenant, timeout_s=timeout_s)

    async def explain_cache_request(
        self,
        request: pb.GenerateRequest,
        *,
        tenant: str = "",
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> admin_pb2.ExplainCacheResponse:
        """As :meth:`explain_cache`, for a request you built yourself."""
        asked = admin_pb2.ExplainCacheRequest(tenant=tenant, request=request)
        return await self._call(self._open.admin.ExplainCache, asked, timeout_s)

    async def warm_prefix(
        self, request: admin_pb2.WarmPrefixRequest, *, timeout_s: float = WARM_TIMEOUT_S
    ) -> admin_pb2.WarmPrefixResponse:
        """Prefill a prompt on several workers; needs a key with admin rights.

        What one worker finds wrong stands beside its name; the others go on.

        Raises:
            InvalidRequest: more workers than are ready, or a prompt that is refused.
        """
        return await self._call(self._open.admin.WarmPrefix, request, timeout_s)

    async def splits(self, *, timeout_s: float = UNARY_TIMEOUT_S) -> list[admin_pb2.Split]:
        """The router's splits, with each variant's figures; needs a key with admin rights."""
        stub = self._open.admin.ListSplits
        return list((await self._call(stub, admin_pb2.ListSplitsRequest(), timeout_s)).splits)

    async def set_split_weights(
        self, model: str, weights: Mapping[str, float], *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.Split:
        """Change the weights of some variants of a split; needs a key with admin rights.

        Raises:
            NotFound: there is no such split.
            InvalidRequest: no such variant, or a weight that cannot be.
        """
        stub = self._open.admin.SetSplitWeights
        request = admin_pb2.SetSplitWeightsRequest(model=model, weights=weights)
        return (await self._call(stub, request, timeout_s)).split

    async def reset_split(
        self, model: str, *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.Split:
        """Take a split's configured weights again, and forget a rollback; needs admin rights."""
        stub = self._open.admin.ResetSplit
        return (await self._call(stub, admin_pb2.ResetSplitRequest(model=model), timeout_s)).split

    async def scale_signal(
        self, *, timeout_s: float = UNARY_TIMEOUT_S
    ) -> admin_pb2.GetScaleSignalResponse:
        """What runs, waits and is refused, and how many workers that asks for; admin only."""
        stub = self._open.admin.GetScaleSignal
        return await self._call(stub, admin_pb2.GetScaleSignalRequest(), timeout_s)
