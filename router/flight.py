"""One generation, what it has said so far, and everyone who reads it.

The generation runs in a task of its own, so that no reader's departure ends it for the
others. While there is one reader, its messages are written straight to him, which costs
next to nothing; from the second one on each reads the log at his own pace.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from opentelemetry import trace

from observability.interceptors.server import is_client_gone
from router.flight_log import FlightLog
from router.flight_readers import Joined, Resumed
from router.relay import Reader
from router.stall import StallGuard
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import SidecacheError, StreamInterrupted, from_status, to_status
from sidecache.v1 import inference_pb2 as pb

# The relay bounds the wait for the worker; this only bounds a bug.
_WORKER_WAIT_S: Final = 86_400.0
# The generation may be so many messages ahead of its fastest reader.
_MAX_AHEAD: Final = 256
# A message takes its only reader milliseconds; who takes longer may have stalled.
_SLOW_WRITE_S: Final = 0.05
# With others waiting behind the message he does not take, he is cut off after this long.
_HELD_UP_S: Final = 1.0
# A crowd is told in batches: what a write to each costs must leave the router time to spare.
_PACE_S: Final = 0.0001
_CROWD: Final = 16


class Flight:
    """A generation under way, or just ended.

    Args:
        ticket: of the request that began it.
        tape: follows the stream.
        max_log_bytes: a flight that has said more takes no more readers, and cuts off who
            is further behind than that.

    Attributes:
        readers: how many read it now.
        failure: what ended it; None: it runs, or ended well.
        ended_at: the loop's time of its end.
        span: of the request that began it.
    """

    __slots__ = (
        "_first",
        "_first_error",
        "_first_position",
        "_furthest",
        "_is_cutting",
        "_is_direct",
        "_log",
        "_loop",
        "_news",
        "_room",
        "_task",
        "_teller",
        "_told_at",
        "_turn",
        "_writing_since",
        "ended_at",
        "failure",
        "is_over",
        "readers",
        "span",
        "tape",
        "ticket",
    )

    def __init__(self, ticket: Ticket, tape: Tape, max_log_bytes: int) -> None:
        self.ticket = ticket
        self.tape = tape
        self.readers = 0
        self.is_over = False
        self.failure: BaseException | None = None
        self.ended_at = 0.0
        self.span = trace.get_current_span().get_span_context()
        self._log = FlightLog(max_log_bytes)
        self._loop = asyncio.get_running_loop()
        self._first: Reader | None = None
        self._first_error: Exception | None = None
        self._first_position = 0
        # Whether the first reader is still written to by the generation itself.
        self._is_direct = True
        # Since when such a write is under way; 0.0: none is.
        self._writing_since = 0.0
        self._is_cutting = False
        self._furthest = 0
        # Set at the end, or as soon as the first reader has to read the log.
        self._turn: asyncio.Future[None] = self._loop.create_future()
        # Made only while somebody waits.
        self._news: asyncio.Event | None = None
        self._room: asyncio.Event | None = None
        self._told_at = 0.0
        self._teller: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def may_be_joined(self) -> bool:
        """Whether one more reader would get the whole stream, and at his own pace."""
        if self.failure is not None or self._log.trimmed:
            return False
        since = self._writing_since
        return not since or self._loop.time() - since < _SLOW_WRITE_S

    @property
    def log_bytes(self) -> int:
        """What it remembers."""
        return self._log.size

    def take_off(self, generate: Callable[[Reader], Awaitable[None]], first: Reader) -> None:
        """Start the generation; ``first`` is written to until others come."""
        self._first = first
        self._task = self._loop.create_task(self._fly(generate))

    async def write(self, message: pb.GenerateResponse) -> None:
        """Take the generation's next message; the relay's reader is the flight."""
        self._log.append(message)
        if not self._is_direct:
            await self._tell()
            return
        first = self._first
        if first is None:
            return
        self._writing_since = self._loop.time()
        try:
            await first.write(message)
        except asyncio.CancelledError:
            if not self._is_cutting:
                raise
            self._cut_off()
        except Exception as error:
            if not is_client_gone(error) and self._first is first:
                raise
            # Whether the stream goes on without him is for who keeps it to say.
            self._lose_first(error)
        finally:
            self._writing_since = 0.0
        self._first_position = self._log.end
        if self.readers > 1:
            self._stop_writing_directly()

    async def lead(self, stall_s: float) -> None:
        """Be the first reader, until the stream ends."""
        await self._turn
        if self._first_error is not None:
            raise self._first_error
        if not self._is_direct and self._first is not None:
            await self._read(self._first, self._first_position, stall_s)
        self._raise_failure()

    async def join(self, reader: Joined, stall_s: float) -> None:
        """Read the stream of another caller's identical request, from its beginning."""
        self._share()
        await self._read(reader, 0, stall_s)
        self._raise_failure()

    async def rejoin(self, reader: Reader, offset: int, stall_s: float) -> None:
        """Read on from this many tokens.

        Raises:
            InvalidRequest: there are not so many yet, or no message ended there.
        """
        position = self._log.position_of(offset, self.tape.tokens)
        self._share()
        started = self._log.started() or pb.Started(
            request_id=self.ticket.request_id, source=pb.SOURCE_ENGINE
        )
        await reader.write(pb.GenerateResponse(started=started))
        await self._read(Resumed(reader), position, stall_s)
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

    def first_has_left(self) -> None:
        """Write to the first reader no more."""
        self._first = None
        if self._is_direct:
            self._stop_writing_directly()

    def nobody_reads(self) -> None:
        """Go on for a reader who may come back: there is nobody to keep pace with."""
        if self._room is not None:
            self._room.set()

    async def _fly(self, generate: Callable[[Reader], Awaitable[None]]) -> None:
        try:
            await generate(self)
        except asyncio.CancelledError:
            self.failure = StreamInterrupted("the generation was given up")
            raise
        except Exception as error:  # noqa: BLE001 - told to every reader; the edge reports it
            self.failure = error
        finally:
            self.is_over = True
            self.ended_at = self._loop.time()
            self._wake()
            if not self._turn.done():
                self._turn.set_result(None)

    async def _read(self, reader: Reader, position: int, stall_s: float) -> None:
        """Write the log from a position on, as it grows."""
        log = self._log
        with StallGuard(_WORKER_WAIT_S, stall_s) as guard:
            while True:
                while position < log.end:
                    if position < log.trimmed:
                        raise StreamInterrupted(
                            "cut off: the client is too far behind", why="reader_behind"
                        )
                    position, message = log.take(position)
                    guard.waits_for_reader()
                    await reader.write(message)
                    guard.waits_for_worker()
                    self._has_read(position)
                if self.is_over:
                    return
                if self._news is None:
                    self._news = asyncio.Event()
                await self._news.wait()

    def _has_read(self, position: int) -> None:
        if position > self._furthest:
            self._furthest = position
            if self._room is not None:
                self._room.set()

    async def _tell(self) -> None:
        """Wake who waits for news; wait while even the fastest reader is far behind."""
        if self._news is not None and self._teller is None:
            due_s = self._told_at + self.readers * _PACE_S
            if self.readers < _CROWD or self._loop.time() >= due_s:
                self._wake()
            else:
                self._teller = self._loop.call_at(due_s, self._wake)
        while self.readers and self._log.end - self._furthest > _MAX_AHEAD:
            self._room = asyncio.Event()
            await self._room.wait()
        self._room = None

    def _wake(self) -> None:
        if self._teller is not None:
            self._teller.cancel()
            self._teller = None
        self._told_at = self._loop.time()
        if self._news is not None:
            self._news.set()
            self._news = None

    def _share(self) -> None:
        """From now on everybody reads the log."""
        if not self._is_direct:
            return
        if self._writing_since:
            # Its end hands the first reader over; should it not end, he has stalled.
            self._loop.call_later(_HELD_UP_S, self._cut_if_held_up, self._log.end)
        else:
            self._stop_writing_directly()

    def _stop_writing_directly(self) -> None:
        self._is_direct = False
        self._furthest = max(self._furthest, self._first_position)
        if not self._turn.done():
            self._turn.set_result(None)

    def _cut_if_held_up(self, end: int) -> None:
        is_the_same = self._writing_since and self._log.end == end
        if is_the_same and self.readers > 1 and self._task is not None:
            self._is_cutting = True
            self._task.cancel()

    def _cut_off(self) -> None:
        """The first reader takes nothing, and others wait behind him."""
        self._is_cutting = False
        task = asyncio.current_task()
        if task is not None and task.uncancel():
            # Somebody else ends the generation at the same time.
            raise asyncio.CancelledError
        self._lose_first(
            StreamInterrupted(
                f"cut off: the client read nothing for {_HELD_UP_S:g} s, and others wait",
                why="reader_stalled",
            )
        )

    def _lose_first(self, error: Exception) -> None:
        self._first, self._first_error = None, error
        self._stop_writing_directly()

    def _raise_failure(self) -> None:
        failure = self.failure
        if isinstance(failure, SidecacheError):
            # One each: an exception that is raised twice collects tracebacks.
            raise from_status(to_status(failure))
        if failure is not None:
            raise failure
