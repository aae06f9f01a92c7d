"""What this router generates, kept known to the sidecar so that others can share it.

A lookup that misses grants the lease of the answer; here it is kept for as long as the
generation lasts, given back when that ends without an answer, and taken over from a router
that was lost. All of it is a hint to other routers: without a sidecar each generates alone.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final

import grpc

from router.settings import FlightSettings, LookupSettings
from router.tape import Tape
from router.ticket import Ticket
from sidecache.v1 import cache_pb2, cache_pb2_grpc

log = logging.getLogger(__name__)

# In one call, and given back at most while the sidecar does not answer.
_BATCH: Final = 512
_Key = tuple[str, bytes]


@dataclass(slots=True)
class _Held:
    """Generations of one answer; most often one."""

    request_id: str
    told_at: float
    count: int = 0


class HeldFlights:
    """The leases of this router.

    Args:
        channel: to the sidecar; None: there is none.
        claim: what is said of this router with its lookups; None: the sidecar is told nothing.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel | None,
        claim: cache_pb2.FlightClaim | None,
        settings: FlightSettings,
        lookup: LookupSettings,
        clock: Callable[[], float],
    ) -> None:
        self._stub = None
        if channel is not None and claim is not None:
            self._stub = cache_pb2_grpc.CacheServiceStub(channel)
        self._claim = claim or cache_pb2.FlightClaim()
        self._renew_s = settings.renew_s
        self._timeout_s = lookup.lookup_timeout_s
        self._clock = clock
        self._held: dict[_Key, _Held] = {}
        self._ended: dict[_Key, str] = {}
        self._has_ended = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, ticket: Ticket, tape: Tape) -> AbstractContextManager[None]:
        """Keep the lease while the block generates the ticket's answer.

        Where the tape then holds an answer, the sidecar ends the lease when that is stored;
        else it is given back at once, and whoever waits for it begins.
        """
        if self._stub is None or ticket.key is None or not ticket.may_store:
            return nullcontext()
        return self._holding((ticket.tenant, ticket.key.exact), ticket, tape)

    @contextmanager
    def _holding(self, key: _Key, ticket: Ticket, tape: Tape) -> Iterator[None]:
        # What is not given back yet is this generation's: its lookup has kept it.
        self._ended.pop(key, None)
        held = self._held.setdefault(key, _Held(ticket.request_id, self._clock()))
        held.count += 1
        try:
            yield
        finally:
            held.count -= 1
            if not held.count and self._held.get(key) is held:
                del self._held[key]
                if not (tape.is_complete and tape.is_storable):
                    self._give_back(key, held.request_id)

    async def take_over(self, ticket: Ticket, lost: str) -> cache_pb2.FlightLease | None:
        """Be the one who generates, instead of a router that was lost.

        Returns:
            Another that was sooner; None: this one is to generate.
        """
        if self._stub is None or ticket.key is None:
            return None
        held = cache_pb2.HeldFlight(
            tenant=ticket.tenant,
            exact=ticket.key.exact,
            request_id=ticket.request_id,
            instead_of=lost,
        )
        try:
            leases = await self._tell([held], [])
        except grpc.aio.AioRpcError:
            return None
        return leases[0] if leases and leases[0].router else None

    async def run(self) -> None:
        """Keep and give back until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._renew_s):
                    await self._has_ended.wait()
            except TimeoutError:
                pass
            await self.tell_news()

    async def tell_news(self) -> None:
        """Give back what has ended, and keep what is due; a sidecar that is lost hears later."""
        due = self._due()
        ended, self._ended = self._ended, {}
        self._has_ended.clear()
        try:
            while due or ended:
                now = self._clock()
                kept = [due.popitem() for _ in range(min(_BATCH, len(due)))]
                gone = [ended.popitem() for _ in range(min(_BATCH, len(ended)))]
                leases = await self._tell(
                    [_wire(key, held.request_id) for key, held in kept],
                    [_wire(key, request_id) for key, request_id in gone],
                )
                for (key, held), lease in zip(kept, leases, strict=False):
                    held.told_at = now
                    if lease.router and self._held.get(key) is held:
                        # Another router's by now; this generation goes on for its own callers.
                        del self._held[key]
        except grpc.aio.AioRpcError as error:
            # What was to be given back ends by itself; what is kept is told next time.
            log.info("the sidecar was not told of generations: %s", error.code().name)

    async def aclose(self) -> None:
        """Give everything back: this router generates nothing any more."""
        for key, held in self._held.items():
            self._give_back(key, held.request_id)
        self._held.clear()
        if self._ended:
            await self.tell_news()

    def _due(self) -> dict[_Key, _Held]:
        """What has not been told for so long; a short generation never is."""
        since = self._clock() - self._renew_s
        return {key: held for key, held in self._held.items() if held.told_at <= since}

    def _give_back(self, key: _Key, request_id: str) -> None:
        if len(self._ended) < _BATCH:
            self._ended[key] = request_id
            self._has_ended.set()

    async def _tell(
        self, held: list[cache_pb2.HeldFlight], ended: list[cache_pb2.HeldFlight]
    ) -> list[cache_pb2.FlightLease]:
        if self._stub is None:
            return []
        request = cache_pb2.HoldFlightsRequest(
            router=self._claim.router, private=self._claim.private, held=held, ended=ended
        )
        response = await self._stub.HoldFlights(request, timeout=self._timeout_s)
        return list(response.leases)


def _wire(key: _Key, request_id: str) -> cache_pb2.HeldFlight:
    return cache_pb2.HeldFlight(tenant=key[0], exact=key[1], request_id=request_id)
