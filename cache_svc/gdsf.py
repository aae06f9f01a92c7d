"""GDSF, the eviction queue of one tenant: what saves most for each byte stays.

Greedy-Dual-Size-Frequency, Cherkasova: "Improving WWW Proxies Performance with
Greedy-Dual-Size-Frequency Caching Policy", HP Laboratories, 1998. An entry's
priority is ``age + hits * worth``: what it has saved so far for each byte it takes,
on top of the queue's age when it was last used. The least one goes, and its priority
becomes the age, so whatever was not used since is overtaken by what is.
"""

import heapq
import itertools


class _Item:
    __slots__ = ("hits", "priority", "worth")

    def __init__(self, worth: float, priority: float) -> None:
        self.worth = worth
        self.hits = 1
        self.priority = priority


class Gdsf:
    """Which entry to evict next. A hit takes constant time, an eviction logarithmic."""

    __slots__ = ("_age", "_arrivals", "_heap", "_items")

    def __init__(self) -> None:
        self._items: dict[int, _Item] = {}
        # Priorities only rise, so a hit leaves its old one in the heap as a lower bound.
        self._heap: list[tuple[float, int, int]] = []
        self._arrivals = itertools.count()
        self._age = 0.0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, entry_id: int, worth: float) -> None:
        """Take in a new entry.

        Args:
            entry_id: not in the queue.
            worth: what a hit saves for each byte that the entry takes; over 0.
        """
        item = _Item(worth, self._age + worth)
        self._items[entry_id] = item
        heapq.heappush(self._heap, (item.priority, next(self._arrivals), entry_id))

    def touch(self, entry_id: int) -> None:
        """Note a hit."""
        item = self._items[entry_id]
        item.hits += 1
        item.priority = self._age + item.hits * item.worth

    def remove(self, entry_id: int) -> None:
        """Forget an entry that left, for whatever reason."""
        del self._items[entry_id]
        if len(self._heap) > 64 + 2 * len(self._items):
            self._heap = [place for place in self._heap if place[2] in self._items]
            heapq.heapify(self._heap)

    def victim(self) -> int:
        """The entry to evict next; the caller removes it.

        Raises:
            LookupError: the queue is empty.
        """
        while self._heap:
            priority, arrival, entry_id = self._heap[0]
            item = self._items.get(entry_id)
            if item is None:
                heapq.heappop(self._heap)
            elif item.priority > priority:
                heapq.heapreplace(self._heap, (item.priority, arrival, entry_id))
            else:
                self._age = priority
                return entry_id
        msg = "an empty queue has no victim"
        raise LookupError(msg)
