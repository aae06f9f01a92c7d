"""A judge errs; how often is known, and is taken out of what it says.

Rogan and Gladen: "Estimating prevalence from the results of a screening test",
American Journal of Epidemiology 107 (1978).
"""

from typing import NamedTuple


class JudgeNoise(NamedTuple):
    """How often the judge errs.

    Attributes:
        false_accept: P(judged the same | the answers differ).
        false_reject: P(judged different | the answers are the same).
    """

    false_accept: float = 0.0
    false_reject: float = 0.0

    @property
    def power(self) -> float:
        """How much of a true difference shows: 1 for a perfect judge, 0 for a coin."""
        return 1.0 - self.false_accept - self.false_reject

    def blur(self, rate: float) -> float:
        """The rate of "different" that this judge reports where ``rate`` differ."""
        return self.false_reject + rate * self.power

    def sharpen(self, rate: float, deviation: float) -> tuple[float, float]:
        """The true rate and its deviation behind a reported rate."""
        true = (rate - self.false_reject) / self.power
        return min(1.0, max(0.0, true)), deviation / self.power


PERFECT = JudgeNoise()
