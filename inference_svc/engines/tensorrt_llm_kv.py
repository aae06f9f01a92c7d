"""TensorRT-LLM's KV cache events, in Sidecache's own block names.

The engine numbers blocks by a hash of its own, which differs between versions and says
nothing of salt or adapter. A name is computed here from the tokens in the event; the
engine's number only serves to find the block again. What the events leave out or get
wrong is checked against the prompts this worker sent, and a block whose place in its
prompt is not certain is not told: a name that is missing costs a prefill, a wrong one
sends requests to a worker that does not hold their prefix.
"""

import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvListener
from sidecache.kv_blocks import BlockHasher

logger = logging.getLogger(__name__)

_MAX_ROOTS = 1024
_MAX_SHORT_PROMPTS = 1024

# Rank of attention data parallelism, and the engine's number: an integer, or the digits of
# a SHA-256 where its KV cache manager 2 is in use.
_Key = tuple[int, int | str]


@dataclass(frozen=True, slots=True)
class _Block:
    """A block whose name is certain.

    Attributes:
        beyond_prompt: it holds generated tokens, so no prompt can vouch for it.
    """

    name: int
    hasher: BlockHasher
    beyond_prompt: bool


@dataclass(slots=True)
class KvCounts:
    """What the events were like, for tests and for the log.

    Attributes:
        unknown_parents: chains that hang on a block nobody knows, or on a wrong one.
        ambiguous_roots: first blocks that several salts or adapters could have made.
        gaps: times that events were lost.
        garbled: events that could not be read.
    """

    events: int = 0
    unknown_parents: int = 0
    ambiguous_roots: int = 0
    gaps: int = 0
    garbled: int = 0


class KvTranslator:
    """Takes the engine's events and tells the listener ours.

    Args:
        block_size: tokens in a block.
        listener: who is told.
        max_blocks: names remembered, of blocks held and of prompts sent, each.
    """

    def __init__(self, block_size: int, listener: KvListener, max_blocks: int) -> None:
        self.counts = KvCounts()
        self._block_size = block_size
        self._tell = listener
        self._max_blocks = max_blocks
        self._blocks: dict[_Key, _Block] = {}
        self._holders: Counter[int] = Counter()
        # Names in prompts sent, oldest first; true: the last whole block of some prompt.
        self._sent: OrderedDict[int, bool] = OrderedDict()
        self._hashers: OrderedDict[tuple[str, str], BlockHasher] = OrderedDict()
        self._short: deque[tuple[BlockHasher, tuple[int, ...]]] = deque(maxlen=_MAX_SHORT_PROMPTS)
        self._next_id: dict[int, int] = {}
        self._window = 0

    def sending(self, prompt: Sequence[int], adapter: str, salt: str) -> None:
        """This prompt is about to be given to the engine."""
        hasher = self._hashers.setdefault(
            (adapter, salt), BlockHasher(self._block_size, adapter, salt)
        )
        self._hashers.move_to_end((adapter, salt))
        if len(self._hashers) > _MAX_ROOTS:
            self._hashers.popitem(last=False)
        names = hasher.hashes(prompt)
        if not names:
            self._short.append((hasher, tuple(prompt)))
        for name in names:
            self._sent[name] = name == names[-1] or self._sent.get(name, False)
            self._sent.move_to_end(name)
        while len(self._sent) > self._max_blocks:
            self._sent.popitem(last=False)

    def event(self, event: Mapping[str, Any]) -> None:
        """Take one event of the engine."""
        self.counts.events += 1
        try:
            rank = int(event.get("attention_dp_rank") or 0)
            self._check_order(rank, int(event["event_id"]))
            if self._counts(event):
                self._take(rank, event["data"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.counts.garbled += 1
            logger.warning("a KV cache event cannot be read (%s): forgetting the cache", error)
            self.clear()

    def clear(self) -> None:
        """Forget every block, and say so."""
        self._blocks.clear()
        self._holders.clear()
        self._tell(CacheCleared())

    def _take(self, rank: int, data: Mapping[str, Any]) -> None:
        kind = data["type"]
        if kind == "stored":
            self._stored(rank, data["parent_hash"], data["blocks"])
        elif kind == "removed":
            self._removed(rank, data["block_hashes"])
        # "created" says how large the cache is. "updated" says that a block moved to host
        # memory or has another priority (either may be null): it can be used all the same.

    def _check_order(self, rank: int, event_id: int) -> None:
        """Events are numbered; a number that is left out is a change nobody will hear of."""
        expected = self._next_id.get(rank)
        self._next_id[rank] = event_id + 1
        if expected is not None and event_id != expected:
            self.counts.gaps += 1
            logger.warning("KV cache events were lost: forgetting the cache")
            self.clear()

    def _counts(self, event: Mapping[str, Any]) -> bool:
        """Layers with a short attention window report for themselves; the longest decides."""
        window = int(event.get("window_size") or 0)
        self._window = max(self._window, window)
        return window == self._window

    def _stored(self, rank: int, parent_hash: int | str | None, blocks: Sequence[Any]) -> None:
        parent = None if parent_hash is None else self._blocks.get((rank, _number(parent_hash)))
        if parent_hash is not None and parent is None:
            self.counts.unknown_parents += 1
            return
        told_parent = parent.name if parent else None
        fresh: list[int] = []
        for stored in blocks:
            tokens = _tokens(stored, self._block_size)
            if tokens is None:
                break
            block = self._root(tokens) if parent is None else self._child(parent, tokens)
            if block is None:
                break
            if self._hold((rank, _number(stored["block_hash"])), block):
                fresh.append(block.name)
            elif fresh:
                self._tell(BlocksStored(tuple(fresh), told_parent))
                fresh, told_parent = [], block.name
            else:
                told_parent = block.name
            parent = block
        if fresh:
            self._tell(BlocksStored(tuple(fresh), told_parent))
        if len(self._blocks) > self._max_blocks:
            logger.warning("more than %d KV blocks: forgetting the cache", self._max_blocks)
            self.clear()

    def _child(self, parent: _Block, tokens: Sequence[int]) -> _Block | None:
        (name,) = parent.hasher.hashes(tokens, parent.name)
        if name in self._sent:
            return _Block(name, parent.hasher, beyond_prompt=False)
        # Only after the end of a prompt can tokens follow that no prompt had. In its middle
        # the parent is another block's (TensorRT-LLM issue 3543).
        if parent.beyond_prompt or self._sent.get(parent.name, False):
            return _Block(name, parent.hasher, beyond_prompt=True)
        self.counts.unknown_parents += 1
        return None

    def _root(self, tokens: Sequence[int]) -> _Block | None:
        """Whose first block this is: events do not say which salt and adapter it has."""
        found: dict[int, _Block] = {}
        for hasher in self._hashers.values():
            (name,) = hasher.hashes(tokens)
            if name in self._sent:
                found[name] = _Block(name, hasher, beyond_prompt=False)
        for hasher, prompt in self._short:
            if tuple(tokens[: len(prompt)]) == prompt:
                (name,) = hasher.hashes(tokens)
                found.setdefault(name, _Block(name, hasher, beyond_prompt=True))
        missing = [block for name, block in found.items() if not self._holders[name]]
        candidates = missing or list(found.values())
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            self.counts.ambiguous_roots += 1
        else:
            self.counts.unknown_parents += 1
        return None

    def _hold(self, key: _Key, block: _Block) -> bool:
        """Note a block; whether its name is new to the cache."""
        if key in self._blocks:
            return False
        self._blocks[key] = block
        self._holders[block.name] += 1
        return self._holders[block.name] == 1

    def _removed(self, rank: int, block_hashes: Sequence[int | str]) -> None:
        gone = []
        for block_hash in block_hashes:
            block = self._blocks.pop((rank, _number(block_hash)), None)
            if block is None:
                continue  # partly filled, or its name was never certain
            self._holders[block.name] -= 1
            if not self._holders[block.name]:
                del self._holders[block.name]
                gone.append(block.name)
        if gone:
            self._tell(BlocksRemoved(tuple(gone)))


def _number(block_hash: object) -> int | str:
    """The engine's number of a block, as it came; it is only ever compared.

    Raises:
        TypeError: it is neither of the two things it may be.
    """
    if isinstance(block_hash, bool) or not isinstance(block_hash, int | str):
        raise TypeError(f"a block hash is {block_hash!r}")
    return block_hash


def _tokens(stored: Mapping[str, Any], block_size: int) -> list[int] | None:
    """The block's token ids; None if it is partly filled or holds something beside text."""
    unique = stored["tokens"]
    if len(unique) != block_size or any(each.get("token_extra_id") for each in unique):
        return None
    return [int(each["token_id"]) for each in unique]
