"""A longer wire."""

import asyncio
import random
from dataclasses import dataclass

from chaos.faults.fault import Carrier, Chunk, Fault, Forward, Wire


@dataclass(frozen=True, slots=True)
class Latency(Fault):
    """Every chunk arrives later, in order, without taking bandwidth away.

    Attributes:
        delay_s: added one way to each chunk.
        jitter_s: a chunk's delay is drawn from ``delay_s ± jitter_s``, never
            below 0. The draws depend on the seed, the connection's number and the
            direction only, so a run can be repeated.
        seed: of the jitter.
    """

    delay_s: float
    jitter_s: float = 0.0
    seed: int = 0

    def carrier(self, wire: Wire) -> Carrier:
        draw = random.Random(f"{self.seed}/{wire.connection}/{wire.direction.name}")  # noqa: S311 - repeatable, not secret
        loop = asyncio.get_running_loop()

        async def carry(chunk: Chunk, forward: Forward) -> None:
            delay_s = max(0.0, self.delay_s + draw.uniform(-self.jitter_s, self.jitter_s))
            # From the time of arrival, not from now: the wait for the chunk
            # before it is already part of this one's way.
            due_s = chunk.due_s + delay_s
            if due_s > loop.time():
                wire.struck(len(chunk.data))
                await wire.hold_until(due_s)
            await forward(chunk.until(due_s))

        return carry
