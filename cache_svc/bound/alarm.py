"""Has the error of served hits left its bound? Asked after every audit, at any time.

A test that may be read after every observation: the wealth of a gambler who bets
that answers are wrong more often than promised. While the promise holds, wealth
is no more than a fair game's, so it passes 1/alpha with probability alpha at
most, whenever one looks (Ville's inequality; Waudby-Smith and Ramdas: "Estimating
means of bounded random variables by betting", JRSS B 86, 2024). The gambler never
falls below his stake, so that a change after a long good run shows as soon as
one at the start (Shin, Ramdas, Rinaldo: "E-detectors", 2023): the mean number of
audits to a false alarm is at least 1/alpha.
"""

# A promised error rate has this many audits, on average, to a false alarm.
MEAN_AUDITS_TO_FALSE_ALARM = 1000.0
# The bet that grows fastest against an error some five times the promise.
_BET = 0.15
_MAX_BET = 5.0
_STAKE = 1.0


class DriftAlarm:
    """Wealth of the bet against the promise."""

    __slots__ = ("wealth",)

    def __init__(self) -> None:
        self.wealth = _STAKE

    def observe(self, *, wrong: bool, promised: float) -> None:
        """Take in one audited hit that was served as wrong with P <= ``promised``."""
        bet = min(_MAX_BET, _BET / max(promised, 1e-6))
        gain = 1.0 + bet * (float(wrong) - promised)
        self.wealth = max(_STAKE, self.wealth * gain)

    @property
    def rings(self) -> bool:
        """Whether the promise is no longer believable."""
        return self.wealth >= MEAN_AUDITS_TO_FALSE_ALARM

    @property
    def is_suspicious(self) -> bool:
        """Whether more audits are worth their price."""
        return self.wealth >= 4.0 * _STAKE

    def reset(self) -> None:
        """Start over with a fresh stake."""
        self.wealth = _STAKE
