"""Everything the verifiers know about a pair, computed once."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.lexical_guard import LexicalGuard
from cache_svc.pair_scorer import PairScorer
from sidecache import weights
from training.verifier.pairs import Pair


class Judged(NamedTuple):
    """A pair with its features.

    Attributes:
        similarity: cosine of the embeddings.
        fact: the surest rules let it pass.
        wording: the bolder rules let it pass.
        logit: of the model; nan where it cannot see all.
        unmatched: words of meaning that only one prompt says: fewer, more; and shared ones.
        settled: both say the same, so that the model is not asked.
    """

    pair: Pair
    similarity: float
    fact: bool
    wording: bool
    logit: float
    unmatched: tuple[int, int, int]
    settled: bool


class Judge:
    """Computes features with the parts that serve."""

    def __init__(self, model: Path | None = None) -> None:
        self._embedder = OnnxEmbedder(weights.locate("minilm-l6-v2-int8"))
        self._guard = LexicalGuard()
        self._scorer = PairScorer() if model is None else PairScorer(model)

    def judge(self, pairs: Sequence[Pair], floor: float = -1.0) -> list[Judged]:
        """Features of all pairs; below the floor only the similarity is computed."""
        vectors = {t: self._embed(t) for t in sorted({t for p in pairs for t in (p.a, p.b)})}
        return [self._one(p, float(vectors[p.a] @ vectors[p.b]), floor) for p in pairs]

    def _embed(self, text: str) -> np.ndarray:
        if not self._embedder.can_embed(text):
            return np.zeros(self._embedder.dimension, np.float32)
        vector: np.ndarray = self._embedder.embed([text])[0]
        return vector

    def _one(self, pair: Pair, similarity: float, floor: float) -> Judged:
        if similarity < floor:
            return Judged(pair, similarity, False, False, float("nan"), (0, 0, 0), False)
        logit = self._scorer.score(pair.a, pair.b)
        one, other, shared = self._guard.difference(pair.a, pair.b)
        few, many = sorted((len(one), len(other)))
        return Judged(
            pair,
            similarity,
            self._guard.facts(pair.a, pair.b).accepted,
            self._guard.wordings(pair.a, pair.b).accepted,
            float("nan") if logit is None else logit,
            (few, many, shared),
            self._guard.says_the_same(pair.a, pair.b),
        )
