"""Recorded request traces for replays: when, how long, which prefix blocks.

``mooncake``: a line a request with timestamp (ms), input_length, output_length and
hash_ids, one for each 512-token block. ``sessions``: a line a session with start_s and
requests of 64-token ids in runs, of which every eighth names a 512-token block.
"""

import gzip
import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NATIVE_BLOCKS = {"mooncake": 512, "sessions": 64}
# Requests of a session later than this are left out.
SESSION_WINDOW_S = 3600.0
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request.

    Attributes:
        at_s: when it arrives.
        blocks: names of its prefix blocks, 64 bits each; the last may be a part of a block.
        affinity: equal for the requests of one conversation, 64 bits.
    """

    at_s: float
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    affinity: int


def load_trace(
    path: Path, kind: str, block_size: int = 512, tenants: int = 1
) -> list[TraceRequest]:
    """Read a trace, by arrival.

    Args:
        path: JSON lines, gzipped where the name ends with .gz.
        kind: mooncake or sessions.
        block_size: tokens a block; a multiple of the trace's own.
        tenants: conversations are dealt to this many, which share no blocks.

    Raises:
        ValueError: the kind or block size does not fit.
    """
    native = NATIVE_BLOCKS.get(kind)
    if native is None or block_size % native:
        raise ValueError(f"{kind} traces need a block size that is a multiple of {native}")
    step = block_size // native
    rows = _mooncake(path, step) if kind == "mooncake" else _sessions(path, step)
    names = _Names(tenants)
    return sorted(
        (
            TraceRequest(at_s, n_in, n_out, names.blocks(ids, affinity), affinity)
            for at_s, n_in, n_out, ids, affinity in rows
        ),
        key=lambda request: request.at_s,
    )


class _Names:
    """Ids of a trace as 64-bit names that look like hashes."""

    def __init__(self, tenants: int) -> None:
        self._tenants = tenants
        self._seen: dict[Hashable, int] = {}

    def blocks(self, ids: Iterable[Hashable], affinity: int) -> tuple[int, ...]:
        tenant = (affinity >> 32) % self._tenants
        seen = self._seen
        return tuple(_mixed(seen.setdefault((tenant, name), len(seen))) for name in ids)


def _mixed(number: int) -> int:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014): one to one on 64 bits."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


_Row = tuple[float, int, int, list[Any], int]


def _mooncake(path: Path, step: int) -> Iterator[_Row]:
    for line in _lines(path):
        ids = line["hash_ids"]
        affinity = _affinity(ids[:2])
        # The last id may name a part of a block; with larger blocks it still does.
        kept = ids[step - 1 :: step] + (ids[-1:] if len(ids) % step else [])
        yield line["timestamp"] / 1e3, line["input_length"], line["output_length"], kept, affinity


def _sessions(path: Path, step: int) -> Iterator[_Row]:
    for number, session in enumerate(_lines(path)):
        affinity = _affinity(number)
        for request in session["requests"]:
            if request.get("type") not in {"n", "s"} or "hash_rle" not in request:
                continue
            if request["t"] > SESSION_WINDOW_S:
                continue
            ids = [i for first, count in request["hash_rle"] for i in range(first, first + count)]
            blocks = [(number, ids[at]) for at in range(step - 1, len(ids), step)]
            if blocks:
                at_s = session["start_s"] + request["t"]
                yield at_s, request["in"], request.get("out", 0), blocks, affinity


def _affinity(conversation: object) -> int:
    name = repr(conversation).encode()
    return int.from_bytes(hashlib.md5(name, usedforsecurity=False).digest()[8:])


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for line in file:
            yield json.loads(line)
