"""Messages that arrive in small pieces."""

import asyncio
import random
from dataclasses import dataclass

from chaos.faults.fault import Carrier, Chunk, Fault, Forward, Wire


@dataclass(frozen=True, slots=True)
class Slicer(Fault):
    """Cuts what was written at once into small writes, as a bad path does.

    Attributes:
        max_bytes: largest piece, at least 1.
        vary: draw each piece's size from 1 to ``max_bytes`` instead.
        pause_s: between two pieces of one chunk.
        seed: of the sizes.
    """

    max_bytes: int
    vary: bool = False
    pause_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes was {self.max_bytes}, but a piece holds at least 1 byte")

    def carrier(self, wire: Wire) -> Carrier:
        draw = random.Random(f"{self.seed}/{wire.connection}/{wire.direction.name}")  # noqa: S311 - repeatable, not secret
        loop = asyncio.get_running_loop()

        async def carry(chunk: Chunk, forward: Forward) -> None:
            rest = memoryview(chunk.data)
            while len(rest) > (
                size := draw.randint(1, self.max_bytes) if self.vary else self.max_bytes
            ):
                if wire.placement.lifted.is_set():
                    break
                wire.struck(size)
                await forward(Chunk(bytes(rest[:size]), chunk.due_s))
                rest = rest[size:]
                await wire.hold_until(loop.time() + self.pause_s)
            await forward(Chunk(bytes(rest), chunk.due_s, chunk.end))

        return carry
