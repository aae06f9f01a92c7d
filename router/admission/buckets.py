"""Token buckets: how much of a rate is left."""

from collections.abc import Callable


class Bucket:
    """Holds up to a minute's worth of a rate, and fills with the time.

    What was taken by estimate is settled afterwards, so the level may fall below zero:
    then it has to fill up first.

    Args:
        per_minute: the rate, and the most it holds; above zero.
        clock: monotonic seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._per_minute = float(per_minute)
        self._level = float(per_minute)
        self._at = clock()

    @property
    def per_minute(self) -> int:
        """The rate."""
        return int(self._per_minute)

    @property
    def level(self) -> float:
        """What is there now."""
        now = self._clock()
        filled = self._level + (now - self._at) * self._per_minute / 60.0
        self._level, self._at = min(self._per_minute, filled), now
        return self._level

    def change(self, per_minute: int) -> None:
        """Another rate from now on; what was used stays used."""
        used = self._per_minute - self.level
        self._per_minute = float(per_minute)
        self._level = self._per_minute - used

    def seconds_until(self, amount: float) -> float:
        """How long until so much can be taken; 0: now. More than it holds is taken when full."""
        missing = min(amount, self._per_minute) - self.level
        return max(0.0, missing * 60.0 / self._per_minute)

    def take(self, amount: float) -> None:
        """Take so much, whether or not it is there."""
        self._level = self.level - amount

    def give_back(self, amount: float) -> None:
        """What was taken and not used; a negative amount was used beyond what was taken."""
        self._level = min(self._per_minute, self.level + amount)

    @property
    def seconds_until_full(self) -> float:
        """How long until nothing is missing."""
        return (self._per_minute - self.level) * 60.0 / self._per_minute
