"""Embeddings of real texts, as many as a measurement of scale needs.

Prompts come from the fields that data sets of questions have; where there are too
few, two or three of them are joined to one prompt, as people do who ask two things
at once. What is made is kept in a file of the caller's choice, since a hundred
thousand embeddings take a core ten minutes.
"""

import gzip
import json
import os
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.vector_index import Matrix
from sidecache import weights

SHIPPED_TEXTS = Path(__file__).parent / "data" / "banking77_sample.jsonl"
# Fields that hold one text, and one that holds a list of them.
_TEXT_FIELDS = ("text", "a", "b", "prompt")
_LIST_FIELD = "turns"
# Joined prompts longer than this would take long to embed and be rare in practice.
_JOINED_WORDS = 40
_TOLD_EVERY = 10_000


def read_texts(files: Iterable[Path]) -> list[str]:
    """The distinct texts of .jsonl or .jsonl.gz files, in their order."""
    return list(dict.fromkeys(text for file in files for row in _rows(file) for text in _of(row)))


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _of(row: dict[str, Any]) -> Iterator[str]:
    listed = row.get(_LIST_FIELD)
    several = listed if isinstance(listed, list) else []
    for text in (*(row.get(field) for field in _TEXT_FIELDS), *several):
        if isinstance(text, str) and text.strip():
            yield text


def joined(texts: Sequence[str], count: int) -> list[str]:
    """``count`` distinct prompts: the texts, then two or three of them at a time.

    Raises:
        ValueError: there are too few short texts for so many prompts.
    """
    prompts = dict.fromkeys(texts[:count])
    chooser = random.Random(0)  # noqa: S311  # a choice that can be repeated, no secret
    tries = 0
    while len(prompts) < count:
        prompt = " ".join(chooser.sample(texts, chooser.choice((2, 3))))
        if len(prompt.split()) <= _JOINED_WORDS:
            prompts[prompt] = None
        tries += 1
        if tries > 100 * count:
            raise ValueError(f"{len(texts)} texts join to {len(prompts)} prompts, not to {count}")
    return list(prompts)


def embed_texts(files: Sequence[Path], count: int) -> Matrix:
    """Embeddings of ``count`` real prompts by the default embedder, shape (count, 384)."""
    embedder = OnnxEmbedder(weights.locate("minilm-l6-v2-int8"), threads=os.cpu_count() or 1)
    texts = [text for text in read_texts(files) if embedder.can_embed(text)]
    prompts = joined(texts, count)
    vectors = np.empty((count, embedder.dimension), np.float32)
    for row, prompt in enumerate(prompts):
        if row % _TOLD_EVERY == 0:
            print(f"embedded {row} of {count} prompts", file=sys.stderr)
        vectors[row] = embedder.embed([prompt])[0]
    return vectors
