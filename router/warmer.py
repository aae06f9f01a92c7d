"""Warms prefixes: an operator's long prompt is prefilled before anybody asks."""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

import grpc

from router.cache_client import Cache, Miss
from router.lease import Lease
from router.pool import WorkerPool
from router.prompt import RoutedPrompt
from router.ticket import Ticket
from sidecache.errors import InvalidRequest, NoHealthyWorker, from_rpc_error
from sidecache.v1 import admin_pb2
from sidecache.v1 import inference_pb2 as pb


def as_prefill(request: pb.GenerateRequest) -> pb.GenerateRequest:
    """The same prompt, for its prefill alone: one token, and nothing of it is stored."""
    prefill = pb.GenerateRequest()
    prefill.CopyFrom(request)
    prefill.max_tokens = prefill.n = 1
    for field in ("cache", "logprobs", "guided", "stop"):
        prefill.ClearField(field)
    prefill.cache.mode = pb.CACHE_MODE_BYPASS
    return prefill


class Warmer:
    """Prefills a ticket's prompt on several workers at once.

    Args:
        pool: whose workers.
        cache: says which of them hold how much of it.
        clock: monotonic seconds.
    """

    def __init__(self, pool: WorkerPool, cache: Cache, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._cache = cache
        self._clock = clock

    async def warm(self, ticket: Ticket, workers: int) -> list[admin_pb2.WarmedWorker]:
        """Send the prompt twice to each of so many workers; the policy says which.

        What a worker finds wrong is told of that worker, and the others go on.

        Raises:
            NoHealthyWorker: none is ready.
            InvalidRequest: there are not so many.
        """
        ready = len(self._pool.ready_workers(ticket.model))
        if not ready:
            raise NoHealthyWorker(f"no worker of {ticket.model.name} is ready")
        if not 1 <= workers <= ready:
            raise InvalidRequest(f"{workers}; may be 1 to {ready}, the ready ones", field="workers")
        outcome = await self._cache.lookup(ticket)
        prompt = RoutedPrompt(ticket, outcome.prefix if isinstance(outcome, Miss) else None)
        with ExitStack() as leases:
            held: list[Lease] = []
            for _ in range(workers):
                tried = [lease.worker for lease in held]
                held.append(leases.enter_context(self._pool.lease(ticket.model, tried, prompt)))
            return await asyncio.gather(*(self._warm(lease, ticket) for lease in held))

    async def _warm(self, lease: Lease, ticket: Ticket) -> admin_pb2.WarmedWorker:
        warmed = admin_pb2.WarmedWorker(worker=lease.worker.name)
        deadline = asyncio.get_running_loop().time() + ticket.timeout_s
        try:
            first_s, before = await self._prefill(lease, ticket, "warm", deadline)
            lease.first_token()
            again_s, after = await self._prefill(lease, ticket, "warm-check", deadline)
        except grpc.aio.AioRpcError as error:
            warmed.error = str(from_rpc_error(error))
            return warmed
        warmed.prompt_tokens = before.prompt_tokens
        warmed.first_token_before.FromNanoseconds(int(first_s * 1e9))
        warmed.first_token_after.FromNanoseconds(int(again_s * 1e9))
        if before.HasField("cached_prompt_tokens"):
            warmed.cached_tokens_before = before.cached_prompt_tokens
        if after.HasField("cached_prompt_tokens"):
            warmed.cached_tokens_after = after.cached_prompt_tokens
        warmed.cached_tokens_estimated = after.cached_prompt_tokens_estimated
        return warmed

    async def _prefill(
        self, lease: Lease, ticket: Ticket, purpose: str, deadline: float
    ) -> tuple[float, pb.Usage]:
        """Seconds to the first token, and the usage that the worker tells."""
        started = self._clock()
        first_s, usage = 0.0, pb.Usage()
        call = lease.worker.inference.Generate(
            ticket.request,
            timeout=max(0.0, deadline - asyncio.get_running_loop().time()),
            metadata=(("x-request-id", f"{ticket.request_id}-{purpose}"),),
        )
        try:
            async for event in call:
                if event.HasField("delta") and not first_s:
                    first_s = self._clock() - started
                if event.HasField("finished"):
                    usage = event.finished.usage
        finally:
            call.cancel()
        return first_s, usage
