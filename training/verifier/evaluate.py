"""What each method serves of labelled pairs, by category, with Wilson intervals.

    python -m training.verifier.evaluate --pairs FILE... [--half held-out] [--floor 0.75]

Methods: cosine alone, the rules, the learned verifier. Nothing is tuned here.
``--half held-out`` keeps of each file only what training did not see.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import numpy as np

from cache_svc.embedders.onnx import OnnxEmbedder
from cache_svc.learned_verifier import LearnedVerifier
from cache_svc.lexical_guard import LexicalGuard
from sidecache import weights
from training.verifier.pairs import Pair, halves, read_pairs, share

Serves = Callable[[Pair, float], bool]
_Z = 1.96


def main() -> None:
    """Parse the arguments and print one line a method and category."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, nargs="+", required=True)
    parser.add_argument("--half", choices=("all", "held-out"), default="all")
    parser.add_argument("--sample", type=int, help="at most so many pairs, chosen by hash")
    parser.add_argument("--floor", type=float, nargs="+", default=[0.75, 0.8])
    args = parser.parse_args()
    for path in args.pairs:
        pairs = read_pairs(path)
        pairs = halves(pairs)[1] if args.half == "held-out" else pairs
        pairs = sorted(pairs, key=lambda pair: share(pair.a + pair.b))[: args.sample]
        similarities = _similarities(pairs)
        for floor in args.floor:
            for name, serves in _methods().items():
                served = [
                    s >= floor and serves(p, s) for p, s in zip(pairs, similarities, strict=True)
                ]
                _print(f"{path.name} {name} {floor:.2f}", pairs, served)


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    if not trials:
        return 0.0, 1.0
    share, square = hits / trials, _Z * _Z
    middle = share + square / (2 * trials)
    half = _Z * sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    return (middle - half) / (1 + square / trials), (middle + half) / (1 + square / trials)


def _methods() -> dict[str, Serves]:
    rules, learned = LexicalGuard(), LearnedVerifier()
    return {
        "cosine": lambda _pair, _similarity: True,
        "rules": lambda pair, similarity: rules.verify(pair.a, pair.b, similarity).accepted,
        "learned": lambda pair, similarity: learned.verify(pair.a, pair.b, similarity).accepted,
    }


def _similarities(pairs: list[Pair]) -> list[float]:
    """Cosines; -1 where the embedder cannot see all of a prompt, as in the tier."""
    embedder = OnnxEmbedder(weights.locate("minilm-l6-v2-int8"))
    vectors: dict[str, np.ndarray | None] = {}
    for text in sorted({text for pair in pairs for text in (pair.a, pair.b)}):
        vectors[text] = embedder.embed([text])[0] if embedder.can_embed(text) else None
    found = ((vectors[pair.a], vectors[pair.b]) for pair in pairs)
    return [-1.0 if a is None or b is None else float(a @ b) for a, b in found]


def _print(title: str, pairs: list[Pair], served: list[bool]) -> None:
    total: Counter[tuple[str, bool]] = Counter()
    hits: Counter[tuple[str, bool]] = Counter()
    for pair, hit in zip(pairs, served, strict=True):
        kinds = {("all", pair.same), (pair.category or "all", pair.same)}
        total.update(kinds)
        hits.update(kinds if hit else ())
    for kind, same in sorted(total):
        count, trials = hits[kind, same], total[kind, same]
        low, high = wilson(count, trials)
        label = "served" if same else "wrong "
        print(
            f"{title:42} {kind:12} {label} {count:5} / {trials:5} ="
            f" {count / trials:6.1%} [{low:.1%}, {high:.1%}]"
        )


if __name__ == "__main__":
    main()
