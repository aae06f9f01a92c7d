"""A server that is not there."""

from dataclasses import dataclass

from chaos.faults.fault import Carrier, Chunk, Fault, Forward, Wire


@dataclass(frozen=True, slots=True)
class Down(Fault):
    """Refuses new connections, as a host without the service does.

    Attributes:
        cut_open: also reset the connections that are open now, which is what the
            death of a server looks like from outside.
    """

    cut_open: bool = True

    @property
    def refuses(self) -> bool:
        return True

    @property
    def cuts(self) -> bool:
        return self.cut_open

    def carrier(self, wire: Wire) -> Carrier:
        del wire  # what is still open passes untouched

        async def carry(chunk: Chunk, forward: Forward) -> None:
            await forward(chunk)

        return carry
