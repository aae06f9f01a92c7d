"""A wire that swallows everything and says nothing."""

import asyncio
from dataclasses import dataclass

from chaos.faults.fault import Carrier, Chunk, ConnectionCut, Fault, Forward, Wire


@dataclass(frozen=True, slots=True)
class Blackhole(Fault):
    """Nothing passes and nothing fails, as when a network drops every packet.

    Bytes are held rather than lost, because TCP would send them again: when the
    fault is taken off, the stream goes on without a gap. Ends are held too, so
    neither side learns that the other hung up.

    Attributes:
        cut_after_s: give up on a connection so long after its first held chunk,
            with a reset, as a firewall does; None: never.
    """

    cut_after_s: float | None = None

    def carrier(self, wire: Wire) -> Carrier:
        loop = asyncio.get_running_loop()

        async def carry(chunk: Chunk, forward: Forward) -> None:
            wire.struck(len(chunk.data))
            due_s = None if self.cut_after_s is None else loop.time() + self.cut_after_s
            await wire.hold_until(due_s)
            if not wire.placement.lifted.is_set():
                raise ConnectionCut
            await forward(chunk)

        return carry
