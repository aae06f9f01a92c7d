"""Choose the verifier's two bounds on pairs kept for that alone.

    python -m training.verifier.tune

The pairs are tuning_pairs.jsonl, written by hand, and synthetic ones out of the
contrast sets that training never saw. Of all floors and bounds that let no more
traps through than is stated, the one that serves most true pairs.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from training.verifier.families import Families
from training.verifier.judged import Judge, Judged
from training.verifier.pairs import read_pairs

TUNING = Path(__file__).parent / "tuning_pairs.jsonl"
# Prompts of the same words seldom differ in meaning once the surest rules let them pass,
# and where they do, the model is as sure of them as of others.
SAME_WORDS = -4.0
_BOUNDS = [step / 2 for step in range(-4, 9)]


def main() -> None:
    """Parse the arguments and print the best bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--floor", type=float, nargs="+", default=[0.6, 0.65, 0.7, 0.75])
    parser.add_argument("--traps", type=float, default=0.034, help="of the written pairs")
    parser.add_argument("--synthetic-traps", type=float, default=0.06)
    parser.add_argument("--synthetic", type=int, default=600)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    judge = Judge()
    written = judge.judge(read_pairs(TUNING), min(args.floor))
    texts = [(pair.pair.a, "") for pair in written]
    synthetic = judge.judge(
        Families(texts, [], seed=args.seed, dev=True).pairs(args.synthetic), min(args.floor)
    )
    found = []
    for floor, plain, reworded in product(args.floor, _BOUNDS, _BOUNDS):
        if reworded < plain:
            continue
        sets = [rates(s, floor, plain, reworded) for s in (written, synthetic)]
        if sets[0][0] <= args.traps and sets[1][0] <= args.synthetic_traps:
            found.append((sum(served for _, served in sets), floor, plain, reworded, sets))
    for row in sorted(found, reverse=True)[:5]:
        print(row)


def rates(
    judged: Sequence[Judged], floor: float, plain: float, reworded: float
) -> tuple[float, float]:
    """Share of traps and share of true pairs that are served."""
    served = {True: 0, False: 0}
    total = {True: 0, False: 0}
    for one in judged:
        total[one.pair.same] += 1
        bound = plain if one.wording else reworded
        if one.unmatched[:2] == (0, 0):
            bound = SAME_WORDS
        served[one.pair.same] += (
            one.similarity >= floor and one.fact and (one.settled or one.logit >= bound)
        )
    return served[False] / total[False], served[True] / total[True]


if __name__ == "__main__":
    main()
