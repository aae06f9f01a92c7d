"""Leaves a failing peer alone for a while, then lets one call find out."""

from collections.abc import Callable


class Breaker:
    """Opens after failures in a row; half-open after a pause.

    Half-open admits one probe; a crowd would re-break a recovering peer, and
    every one of them would have to wait for its answer.
    """

    def __init__(self, failures_to_open: int, open_s: float, clock: Callable[[], float]) -> None:
        self._failures_to_open = failures_to_open
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._retry_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether calls are being withheld."""
        return self._failures >= self._failures_to_open

    @property
    def may_admit(self) -> bool:
        """Whether :meth:`admit` would say yes; claims nothing."""
        return not self.is_open or self._clock() >= self._retry_at

    def admit(self) -> bool:
        """Whether a call may be made now; its outcome must be reported."""
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        # The probe is out; nobody else until it comes back or a pause is over.
        self._retry_at = now + self._open_s
        return True

    def succeeded(self) -> None:
        """A call came back well."""
        self._failures = 0

    def failed(self) -> None:
        """A call failed."""
        self._failures += 1
        if self.is_open:
            self._retry_at = self._clock() + self._open_s
