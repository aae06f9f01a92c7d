"""Choose the bound under which the quick filter's word is taken for the model's.

    python -m training.verifier.tune_filter --texts banking77.jsonl

On pairs kept from the filter's training: texts of banking77's held-out tenth with their
nearest four, the tuning pairs, and synthetic ones of contrast sets kept for tuning. Only
those count that the rules leave to the model. The highest bound is taken that costs about
a hundredth of what the model serves of the first, and none of the tuning pairs.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.learned_verifier import Bounds, LearnedVerifier
from cache_svc.look_alike_filter import LookAlikeFilter
from sidecache import weights
from training.verifier.families import Families
from training.verifier.pairs import Pair, read_pairs, share
from training.verifier.tune import TUNING

_FLOOR = 0.6
_NEAREST = 4
# The same texts are kept from training by training/verifier/train.py.
_HELD_OUT = 0.1
_BOUNDS = (-5.0, -4.5, -4.0, -3.75, -3.5, -3.25, -3.0, -2.75, -2.5, -2.0, -1.5)


class Left(NamedTuple):
    """A pair that the rules leave: what the filter says, and whether the model serves it."""

    foreseen: float
    served: bool


def main() -> None:
    """Parse the arguments; print what each bound settles and costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=650)
    parser.add_argument("--synthetic", type=int, default=600)
    args = parser.parse_args()
    embedder = OnnxEmbedder(weights.locate("minilm-l6-v2-int8"))
    tuning = read_pairs(TUNING)
    made = Families([(p.a, "") for p in tuning], [], seed=5, dev=True).pairs(args.synthetic)
    sets = {
        "held-out neighbours": _neighbours(embedder, args.texts, args.queries),
        "tuning pairs": _with_similarity(embedder, tuning),
        "synthetic": _with_similarity(embedder, made),
    }
    for name, pairs in sets.items():
        left = _left(pairs)
        served = [one.foreseen for one in left if one.served]
        refused = [one.foreseen for one in left if not one.served]
        for bound in _BOUNDS:
            lost, settled = (sum(x < bound for x in part) for part in (served, refused))
            print(
                f"{name:20} {bound:5.2f} loses {lost} / {len(served)},"
                f" settles {settled} / {len(refused)}"
            )


def _left(pairs: Sequence[tuple[Pair, float]]) -> list[Left]:
    verifier, quick = LearnedVerifier(bounds=Bounds(foreseen=-np.inf)), LookAlikeFilter()
    left = []
    for pair, similarity in pairs:
        if similarity < _FLOOR or verifier.screen(pair.a, pair.b, similarity) is not None:
            continue
        logit = quick.score(pair.a, pair.b, similarity)
        served = verifier.verify(pair.a, pair.b, similarity).accepted
        left.append(Left(np.inf if logit is None else logit, served))
    return left


def _neighbours(embedder: OnnxEmbedder, path: Path, queries: int) -> list[tuple[Pair, float]]:
    texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    vectors = np.stack([embedder.embed([text])[0] for text in texts])
    found: list[tuple[Pair, float]] = []
    for row in [r for r, text in enumerate(texts) if share(text) < _HELD_OUT][:queries]:
        cosines = vectors @ vectors[row]
        cosines[row] = -1
        found.extend(
            (Pair(texts[row], texts[near], same=False), float(cosines[near]))
            for near in np.argsort(-cosines)[:_NEAREST]
        )
    return found


def _with_similarity(embedder: OnnxEmbedder, pairs: Sequence[Pair]) -> list[tuple[Pair, float]]:
    return [(p, float(embedder.embed([p.a])[0] @ embedder.embed([p.b])[0])) for p in pairs]


if __name__ == "__main__":
    main()
