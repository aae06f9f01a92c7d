"""How long a worker that comes and goes has to be well before it is used again.

As route flap damping (RFC 2439): each loss adds one to a penalty that halves with time;
above a threshold the wait doubles with each further loss. A worker that is restarted now
and then never waits.
"""

import math
from collections.abc import Callable

from router.settings import PoolSettings


class Damping:
    """The losses of one worker.

    Args:
        settings: threshold, half-life, and the waits.
        clock: monotonic seconds.
    """

    def __init__(self, settings: PoolSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._penalty: float = 0.0
        self._at = clock()

    def lost(self) -> None:
        """The worker was ready, and is no more."""
        self._penalty = self._faded() + 1
        self._at = self._clock()

    def hold_s(self) -> float:
        """Seconds from now for which it is not to be used, though it is well."""
        excess = self._faded() - self._settings.flap_losses
        if excess <= 0:
            return 0.0
        # The exponent is bounded: penalties only pile up as fast as losses are noticed.
        wait_s = self._settings.flap_hold_s * math.exp2(min(excess, 32.0))
        return min(wait_s, self._settings.max_flap_hold_s)

    def _faded(self) -> float:
        half_lives = (self._clock() - self._at) / self._settings.flap_half_life_s
        return self._penalty * math.exp2(-half_lives)
