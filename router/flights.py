"""The generations under way: who may share one, and who may come back to his own.

One generation for one question: whoever asks what is just being answered reads along
(request collapsing, RFC 9111 section 4). The rules are the cache's own: an answer that
may not be stored is not shared, and who wants no stored answer gets his own.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable

from router.cache_client import Miss
from router.flight import Flight
from router.flight_readers import Joined
from router.relay import Reader
from router.settings import FlightSettings
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import NotFound

Generate = Callable[[Reader], Awaitable[None]]

_NAME_SHOWN = 128
# An answer is found in the cache so long after its stream has ended.
_STORED_S = 0.05


class Flights:
    """Every flight of this router.

    Args:
        settings: what is shared, and for how long a lost client may come back.
        max_log_bytes: what a flight remembers.
        reader_stall_s: a reader that takes nothing for this long is cut off.
        max_flight_s: longest a generation may take that others may share.
    """

    def __init__(
        self,
        settings: FlightSettings,
        max_log_bytes: int,
        reader_stall_s: float,
        max_flight_s: float,
    ) -> None:
        self._settings = settings
        self._max_log_bytes = max_log_bytes
        self._reader_stall_s = reader_stall_s
        self._max_flight_s = max_flight_s
        # By exact key, which has the tenant in it.
        self._shared: dict[bytes, Flight] = {}
        # Those of them that have ended, oldest first.
        self._ended: deque[Flight] = deque()
        # By request id, oldest first.
        self._kept: OrderedDict[str, Flight] = OrderedDict()
        # Of those whom nobody reads.
        self._expiry: dict[str, asyncio.TimerHandle] = {}

    def reconfigure(
        self, settings: FlightSettings, reader_stall_s: float, max_flight_s: float
    ) -> None:
        """Take new settings; flights under way stay."""
        self._settings, self._reader_stall_s = settings, reader_stall_s
        self._max_flight_s = max_flight_s

    def to_join(self, ticket: Ticket, missed: Miss | None = None) -> Flight | None:
        """The flight whose answer is this request's too, if there is one.

        Args:
            ticket: the request.
            missed: the cache was asked and gave no answer. One that has ended since will do
                then: its answer was on its way there.
        """
        if not self._shared or ticket.key is None or not ticket.may_look_up:
            return None
        flight = self._shared.get(ticket.key.exact)
        if flight is None or not flight.may_be_joined or not _suits(flight, ticket):
            return None
        if flight.is_over and not self._is_fresh(flight, ticket, missed):
            return None
        return flight if flight.readers < self._settings.max_readers else None

    def timeout_s(self, ticket: Ticket) -> float:
        """How long a worker may take: who joins may have more time than who began.

        A generation that nobody reads any more is cancelled, so the first reader's own
        deadline frees the worker as soon as it has passed.
        """
        return self._max_flight_s if self._may_be_shared(ticket) else ticket.timeout_s

    async def join(self, flight: Flight, ticket: Ticket, reader: Reader) -> None:
        """Read along until the stream ends.

        Raises:
            SidecacheError: what ended it for everybody, or this reader's own stall.
        """
        self._reads(flight)
        try:
            await flight.join(Joined(ticket, reader), self._reader_stall_s)
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
        if not self._may_be_shared(ticket) and not ticket.attach_window_s:
            await generate(reader)
            return
        flight = Flight(ticket, tape, self._max_log_bytes)
        self._register(flight)
        flight.readers += 1
        flight.take_off(generate, reader)
        try:
            await flight.lead(self._reader_stall_s)
        finally:
            flight.first_has_left()
            await self._left(flight)

    async def attach(self, tenant: str, request_id: str, offset: int, reader: Reader) -> None:
        """Read on in a stream of one's own.

        Args:
            tenant: who asks.
            request_id: of the stream.
            offset: tokens the reader has.
            reader: gets the rest.

        Raises:
            NotFound: this router keeps no such stream of this tenant.
            InvalidRequest: no message of the stream ended at this offset.
        """
        flight = self._kept.get(request_id)
        if flight is None or flight.ticket.tenant != tenant:
            raise NotFound(
                "no stream of yours has this id, or it ended too long ago; send the request again",
                kind="stream",
                name=request_id[:_NAME_SHOWN],
            )
        await self._rejoin(flight, offset, reader)

    def withdraw(self, ticket: Ticket) -> None:
        """Keep this request's stream for no return: its caller got another answer."""
        flight = self._kept.pop(ticket.request_id, None)
        if flight is not None:
            self._drop(ticket.request_id, flight)

    async def show(self, tenant: str, exact: bytes, reader: Reader) -> None:
        """Let another router read along, from the beginning.

        Only in what is generated here: routers that followed one another would wait for
        one another.

        Raises:
            NotFound: no such answer is generated here, or it may not be shared.
        """
        flight = self._shared.get(exact)
        is_there = flight is not None and flight.ticket.tenant == tenant
        if flight is None or not is_there or not _may_be_shown(flight):
            raise NotFound("no such answer is generated here", kind="stream", name="")
        await self._rejoin(flight, 0, reader)

    async def _rejoin(self, flight: Flight, offset: int, reader: Reader) -> None:
        self._reads(flight)
        try:
            await flight.rejoin(reader, offset, self._reader_stall_s)
        finally:
            await self._left(flight)

    def _reads(self, flight: Flight) -> None:
        """One more reader: while there is any, nobody's return is awaited."""
        if (expiry := self._expiry.pop(flight.ticket.request_id, None)) is not None:
            expiry.cancel()
        flight.readers += 1

    def close(self) -> None:
        """End what nobody reads any more."""
        while self._kept:
            self._drop(*self._kept.popitem())

    def _is_fresh(self, flight: Flight, ticket: Ticket, missed: Miss | None) -> bool:
        if missed is None or not missed.was_looked_up:
            return False
        if missed.is_told and ticket.opened_at > flight.ended_at + _STORED_S:
            # Stored, and gone again: invalidated, perhaps.
            return False
        if missed.reason == "stale":
            # It is stored, and older than this request takes.
            return False
        return self._loop_time() - flight.ended_at <= self._settings.linger_s

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()

    def _may_be_shared(self, ticket: Ticket) -> bool:
        return self._settings.single_flight and ticket.may_store and ticket.key is not None

    def _register(self, flight: Flight) -> None:
        ticket = flight.ticket
        if self._may_be_shared(ticket) and ticket.key is not None:
            self._shared[ticket.key.exact] = flight
        if ticket.attach_window_s:
            self._kept[ticket.request_id] = flight
            self._keep_within_bounds()

    def _keep_within_bounds(self) -> None:
        settings = self._settings
        while len(self._kept) > settings.max_kept or self._kept_bytes() > settings.max_kept_bytes:
            self._drop(*self._kept.popitem(last=False))

    def _kept_bytes(self) -> int:
        """Of the streams that nobody reads; one that runs counts as what it may become."""
        unread = (self._kept[request_id] for request_id in self._expiry)
        return sum(f.log_bytes if f.is_over else self._max_log_bytes for f in unread)

    async def _left(self, flight: Flight) -> None:
        """A reader is gone: with the last one the generation ends, or waits for his return."""
        flight.readers -= 1
        if flight.readers:
            return
        if self._is_kept(flight):
            self._await_return(flight)
            if not flight.is_over:
                return
        if flight.is_over:
            self._linger(flight)
        else:
            self._forget_shared(flight)
            await flight.cancel()

    def _is_kept(self, flight: Flight) -> bool:
        return bool(self._kept) and self._kept.get(flight.ticket.request_id) is flight

    def _await_return(self, flight: Flight) -> None:
        flight.nobody_reads()
        ticket = flight.ticket
        expire = asyncio.get_running_loop().call_later(ticket.attach_window_s, self._expire, flight)
        self._expiry[ticket.request_id] = expire
        self._keep_within_bounds()

    def _linger(self, flight: Flight) -> None:
        """Let who missed in the cache just before the answer was stored still find it."""
        is_stored = flight.may_be_joined and flight.tape.is_storable
        if not is_stored or flight.log_bytes > self._settings.max_linger_bytes:
            self._forget_shared(flight)
            return
        ended, since = self._ended, self._loop_time() - self._settings.linger_s
        ended.append(flight)
        while ended and (len(ended) > self._settings.max_lingering or ended[0].ended_at < since):
            self._forget_shared(ended.popleft())

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
        if key is not None and self._shared.get(key.exact) is flight:
            del self._shared[key.exact]


def _may_be_shown(flight: Flight) -> bool:
    """Whether another router's caller gets the whole answer here, and no worse one."""
    tape = flight.tape
    return flight.may_be_joined and not tape.is_relayed and not tape.is_inexact


def _suits(flight: Flight, ticket: Ticket) -> bool:
    """Whether the flight's pace and its tokens are what this request asks for."""
    if ticket.only_if_cached:
        return False
    if flight.tape.is_inexact:
        return False
    # Not yet begun, and queued behind what this caller need not wait for.
    hurries = ticket.request.priority > flight.ticket.request.priority
    return bool(flight.tape.tokens) or not hurries
