"""Figures with their uncertainty: means of a stream of numbers, and shares."""

import math
from dataclasses import dataclass
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds of its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


class Mean:
    """Mean and variance of numbers as they come (Welford 1962)."""

    __slots__ = ("_squares", "count", "mean")

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, value: float) -> None:
        """Take in one number."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self._squares += step * (value - self.mean)

    @property
    def variance(self) -> float:
        """Of the numbers, unbiased; 0 for fewer than two."""
        return self._squares / (self.count - 1) if self.count > 1 else 0.0

    def interval(self, z: float = Z95) -> Interval:
        """By the normal approximation; as wide as can be for fewer than two numbers."""
        if self.count < 2:  # noqa: PLR2004 - a variance takes two
            return Interval(self.mean, -math.inf, math.inf)
        half = z * math.sqrt(self.variance / self.count)
        return Interval(self.mean, self.mean - half, self.mean + half)


def wilson(hits: int, count: int, z: float = Z95) -> Interval:
    """A share and its score interval (Wilson 1927); [0, 1] for a count of 0."""
    if not count:
        return Interval(0.0, 0.0, 1.0)
    share, scale = hits / count, 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    spread = share * (1 - share) / count + z * z / (4 * count * count)
    half = z * math.sqrt(spread) / scale
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def binomial_tail(hits: int, count: int, share: float) -> float:
    """The chance of at least so many hits in ``count`` trials, each with chance ``share``."""
    if hits <= 0 or share >= 1:
        return 1.0
    if share <= 0:
        return 0.0
    log_odds = math.log(share) - math.log1p(-share)
    log_term = (
        math.lgamma(count + 1)
        - math.lgamma(hits + 1)
        - math.lgamma(count - hits + 1)
        + count * math.log1p(-share)
        + hits * log_odds
    )
    term = total = math.exp(log_term)
    for k in range(hits, count):
        term *= (count - k) / (k + 1) * math.exp(log_odds)
        total += term
        # Beyond the mode each term is smaller than the one before.
        if term < total * 1e-12 and k > count * share:
            break
    return min(1.0, total)
