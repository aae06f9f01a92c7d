"""Who holds how much of a prompt: the names of KV blocks in each worker's cache.

A block's name covers everything before it (:mod:`sidecache.kv_blocks`), so a set of
names for each worker is all that a match needs: no tree, no parents. Memory is
bounded by construction: no worker ever has more names here than its own limit,
which is what its cache can hold, so the index is never larger than all caches
together. See docs/decisions/0016-prefix-index.md for what else was measured.
"""

from bisect import bisect_left
from collections.abc import Sequence

DEFAULT_MAX_BLOCKS = 1 << 20
# Blocks that one match looks up beside halving, so that a worker which names blocks
# behind a hole is caught at it; an honest one never does.
MAX_CHECKED_BLOCKS = 1024


class TooManyBlocks(Exception):
    """A worker says that it holds more than it can; all of its blocks were forgotten."""


class PrefixIndex:
    """Blocks held by the workers of one model revision and block size.

    Not thread-safe: used on the event loop alone.

    Args:
        max_blocks: of a worker that :meth:`limit` does not bound lower.
    """

    def __init__(self, max_blocks: int = DEFAULT_MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._held: dict[str, set[int]] = {}
        self._limits: dict[str, int] = {}
        self._total = 0

    def __len__(self) -> int:
        """Blocks of all workers together; one that two workers hold counts twice."""
        return self._total

    @property
    def workers(self) -> list[str]:
        """Those that hold at least one block."""
        return list(self._held)

    @property
    def max_total(self) -> int:
        """What :func:`len` cannot exceed for the workers it has now."""
        return sum(self.limit_of(worker) for worker in self._held)

    def blocks(self, worker: str) -> int:
        """How many blocks a worker holds."""
        return len(self._held.get(worker, ()))

    def limit_of(self, worker: str) -> int:
        """The most blocks that are kept of a worker."""
        return self._limits.get(worker, self._max_blocks)

    def limit(self, worker: str, blocks: int) -> None:
        """Bound a worker by what its cache can hold, at most the index's own bound.

        Raises:
            TooManyBlocks: it has more already.
        """
        self._limits[worker] = min(max(blocks, 0), self._max_blocks)
        if self.blocks(worker) > self._limits[worker]:
            self._cut(worker)

    def stored(self, worker: str, hashes: Sequence[int]) -> None:
        """Note blocks that a worker now holds; those it has already change nothing.

        Raises:
            TooManyBlocks: these would exceed the worker's limit.
        """
        held = self._held.get(worker)
        if held is None:
            if not hashes:
                return
            held = self._held[worker] = set()
        before, limit = len(held), self.limit_of(worker)
        # Counted first where it matters: not even for a moment may it hold more.
        if before + len(hashes) > limit and before + len(set(hashes) - held) > limit:
            self._cut(worker)
        held.update(hashes)
        self._total += len(held) - before

    def removed(self, worker: str, hashes: Sequence[int]) -> None:
        """Note blocks that a worker no longer holds; unknown ones change nothing."""
        held = self._held.get(worker)
        if held is None:
            return
        before = len(held)
        held.difference_update(hashes)
        self._total -= before - len(held)
        if not held:
            del self._held[worker]

    def cleared(self, worker: str) -> None:
        """A worker's cache is empty; its limit stays."""
        self._total -= len(self._held.pop(worker, ()))

    def forget(self, worker: str) -> None:
        """The worker is gone, or another one under its name."""
        self.cleared(worker)
        self._limits.pop(worker, None)

    def match(self, hashes: Sequence[int]) -> dict[str, int]:
        """How many leading blocks of a prompt each worker holds; those with none are left out.

        A worker's match ends with the first block that it does not hold. It is searched by
        halving, some twelve looks for 3,125 blocks, since a worker names only blocks whose
        whole prefix it holds (worker.proto). One that breaks this is credited with blocks
        behind a hole, unless it is caught: what was found is looked through block by block,
        the longest first, MAX_CHECKED_BLOCKS in all.
        """
        if not hashes:
            return {}
        first = hashes[0]
        found = {
            worker: bisect_left(hashes, True, key=lambda name, held=held: name not in held)  # type: ignore[misc]
            for worker, held in self._held.items()
            if first in held
        }
        self._check(hashes, found)
        return found

    def _check(self, hashes: Sequence[int], found: dict[str, int]) -> None:
        """Shorten what has a hole."""
        may_check = MAX_CHECKED_BLOCKS
        for worker in sorted(found, key=found.__getitem__, reverse=True):
            held, depth = self._held[worker], found[worker]
            if depth > may_check:
                continue
            may_check -= depth
            leading = hashes[:depth]
            if not held.issuperset(leading):
                found[worker] = next(at for at, name in enumerate(leading) if name not in held)

    def _cut(self, worker: str) -> None:
        limit, blocks = self.limit_of(worker), self.blocks(worker)
        self.cleared(worker)
        raise TooManyBlocks(f"more than {limit} blocks ({blocks} known before)")
