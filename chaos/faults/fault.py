"""What a fault is: a description, a carrier for each wire, and the count of its strikes."""

import asyncio
import enum
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace


class Direction(enum.Flag):
    """Which way bytes travel."""

    UP = enum.auto()  # from the client to the server
    DOWN = enum.auto()  # from the server to the client
    BOTH = UP | DOWN


class End(enum.Enum):
    """How one side finished sending."""

    FIN = "fin"
    RST = "rst"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes on their way, or the end of them.

    Attributes:
        data: what was read at once; empty for an end.
        due_s: loop time before which the chunk cannot have come this far: when it
            was read, or when the fault before this one would have released it.
        end: set on the last chunk of a direction. An end waits its turn behind
            the bytes, so a blackhole hides it as it hides them.
    """

    data: bytes
    due_s: float
    end: End | None = None

    def until(self, due_s: float) -> "Chunk":
        return replace(self, due_s=due_s)


Forward = Callable[[Chunk], Awaitable[None]]
# What a fault does to one direction of one connection. It may wait, split, or
# break the connection; it never reorders.
Carrier = Callable[[Chunk, Forward], Awaitable[None]]


class ConnectionCut(Exception):
    """This connection is to be torn down with a reset, now."""


@dataclass(eq=False, slots=True)
class Placement:
    """A fault while it is on a proxy, and the proof that it struck.

    Attributes:
        chunks: chunks it held, cut up or broke.
        num_bytes: bytes in them.
        lifted: set when the fault is taken off.
    """

    fault: "Fault"
    direction: Direction
    chunks: int = 0
    num_bytes: int = 0
    lifted: asyncio.Event = field(default_factory=asyncio.Event)
    _connections: set[int] = field(default_factory=set)
    _first_strike: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def connections(self) -> int:
        """Connections it did something to."""
        return len(self._connections)

    @property
    def struck(self) -> bool:
        return bool(self._connections)

    async def first_strike(self) -> None:
        """Wait until it has done something to a connection."""
        await self._first_strike.wait()

    def strike(self, connection: int) -> None:
        """Count a connection, by its number on the proxy."""
        self._connections.add(connection)
        self._first_strike.set()


@dataclass(frozen=True, eq=False, slots=True)
class Wire:
    """One direction of one connection, as one fault sees it."""

    placement: Placement
    connection: int
    direction: Direction

    def struck(self, num_bytes: int) -> None:
        """Count a strike on a chunk of this wire."""
        self.placement.strike(self.connection)
        self.placement.chunks += 1
        self.placement.num_bytes += num_bytes

    async def hold_until(self, due_s: float | None) -> None:
        """Wait for a loop time (None: for ever), or until the fault is taken off.

        A fault that is taken off lets go at once of what it holds.
        """
        lifted = self.placement.lifted
        if due_s is None:
            await lifted.wait()
            return
        try:
            async with asyncio.timeout_at(due_s):
                await lifted.wait()
        except TimeoutError:
            return


class Fault(ABC):
    """Something that goes wrong between a client and a server."""

    @abstractmethod
    def carrier(self, wire: Wire) -> Carrier:
        """What this fault does to the chunks of one wire."""

    @property
    def refuses(self) -> bool:
        """Whether the proxy stops listening while this fault is on."""
        return False

    @property
    def cuts(self) -> bool:
        """Whether open connections are reset the moment this fault is put on."""
        return False
