"""The router's end of the link to its sidecar: many questions at a time on one connection.

Who finds it down asks by call instead; see :mod:`observability.link` for why there are
two ways.
"""

import asyncio
from typing import Final, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from observability.interceptors.calls import Method
from observability.interceptors.client import ClientCall, ClientEdge
from observability.link import Frames, frame
from observability.tracing import TRACEPARENT, TRACESTATE
from sidecache.errors import (
    DeadlineExceeded,
    SidecacheError,
    Unavailable,
    from_status,
)
from sidecache.v1 import cache_pb2

_SERVICE: Final = cache_pb2.DESCRIPTOR.services_by_name["CacheService"].full_name
# Between two attempts to connect.
_RETRY_S: Final = 0.5
# A connection that lets a question run out of time, and said nothing for so long, is given up.
_SILENCE_S: Final = 1.0
# What may wait to be sent; a sidecar that stands still must not fill our memory.
_MAX_UNSENT_BYTES: Final = 4 << 20
_IDS: Final = (1 << 32) - 1


class CacheLink:
    """A connection to the sidecar that is made again whenever it is lost.

    Args:
        path: of the link's socket.
        edge: records the questions.
        max_bytes: of one answer.
    """

    def __init__(self, path: str, edge: ClientEdge, max_bytes: int) -> None:
        self._path = path
        self._edge = edge
        self._max_bytes = max_bytes
        self._lookup = edge.method(f"/{_SERVICE}/Lookup")
        self._store = edge.method(f"/{_SERVICE}/Store")
        self._connection: _Connection | None = None
        self.came_up = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether a question may be asked this way."""
        return self._connection is not None

    async def run(self) -> None:
        """Keep connected until cancelled."""
        loop = asyncio.get_running_loop()
        connection: _Connection | None = None
        try:
            while True:
                try:
                    _, connection = await loop.create_unix_connection(
                        lambda: _Connection(self._max_bytes), self._path
                    )
                except OSError:
                    # No sidecar, or one that has no link: calls say which.
                    pass
                else:
                    self._connection = connection
                    self.came_up.set()
                    await connection.lost
                    self._connection = None
                await asyncio.sleep(_RETRY_S)
        finally:
            self._connection = None
            if connection is not None:
                connection.give_up()

    async def look_up(
        self, request: cache_pb2.LookupRequest, timeout_s: float
    ) -> cache_pb2.LookupResponse:
        """Ask for a stored answer.

        Raises:
            DeadlineExceeded: the sidecar did not answer in time.
            Unavailable: the link is down, or was lost.
            SidecacheError: what the sidecar said was wrong.
        """
        asked = cache_pb2.LinkRequest(lookup=request)
        return (await self._ask(asked, self._lookup, timeout_s)).lookup

    async def store(
        self, request: cache_pb2.StoreRequest, timeout_s: float
    ) -> cache_pb2.StoreResponse:
        """Have answers kept; raises as :meth:`look_up` does."""
        asked = cache_pb2.LinkRequest(store=request)
        return (await self._ask(asked, self._store, timeout_s)).store

    async def _ask(
        self, request: cache_pb2.LinkRequest, method: Method, timeout_s: float
    ) -> cache_pb2.LinkResponse:
        if self._connection is None:
            raise Unavailable("the link to the sidecar is down")
        observed = ClientCall(self._edge, method)
        headers = dict(observed.headers)
        request.traceparent = headers[TRACEPARENT]
        request.tracestate = headers.get(TRACESTATE, "")
        code = grpc.StatusCode.CANCELLED
        try:
            response = _checked(await self._connection.ask(request, timeout_s))
            code = grpc.StatusCode.OK
        except SidecacheError as error:
            code = error.code
            raise
        finally:
            observed.finish(code)
        return response


def _checked(response: cache_pb2.LinkResponse) -> cache_pb2.LinkResponse:
    """The response, if it is no status."""
    if response.status:
        raise from_status(status_pb2.Status.FromString(response.status))
    return response


class _Connection(asyncio.Protocol):
    """One connection, and the questions that wait for their answers.

    Attributes:
        lost: done when it is.
    """

    def __init__(self, max_bytes: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._frames = Frames(max_bytes)
        self._waiting: dict[int, asyncio.Future[cache_pb2.LinkResponse]] = {}
        self._last_id = 0
        # Of the first question since the last answer; None: nothing is outstanding, or some came.
        self._silent_since: float | None = None
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._silent_since = None
        try:
            for message in self._frames.feed(data):
                response = cache_pb2.LinkResponse.FromString(message)
                # None: it came too late, and nobody waits any more.
                answer = self._waiting.get(response.id)
                if answer is not None and not answer.done():
                    answer.set_result(response)
        except (SidecacheError, DecodeError):
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Unavailable("the link to the sidecar was lost"))

    def give_up(self) -> None:
        """Drop the connection; who waits is told."""
        self._transport.abort()

    async def ask(self, request: cache_pb2.LinkRequest, timeout_s: float) -> cache_pb2.LinkResponse:
        """Send a question and wait for its answer; raises as :meth:`CacheLink.look_up` does."""
        self._last_id = request.id = (self._last_id + 1) & _IDS
        request.timeout_us = min(max(1, int(timeout_s * 1e6)), _IDS)
        asked = frame(request.SerializeToString())
        if self._transport.get_write_buffer_size() + len(asked) > _MAX_UNSENT_BYTES:
            raise Unavailable("the sidecar does not read what it is asked")
        answer: asyncio.Future[cache_pb2.LinkResponse] = self._loop.create_future()
        self._waiting[request.id] = answer
        timer = self._loop.call_later(timeout_s, self._expire, answer)
        if self._silent_since is None:
            self._silent_since = self._loop.time()
        self._transport.write(asked)
        try:
            return await answer
        finally:
            timer.cancel()
            del self._waiting[request.id]

    def _expire(self, answer: "asyncio.Future[cache_pb2.LinkResponse]") -> None:
        if answer.done():
            return
        answer.set_exception(DeadlineExceeded("the sidecar did not answer in time"))
        since = self._silent_since
        if since is not None and self._loop.time() - since > _SILENCE_S:
            # It may be this connection that hangs, and not the sidecar.
            self.give_up()
