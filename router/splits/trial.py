"""Whether a canary is worse than its baseline, looked at again and again.

The looks come at growing counts of the canary's requests, and the allowed chance of a
false alarm is divided among all of a window's looks (Bonferroni), so that looking often
does not find something in noise. Errors: an exact binomial test against the upper Wilson
bound of the baseline's rate, plus what is tolerated. Time to first token: Welch's test on
logarithms, since times are skewed.
"""

import math
from statistics import NormalDist

from router.splits.estimates import Mean, binomial_tail, wilson
from router.splits.settings import CanarySettings

# Each look comes when the canary has had so many times the requests of the look before.
_GROWTH = 1.25
# One-sided 99 %: for the baseline's own uncertainty.
_BASELINE_Z = 2.326
# The clock's grain: times that are all equal must not make a microsecond look certain.
_MIN_LOG_VARIANCE = 1e-4


class _Arm:
    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.log_ttft = Mean()

    def add(self, *, failed: bool, ttft_s: float | None) -> None:
        self.count += 1
        self.errors += failed
        if ttft_s is not None:
            self.log_ttft.add(math.log(max(ttft_s, 1e-6)))


class Trial:
    """One canary against its baseline."""

    def __init__(self, settings: CanarySettings) -> None:
        self._settings = settings
        growth = settings.window_requests / settings.min_requests
        looks = 1 + max(0, math.ceil(math.log(growth) / math.log(_GROWTH)))
        # Two questions are asked at each look.
        self._alpha = settings.false_alarm / (2 * looks)
        self._z = NormalDist().inv_cdf(1 - self._alpha)
        self._base, self._canary = _Arm(), _Arm()
        self._next_look = settings.min_requests

    def baseline(self, *, failed: bool, ttft_s: float | None) -> None:
        """Take in a request of the baseline."""
        self._base.add(failed=failed, ttft_s=ttft_s)

    def canary(self, *, failed: bool, ttft_s: float | None) -> str:
        """Take in a request of the canary.

        Returns:
            Why it is to be rolled back; empty: nothing speaks against it.
        """
        self._canary.add(failed=failed, ttft_s=ttft_s)
        if self._canary.count < self._next_look:
            return ""
        self._next_look = math.ceil(self._canary.count * _GROWTH)
        verdict = ""
        if self._base.count >= self._settings.min_requests:
            verdict = self._why_too_many_errors() or self._why_too_slow()
        if self._canary.count >= self._settings.window_requests:
            self._begin()
        return verdict

    def _begin(self) -> None:
        self._base, self._canary = _Arm(), _Arm()
        self._next_look = self._settings.min_requests

    def _why_too_many_errors(self) -> str:
        base, canary = self._base, self._canary
        tolerated = wilson(base.errors, base.count, _BASELINE_Z).high
        tolerated += self._settings.max_error_rise
        if binomial_tail(canary.errors, canary.count, tolerated) > self._alpha:
            return ""
        return (
            f"error rate: {canary.errors} of {canary.count} requests failed,"
            f" the baseline's {base.errors} of {base.count}"
        )

    def _why_too_slow(self) -> str:
        base, canary = self._base.log_ttft, self._canary.log_ttft
        fewest = min(base.count, canary.count)
        if fewest < self._settings.min_requests:
            return ""
        error = math.sqrt(
            max(base.variance, _MIN_LOG_VARIANCE) / base.count
            + max(canary.variance, _MIN_LOG_VARIANCE) / canary.count
        )
        rise = canary.mean - base.mean
        # Student's t by its first expansion term around the normal quantile.
        bound = self._z + (self._z**3 + self._z) / (4 * (fewest - 1))
        if rise - math.log(self._settings.max_ttft_ratio) <= bound * error:
            return ""
        return (
            f"time to first token: {math.exp(rise):.2f} times the baseline's"
            f" ({canary.count} requests against {base.count})"
        )
