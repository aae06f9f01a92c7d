"""Wall-clock times on disk, monotonic times in memory, and one bridge between them.

A running sidecar reads the system's clock once, when it opens its store; from
then on time advances monotonically, so a clock that jumps while it runs neither
revives nor kills an answer. Between two runs only the system's clock can tell how
long it was off:

* A clock set **back** meanwhile is caught by the time of the last commit, which
  the database keeps: time never runs backwards, the hours of the stop just do not
  count. No answer lives longer than its TTL of running time plus such a stop.
* A clock set **forward** looks like a long stop: answers die early, none late.
"""

from cache_svc.store import Clock


class Timeline:
    """Converts between monotonic seconds of this process and Unix seconds on disk.

    Args:
        clock: monotonic seconds.
        system_s: what the system's clock says now.
        last_commit_s: the last time the database has seen.
    """

    def __init__(self, clock: Clock, system_s: float, last_commit_s: float) -> None:
        self._clock = clock
        self._offset_s = max(system_s, last_commit_s) - clock()

    def now(self) -> float:
        """Unix seconds, never before any time on disk."""
        return self._clock() + self._offset_s

    def to_disk(self, monotonic_s: float) -> float:
        """Unix seconds of a moment of this process."""
        return monotonic_s + self._offset_s

    def from_disk(self, unix_s: float) -> float:
        """The moment on this process's clock; before its start for an older one."""
        return unix_s - self._offset_s
