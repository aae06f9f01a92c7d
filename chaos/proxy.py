"""The fault proxy: fits between any client and server of Sidecache, and breaks on demand.

::

    async with FaultProxy.open(cache.address) as proxy:
        ...                                   # point the router at proxy.address
        with proxy.during(Latency(0.2)) as latency:
            ...                               # every reply and request 200 ms later
        assert latency.struck                 # the fault was real

It moves bytes between plain sockets, TCP or Unix, and knows nothing of gRPC.
Memory is bounded by ``max_connections * 2 * (buffer_bytes + one read)``; beyond
it TCP holds the senders back, so back-pressure passes through as it would
without the proxy.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

from chaos.endpoint import Doorstep, Endpoint
from chaos.faults.fault import Direction, Fault, Placement
from chaos.wire import Link, Medium, Traffic, close

BUFFER_BYTES = 256 * 1024
MAX_CONNECTIONS = 256


class FaultProxy:
    """Carries connections from its own address to an upstream, through faults.

    Attributes:
        address: what a client dials.
        upstream: where the connections go.
        connections: connections carried since it opened.
        failed_dials: connections that were reset because the upstream did not answer.
        traffic: bytes delivered each way.
    """

    def __init__(
        self,
        upstream: str,
        doorstep: Doorstep,
        group: asyncio.TaskGroup,
        *,
        buffer_bytes: int,
        max_connections: int,
    ) -> None:
        self.upstream = upstream
        self.connections = 0
        self.failed_dials = 0
        self.traffic = Traffic()
        self._target = Endpoint.parse(upstream)
        self._doorstep = doorstep
        self._max_connections = max_connections
        self._placements: list[Placement] = []
        self._medium = Medium(lambda: self._placements, self.traffic, buffer_bytes)
        self._links: set[Link] = set()
        self._group = group
        self._carrying: set[asyncio.Task[None]] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        upstream: str,
        *,
        listen: str = "127.0.0.1:0",
        buffer_bytes: int = BUFFER_BYTES,
        max_connections: int = MAX_CONNECTIONS,
    ) -> AsyncIterator["FaultProxy"]:
        """Listen, and carry connections until the block is left.

        Args:
            upstream: ``host:port`` or ``unix:/path``; need not be up yet.
            listen: likewise; port 0 takes any.
            buffer_bytes: held for one direction of one connection, at most.
            max_connections: more wait in the kernel's backlog.
        """
        doorstep = Doorstep(Endpoint.parse(listen))
        try:
            async with asyncio.TaskGroup() as group:
                proxy = cls(
                    upstream,
                    doorstep,
                    group,
                    buffer_bytes=buffer_bytes,
                    max_connections=max_connections,
                )
                proxy._open_door()
                try:
                    yield proxy
                finally:
                    proxy._close_door()
                    for task in proxy._carrying:
                        task.cancel()
        finally:
            doorstep.leave()

    @property
    def address(self) -> str:
        return str(self._doorstep.endpoint)

    @property
    def open_connections(self) -> int:
        return len(self._links)

    @property
    def buffered_bytes(self) -> int:
        """What the proxy holds now, on its way in either direction."""
        return sum(link.up.buffer.num_bytes + link.down.buffer.num_bytes for link in self._links)

    def put_on(self, fault: Fault, direction: Direction = Direction.BOTH) -> Placement:
        """Put a fault on, after those that are on already; open connections feel it too."""
        placement = Placement(fault, direction)
        self._placements.append(placement)
        if fault.refuses:
            self._close_door()
        if fault.cuts:
            for link in self._links:
                placement.strike(link.number)
            self.cut_all()
        return placement

    def take_off(self, placement: Placement) -> None:
        """Take a fault off; what it holds goes on its way at once."""
        if placement not in self._placements:
            raise ValueError(f"{placement.fault} is not on this proxy")
        self._placements.remove(placement)
        placement.lifted.set()
        if not any(p.fault.refuses for p in self._placements):
            self._open_door()

    @contextlib.contextmanager
    def during(self, fault: Fault, direction: Direction = Direction.BOTH) -> Iterator[Placement]:
        """Put a fault on for the length of the block."""
        placement = self.put_on(fault, direction)
        try:
            yield placement
        finally:
            self.take_off(placement)

    def cut_all(self) -> None:
        """Reset every open connection."""
        for link in self._links:
            link.cut()

    def _open_door(self) -> None:
        self._doorstep.open()
        self._watch_door()

    def _close_door(self) -> None:
        # The loop must let go of the socket before it is closed.
        self._ignore_door()
        self._doorstep.close()

    def _watch_door(self) -> None:
        listener = self._doorstep.listener
        if listener is not None and len(self._carrying) < self._max_connections:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _ignore_door(self) -> None:
        if self._doorstep.listener is not None:
            asyncio.get_running_loop().remove_reader(self._doorstep.listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it hung up before it was let in
        client.setblocking(False)
        task = self._group.create_task(self._carry(client))
        self._carrying.add(task)
        task.add_done_callback(self._carried)
        if len(self._carrying) >= self._max_connections:
            self._ignore_door()

    def _carried(self, task: asyncio.Task[None]) -> None:
        self._carrying.discard(task)
        self._watch_door()

    async def _carry(self, client: socket.socket) -> None:
        server = None
        try:
            server = await self._dial()
        finally:
            if server is None:
                close(client, reset=True)
        if server is None:
            return
        self.connections += 1
        link = Link(self.connections, client, server, self._medium)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    async def _dial(self) -> socket.socket | None:
        server = self._target.new_socket()
        try:
            await asyncio.get_running_loop().sock_connect(server, self._target.sockaddr)
        except OSError:
            self.failed_dials += 1
            server.close()
            return None
        except asyncio.CancelledError:
            server.close()
            raise
        return server
