"""A thinner wire."""

import asyncio
from dataclasses import dataclass

from chaos.faults.fault import Carrier, Chunk, Fault, Forward, Wire

# Short enough that a slow wire is a trickle rather than a row of bursts.
SLOT_S = 0.02


@dataclass(frozen=True, slots=True)
class Bandwidth(Fault):
    """At most so many bytes a second, for each connection and direction.

    The sender is held back, not buffered for: behind a thin wire the proxy's
    bounded buffer fills and TCP stops the sender.
    """

    bytes_per_s: float

    def __post_init__(self) -> None:
        if not self.bytes_per_s > 0:
            raise ValueError(
                f"bytes_per_s was {self.bytes_per_s}, but must be above 0; Blackhole passes nothing"
            )

    def carrier(self, wire: Wire) -> Carrier:
        loop = asyncio.get_running_loop()
        slot_bytes = max(1, int(self.bytes_per_s * SLOT_S))
        free_s = loop.time()

        async def carry(chunk: Chunk, forward: Forward) -> None:
            nonlocal free_s
            for start in range(0, max(1, len(chunk.data)), slot_bytes):
                piece = chunk.data[start : start + slot_bytes]
                now_s = loop.time()
                if free_s > now_s and not wire.placement.lifted.is_set():
                    wire.struck(len(piece))
                    await wire.hold_until(free_s)
                free_s = max(free_s, now_s) + len(piece) / self.bytes_per_s
                is_last = start + slot_bytes >= len(chunk.data)
                await forward(Chunk(piece, chunk.due_s, chunk.end if is_last else None))

        return carry
