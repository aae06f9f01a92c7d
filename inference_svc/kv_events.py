"""What an engine tells of its KV cache, in Sidecache's own block names.

An engine computes the names with :class:`sidecache.kv_blocks.BlockHasher` and calls
its listener on the event loop, in the order in which things happened.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlocksStored:
    """Blocks that a later prompt can use: those of a prompt in its order.

    Attributes:
        parent: name of the block before the first; None: the first is a root block. Of blocks
            of several prompts, as a worker puts them together, it says nothing of the others.
    """

    hashes: tuple[int, ...]
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class BlocksRemoved:
    """Blocks that are gone."""

    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CacheCleared:
    """Everything is gone."""


KvEvent = BlocksStored | BlocksRemoved | CacheCleared
KvListener = Callable[[KvEvent], None]


def ignore(event: KvEvent) -> None:
    """The listener of an engine nobody listens to."""
