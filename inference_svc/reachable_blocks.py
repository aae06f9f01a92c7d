"""Which blocks a prompt can use: those whose whole prefix is held as well.

A cache may evict a block and keep what builds on it; no prompt can reach those any more,
since prefixes are looked up from their beginning. They are told as removed together with
what they hang on, and as stored again when it comes back. So a follower never learns of
a block without its parent, and may look for the end of a prefix by halving.
"""

from collections.abc import Iterable

from inference_svc.kv_events import (
    BlocksRemoved,
    BlocksStored,
    CacheCleared,
    KvEvent,
    KvListener,
)


class ReachableBlocks:
    """Stands between an engine and who hears of its KV cache: a listener itself.

    Memory is a few hundred bytes for each block that the engine says it holds.

    Args:
        tell: hears parents before children, each block once until it is removed, and
            with a removal, leaves first, all that it puts out of reach.
    """

    def __init__(self, tell: KvListener) -> None:
        self._tell = tell
        # Of every block held; and by parent, held or not, the blocks that hang on it.
        self._parents: dict[int, int | None] = {}
        self._children: dict[int, set[int]] = {}
        self._told: set[int] = set()

    def __len__(self) -> int:
        """Blocks that a prompt can use."""
        return len(self._told)

    def __call__(self, event: KvEvent) -> None:
        """Take an engine's event: a :data:`~inference_svc.kv_events.KvListener`."""
        if isinstance(event, BlocksStored):
            self._stored(event.hashes, event.parent)
        elif isinstance(event, BlocksRemoved):
            self._removed(event.hashes)
        else:
            self._parents.clear()
            self._children.clear()
            self._told.clear()
            self._tell(CacheCleared())

    def _stored(self, names: Iterable[int], parent: int | None) -> None:
        run: list[int] = []
        run_parent = parent
        for name in names:
            self._hold(name, parent)
            if name not in self._told and (parent is None or parent in self._told):
                self._told.add(name)
                run.append(name)
            else:
                self._tell_run(run, run_parent)
                run, run_parent = [], name
            parent = name
        self._tell_run(run, run_parent)

    def _hold(self, name: int, parent: int | None) -> None:
        if name not in self._parents:
            self._parents[name] = parent
            if parent is not None:
                self._children.setdefault(parent, set()).add(name)

    def _tell_run(self, run: list[int], parent: int | None) -> None:
        """Tell of neighbours, and of what waited for one of them."""
        if not run:
            return
        self._tell(BlocksStored(tuple(run), parent))
        waiting = [(name, child) for name in run for child in self._unreached(name)]
        while waiting:
            parent, name = waiting.pop()
            self._told.add(name)
            self._tell(BlocksStored((name,), parent))
            waiting += [(name, child) for child in self._unreached(name)]

    def _unreached(self, name: int) -> list[int]:
        return [child for child in self._children.get(name, ()) if child not in self._told]

    def _removed(self, names: Iterable[int]) -> None:
        lost: list[int] = []
        for name in names:
            if name not in self._parents:
                continue
            parent = self._parents.pop(name)
            if parent is not None:
                self._children[parent].discard(name)
                if not self._children[parent]:
                    del self._children[parent]
            # From the leaves, so that a parent is never missing in between.
            lost += reversed(self._lost_with(name))
        if lost:
            self._tell(BlocksRemoved(tuple(lost)))

    def _lost_with(self, name: int) -> list[int]:
        """Put a block and all that builds on it out of reach; what that was, parents first."""
        lost: list[int] = []
        waiting = [name]
        while waiting:
            each = waiting.pop()
            if each in self._told:
                self._told.discard(each)
                lost.append(each)
                waiting += self._children.get(each, ())
        return lost
