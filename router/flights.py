"""The generations under way: who may share one, and who may come back to his own.

One generation for one question: whoever asks what is just being answered reads along
(request collapsing, RFC 9111 section 4). The rules are the cache's own: an answer that
may not be stored is not shared, and who wants no stored answer gets his own.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from router.flight import Flight
from router.relay import Reader
from router.settings import FlightSettings
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import NotFound

Generate = Callable[[Reader], Awaitable[None]]


class Flights:
    """Every flight of this router.

    Args:
        settings: what is shared, and for how long a lost client may come back.
        max_log_bytes: what a flight remembers.
        reader_stall_s: a reader that takes nothing for this long is cut off.
    """

    def __init__(self, settings: FlightSettings, max_log_bytes: int, reader_stall_s: float) -> None:
        self._settings = settings
        self._max_log_bytes = max_log_bytes
        self._reader_stall_s = reader_stall_s
        # By tenant and exact key.
        self._shared: dict[tuple[str, bytes], Flight] = {}
        # By request id, oldest first.
        self._kept: OrderedDict[str, Flight] = OrderedDict()
        # Of those whom nobody reads.
        self._expiry: dict[str, asyncio.TimerHandle] = {}

    def reconfigure(self, settings: FlightSettings, reader_stall_s: float) -> None:
        """Take new settings; flights under way stay."""
        self._settings, self._reader_stall_s = settings, reader_stall_s

    def to_join(self, ticket: Ticket) -> Flight | None:
        """The flight whose answer is this request's too, if there is one."""
        if ticket.key is None or not ticket.may_look_up or not self._shared:
            return None
        flight = self._shared.get((ticket.tenant, ticket.key.exact))
        if flight is None or flight.is_over or not flight.is_whole:
            return None
        return flight if flight.readers < self._settings.max_readers else None

    async def join(self, flight: Flight, ticket: Ticket, reader: Reader) -> None:
        """Read along until the stream ends.

        Raises:
            SidecacheError: what ended it for everybody, or this reader's own stall.
        """
        flight.readers += 1
        try:
            await flight.join(ticket, reader, self._reader_stall_s)
        finally:
            await self._left(flight)

    async def fly(self, ticket: Ticket, tape: Tape, reader: Reader, generate: Generate) -> None:
        """Generate for this reader, and for whoever joins.

        Args:
            ticket: what is asked for.
            tape: follows the stream.
            reader: gets it.
            generate: writes the stream to the reader it is given.

        Raises:
            SidecacheError: what ended the stream, or this reader's own stall.
        """
        if not self._is_worth_a_flight(ticket):
            await generate(reader)
            return
        flight = Flight(ticket, tape, self._max_log_bytes)
        self._register(flight)
        flight.readers += 1
        flight.take_off(lambda: generate(flight), reader)
        try:
            await flight.lead(self._reader_stall_s)
        finally:
            await self._left(flight)

    async def attach(self, tenant: str, request_id: str, offset: int, reader: Reader) -> None:
        """Read on in a stream of one's own.

        Raises:
            NotFound: this router keeps no such stream of this tenant.
            InvalidRequest: no message of the stream ended at this offset.
        """
        flight = self._kept.get(request_id)
        if flight is None or flight.ticket.tenant != tenant:
            raise NotFound(
                "no stream of yours has this id, or it ended too long ago; send the request again",
                kind="stream",
                name=request_id[:128],
            )
        if (expiry := self._expiry.pop(request_id, None)) is not None:
            expiry.cancel()
        flight.readers += 1
        try:
            await flight.rejoin(reader, offset, self._reader_stall_s)
        finally:
            await self._left(flight)

    def close(self) -> None:
        """End what nobody reads any more."""
        while self._kept:
            self._drop(*self._kept.popitem())

    def _is_worth_a_flight(self, ticket: Ticket) -> bool:
        return self._may_be_shared(ticket) or ticket.attach_window_s > 0

    def _may_be_shared(self, ticket: Ticket) -> bool:
        return self._settings.single_flight and ticket.key is not None and ticket.may_store

    def _register(self, flight: Flight) -> None:
        ticket = flight.ticket
        if self._may_be_shared(ticket) and ticket.key is not None:
            self._shared[ticket.tenant, ticket.key.exact] = flight
        if ticket.attach_window_s:
            self._kept[ticket.request_id] = flight
            while len(self._kept) > self._settings.max_kept:
                self._drop(*self._kept.popitem(last=False))

    async def _left(self, flight: Flight) -> None:
        """A reader is gone: with the last one the generation ends, or waits for his return."""
        flight.readers -= 1
        if flight.readers:
            return
        window_s = flight.ticket.attach_window_s
        if window_s and self._kept.get(flight.ticket.request_id) is flight:
            expire = asyncio.get_running_loop().call_later(window_s, self._expire, flight)
            self._expiry[flight.ticket.request_id] = expire
            if not flight.is_over:
                return
        self._forget_shared(flight)
        if not flight.is_over:
            await flight.cancel()

    def _expire(self, flight: Flight) -> None:
        self._forget_shared(flight)
        self._expiry.pop(flight.ticket.request_id, None)
        self._kept.pop(flight.ticket.request_id, None)
        flight.give_up()

    def _drop(self, request_id: str, flight: Flight) -> None:
        """Nobody can come back to the oldest any more; who reads it goes on reading."""
        if (expiry := self._expiry.pop(request_id, None)) is not None:
            expiry.cancel()
            self._forget_shared(flight)
            flight.give_up()

    def _forget_shared(self, flight: Flight) -> None:
        key = flight.ticket.key
        if key is not None and self._shared.get((flight.ticket.tenant, key.exact)) is flight:
            del self._shared[flight.ticket.tenant, key.exact]
