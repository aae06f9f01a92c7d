"""The connections to other routers: kept for the next stream, bounded, and closed when dropped."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc


@dataclass(slots=True)
class _Peer:
    """One connection, and the streams that are read over it now."""

    channel: grpc.aio.Channel
    streams: int = 0


class Peers:
    """Reaches other routers by their addresses.

    Args:
        dial: a channel to an address.
        max_kept: connections beyond it are closed, the longest unused one first. One that
            streams are read over stays open until they end: closing it would cut them off.
    """

    def __init__(self, dial: Callable[[str], grpc.aio.Channel], max_kept: int = 64) -> None:
        self._dial = dial
        self._max_kept = max_kept
        # The least lately used first.
        self._peers: OrderedDict[str, _Peer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peers)

    @asynccontextmanager
    async def reach(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        """A channel for one stream, which stays open while the block lasts."""
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = _Peer(self._dial(address))
        self._peers.move_to_end(address)
        peer.streams += 1
        try:
            await self._close_surplus()
            yield peer.channel
        finally:
            peer.streams -= 1
            await self._close_surplus()

    async def _close_surplus(self) -> None:
        surplus = len(self._peers) - self._max_kept
        if surplus <= 0:
            return
        unused = [address for address, peer in self._peers.items() if not peer.streams]
        # All of them at once: no other stream may take one while the first is closed.
        for peer in [self._peers.pop(address) for address in unused[:surplus]]:
            await peer.channel.close()

    async def aclose(self) -> None:
        """Close them all."""
        peers, self._peers = self._peers, OrderedDict()
        for peer in peers.values():
            await peer.channel.close()
