"""How often candidates of one band were wrong: a Beta posterior with a finite memory."""

import math
from dataclasses import dataclass

from cache_svc.bound.noise import JudgeNoise

# Beyond so many observations the older half of the evidence is forgotten.
MEMORY = 2000.0


@dataclass(slots=True)
class Tally:
    """Observations of one band, on top of what was believed before.

    Attributes:
        prior_rate: P(wrong) believed without observations.
        prior_weight: observations that belief is worth.
        seen: candidates of this band that came by, observed or not; forgotten
            like the rest.
    """

    prior_rate: float
    prior_weight: float
    observed: float = 0.0
    wrong: float = 0.0
    seen: float = 0.0

    def observe(self, *, wrong: bool) -> None:
        """Take in one judged pair."""
        self.observed += 1
        self.wrong += wrong
        if self.observed > MEMORY:
            self.fade(0.5)

    def fade(self, keep: float) -> None:
        """Forget all but a share of what was observed; the proportion stays."""
        self.observed *= keep
        self.wrong *= keep

    def rate(self, noise: JudgeNoise) -> tuple[float, float]:
        """Mean and standard deviation of P(wrong), the judge's noise taken out.

        A noisy observation is worth power² of a perfect one; what was believed before
        came from no judge and is not touched by its noise.
        """
        heard = self.observed * noise.power**2
        weight = self.prior_weight + heard
        wrong = 0.0
        if self.observed:
            wrong = heard * noise.sharpen(self.wrong / self.observed, 0.0)[0]
        mean = (self.prior_weight * self.prior_rate + wrong) / weight
        # One count more than there are: a band that was never wrong is not thereby
        # certain (Gehrels, "Confidence limits for small numbers of events", 1986).
        # A judge that rejects right answers blurs with those as well.
        spread = max(mean, noise.blur(mean))
        return mean, math.sqrt(spread * weight + 1.0) / weight
