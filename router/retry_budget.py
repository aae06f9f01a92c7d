"""How many retries a router may make: a share of what it is asked, and a small floor.

A retry is load that nobody asked for; in a fleet that fails because it is overloaded it
is what keeps it down. So retries are paid from a token bucket that every request fills a
little (the retry budget of Finagle, and of the Google SRE book, chapter 22).
"""

from collections.abc import Callable

from router.settings import RetrySettings


class RetryBudget:
    """A token bucket: a request pays in a share of a retry, a retry takes out one.

    Args:
        settings: the share, the floor and the size of the bucket.
        clock: monotonic seconds.

    Attributes:
        refused: retries that were not made for want of budget.
    """

    def __init__(self, settings: RetrySettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._tokens = settings.reserve
        self._filled_at = clock()
        self.refused = 0

    def asked(self) -> None:
        """A request came: so much more may be retried."""
        self._tokens = min(self._settings.reserve, self._tokens + self._settings.share)

    def take(self) -> bool:
        """Whether one more retry may be made now; it is paid for then."""
        now = self._clock()
        gained = (now - self._filled_at) * self._settings.floor_per_s
        self._tokens = min(self._settings.reserve, self._tokens + gained)
        self._filled_at = now
        if self._tokens < 1:
            self.refused += 1
            return False
        self._tokens -= 1
        return True
