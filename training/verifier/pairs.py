"""Labelled pairs of prompts: read, written, and split so that nothing tuned is reported."""

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """Two prompts and whether one answer serves both. ``category`` may be empty."""

    a: str
    b: str
    same: bool
    category: str = ""


def read_pairs(path: Path) -> list[Pair]:
    """Read .jsonl or .jsonl.gz with the fields a, b, same_answer and maybe category."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = (json.loads(line) for line in raw.decode().splitlines() if line.strip())
    return [
        Pair(row["a"], row["b"], bool(row["same_answer"]), row.get("category", "")) for row in rows
    ]


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as .jsonl, one a line."""
    rows = ({"a": p.a, "b": p.b, "same_answer": p.same, "category": p.category} for p in pairs)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def share(text: str) -> float:
    """A number in [0, 1) that belongs to a text, in every process and for ever."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def halves(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Two halves that share no prompt: (to learn from, held out).

    Pairs that hang together by a common prompt go the same way, decided by the
    hash of the smallest prompt among them.
    """
    leader: dict[str, str] = {}

    def find(text: str) -> str:
        while leader.setdefault(text, text) != text:
            text = leader[text]
        return text

    for pair in pairs:
        one, other = sorted((find(_folded(pair.a)), find(_folded(pair.b))))
        leader[other] = one
    learn: list[Pair] = []
    held_out: list[Pair] = []
    for pair in pairs:
        (learn if share(find(_folded(pair.a))) < 0.5 else held_out).append(pair)  # half
    return learn, held_out


def _folded(text: str) -> str:
    return " ".join(text.lower().split())
