"""SIEVE, the eviction queue of one tenant.

Zhang, Yang, Yue, Vigfusson, Rashmi: "SIEVE is Simpler than LRU: an Efficient
Turn-Key Eviction Algorithm for Web Caches", NSDI 2024. New entries join at the
head. A hit only marks its entry. The hand walks from the tail to the head:
it unmarks what was hit since it last came by and evicts the first entry that
was not. One-off answers leave soon, popular ones stay, and a hit moves nothing.
"""


class _Node:
    __slots__ = ("entry_id", "newer", "older", "visited")

    def __init__(self, entry_id: int) -> None:
        self.entry_id = entry_id
        self.visited = False
        self.newer: _Node | None = None
        self.older: _Node | None = None


class Sieve:
    """Which entry to evict next. Every method takes constant time, amortized."""

    __slots__ = ("_hand", "_head", "_nodes", "_tail")

    def __init__(self) -> None:
        self._nodes: dict[int, _Node] = {}
        self._head: _Node | None = None
        self._tail: _Node | None = None
        self._hand: _Node | None = None

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, entry_id: int) -> None:
        """Take in a new entry at the head."""
        node = _Node(entry_id)
        self._nodes[entry_id] = node
        node.older = self._head
        if self._head is not None:
            self._head.newer = node
        self._head = node
        if self._tail is None:
            self._tail = node

    def touch(self, entry_id: int) -> None:
        """Note a hit."""
        self._nodes[entry_id].visited = True

    def remove(self, entry_id: int) -> None:
        """Forget an entry that left for another reason."""
        node = self._nodes.pop(entry_id)
        if self._hand is node:
            self._hand = node.newer
        if node.newer is None:
            self._head = node.older
        else:
            node.newer.older = node.older
        if node.older is None:
            self._tail = node.newer
        else:
            node.older.newer = node.newer

    def victim(self) -> int:
        """The entry to evict next; the caller removes it.

        Raises:
            LookupError: the queue is empty.
        """
        node = self._hand or self._tail
        while node is not None and node.visited:
            node.visited = False
            node = node.newer or self._tail
        if node is None:
            msg = "an empty queue has no victim"
            raise LookupError(msg)
        self._hand = node
        return node.entry_id
