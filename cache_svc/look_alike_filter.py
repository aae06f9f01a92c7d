"""A small network that settles most look-alikes before the costly model is asked.

Decomposable attention (Parikh et al., arXiv 1606.01933) over word pieces: each piece
of one prompt is set against what it finds in the other, and what is left over on
either side decides. It was distilled from the cross-encoder (training/verifier/distill.py)
to foresee its refusals, and it is asked for nothing else: a pair that it is not
sure to be refused goes on to the cross-encoder. Numpy alone; all candidates of a
lookup are scored in one pass, since most of a pair's cost is that of calling numpy.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
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
from cache_svc.verifier import Look
from sidecache import weights

# Of each prompt; it was trained on no more.
WINDOW_TOKENS = 44
WEIGHTS = "look_alike.npz"
# Longer prompts have more pieces than that, or words that nobody meets twice.
_MAX_CHARACTERS = 1024
_KEPT_WORDS = 8192
# For more rows at a time OpenBLAS starts threads, which then wait for one another:
# where both cores are busy, milliseconds instead of 0.04.
_ROWS = 12
# Pieces of a prompt, 0.2 KB.
_KEPT_TEXTS = 16_384

Ids = tuple[int, ...]


class _Segments(NamedTuple):
    """Rows that belong together: where each group starts, and how many it has."""

    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]

    @classmethod
    def of(cls, sizes: Sequence[int]) -> "_Segments":
        """Groups of these sizes, one after another; none is empty."""
        each = np.array(sizes, np.intp)
        return cls(np.cumsum(each) - each, each)

    def softmax(self, scores: Array) -> Array:
        """Shares within each group, along the last axis."""
        top = np.maximum.reduceat(scores, self.starts, axis=-1)
        e = np.exp(scores - np.repeat(top, self.sizes, axis=-1))
        total = np.add.reduceat(e, self.starts, axis=-1)
        shares: Array = e / np.repeat(total, self.sizes, axis=-1)
        return shares


class LookAlikeFilter:
    """Foresees that the cross-encoder will refuse a pair.

    Args:
        folder: weights and their manifest.
        base: the embedder's weights; None: those that were pulled.

    Raises:
        SetupError: a file is missing or is not the pinned content.
    """

    def __init__(self, folder: Path = MODEL_FOLDER, base: Path | None = None) -> None:
        manifest = read_manifest(folder)
        places = {n: p for n, p in manifest["base"]["arrays"].items() if n.startswith("word.")}
        frozen = read_base(weights.locate(BASE) if base is None else base, places)
        self._weights = {n: a.T.copy() for n, a in read_adapters(folder / WEIGHTS).items()}
        # What a piece says and how much it counts come out of the same product.
        for part in ("weight", "bias"):
            both = [self._weights[f"{name}.{part}"] for name in "gw"]
            self._weights[f"gw.{part}"] = np.concatenate(both, axis=-1)
        words = frozen["word.q"] * frozen["word.scale"]
        nothing = np.zeros((1, words.shape[1]), np.float32)
        # The last row stands before, between and after prompts.
        self._table = np.concatenate((words, nothing)) @ self._weights["p.weight"]
        self._gap = len(words)
        self._tokenizer = Tokenizer.from_file(str(TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._pieces = lru_cache(_KEPT_TEXTS)(self._read)
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
        first, second = sorted((one, other))
        return self.score_each(first, [Look(second, similarity)])[0]

    def score_each(self, query: str, candidates: Sequence[Look]) -> list[float | None]:
        """What :meth:`score` says of each candidate, to rounding (1e-5), in one pass.

        Args:
            query: a prompt.
            candidates: prompts that it looks like, each with its similarity.
        """
        asked = self._pieces(query)
        stored = {
            at: pieces
            for at, (text, _) in enumerate(candidates)
            if (pieces := self._pieces(text)) is not None
        }
        if asked is None or not stored:
            return [None] * len(candidates)
        similarities = np.array([candidates[at].similarity for at in stored], np.float32)
        found = self._compare(asked, list(stored.values()), similarities)
        logits = dict(zip(stored, found.tolist(), strict=True))
        return [logits.get(at) for at in range(len(candidates))]

    def _compare(self, asked: Ids, stored: Sequence[Ids], similarities: Array) -> Array:
        """Logits of one prompt with several others, shape (others,)."""
        x, y = self._mixed(asked, stored)
        others = _Segments.of([len(pieces) for pieces in stored])
        here, there = self._find(x, y, others)
        z = _differences(np.concatenate((*[x] * len(here), y)), np.concatenate((*here, *there)))
        sides = _Segments.of([len(x)] * len(stored) + others.sizes.tolist())
        mean, most = self._pool(z, sides)
        both = (len(x) + others.sizes).astype(np.float32)
        k = len(stored)
        features = np.concatenate(
            (
                mean[:k] + mean[k:],
                np.abs(mean[:k] - mean[k:]),
                most[:k] + most[k:],
                np.abs(most[:k] - most[k:]),
                (4 * similarities - 3)[:, None],
                (np.abs(len(x) - others.sizes) / both)[:, None],
                (both / 40)[:, None],
            ),
            axis=1,
            dtype=np.float32,
        )
        hidden = np.maximum(self._affine("f.0", features), 0)
        return self._affine("f.2", hidden)[:, 0]

    def _mixed(self, asked: Ids, stored: Sequence[Ids]) -> tuple[Array, Array]:
        """Each piece with its neighbours: of the prompt asked, and of all others."""
        gap = (self._gap,)
        row = [*gap, *asked, *gap]
        for pieces in stored:
            row += pieces
            row += gap
        ids = np.array(row, np.intp)
        x = self._table[ids]
        around = np.concatenate((x[:-2], x[1:-1], x[2:]), axis=1)
        mixed = x[1:-1] + np.tanh(self._affine("conv", around))
        rest = len(asked) + 1
        return mixed[: len(asked)], mixed[rest:][ids[1 + rest : -1] != self._gap]

    def _find(self, x: Array, y: Array, others: _Segments) -> tuple[list[Array], list[Array]]:
        """What each piece finds on the other side: x in each of the others, y in x."""
        ends = np.cumsum(others.sizes).tolist()
        each = [slice(*ends) for ends in pairwise([0, *ends])]
        matches = np.concatenate([x @ y[one].T for one in each], axis=1)
        matches *= self._weights["t"] / x.shape[1] ** 0.5
        shares = others.softmax(matches)
        back = np.exp(matches - matches.max(axis=0))
        back /= back.sum(axis=0)
        return [shares[:, one] @ y[one] for one in each], [back[:, one].T @ x for one in each]

    def _pool(self, z: Array, sides: _Segments) -> tuple[Array, Array]:
        """What each side says beyond the other, two ways of pooling; shapes (sides, width)."""
        said = self._affine("gw", z)
        v = np.maximum(said[:, :-1], 0)
        weight = sides.softmax(said[:, -1])
        mean = np.add.reduceat(v * weight[:, None], sides.starts, axis=0)
        return mean, np.maximum.reduceat(v, sides.starts, axis=0)

    def _read(self, text: str) -> Ids | None:
        """The pieces of a prompt."""
        if len(text) > _MAX_CHARACTERS:
            return None
        # The tokenizer never joins what a space parts, and prompts share most of their words.
        ids = tuple(piece for word in text.split() for piece in self._ids(word))
        return ids if 0 < len(ids) <= WINDOW_TOKENS else None

    def _encode(self, word: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        return ids

    def _affine(self, name: str, x: Array) -> Array:
        y = _product(x, self._weights[f"{name}.weight"])
        y += self._weights[f"{name}.bias"]
        return y


def _product(x: Array, weight: Array) -> Array:
    """A matrix product, ``_ROWS`` rows at a time."""
    y = np.empty((len(x), weight.shape[1]), np.float32)
    whole = len(x) - len(x) % _ROWS
    np.matmul(
        x[:whole].reshape(-1, _ROWS, x.shape[1]),
        weight,
        out=y[:whole].reshape(-1, _ROWS, weight.shape[1]),
    )
    np.matmul(x[whole:], weight, out=y[whole:])
    return y


def _differences(x: Array, found: Array) -> Array:
    """Each piece beside what it found, shape (pieces, 4 * width)."""
    return np.concatenate((x, found, np.abs(x - found), x * found), axis=1)
