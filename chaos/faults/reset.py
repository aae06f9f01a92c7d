"""A connection that breaks in the middle."""

from dataclasses import dataclass

from chaos.faults.fault import Carrier, Chunk, ConnectionCut, Fault, Forward, Wire


@dataclass(frozen=True, slots=True)
class Reset(Fault):
    """Resets a connection once enough bytes have gone its way.

    Both ends see a reset (RST, through SO_LINGER 0), not a polite end. On a Unix
    socket, which knows no RST, they see it closed without warning.

    Attributes:
        after_bytes: let so many through first, counted from when the fault was
            put on; 0: break at the first byte. An idle connection is left alone.
    """

    after_bytes: int = 0

    def carrier(self, wire: Wire) -> Carrier:
        left = self.after_bytes

        async def carry(chunk: Chunk, forward: Forward) -> None:
            nonlocal left
            if len(chunk.data) <= left or chunk.end:
                left -= len(chunk.data)
                await forward(chunk)
                return
            wire.struck(len(chunk.data) - left)
            if left:
                await forward(Chunk(chunk.data[:left], chunk.due_s))
            raise ConnectionCut

        return carry
