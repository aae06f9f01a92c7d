"""Pair sets and streams from files, and their embeddings from a cache."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache_svc.embedder import Embedder
from cache_svc.vector_index import Matrix

_BATCH = 4


class Pair(NamedTuple):
    """Two prompts and whether they deserve one answer."""

    a: str
    b: str
    same_answer: bool
    category: str


class Stream(NamedTuple):
    """Prompts and what each asks for: those of one intent deserve one answer."""

    name: str
    texts: list[str]
    intents: list[str]


class PairSet(NamedTuple):
    """A file of pairs."""

    name: str
    pairs: list[Pair]


def read_pairs(path: Path) -> PairSet:
    """Pairs of a .jsonl or .jsonl.gz file: a, b, same_answer, and maybe category."""
    pairs = [
        Pair(
            row["a"],
            row["b"],
            bool(row["same_answer"]),
            row.get("category") or ("same" if row["same_answer"] else "different"),
        )
        for row in _rows(path)
    ]
    return PairSet(_name(path), pairs)


def read_stream(path: Path) -> Stream:
    """A stream of a .jsonl or .jsonl.gz file: text, intent."""
    rows = _rows(path)
    return Stream(_name(path), [row["text"] for row in rows], [row["intent"] for row in rows])


class Embeddings:
    """Vectors of texts, kept in a file between runs."""

    def __init__(self, embedder: Embedder, file: Path | None) -> None:
        self._embedder = embedder
        self._file = file
        self._vectors: dict[str, Matrix] = {}
        if file is not None and file.exists():
            with np.load(file, allow_pickle=False) as kept:
                if str(kept["fingerprint"]) == embedder.fingerprint:
                    self._vectors = dict(zip(kept["texts"].tolist(), kept["vectors"], strict=True))

    def of(self, texts: Sequence[str]) -> Matrix:
        """Unit vectors, float32, shape (len(texts), dimension).

        A text beyond the embedder's window has a vector of zeros: it is near nothing.
        """
        new = sorted({text for text in texts if text not in self._vectors}, key=len)
        for text in new:
            if not self._embedder.can_embed(text):
                self._vectors[text] = np.zeros(self._embedder.dimension, np.float32)
        seen = [text for text in new if text not in self._vectors]
        for at in range(0, len(seen), _BATCH):
            batch = seen[at : at + _BATCH]
            self._vectors.update(zip(batch, self._embedder.embed(batch), strict=True))
        if new:
            self._save()
        return np.stack([self._vectors[text] for text in texts])

    def _save(self) -> None:
        if self._file is not None:
            np.savez(
                self._file,
                fingerprint=self._embedder.fingerprint,
                texts=np.array(list(self._vectors)),
                vectors=np.stack(list(self._vectors.values())),
            )


def _rows(path: Path) -> list[dict[str, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _name(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl")
