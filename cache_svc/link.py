"""The sidecar's end of the link: lookups and stores of this host's routers.

What is asked means what the service's methods mean; see :mod:`observability.link` for why
there is a second way to ask.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Final, Protocol, cast

import grpc
from google.protobuf.message import DecodeError

from observability.link import Frames, LinkEdge, frame, link_path
from observability.listening import bound_unix
from observability.settings import ServerSettings
from observability.telemetry import Telemetry
from sidecache.errors import (
    BrokenInvariant,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    SidecacheError,
    to_status,
)
from sidecache.v1 import cache_pb2

log = logging.getLogger(__name__)

_MAX_ROUTERS: Final = 256
_DEFAULT_TIMEOUT_US: Final = 1_000_000
# What is asked for when the sidecar ends has so long to be answered.
_LAST_ANSWERS_S: Final = 1.0


class Answers(Protocol):
    """What the link asks of the service."""

    async def look_up(
        self, request: cache_pb2.LookupRequest, left_s: float | None
    ) -> cache_pb2.LookupResponse:
        """Answer a lookup within the time its caller has left."""

    def look_up_at_once(self, request: cache_pb2.LookupRequest) -> cache_pb2.LookupResponse | None:
        """Answer a lookup that nothing is to be waited for; None: :meth:`look_up` has to."""

    async def store(self, request: cache_pb2.StoreRequest) -> cache_pb2.StoreResponse:
        """Keep answers."""


class LinkServer:
    """Answers every router that connects.

    Args:
        answers: gives them.
        edge: records the questions.
        settings: of the server whose link this is.
    """

    def __init__(self, answers: Answers, edge: LinkEdge, settings: ServerSettings) -> None:
        self._answers = answers
        self._edge = edge
        self.max_bytes = settings.max_message_bytes
        self.max_questions = settings.max_streams_per_connection
        self.routers: set[_Router] = set()
        self.is_open = True

    def admit(self) -> asyncio.Protocol:
        """The other end of one more connection."""
        return _Router(self)

    def close(self) -> None:
        """Take no more questions; those under way are answered first."""
        self.is_open = False
        for router in list(self.routers):
            router.finish()

    async def end(self) -> None:
        """Close, and return when what was asked has been answered, within a bound."""
        self.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ANSWERS_S):
                while tasks := [task for router in self.routers for task in router.tasks]:
                    await asyncio.wait(tasks)
        for router in list(self.routers):
            if router.tasks:
                router.cut()

    def answer_at_once(self, request: cache_pb2.LinkRequest) -> bytes | None:
        """The frame that answers a question without a task of its own; None: it needs one.

        Most lookups wait for nothing, and the task with its deadline is most of what they
        would cost.
        """
        if not request.HasField("lookup") or self._edge.has_span(request.traceparent):
            return None
        started = perf_counter()
        response, code = cache_pb2.LinkResponse(id=request.id), grpc.StatusCode.OK
        try:
            found = self._answers.look_up_at_once(request.lookup)
            if found is None:
                return None
            response.lookup.CopyFrom(found)
            self._check_size(response)
        except Exception as error:  # noqa: BLE001 - answered as a status, like a call's
            code = _refuse(response, error).code
        self._edge.answered("Lookup", started, code)
        return frame(response.SerializeToString())

    async def answer(self, request: cache_pb2.LinkRequest) -> bytes:
        """The frame that answers a question, well or with a status."""
        method = "Store" if request.HasField("store") else "Lookup"
        question = self._edge.begin(method, request.traceparent, request.tracestate)
        response = cache_pb2.LinkResponse(id=request.id)
        left_s = (request.timeout_us or _DEFAULT_TIMEOUT_US) / 1e6
        try:
            async with asyncio.timeout(left_s):
                await self._fill(response, request, left_s)
        except asyncio.CancelledError:
            question.ended(grpc.StatusCode.CANCELLED)
            raise
        except Exception as error:  # noqa: BLE001 - answered as a status, like a call's
            ours = _refuse(response, error)
            question.ended(ours.code, ours.reason)
        else:
            question.ended()
        return frame(response.SerializeToString())

    async def _fill(
        self, response: cache_pb2.LinkResponse, request: cache_pb2.LinkRequest, left_s: float
    ) -> None:
        match request.WhichOneof("question"):
            case "lookup":
                response.lookup.CopyFrom(await self._answers.look_up(request.lookup, left_s))
            case "store":
                response.store.CopyFrom(await self._answers.store(request.store))
            case _:
                raise InvalidRequest("no question that this sidecar knows")
        self._check_size(response)

    def _check_size(self, response: cache_pb2.LinkResponse) -> None:
        if response.ByteSize() > self.max_bytes:
            # At the other end it would cut the link, and everybody's answers with it.
            raise Overloaded(f"an answer of {response.ByteSize()} bytes; may have {self.max_bytes}")


def _refuse(response: cache_pb2.LinkResponse, error: Exception) -> SidecacheError:
    """Answer with what an error means, and with nothing else."""
    ours = _as_ours(error)
    # One of several: an answer that is there already is gone.
    response.status = to_status(ours).SerializeToString()
    return ours


def _as_ours(error: Exception) -> SidecacheError:
    match error:
        case SidecacheError():
            return error
        case TimeoutError():
            return DeadlineExceeded("the caller's time is over")
    log.error("a question over the link failed: a bug", exc_info=error)
    return BrokenInvariant("a bug in the service")


class _Router(asyncio.Protocol):
    """One router's connection, and its questions under way.

    Attributes:
        tasks: its questions that are being answered.
        is_paused: it takes no more questions for now.
    """

    def __init__(self, server: LinkServer) -> None:
        self._server = server
        self._frames = Frames(server.max_bytes)
        self.tasks: set[asyncio.Task[None]] = set()
        # What was read and has not begun; at most what one read brings.
        self._backlog: deque[cache_pb2.LinkRequest] = deque()
        self._is_behind = False
        self.is_paused = False
        self._is_ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._server.is_open or len(self._server.routers) >= _MAX_ROUTERS:
            self.cut()
            return
        self._server.routers.add(self)

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        try:
            for message in self._frames.feed(data):
                self._backlog.append(cache_pb2.LinkRequest.FromString(message))
        except (InvalidRequest, DecodeError) as error:
            log.warning("a router's link was cut: %s", error)
            self.cut()
            return
        self._go_on()

    def pause_writing(self) -> None:
        self._is_behind = True
        self._go_on()

    def resume_writing(self) -> None:
        self._is_behind = False
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.routers.discard(self)
        self._backlog.clear()
        for task in self.tasks:
            task.cancel()

    def cut(self) -> None:
        """Hang up at once."""
        self._transport.abort()

    def finish(self) -> None:
        """Answer what was asked, and hang up."""
        self._is_ending = True
        self._go_on()

    async def _answer(self, request: cache_pb2.LinkRequest) -> None:
        self._transport.write(await self._server.answer(request))

    def _answered(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self.is_paused or self._is_ending:
            self._go_on()

    def _go_on(self) -> None:
        """Begin what there is room for; read on while nothing is left of it."""
        loop, most = asyncio.get_running_loop(), self._server.max_questions
        while self._backlog and len(self.tasks) < most and not self._is_behind:
            request = self._backlog.popleft()
            answer = self._server.answer_at_once(request)
            if answer is not None:
                self._transport.write(answer)
                continue
            task = loop.create_task(self._answer(request))
            self.tasks.add(task)
            task.add_done_callback(self._answered)
        if self._is_ending and not self.tasks and not self._backlog:
            self._transport.close()
        # A router that takes no answers, or asked too much, waits in its socket.
        pause = self._is_behind or len(self.tasks) >= most
        if pause is not self.is_paused and not self._transport.is_closing():
            self.is_paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()


@asynccontextmanager
async def open_link(
    answers: Answers, telemetry: Telemetry, settings: ServerSettings, service: str
) -> AsyncIterator[LinkServer | None]:
    """Serve the link beside a Unix socket until the block is left; None: there is no such socket.

    Args:
        answers: gives the answers.
        telemetry: records the questions.
        settings: of the server; one that wants certificates has no link.
        service: full name of the service whose methods are asked.

    Raises:
        SetupError: the socket's path cannot be had.
    """
    path = link_path(settings.listen)
    if path is None or settings.tls is not None:
        yield None
        return
    server = LinkServer(answers, LinkEdge(telemetry, service), settings)
    loop = asyncio.get_running_loop()
    with bound_unix(path) as bound:
        listening = await loop.create_unix_server(server.admit, sock=bound)
        try:
            yield server
        finally:
            listening.close()
            # What answers is closed next.
            await server.end()
