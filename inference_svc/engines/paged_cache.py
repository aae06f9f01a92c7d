"""A paged KV cache as engines keep one: whole blocks, shared by prefix, evicted leaf first.

It holds names only, no numbers: the scripted engine's cache. Blocks in use are pinned.
Of those that are not, the least recently used goes first; a prompt's blocks are let go
from its end to its root, so that a block is never evicted before the blocks that build
on it (as vLLM's free queue does it). A retained block outlives those of lower priority.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf

from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvListener

_NORMAL = 0


@dataclass(slots=True)
class _Block:
    name: int
    depth: int
    pins: int = 0
    priority: int = _NORMAL
    until: float = inf
    has_alarm: bool = False


class PagedCache:
    """Which named blocks are held, within ``capacity``.

    Args:
        capacity: blocks, at least 1.
        clock: seconds; retention expires by it.
    """

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self.capacity = capacity
        self._clock = clock
        self._blocks: dict[int, _Block] = {}
        # Unpinned blocks by priority, least recently used first.
        self._idle: dict[int, OrderedDict[int, _Block]] = {_NORMAL: OrderedDict()}
        # (expiry, -depth, name) of retained blocks, at least one for each that expires.
        self._alarms: list[tuple[float, int, int]] = []

    def __len__(self) -> int:
        """Blocks held."""
        return len(self._blocks)

    @property
    def pinned(self) -> int:
        """Blocks in use."""
        return len(self._blocks) - sum(map(len, self._idle.values()))

    def match(self, names: Sequence[int]) -> int:
        """How many of the leading blocks are held."""
        blocks = self._blocks
        for depth, name in enumerate(names):
            if name not in blocks:
                return depth
        return len(names)

    def pin(self, names: Sequence[int]) -> None:
        """Keep these held blocks until :meth:`unpin`; they may be pinned many times."""
        for name in names:
            block = self._blocks[name]
            if not block.pins:
                del self._idle[block.priority][name]
            block.pins += 1

    def unpin(self, names: Sequence[int]) -> None:
        """Let go of blocks in a prompt's order: the last becomes the first to be evicted."""
        blocks, normal = self._blocks, self._idle[_NORMAL]
        for name in reversed(names):
            block = blocks[name]
            block.pins -= 1
            if not block.pins:
                idle = self._idle_class(block.priority) if block.priority else normal
                idle[name] = block

    def store(
        self, names: Sequence[int], parent: int | None, depth: int, tell: KvListener
    ) -> Sequence[int]:
        """Hold these blocks, pinned, evicting others where there is no room.

        Args:
            names: in the order of the prompt.
            parent: name of the block before the first.
            depth: blocks before the first.
            tell: hears of what was evicted, then of what is new.

        Returns:
            Those that are held: all, or fewer where everything else is pinned.
        """
        new: list[int] = []
        evicted: list[int] = []
        self._expire()
        count = 0
        for name in names:
            block = self._blocks.get(name)
            if block is None:
                if len(self._blocks) >= self.capacity and not self._evict(evicted):
                    break
                block = self._blocks[name] = _Block(name, depth + count, 1)
                new.append(name)
            else:
                self.pin((name,))
            count += 1
        if evicted:
            tell(BlocksRemoved(tuple(evicted)))
        if new:
            # Held blocks lead: a child is never held without its parent.
            first = count - len(new)
            tell(BlocksStored(tuple(new), names[first - 1] if first else parent))
        return names[:count]

    def retain(self, names: Sequence[int], priority: int, duration_s: float | None) -> None:
        """Keep these pinned blocks above those of lower priority, for a while.

        Of two wishes for a block the higher priority and the longer time hold, so a
        block is never kept less than one that builds on it.
        """
        self._expire()
        until = inf if duration_s is None else self._clock() + duration_s
        for name in names:
            block = self._blocks[name]
            block.until = max(until, block.until) if block.priority else until
            block.priority = max(priority, block.priority)
            if block.until < inf and not block.has_alarm:
                block.has_alarm = True
                heappush(self._alarms, (block.until, -block.depth, name))

    def clear(self, tell: KvListener) -> bool:
        """Forget every block, unless one is in use; whether it did.

        Args:
            tell: hears of it.
        """
        if self.pinned:
            return False
        self._blocks.clear()
        self._idle = {_NORMAL: OrderedDict()}
        self._alarms.clear()
        tell(CacheCleared())
        return True

    def _evict(self, evicted: list[int]) -> bool:
        """Free one block; False: all are pinned."""
        idle = self._idle[_NORMAL]
        if not idle:
            lowest = min((each for each, blocks in self._idle.items() if blocks), default=_NORMAL)
            idle = self._idle[lowest]
        if not idle:
            return False
        name, _ = idle.popitem(last=False)
        del self._blocks[name]
        evicted.append(name)
        return True

    def _expire(self) -> None:
        """Make blocks whose time is over normal ones, as if used just now."""
        if len(self._alarms) > 2 * self.capacity:
            # Alarms of blocks that were evicted before their time.
            self._alarms = [alarm for alarm in self._alarms if alarm[2] in self._blocks]
            heapify(self._alarms)
        now = self._clock()
        while self._alarms and self._alarms[0][0] <= now:
            _, _, name = heappop(self._alarms)
            block = self._blocks.get(name)
            if block is None or not block.has_alarm:
                continue
            if block.until > now:
                block.has_alarm = block.until < inf
                if block.has_alarm:
                    heappush(self._alarms, (block.until, -block.depth, name))
                continue
            if not block.pins:
                del self._idle[block.priority][name]
                self._idle[_NORMAL][name] = block
            block.priority, block.until, block.has_alarm = _NORMAL, inf, False

    def _idle_class(self, priority: int) -> OrderedDict[int, _Block]:
        return self._idle.setdefault(priority, OrderedDict())
