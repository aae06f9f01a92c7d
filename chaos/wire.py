"""One proxied connection: two pipes, each with a bounded buffer, on plain sockets."""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chaos.faults.fault import (
    Carrier,
    Chunk,
    ConnectionCut,
    Direction,
    End,
    Forward,
    Placement,
    Wire,
)

READ_BYTES = 16 * 1024
# close() sends RST and drops what was not sent.
_LINGER_0 = struct.pack("ii", 1, 0)

Placements = Callable[[], Sequence[Placement]]


@dataclass(slots=True)
class Traffic:
    """Bytes that went through, by direction."""

    up_bytes: int = 0
    down_bytes: int = 0

    def add(self, direction: Direction, num_bytes: int) -> None:
        if direction is Direction.UP:
            self.up_bytes += num_bytes
        else:
            self.down_bytes += num_bytes


@dataclass(frozen=True, slots=True)
class Medium:
    """What all connections of one proxy share.

    Attributes:
        placements: the faults that are on now, in the order they were put on.
        buffer_bytes: held for one direction of one connection, at most.
    """

    placements: Placements
    traffic: Traffic
    buffer_bytes: int


class Buffer:
    """Chunks between a reader and a writer; a full one stops the reader.

    Holds at most ``max_bytes`` and one read more.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._chunks: deque[Chunk] = deque()
        self._num_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._filled = asyncio.Event()

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    async def room(self) -> None:
        """Wait until there is room for another read."""
        await self._room.wait()

    def put(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self._num_bytes += len(chunk.data)
        self._filled.set()
        if self._num_bytes >= self._max_bytes:
            self._room.clear()

    async def get(self) -> Chunk:
        await self._filled.wait()
        chunk = self._chunks.popleft()
        self._num_bytes -= len(chunk.data)
        if not self._chunks:
            self._filled.clear()
        if self._num_bytes < self._max_bytes:
            self._room.set()
        return chunk


class Pipe:
    """One direction of a connection, through whatever faults are on now."""

    def __init__(
        self,
        wire: tuple[int, Direction],
        source: socket.socket,
        sink: socket.socket,
        medium: Medium,
    ) -> None:
        self._connection, self._direction = wire
        self._source = source
        self._sink = sink
        self._medium = medium
        self._carriers: dict[Placement, Carrier] = {}
        self.buffer = Buffer(medium.buffer_bytes)

    async def read(self) -> None:
        """Move bytes from the source into the buffer, until its end."""
        loop = asyncio.get_running_loop()
        while True:
            await self.buffer.room()
            try:
                data = await loop.sock_recv(self._source, READ_BYTES)
                end = None if data else End.FIN
            except OSError:
                data, end = b"", End.RST
            self.buffer.put(Chunk(data, loop.time(), end))
            if end:
                return

    async def write(self) -> None:
        """Move bytes from the buffer through the faults to the sink, until the end.

        Raises:
            ConnectionCut: a fault or one of the ends broke the connection.
        """
        while True:
            chunk = await self.buffer.get()
            await self._through(self._chain(), chunk)
            if chunk.end:
                return

    def _chain(self) -> list[Carrier]:
        placements = [p for p in self._medium.placements() if self._direction in p.direction]
        # Only what is still on keeps its state.
        self._carriers = {
            placement: self._carriers.get(placement)
            or placement.fault.carrier(Wire(placement, self._connection, self._direction))
            for placement in placements
        }
        return list(self._carriers.values())

    async def _through(self, carriers: list[Carrier], chunk: Chunk) -> None:
        forward: Forward = self._deliver
        for carrier in reversed(carriers):
            forward = _step(carrier, forward)
        await forward(chunk)

    async def _deliver(self, chunk: Chunk) -> None:
        loop = asyncio.get_running_loop()
        try:
            if chunk.data:
                await loop.sock_sendall(self._sink, chunk.data)
                self._medium.traffic.add(self._direction, len(chunk.data))
            if chunk.end is End.FIN:
                self._sink.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise ConnectionCut from error
        if chunk.end is End.RST:
            raise ConnectionCut


def _step(carrier: Carrier, forward: Forward) -> Forward:
    async def step(chunk: Chunk) -> None:
        await carrier(chunk, forward)

    return step


class Link:
    """A client's connection and its twin to the server."""

    def __init__(
        self, number: int, client: socket.socket, server: socket.socket, medium: Medium
    ) -> None:
        self.number = number
        self._sockets = (client, server)
        self.up = Pipe((number, Direction.UP), client, server, medium)
        self.down = Pipe((number, Direction.DOWN), server, client, medium)
        self._cut = asyncio.Event()

    def cut(self) -> None:
        """Reset both ends now."""
        self._cut.set()

    async def run(self) -> None:
        """Carry bytes both ways until both ends finished or the link is cut."""
        broken = True
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._raise_when_cut())
                async with asyncio.TaskGroup() as pipes:
                    for pipe in (self.up, self.down):
                        pipes.create_task(pipe.read())
                        pipes.create_task(pipe.write())
                watch.cancel()
            broken = False
        except* ConnectionCut:
            pass  # the reset below is what a cut means
        finally:
            for sock in self._sockets:
                close(sock, reset=broken)

    async def _raise_when_cut(self) -> None:
        await self._cut.wait()
        raise ConnectionCut


def close(sock: socket.socket, *, reset: bool) -> None:
    """Close a socket, with RST when asked (a Unix socket has none and just closes)."""
    if reset:
        with contextlib.suppress(OSError):  # the other end was quicker
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    sock.close()
