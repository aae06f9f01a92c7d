"""A small network that settles most look-alikes before the costly model is asked.

Decomposable attention (Parikh et al., arXiv 1606.01933) over word pieces: each piece
of one prompt is set against what it finds in the other, and what is left over on
either side decides. It was distilled from the cross-encoder (training/verifier/distill.py)
to foresee its refusals, and it is asked for nothing else: a pair that it is not
sure to be refused goes on to the cross-encoder. Numpy alone, 0.2 ms.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from cache_svc.pair_scorer import (
    BASE,
    MODEL_FOLDER,
    TOKENIZER,
    Array,
    read_adapters,
    read_base,
    read_manifest,
)
from sidecache import weights

# Of each prompt; it was trained on no more.
WINDOW_TOKENS = 44
WEIGHTS = "look_alike.npz"
# Longer prompts have more pieces than that, or words that nobody meets twice.
_MAX_CHARACTERS = 1024
_KEPT_WORDS = 8192


class _Side(NamedTuple):
    """What one prompt says beyond the other, two ways of pooling its pieces; shape (width,)."""

    mean: Array
    most: Array


class LookAlikeFilter:
    """Foresees that the cross-encoder will refuse a pair.

    Args:
        folder: weights and their manifest.
        base: the embedder's weights; None: those that were pulled.
        kept_texts: prompts whose pieces are kept, since a query meets several candidates.

    Raises:
        SetupError: a file is missing or is not the pinned content.
    """

    def __init__(
        self, folder: Path = MODEL_FOLDER, base: Path | None = None, *, kept_texts: int = 1024
    ) -> None:
        manifest = read_manifest(folder)
        places = {n: p for n, p in manifest["base"]["arrays"].items() if n.startswith("word.")}
        frozen = read_base(weights.locate(BASE) if base is None else base, places)
        self._weights = {n: a.T.copy() for n, a in read_adapters(folder / WEIGHTS).items()}
        words = frozen["word.q"] * frozen["word.scale"]
        self._table = np.ascontiguousarray(words @ self._weights["p.weight"])
        self._tokenizer = Tokenizer.from_file(str(TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pieces = lru_cache(kept_texts)(self._read)
        self._ids = lru_cache(_KEPT_WORDS)(self._encode)

    def score(self, one: str, other: str, similarity: float) -> float | None:
        """A logit, low where refusal is sure, the same whichever prompt comes first.

        Safe to call from several threads.

        Args:
            one: a prompt.
            other: the prompt it looks like.
            similarity: cosine of their vectors.

        Returns:
            None where a prompt has no pieces, or more than it was trained on.
        """
        x, y = (self._pieces(text) for text in sorted((one, other)))
        if x is None or y is None:
            return None
        matches = (x @ y.T) * (self._weights["t"] / x.shape[1] ** 0.5)
        here = self._compare(x, _softmax(matches) @ y)
        there = self._compare(y, _softmax(matches.T) @ x)
        both = len(x) + len(y)
        facts = (4 * similarity - 3, abs(len(x) - len(y)) / both, both / 40)
        features = np.concatenate(
            (
                here.mean + there.mean,
                np.abs(here.mean - there.mean),
                here.most + there.most,
                np.abs(here.most - there.most),
                np.array(facts, np.float32),
            )
        )
        hidden = np.maximum(self._affine("f.0", features), 0)
        return float(self._affine("f.2", hidden)[0])

    def _read(self, text: str) -> Array | None:
        """Each piece of a prompt with its neighbours, shape (pieces, width)."""
        if len(text) > _MAX_CHARACTERS:
            return None
        # The tokenizer never joins what a space parts, and prompts share most of their words.
        ids = [piece for word in text.split() for piece in self._ids(word)]
        if not 0 < len(ids) <= WINDOW_TOKENS:
            return None
        x = self._table[ids]
        edge = np.zeros((1, x.shape[1]), np.float32)
        before, after = np.concatenate((edge, x[:-1])), np.concatenate((x[1:], edge))
        mixed: Array = x + np.tanh(self._affine("conv", np.concatenate((before, x, after), axis=1)))
        return mixed

    def _encode(self, word: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        return ids

    def _compare(self, x: Array, found: Array) -> _Side:
        """Set each piece against what it found on the other side."""
        z = np.concatenate((x, found, np.abs(x - found), x * found), axis=1)
        v = np.maximum(self._affine("g", z), 0)
        weight = _softmax(self._affine("w", z).T)
        return _Side((weight @ v)[0], v.max(axis=0))

    def _affine(self, name: str, x: Array) -> Array:
        y: Array = x @ self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return y


def _softmax(rows: Array) -> Array:
    e = np.exp(rows - rows.max(axis=1, keepdims=True))
    shares: Array = e / e.sum(axis=1, keepdims=True)
    return shares
