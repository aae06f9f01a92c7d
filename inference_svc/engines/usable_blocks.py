"""Which blocks a prompt can use: those whose whole prefix is held as well.

A cache that evicts roots first still holds blocks that no prompt can reach. They are
told as removed together with their root, and as stored again when a prompt that used
them says so. A follower therefore never learns of a block without its parent.
"""

from inference_svc.kv_events import BlocksRemoved, BlocksStored, KvListener


class UsableBlocks:
    """A tree of names; tells its listener what joins and leaves it.

    Args:
        tell: hears parents before children, and each removal with all that it takes along.
    """

    def __init__(self, tell: KvListener) -> None:
        self._tell = tell
        self._parents: dict[int, int | None] = {}
        self._children: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def __contains__(self, name: object) -> bool:
        return name in self._parents

    def stored(self, name: int, parent: int | None) -> None:
        """A block is held; without its parent it is of no use yet."""
        if name in self._parents or not (parent is None or parent in self._parents):
            return
        self._parents[name] = parent
        if parent is not None:
            self._children.setdefault(parent, set()).add(name)
        self._tell(BlocksStored((name,), parent))

    def gone(self, name: int) -> None:
        """A block is not held any more, so what builds on it is of no use."""
        if name not in self._parents:
            return
        parent = self._parents[name]
        if parent is not None:
            self._children[parent].discard(name)
            if not self._children[parent]:
                del self._children[parent]
        lost, waiting = [], [name]
        while waiting:
            each = waiting.pop()
            lost.append(each)
            del self._parents[each]
            waiting += self._children.pop(each, ())
        # From the leaves, so that a parent is never missing in between.
        self._tell(BlocksRemoved(tuple(reversed(lost))))
