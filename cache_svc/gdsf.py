"""GDSF, the eviction queue of one tenant: what saves most for each byte stays.

Greedy-Dual-Size-Frequency, Cherkasova: "Improving WWW Proxies Performance with
Greedy-Dual-Size-Frequency Caching Policy", HP Laboratories, 1998. An item's
priority is ``age + hits * worth``: what it has saved so far for each byte it takes,
on top of the queue's age when it was last used. The least one goes, and its priority
becomes the age, so whatever was not used since is overtaken by what is.
"""

import heapq
from typing import Generic, TypeVar


class Item:
    """What is queued; a store's own record of an entry derives from it, to be one object.

    Attributes:
        arrival: rising number; of equals the oldest goes first.
        worth: what a hit saves for each byte that the entry takes; over 0.
        hits: times it was used, its arrival counted; 0: it left.
        priority: what it is worth to keep, in the queue's own scale.
        queued: its priority when the heap was last put in order; priorities only rise.
    """

    __slots__ = ("arrival", "hits", "priority", "queued", "worth")

    def __init__(self, arrival: int, worth: float) -> None:
        self.arrival = arrival
        self.worth = worth
        self.hits = 1
        self.priority = 0.0
        self.queued = 0.0

    def __lt__(self, other: "Item") -> bool:
        if self.queued != other.queued:
            return self.queued < other.queued
        return self.arrival < other.arrival


Queued = TypeVar("Queued", bound=Item)


class Gdsf(Generic[Queued]):
    """Which item to evict next. A hit takes constant time, an eviction logarithmic."""

    __slots__ = ("_age", "_heap", "_items")

    def __init__(self) -> None:
        self._items = 0
        # A hit leaves an item where it is, under its old priority as a lower bound.
        self._heap: list[Queued] = []
        self._age = 0.0

    def __len__(self) -> int:
        return self._items

    def add(self, item: Queued) -> None:
        """Take in an item that is new, at the queue's age."""
        item.priority = item.queued = self._age + item.worth
        heapq.heappush(self._heap, item)
        self._items += 1

    def bring_back(self, item: Queued) -> None:
        """Take in an item with its hits and priority of before a restart; then :meth:`resume`."""
        item.queued = item.priority
        self._heap.append(item)
        self._items += 1

    def resume(self) -> None:
        """Put what was brought back in order.

        The age was no higher than the least priority left, and not much lower.
        """
        heapq.heapify(self._heap)
        if self._heap:
            self._age = max(self._age, self._heap[0].priority - self._heap[0].worth)

    def touch(self, item: Queued) -> None:
        """Note a hit."""
        item.hits += 1
        item.priority = self._age + item.hits * item.worth

    def remove(self, item: Queued) -> None:
        """Forget an item that left, for whatever reason."""
        item.hits = 0
        self._items -= 1
        if len(self._heap) > 64 + 2 * self._items:
            self._heap = [item for item in self._heap if item.hits]
            heapq.heapify(self._heap)

    def victim(self) -> Queued:
        """The item to evict next; the caller removes it.

        Raises:
            LookupError: the queue is empty.
        """
        heap = self._heap
        while heap:
            item = heap[0]
            if not item.hits:
                heapq.heappop(heap)
            elif item.priority > item.queued:
                item.queued = item.priority
                heapq.heapreplace(heap, item)
            else:
                self._age = item.priority
                return item
        msg = "an empty queue has no victim"
        raise LookupError(msg)
