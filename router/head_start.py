"""How long a lookup runs before a worker starts beside it: learned from how lookups go.

A worker that starts beside a lookup that then hits has begun for nothing. So the head start
is the shortest one with which that happens to no more than a given share of all requests,
by the lookups of late: of hits that are answered in two milliseconds few are left after
three, and a miss, which takes longer, loses no more than that. Where hits are rarer than
the share, or none is that late, it is the least one that is set (the tail at scale: Dean and
Barroso, CACM 2013, hedge what is later than most; here later than most hits).
"""

from collections import deque
from typing import Final

# Lookups that count, and how many come in before the head start is reckoned anew.
_WINDOW: Final = 512
_EVERY: Final = 16
# The next hits may be a little later than those seen.
_MARGIN: Final = 1.25


class HeadStart:
    """The head start of the next lookup.

    Args:
        least_s: never less.
        share: of all requests, whose worker may begin for nothing.

    Attributes:
        seconds: what it is now.
    """

    def __init__(self, least_s: float, share: float) -> None:
        self._least_s = least_s
        self._share = share
        # How long each of the last lookups took, and whether it hit.
        self._lookups: deque[tuple[float, bool]] = deque(maxlen=_WINDOW)
        self._until_reckoned = _EVERY
        self.seconds = least_s

    def looked_up(self, duration_s: float, *, hit: bool) -> None:
        """Take in how a lookup went, also one that nobody waited for in the end."""
        self._lookups.append((duration_s, hit))
        self._until_reckoned -= 1
        if not self._until_reckoned:
            self._until_reckoned = _EVERY
            self._reckon()

    def _reckon(self) -> None:
        late = sorted((duration_s for duration_s, hit in self._lookups if hit), reverse=True)
        allowed = int(self._share * len(self._lookups))
        self.seconds = self._least_s
        if len(late) > allowed:
            self.seconds = max(self._least_s, late[allowed] * _MARGIN)
