"""Which bands to serve: the most hits whose error, all together, stays within δ.

The promise is about all hits of a scope, so a doubtful band may be served next
to a safe one, as long as the safe one brings enough hits to pay for it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from cache_svc.bound.noise import JudgeNoise
from cache_svc.bound.tally import Tally

# Standard deviations between the error believed and the error planned with.
CONFIDENCE = 1.645


class Plan(NamedTuple):
    """The bands that are served, and at what risk.

    Attributes:
        served: whether each band is served.
        risks: the error a hit of each band is charged; over the planned hits the
            charges come to their upper confidence, of others to each band's own.
        marginal: risk of the safest band that is not served; where there are left-over
            means it may be served up to this risk.
        upper: error of all planned hits together, at its upper confidence; 0 when
            nothing is served.
    """

    served: tuple[bool, ...]
    risks: tuple[float, ...]
    marginal: float
    upper: float


def make_plan(tallies: Sequence[Tally], noise: JudgeNoise, delta: float) -> Plan:
    """Take in the longest run of bands, safest first, whose upper confidence is at most δ."""
    rates = [tally.rate(noise) for tally in tallies]
    order = sorted((b for b in range(len(tallies)) if tallies[b].seen), key=rates.__getitem__)
    total = errors = variance = 0.0
    length, upper, margin = 0, 0.0, 0.0
    for place, band in enumerate(order, 1):
        hits, (rate, deviation) = tallies[band].seen, rates[band]
        total += hits
        errors += hits * rate
        variance += (hits * deviation) ** 2
        doubt = CONFIDENCE * math.sqrt(variance) / total
        if errors / total + doubt <= delta:
            length, upper, margin = place, errors / total + doubt, doubt
    planned = frozenset(order[:length])
    risks = tuple(
        min(1.0, rate + (margin if band in planned else CONFIDENCE * deviation))
        for band, (rate, deviation) in enumerate(rates)
    )
    marginal = risks[order[length]] if planned and length < len(order) else 0.0
    return Plan(tuple(b in planned for b in range(len(tallies))), risks, marginal, upper)
