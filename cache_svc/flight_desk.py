"""What routers ask about generations under way, as messages."""

import asyncio
from typing import Final

from cache_svc.entry import Query
from cache_svc.flight_leases import Claim, Ending, FlightLeases
from cache_svc.lookup import REPLY_MARGIN_S, Miss, MissReason
from cache_svc.questions_in_flight import Paraphrase, QuestionsInFlight
from cache_svc.store import Clock
from cache_svc.vector_index import Vector
from cache_svc.wire import DIGEST_BYTES, check_name
from sidecache.errors import InvalidRequest, SidecacheError
from sidecache.v1 import cache_pb2

MAX_HELD: Final = 1024
# A wait looks again whether the lease it waits for has been kept.
_LEAST_WAIT_S: Final = 0.01
# The semantic tier has no vector of such a question, or is in trouble.
_NOT_COMPARED: Final = frozenset((MissReason.NOT_COMPARABLE, MissReason.DEGRADED))


class FlightDesk:
    """Leases of generations, and who waits for a paraphrase of his question.

    Args:
        lease_s: how long a lease lasts that its router does not keep.
        questions: None: the semantic tier is off.
        time_s: longest time a lookup may spend comparing questions.
    """

    def __init__(
        self,
        clock: Clock,
        lease_s: float,
        questions: QuestionsInFlight | None = None,
        time_s: float = 0.0,
    ) -> None:
        self._clock = clock
        self._questions = questions
        self._time_s = time_s
        self._leases = FlightLeases(clock, lease_s, self._ended)

    async def claim(
        self,
        request: cache_pb2.LookupRequest,
        query: Query,
        outcome: Miss,
        miss: cache_pb2.CacheMiss,
        *,
        floor: float,
        left_s: float | None,
    ) -> None:
        """Say with a miss who generates this answer; who asks, if nobody does.

        ``floor`` is the similarity asked of a hit, ``left_s`` the time the caller has left
        (None: no deadline).

        Raises:
            InvalidRequest: naming the field that has a value it may not have.
        """
        claim = read_claim(request.flight)
        tenant, exact = query.key.tenant, query.key.exact
        vector = None
        if request.flight.awaits_paraphrase or request.flight.is_awaitable:
            vector, near = await self._compare(query, outcome, floor, left_s)
            awaited = near if request.flight.awaits_paraphrase else None
            if awaited is not None and self._leases.holder(tenant, exact) is None:
                miss.paraphrase.exact = awaited.key.exact
                miss.paraphrase.similarity = awaited.similarity
                return
        other = self._leases.claim(tenant, exact, claim)
        if other is None:
            if self._questions is not None and vector is not None and request.flight.is_awaitable:
                self._questions.add(query.key, vector)
        elif not other.is_private:
            miss.flight.router, miss.flight.request_id = other.router, other.request_id

    def hold(self, request: cache_pb2.HoldFlightsRequest) -> cache_pb2.HoldFlightsResponse:
        """Keep, take over and give back leases.

        Raises:
            InvalidRequest: naming the field that has a value it may not have.
        """
        check_name(request.router, "router")
        for field, flights in (("held", request.held), ("ended", request.ended)):
            if len(flights) > MAX_HELD:
                raise InvalidRequest(f"are {len(flights)}, may be {MAX_HELD}", field=field)
            for flight in flights:
                _check_key(flight.tenant, flight.exact, field)
        for ended in request.ended:
            self._leases.give_back(ended.tenant, ended.exact, request.router)
        response = cache_pb2.HoldFlightsResponse()
        for held in request.held:
            claim = Claim(request.router, held.request_id, request.private, held.instead_of)
            other = self._leases.claim(held.tenant, held.exact, claim)
            lease = response.leases.add()
            if other is not None:
                lease.router, lease.request_id = other.router, other.request_id
        return response

    async def wait(self, request: cache_pb2.AwaitFlightRequest) -> cache_pb2.AwaitFlightResponse:
        """Return when a question under way has its answer, or will get none.

        Raises:
            InvalidRequest: naming the field that has a value it may not have.
            Overloaded: too many wait already.
        """
        _check_key(request.tenant, request.exact, "exact")
        answered: bool | None = False
        while self._questions is not None:
            lease = self._leases.holder(request.tenant, request.exact)
            left_s = 0.0 if lease is None else lease.until_s - self._clock()
            timeout_s = max(_LEAST_WAIT_S, left_s)
            answered = await self._questions.wait(request.tenant, request.exact, timeout_s)
            if answered is not None:
                break
        return cache_pb2.AwaitFlightResponse(answered=bool(answered))

    def answered(self, tenant: str, exact: bytes) -> None:
        """The answer has been stored, or was refused: there is nothing to share any more."""
        self._leases.answered(tenant, exact)

    async def _compare(
        self, query: Query, outcome: Miss, floor: float, left_s: float | None
    ) -> tuple[Vector | None, Paraphrase | None]:
        """The question's vector, and one under way that means the same; None: there is none."""
        questions = self._questions
        if questions is None or outcome.reason in _NOT_COMPARED:
            return None, None
        time_s = self._time_s
        if left_s is not None:
            time_s = min(time_s, left_s - REPLY_MARGIN_S)
        vector = None
        try:
            async with asyncio.timeout(time_s):
                vector = await questions.vector(query.key)
                if vector is None:
                    return None, None
                return vector, await questions.find(query, vector, floor)
        except (TimeoutError, SidecacheError):
            return vector, None

    def _ended(self, tenant: str, exact: bytes, ending: Ending) -> None:
        if self._questions is not None:
            self._questions.ended(tenant, exact, answered=ending is Ending.ANSWERED)


def read_claim(claim: cache_pb2.FlightClaim) -> Claim:
    """Who asks for the lease of an answer.

    Raises:
        InvalidRequest: naming the field that has a value it may not have.
    """
    check_name(claim.router, "flight.router")
    check_name(claim.request_id, "flight.request_id")
    return Claim(claim.router, claim.request_id, claim.private)


def _check_key(tenant: str, exact: bytes, field: str) -> None:
    check_name(tenant, "tenant")
    if len(exact) != DIGEST_BYTES:
        raise InvalidRequest(f"has {len(exact)} bytes, must have 32", field=field)
