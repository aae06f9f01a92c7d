"""Which entries end when, at eight bytes an entry.

Times far ahead are sorted into buckets only; a bucket is put in order once its
time has come (a calendar queue: Brown, CACM 31, 1988). One entry beside millions
of others so costs its id, not a tuple in a heap.
"""

import heapq
from array import array
from collections.abc import Callable, Iterable

# Some 10,000 buckets for a week of lives.
BUCKET_S = 64.0


class Expiries:
    """Ids by the time they end. Ids that left early stay until their time, or a rebuild."""

    __slots__ = ("_buckets", "_far", "_near", "_order")

    def __init__(self) -> None:
        self._buckets: dict[float, array[int]] = {}
        self._order: list[float] = []
        self._near: list[tuple[float, int]] = []
        self._far = 0

    def __len__(self) -> int:
        """Ids that are kept, of those too that left early."""
        return self._far + len(self._near)

    def add(self, expires_s: float, entry_id: int) -> None:
        """Note when an entry ends, on a monotonic clock."""
        bucket = expires_s // BUCKET_S
        ids = self._buckets.get(bucket)
        if ids is None:
            ids = self._buckets[bucket] = array("q")
            heapq.heappush(self._order, bucket)
        ids.append(entry_id)
        self._far += 1

    def due(self, now_s: float, expires_of: Callable[[int], float | None]) -> list[int]:
        """The ids whose time has come, each told once.

        Args:
            now_s: everything up to this moment is due.
            expires_of: when an id ends; None: it left, and is forgotten here too.
        """
        while self._order and self._order[0] <= now_s // BUCKET_S:
            self._open(self._buckets.pop(heapq.heappop(self._order)), expires_of)
        ended = []
        while self._near and self._near[0][0] <= now_s:
            expires_s, entry_id = heapq.heappop(self._near)
            if expires_of(entry_id) == expires_s:
                ended.append(entry_id)
        return ended

    def rebuild(self, entries: Iterable[tuple[float, int]]) -> None:
        """Start over with these times and ids."""
        self._buckets, self._order, self._near, self._far = {}, [], [], 0
        for expires_s, entry_id in entries:
            self.add(expires_s, entry_id)

    def _open(self, ids: "array[int]", expires_of: Callable[[int], float | None]) -> None:
        """Put a bucket in order whose time has come."""
        self._far -= len(ids)
        for entry_id in ids:
            expires_s = expires_of(entry_id)
            if expires_s is not None:
                heapq.heappush(self._near, (expires_s, entry_id))
