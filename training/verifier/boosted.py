"""What boosted trees over the rules' findings reach, without a network: for comparison only.

    python -m training.verifier.boosted --texts banking77.jsonl --learn fow_pairs.jsonl \
        --pairs FILE... --count 4000

Needs scikit-learn. Same families of pairs as the cross-encoder, the same surest rules
before it, and the same way of choosing its threshold: on the tuning pairs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.guard.additions import weighty_addition
from cache_svc.guard.exchange import exchanged, names_differ
from cache_svc.lexical_guard import LexicalGuard, read
from sidecache import weights
from training.verifier.families import Families
from training.verifier.pairs import Pair, halves, read_pairs
from training.verifier.tune import TUNING

_FLOOR = 0.6
Matrix = NDArray[np.float32]


class Findings:
    """Features of pairs out of the guard's readers and the embedder."""

    def __init__(self) -> None:
        self._embedder = OnnxEmbedder(weights.locate("minilm-l6-v2-int8"))
        self._guard = LexicalGuard(kept_readings=20_000)

    def of(self, pairs: Sequence[Pair]) -> Matrix:
        """Shape (pairs, features); the similarity first."""
        texts = sorted({t for p in pairs for t in (p.a, p.b)}, key=len)
        texts = [t for t in texts if self._embedder.can_embed(t)]
        vectors = dict(zip(texts, (self._embedder.embed([t])[0] for t in texts), strict=True))
        none = np.zeros(self._embedder.dimension, np.float32)
        return np.array(
            [self._one(p, vectors.get(p.a, none) @ vectors.get(p.b, none)) for p in pairs],
            np.float32,
        )

    def _one(self, pair: Pair, similarity: float) -> list[float]:
        one, other = read(pair.a), read(pair.b)
        rest = self._guard.difference(pair.a, pair.b)
        few, many = sorted((len(rest.one), len(rest.other)))
        common, union = len(one.stems & other.stems), len(one.stems | other.stems)
        return [
            similarity,
            self._guard.facts(pair.a, pair.b).accepted,
            self._guard.says_the_same(pair.a, pair.b),
            few,
            many,
            rest.shared,
            rest.shared / (rest.shared + few + many + 1),
            bool(names_differ(rest)),
            bool(weighty_addition(rest)),
            bool(exchanged(rest)),
            common / max(1, union),
            abs(len(one.words) - len(other.words)),
            min(len(one.words), len(other.words)),
            len(one.content) + len(other.content),
            one.words[:1] == other.words[:1],
        ]


def main() -> None:
    """Fit, choose the threshold on the tuning pairs, print what is served of each file."""
    from training.verifier.train import texts_to_learn  # noqa: PLC0415  # needs torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--learn", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=20)
    args = parser.parse_args()
    findings = Findings()
    learn, held_out = halves(read_pairs(args.learn))
    made = Families(texts_to_learn(args.texts), learn, seed=args.seed).pairs(args.count)
    trees = HistGradientBoostingClassifier(max_leaf_nodes=15, learning_rate=0.06, random_state=0)
    trees.fit(findings.of(made), [pair.same for pair in made])
    sets = {"tuning": read_pairs(TUNING), "held-out half": held_out}
    sets |= {path.name: read_pairs(path) for path in args.pairs}
    for name, pairs in sets.items():
        features = findings.of(pairs)
        likely = trees.predict_proba(features)[:, 1]
        for threshold in np.arange(0.4, 0.96, 0.05):
            passes = (features[:, 0] >= _FLOOR) & (features[:, 1] > 0)
            served = passes & ((features[:, 2] > 0) | (likely >= threshold))
            same = np.array([pair.same for pair in pairs])
            print(
                f"{name:24} {threshold:.2f} traps {(served & ~same).sum()} / {(~same).sum()}"
                f" true {(served & same).sum()} / {same.sum()}"
            )


if __name__ == "__main__":
    main()
