"""One generation, what it has said so far, and everyone who reads it.

The generation runs in a task of its own, so that no reader's departure ends it for the
others. While there is one reader, its messages are written straight to him; from the
second one on each reads the log at his own pace.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from observability.interceptors.server import is_client_gone
from observability.tracing import current_trace_id
from router.relay import Reader
from router.stall import StallGuard
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import (
    InvalidRequest,
    SidecacheError,
    StreamInterrupted,
    from_status,
    to_status,
)
from sidecache.v1 import inference_pb2 as pb

# The relay bounds the wait for the worker; this only bounds a bug.
_WORKER_WAIT_S = 86_400.0


class Flight:
    """A generation under way, or just ended.

    Args:
        ticket: of the request that began it.
        tape: follows the stream.
        max_log_bytes: a flight that has said more takes no more readers, and cuts off who
            is further behind than that.
    """

    def __init__(self, ticket: Ticket, tape: Tape, max_log_bytes: int) -> None:
        self.ticket = ticket
        self.tape = tape
        self.readers = 0
        self.is_over = False
        self.is_whole = True
        self.failure: BaseException | None = None
        self._max_log_bytes = max_log_bytes
        self._log: list[pb.GenerateResponse] = []
        self._log_bytes = 0
        self._trimmed = 0
        self._first: Reader | None = None
        self._first_error: Exception | None = None
        self._first_position = 0
        self._is_shared = False
        # Held while a message is written straight to the first reader.
        self._straight = asyncio.Lock()
        loop = asyncio.get_running_loop()
        # Set at the end, or as soon as the first reader has to read the log.
        self._turn: asyncio.Future[None] = loop.create_future()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def take_off(self, generate: Callable[[], Awaitable[None]], first: Reader) -> None:
        """Start the generation; ``first`` is written to until others come."""
        self._first = first
        self._task = asyncio.create_task(self._fly(generate), name="flight")

    async def write(self, message: pb.GenerateResponse) -> None:
        """Take the generation's next message; the relay's reader is the flight."""
        self._note(message)
        if self._is_shared or self._first is None:
            self._tell()
            return
        async with self._straight:
            try:
                await self._first.write(message)
            except Exception as error:
                if not is_client_gone(error):
                    raise
                # Whether the stream goes on without him is for who keeps it to say.
                self._first, self._first_error = None, error
                self._end_turn()
            self._first_position = self._end

    async def lead(self, stall_s: float) -> None:
        """Be the first reader, until the stream ends."""
        await self._turn
        async with self._straight:
            pass  # what is on its way to us arrives first
        if self._first_error is not None:
            raise self._first_error
        if self._is_shared and self._first is not None:
            await self._read(self._first, self._first_position, stall_s)
        self._raise_failure()

    async def join(self, ticket: Ticket, reader: Reader, stall_s: float) -> None:
        """Read the stream of another caller's identical request, from its beginning."""
        self._share()
        await self._read(_Renamed(ticket, reader), 0, stall_s)
        self._raise_failure()

    async def rejoin(self, reader: Reader, offset: int, stall_s: float) -> None:
        """Read on from this many tokens.

        Raises:
            InvalidRequest: there are not so many yet, or no message ended there.
        """
        position = self._position_of(offset)
        self._share()
        await reader.write(pb.GenerateResponse(started=self._started()))
        await self._read(reader, position, stall_s)
        self._raise_failure()

    async def cancel(self) -> None:
        """End the generation; returns when its worker has been told."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait((self._task,))

    def give_up(self) -> None:
        """End the generation soon."""
        if self._task is not None:
            self._task.cancel()

    @property
    def _end(self) -> int:
        return self._trimmed + len(self._log)

    async def _fly(self, generate: Callable[[], Awaitable[None]]) -> None:
        try:
            await generate()
        except SidecacheError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001 - told to every reader; the edge reports it
            self.failure = error
        except asyncio.CancelledError:
            self.failure = StreamInterrupted("the generation was given up")
            raise
        finally:
            self.is_over = True
            self._tell()
            self._end_turn()

    async def _read(self, reader: Reader, position: int, stall_s: float) -> None:
        """Write the log from a position on, as it grows."""
        with StallGuard(_WORKER_WAIT_S, stall_s) as guard:
            while True:
                news = self._news
                while position < self._end:
                    if position < self._trimmed:
                        raise StreamInterrupted(
                            "cut off: the client is too far behind", why="reader_behind"
                        )
                    message = self._log[position - self._trimmed]
                    position += 1
                    guard.waits_for_reader()
                    await reader.write(message)
                    guard.waits_for_worker()
                if self.is_over:
                    return
                await news.wait()

    def _share(self) -> None:
        self._is_shared = True
        self._end_turn()

    def _end_turn(self) -> None:
        if not self._turn.done():
            self._turn.set_result(None)

    def _note(self, message: pb.GenerateResponse) -> None:
        self._log.append(message)
        self._log_bytes += message.ByteSize()
        while self._log_bytes > self._max_log_bytes:
            self.is_whole = False
            self._log_bytes -= self._log.pop(0).ByteSize()
            self._trimmed += 1

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _started(self) -> pb.Started:
        for message in self._log:
            if message.HasField("started"):
                return message.started
        return pb.Started(request_id=self.ticket.request_id, source=pb.SOURCE_ENGINE)

    def _position_of(self, offset: int) -> int:
        """The message with the token that follows this many."""
        if offset > self.tape.tokens:
            raise InvalidRequest(
                f"{offset}; the stream has {self.tape.tokens} tokens so far", field="offset"
            )
        for at, message in enumerate(self._log):
            if not message.HasField("delta"):
                continue
            if message.delta.offset == offset:
                return self._trimmed + at
            if message.delta.offset > offset:
                raise InvalidRequest(
                    f"{offset}; no message ended there, only at {message.delta.offset}",
                    field="offset",
                )
        return self._end

    def _raise_failure(self) -> None:
        failure = self.failure
        if isinstance(failure, SidecacheError):
            # One each: an exception that is raised twice collects tracebacks.
            raise from_status(to_status(failure))
        if failure is not None:
            raise failure


class Reattached:
    """A call of Attach as a reader.

    Args:
        context: of the call.
    """

    def __init__(self, context: Any) -> None:
        self._context = context

    async def write(self, message: pb.GenerateResponse) -> None:
        await self._context.write(pb.AttachResponse(event=message))


class _Renamed:
    """A reader who is told his own request's id, and that the stream is another's."""

    def __init__(self, ticket: Ticket, reader: Reader) -> None:
        self._ticket = ticket
        self._reader = reader

    async def write(self, message: pb.GenerateResponse) -> None:
        if message.HasField("started"):
            own = pb.GenerateResponse()
            own.CopyFrom(message)
            own.started.request_id = self._ticket.request_id
            own.started.source = pb.SOURCE_COALESCED
            own.started.trace_id = current_trace_id()
            message = own
        await self._reader.write(message)
