"""How much work is taken on: past the bound a request is refused at once.

A refusal is cheap and honest; a queue that nobody drains in time is neither.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from router.settings import AdmissionSettings
from sidecache.errors import Overloaded, QuotaExceeded

# Weight of the newest stream in the average duration.
_SMOOTHING = 0.1


class Admission:
    """Counts streams in flight, of all tenants and of each."""

    def __init__(self, settings: AdmissionSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._streams = 0
        self._by_tenant: Counter[str] = Counter()
        self._mean_duration_s = 1.0

    def reconfigure(self, settings: AdmissionSettings) -> None:
        """Take new bounds; nobody who is in is put out."""
        self._settings = settings

    @property
    def streams(self) -> int:
        """Streams in flight now."""
        return self._streams

    @contextmanager
    def admit(self, tenant: str) -> Iterator[None]:
        """Hold one place for the length of the block.

        Raises:
            Overloaded: the router is full; retry_after_s is when a place is
                expected to be free.
            QuotaExceeded: this tenant is at its own bound.
        """
        if self._streams >= self._settings.max_streams:
            raise Overloaded(
                f"the router is at its bound of {self._settings.max_streams} streams",
                retry_after_s=self._time_to_a_place(self._streams),
            )
        if self._by_tenant[tenant] >= self._settings.max_streams_per_tenant:
            raise QuotaExceeded(
                f"at the bound of {self._settings.max_streams_per_tenant} streams in flight",
                subject=f"tenant:{tenant}",
                retry_after_s=self._time_to_a_place(self._by_tenant[tenant]),
            )
        started = self._clock()
        self._streams += 1
        self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            self._streams -= 1
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]
            duration_s = self._clock() - started
            self._mean_duration_s += _SMOOTHING * (duration_s - self._mean_duration_s)

    def _time_to_a_place(self, streams: int) -> float:
        """Expected seconds until one of ``streams`` ends (Little's law)."""
        return max(0.01, self._mean_duration_s / streams)
