"""Faults of the network, as small objects that are put on a proxy and taken off again.

A fault is a frozen description (`Latency(0.2, jitter_s=0.05, seed=7)`) that can
be compared, printed and written to JSON. What it does to bytes lives in a
carrier, one for each direction of each connection, so that a fault keeps state
without ever sharing it. Faults compose in the order they were put on: each hands
what it lets through to the next.

The vocabulary is Toxiproxy's, whose model this follows.
"""

from chaos.faults.bandwidth import Bandwidth
from chaos.faults.blackhole import Blackhole
from chaos.faults.down import Down
from chaos.faults.fault import Chunk, Direction, End, Fault, Forward, Placement, Wire
from chaos.faults.latency import Latency
from chaos.faults.reset import Reset
from chaos.faults.slicer import Slicer

__all__ = [
    "Bandwidth",
    "Blackhole",
    "Chunk",
    "Direction",
    "Down",
    "End",
    "Fault",
    "Forward",
    "Latency",
    "Placement",
    "Reset",
    "Slicer",
    "Wire",
]
