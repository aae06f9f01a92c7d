"""What people ask of the cache sidecar: statistics, why, out with it.

The request path fails open (:mod:`router.cache_client`); a person who asks is
told when nobody answers.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from router.cache_client import lookup_request
from router.settings import LookupSettings
from router.ticket import Ticket
from sidecache.errors import NotFound, SidecacheError, Unavailable, Unsupported, from_rpc_error
from sidecache.v1 import cache_pb2, cache_pb2_grpc

Answer = TypeVar("Answer")

_NAME_SHOWN = 64


class CacheDesk:
    """Asks the sidecar on behalf of a tenant or an operator.

    Args:
        channel: to the sidecar; None: this router runs without one.
        stores_dropped: how many answers this router gave up storing.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel | None,
        settings: LookupSettings,
        stores_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self.stores_dropped = stores_dropped
        self._open_stub = None if channel is None else cache_pb2_grpc.CacheServiceStub(channel)
        self._timeout_s = settings.operator_timeout_s

    async def stats(self) -> cache_pb2.GetStatsResponse | None:
        """The sidecar's figures, or None where it does not answer."""
        try:
            return await self._ask(
                self._stub.GetStats(cache_pb2.GetStatsRequest(), timeout=self._timeout_s)
            )
        except SidecacheError:
            return None

    async def report_wrong(self, tenant: str, entry_id: str) -> None:
        """Take a tenant's own wrong answer out of service.

        Raises:
            NotFound: the tenant has no such answer; whether another has it shows nowhere.
            Unavailable: the sidecar does not answer.
        """
        request = cache_pb2.FeedbackRequest(tenant=tenant, entry_id=entry_id, wrong=True)
        response = await self._ask(self._stub.Feedback(request, timeout=self._timeout_s))
        if not response.quarantined:
            shown = entry_id[:_NAME_SHOWN]
            raise NotFound(f"you have no stored answer {shown!r}", kind="cache entry", name=shown)

    async def invalidate(self, request: cache_pb2.InvalidateRequest) -> int:
        """Remove, or with ``dry_run`` count, what matches.

        Raises:
            InvalidRequest: no criterion, and not ``all``.
            Unavailable: the sidecar does not answer.
        """
        return (await self._ask(self._stub.Invalidate(request, timeout=self._timeout_s))).entries

    async def explain(self, ticket: Ticket) -> cache_pb2.ExplainResponse:
        """What a lookup would find for a ticket, and why; a hit comes without its answer.

        Raises:
            Unavailable: the sidecar does not answer.
        """
        lookup = lookup_request(ticket)
        request = cache_pb2.ExplainRequest(key=lookup.key)
        if lookup.HasField("max_age"):
            request.max_age.CopyFrom(lookup.max_age)
        if lookup.HasField("min_similarity"):
            request.min_similarity = lookup.min_similarity
        response = await self._ask(self._stub.Explain(request, timeout=self._timeout_s))
        if response.outcome.HasField("hit"):
            response.outcome.hit.ClearField("answer")
        return response

    @property
    def _stub(self) -> "cache_pb2_grpc.CacheServiceAsyncStub":
        if self._open_stub is None:
            raise Unsupported("this router runs without a cache sidecar")
        return self._open_stub

    @staticmethod
    async def _ask(call: Awaitable[Answer]) -> Answer:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            told = from_rpc_error(error)
            if isinstance(told, Unavailable):
                raise Unavailable("the cache sidecar does not answer") from error
            raise told from error
