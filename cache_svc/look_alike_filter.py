"""A small network that settles most look-alikes before the costly model is asked.

Decomposable attention (Parikh et al., arXiv 1606.01933) over word pieces: each piece
of one prompt is set against what it finds in the other, and what is left over on
either side decides. It was distilled from the cross-encoder (training/verifier/distill.py)
to foresee its refusals, and it is asked for nothing else: a pair that it is not
sure to be refused goes on to the cross-encoder. All candidates of a lookup are scored
in one run: what four take hardly differs from what one does.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from cache_svc.pair_scorer import (
    BASE,
    MODEL_FOLDER,
    TOKENIZER,
    Array,
    open_session,
    read_adapters,
    read_base,
    read_manifest,
)
from cache_svc.verifier import Look
from sidecache import weights

# Of each prompt; it was trained on no more.
WINDOW_TOKENS = 44
GRAPH, WEIGHTS = "look_alike.onnx", "look_alike.npz"
# Longer prompts have more pieces than that, or words that nobody meets twice.
_MAX_CHARACTERS = 1024
_KEPT_WORDS = 8192
# Pieces of a prompt, at most 0.7 KB.
_KEPT_TEXTS = 16_384

Ids = tuple[int, ...]


class LookAlikeFilter:
    """Foresees that the cross-encoder will refuse a pair.

    Args:
        folder: graph, weights and their manifest.
        base: the embedder's weights; None: those that were pulled.

    Raises:
        SetupError: a file is missing or is not the pinned content.
    """

    def __init__(self, folder: Path = MODEL_FOLDER, base: Path | None = None) -> None:
        manifest = read_manifest(folder)
        places = {n: p for n, p in manifest["base"]["arrays"].items() if n.startswith("word.")}
        frozen = read_base(weights.locate(BASE) if base is None else base, places)
        learned = {n: a.T.copy() for n, a in read_adapters(folder / WEIGHTS).items()}
        # What a piece says and how much it counts come out of the same product.
        for part in ("weight", "bias"):
            both = [learned.pop(f"{name}.{part}") for name in "gw"]
            learned[f"gw.{part}"] = np.concatenate(both, axis=-1)
        words = frozen["word.q"] * frozen["word.scale"] @ learned.pop("p.weight")
        # The last row stands before, between and after prompts.
        self._gap = len(words)
        arrays = learned | {
            "t": learned["t"].reshape(1) / np.float32(words.shape[1] ** 0.5),
            "table": np.concatenate((words, np.zeros_like(words[:1]))),
            "gap": np.array([self._gap], np.int64),
        }
        self._session = open_session(folder / GRAPH, arrays)
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
        """What :meth:`score` says of each candidate, to rounding (1e-4), in one run.

        Args:
            query: a prompt.
            candidates: prompts that it looks like.
        """
        asked = self._pieces(query)
        stored = {
            at: pieces
            for at, look in enumerate(candidates)
            if (pieces := self._pieces(look.text)) is not None
        }
        if asked is None or not stored:
            return [None] * len(candidates)
        similarities = np.array([candidates[at].similarity for at in stored], np.float32)
        found = self._run(asked, list(stored.values()), similarities)
        logits = dict(zip(stored, found.tolist(), strict=True))
        return [logits.get(at) for at in range(len(candidates))]

    def _run(self, asked: Ids, stored: Sequence[Ids], similarities: Array) -> Array:
        """Logits of one prompt with several others, shape (others,)."""
        sizes = np.array([len(pieces) for pieces in stored], np.float32)
        both = len(asked) + sizes
        facts = (4 * similarities - 3, np.abs(len(asked) - sizes) / both, both / 40)
        feed = {
            "pieces": self._padded([asked, *stored]),
            "facts": np.stack(facts, axis=1).astype(np.float32),
        }
        logits: Array = self._session.run(None, feed)[0]
        return logits[:, 0]

    def _padded(self, prompts: Sequence[Ids]) -> Array:
        """Pieces between gaps, filled up with gaps to one length."""
        most = max(map(len, prompts))
        gap = (self._gap,)
        rows = [gap + pieces + gap * (1 + most - len(pieces)) for pieces in prompts]
        return np.array(rows, np.int64)

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
