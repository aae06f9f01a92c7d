"""The fake's paged KV cache: blocks in a radix tree, events with numbers of its own."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

_DEFAULT_PRIORITY = 35


@dataclass
class Bugs:
    """Known bugs of the real events, each to be switched on.

    Attributes:
        wrong_parent: issue 3543, the parent named is the chain's first block.
        null_updates: issue 4666, updates whose differences are null.
        no_events: issue 15522, a stream that stays empty.
        lose_event: the event of this number is never delivered.
    """

    wrong_parent: bool = False
    null_updates: bool = False
    no_events: bool = False
    lose_event: int | None = None


@dataclass
class _Block:
    number: int
    parent: int | None
    tokens: tuple[int, ...]
    priority: int
    users: int = 0
    children: set[int] = field(default_factory=set)


class FakeKvCache:
    """Holds the blocks of all prompts.

    Args:
        capacity: blocks; what nobody uses and has no child goes first, by priority and age.
        hex_hashes: events have the blocks' numbers as digits, not as integers.
    """

    def __init__(
        self, block_size: int, capacity: int, bugs: Bugs, *, reuse: bool, hex_hashes: bool = False
    ) -> None:
        self.block_size = block_size
        self.capacity = capacity
        self._bugs = bugs
        self._reuse = reuse
        self._hash: Callable[[int], int | str] = "{:064x}".format if hex_hashes else int
        self._blocks: OrderedDict[int, _Block] = OrderedDict()
        self._events: list[dict[str, Any]] = []
        self._event_ids = 0
        self._put({"type": "created", "num_blocks_per_cache_level": [capacity, 0]})

    @property
    def used(self) -> int:
        """Blocks that sequences are using now."""
        return sum(1 for block in self._blocks.values() if block.users)

    @property
    def numbers(self) -> set[int]:
        """The whole blocks held, by their numbers here."""
        return {
            number for number, block in self._blocks.items() if len(block.tokens) == self.block_size
        }

    def begin(self, tokens: Sequence[int], scope: str) -> tuple[list[int], int]:
        """Find the blocks of a prompt; their numbers, and how many tokens they hold."""
        held: list[int] = []
        if self._reuse:
            for number, _ in self._chain(tokens[:-1], scope):
                if number not in self._blocks:
                    break
                self._use(number)
                held.append(number)
        return held, len(held) * self.block_size

    def store(
        self, tokens: Sequence[int], scope: str, held: list[int], priorities: Sequence[int]
    ) -> None:
        """Keep the blocks of these tokens but the last; ``held`` grows by them.

        Args:
            priorities: of each block; what is beyond has the usual one.
        """
        parent = held[-1] if held else None
        stored: list[_Block] = []
        for index, (number, tokens_of) in enumerate(self._chain(tokens[:-1], scope)):
            if index < len(held):
                continue
            if number in self._blocks:
                self._put_stored(stored, held, parent)
                stored, parent = [], number
            else:
                self._make_room()
                before = held[-1] if held else None
                priority = priorities[index] if index < len(priorities) else _DEFAULT_PRIORITY
                self._blocks[number] = _Block(number, before, tokens_of, priority)
                if before is not None:
                    self._blocks[before].children.add(number)
                stored.append(self._blocks[number])
            self._use(number)
            held.append(number)
        self._put_stored(stored, held, parent)

    def end(self, tokens: Sequence[int], scope: str, held: list[int]) -> None:
        """Nobody uses these blocks any more; a last, partly filled one is kept too."""
        if self._reuse:
            self.store(tokens, scope, held, ())
            rest = tuple(tokens[len(held) * self.block_size : -1])
            if rest:
                number = _number(held[-1] if held else None, rest, scope)
                parent = held[-1] if held else None
                block = _Block(number, parent, rest, _DEFAULT_PRIORITY)
                self._tell_stored([block], parent)
        for number in held:
            block = self._blocks[number]
            block.users -= 1
            if self._bugs.null_updates:
                digest = self._hash(number)
                self._put(
                    {"type": "updated", "block_hash": digest, "cache_level": None, "priority": None}
                )
        held.clear()

    def events(self) -> list[dict[str, Any]]:
        """What has happened since the last call."""
        taken, self._events = self._events, []
        return [] if self._bugs.no_events else taken

    def _chain(self, tokens: Sequence[int], scope: str) -> Iterator[tuple[int, tuple[int, ...]]]:
        number = None
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            block = tuple(tokens[end - self.block_size : end])
            number = _number(number, block, scope)
            yield number, block

    def _use(self, number: int) -> None:
        self._blocks[number].users += 1
        self._blocks.move_to_end(number)

    def _make_room(self) -> None:
        if len(self._blocks) < self.capacity:
            return
        free = [each for each in self._blocks.values() if not each.users and not each.children]
        if not free:
            return  # the real scheduler would not have admitted it
        lowest = min(each.priority for each in free)
        gone = next(each for each in free if each.priority == lowest)
        del self._blocks[gone.number]
        if gone.parent is not None and gone.parent in self._blocks:
            self._blocks[gone.parent].children.discard(gone.number)
        self._put({"type": "removed", "block_hashes": [self._hash(gone.number)]})

    def _put_stored(self, stored: list[_Block], held: list[int], parent: int | None) -> None:
        if not stored:
            return
        if self._bugs.wrong_parent and parent is not None:
            parent = held[0]
        self._tell_stored(stored, parent)

    def _tell_stored(self, stored: list[_Block], parent: int | None) -> None:
        blocks = [_described(each) | {"block_hash": self._hash(each.number)} for each in stored]
        parent_hash = None if parent is None else self._hash(parent)
        self._put({"type": "stored", "parent_hash": parent_hash, "blocks": blocks})

    def _put(self, data: dict[str, Any]) -> None:
        if self._event_ids != self._bugs.lose_event:
            self._events.append({"event_id": self._event_ids, "data": data, "window_size": 8192})
        self._event_ids += 1


def _number(parent: int | None, tokens: Sequence[int], scope: str) -> int:
    text = f"{parent} {scope} {list(tokens)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def _described(block: _Block) -> dict[str, Any]:
    return {
        "type": "stored_block",
        "tokens": [
            {"type": "unique_token", "token_id": each, "token_extra_id": 0} for each in block.tokens
        ],
        "cache_level": 0,
        "priority": block.priority,
    }
