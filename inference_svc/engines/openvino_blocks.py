"""What OpenVINO GenAI's KV cache holds: modelled, since the library does not tell.

The library is deterministic: given the order in which sequences join and step, its block
manager's decisions follow. This repeats them, as read in openvino.genai 2026.3
(continuous_batching/cache/block_manager.hpp and scheduler.hpp):

- Blocks are found by a chained hash of their tokens. Unfinished blocks have one too, and
  it changes with each token.
- A joining sequence takes leading blocks that are known, whole ones first, then one
  unfinished; of a prompt that is known to its end the last token is computed again.
- A step gives each generating sequence one token, then prompts what is left of its
  budget, in the order in which they joined.
- Blocks that nobody uses keep their content until no fresh block is left. Then the one
  goes whose last allocation or reuse is longest ago, which of a prompt is its root.

Not repeated is preemption, when running sequences alone fill the cache: such a sequence
is dropped from the model, which then knows less than the cache holds.
docs/decisions/0017-kv-events.md has how well this agrees with what is measured.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from xxhash import xxh3_64_intdigest

from inference_svc.kv_events import BlocksRemoved, BlocksStored, KvListener
from sidecache.kv_blocks import BlockHasher, token_bytes


@dataclass(eq=False, slots=True)
class _Block:
    stamp: int
    name: int = 0
    users: int = 0


@dataclass(eq=False, slots=True)
class _Sequence:
    tokens: list[int]
    prompt_tokens: int
    names: list[int] = field(default_factory=list)
    blocks: list[_Block] = field(default_factory=list)
    processed: int = 0
    cancelled: bool = False


class OpenVinoBlocks:
    """The library's block manager and scheduler, without numbers.

    Args:
        capacity: blocks of the KV cache.
        block_size: tokens in one.
        step_tokens: budget of a step, ``max_num_batched_tokens``.
        tell: hears which whole blocks are held, reachable by a prompt or not.

    Attributes:
        in_use: blocks that sequences had in the last step, to compare with the library's.
    """

    def __init__(self, capacity: int, block_size: int, step_tokens: int, tell: KvListener) -> None:
        self.capacity = capacity
        self.in_use = 0
        self._block_size = block_size
        self._step_tokens = step_tokens
        self._hasher = BlockHasher(block_size)
        self._tell = tell
        # A fresh block has the time of its making, which is before all else.
        self._fresh = deque(_Block(index - capacity) for index in range(capacity))
        # By name: blocks that were given it last, and blocks nobody uses.
        self._known: dict[int, _Block] = {}
        self._idle: dict[int, _Block] = {}
        self._idle_by_age: list[tuple[int, int]] = []
        self._sequences: dict[int, _Sequence] = {}
        self._time = 0

    def joined(self, key: int, tokens: Sequence[int]) -> int:
        """A sequence has joined; how many of its tokens need no computing."""
        sequence = self._sequences[key] = _Sequence(list(tokens), len(tokens))
        for length in self._known_lengths(sequence):
            name = self._name(sequence, length)
            block = self._idle.pop(name, None) or self._known[name]
            block.users += 1
            block.stamp = self._now()
            sequence.blocks.append(block)
            sequence.processed = length - 1 if length == len(tokens) else length
            self._note(sequence, length)
        return sequence.processed

    def cancelled(self, key: int) -> None:
        """A sequence is to leave with the next step."""
        if key in self._sequences:
            self._sequences[key].cancelled = True

    def stepped(self, sampled: Mapping[int, Iterable[int]], gone: Collection[int]) -> None:
        """A step is over.

        Args:
            sampled: new tokens by sequence.
            gone: sequences that ended with it.
        """
        for sequence in self._sequences.values():
            self._drop_unneeded(sequence)
        budget = self._step_tokens
        running = [each for each in self._sequences.items() if not each[1].cancelled]
        for generating in (True, False):
            for key, sequence in running:
                if (sequence.processed >= sequence.prompt_tokens) == generating and budget:
                    budget -= self._schedule(key, sequence, 1 if generating else budget)
        self.in_use = self.capacity - len(self._fresh) - len(self._idle)
        for key, ids in sampled.items():
            if key in self._sequences:
                self._sequences[key].tokens += ids
        for key in [key for key, each in self._sequences.items() if each.cancelled or key in gone]:
            self._leave(key)

    def _schedule(self, key: int, sequence: _Sequence, most: int) -> int:
        """Give a sequence blocks for its next tokens; how many tokens those are."""
        size = self._block_size
        room = -sequence.processed % size
        available = room + (len(self._fresh) + len(self._idle)) * size
        scheduled = min(most, len(sequence.tokens) - sequence.processed, available)
        if not scheduled:
            if sequence.processed < len(sequence.tokens) and not available:
                self._leave(key)
            return 0
        generating = sequence.processed >= sequence.prompt_tokens
        needed = -(-max(0, scheduled - room) // size)
        if needed:
            self._extend(sequence, needed)
        elif generating:
            self._rewrite_last(sequence, sequence.processed + scheduled)
        sequence.processed += scheduled
        return scheduled

    def _extend(self, sequence: _Sequence, count: int) -> None:
        size = self._block_size
        if sequence.blocks:
            # It is full now, or will be with this step.
            self._rename(sequence, sequence.blocks[-1], len(sequence.blocks) * size)
        for _ in range(count):
            length = min((len(sequence.blocks) + 1) * size, len(sequence.tokens))
            sequence.blocks.append(self._allocate(self._name(sequence, length)))
            self._note(sequence, length)

    def _rewrite_last(self, sequence: _Sequence, length: int) -> None:
        last = sequence.blocks[-1]
        if last.users == 1:
            self._rename(sequence, last, length)
        elif self._fresh or self._idle:
            sequence.blocks[-1] = self._allocate(self._name(sequence, length))
            self._note(sequence, length)
            self._free(last)

    def _rename(self, sequence: _Sequence, block: _Block, length: int) -> None:
        name = self._name(sequence, length)
        if name != block.name:
            self._forget(block.name)
            block.name = name
            self._known[name] = block
            self._note(sequence, length)

    def _allocate(self, name: int) -> _Block:
        """A fresh block, or else the one idle for longest; there must be one."""
        if self._fresh:
            block = self._fresh.popleft()
        else:
            block = self._oldest_idle()
            self._forget(block.name)
            block.stamp = self._now()
        block.name, block.users = name, 1
        self._known[name] = block
        return block

    def _oldest_idle(self) -> _Block:
        if len(self._idle_by_age) > 4 * self.capacity:
            self._idle_by_age = [(block.stamp, name) for name, block in self._idle.items()]
            heapify(self._idle_by_age)
        while True:
            stamp, name = heappop(self._idle_by_age)
            block = self._idle.get(name)
            if block is not None and block.stamp == stamp:
                del self._idle[name]
                return block

    def _free(self, block: _Block) -> None:
        block.users -= 1
        if block.users:
            return
        twin = self._idle.get(block.name)
        if twin is not None:
            self._fresh.append(twin)
            if self._known.get(block.name) is twin:
                self._known[block.name] = block
        self._idle[block.name] = block
        heappush(self._idle_by_age, (block.stamp, block.name))

    def _forget(self, name: int) -> None:
        self._known.pop(name, None)
        if name not in self._idle:
            self._tell(BlocksRemoved((name,)))

    def _leave(self, key: int) -> None:
        sequence = self._sequences.pop(key)
        for block in sequence.blocks:
            self._free(block)

    def _drop_unneeded(self, sequence: _Sequence) -> None:
        """A prompt known to its end may bring a block for a token that is computed again."""
        needed = -(-sequence.processed // self._block_size)
        while len(sequence.blocks) > needed:
            self._free(sequence.blocks.pop())

    def _known_lengths(self, sequence: _Sequence) -> list[int]:
        """Ends of the leading blocks that the library finds for a prompt."""
        lengths: list[int] = []
        begin = 0
        while begin < sequence.prompt_tokens:
            end = min(begin + self._block_size, sequence.prompt_tokens)
            if not self._is_known(sequence, end):
                unfinished = range(begin + 1, end)
                found = next((each for each in unfinished if self._is_known(sequence, each)), None)
                return lengths if found is None else [*lengths, found]
            lengths.append(end)
            begin = end
        return lengths

    def _is_known(self, sequence: _Sequence, length: int) -> bool:
        name = self._name(sequence, length)
        return name in self._idle or name in self._known

    def _name(self, sequence: _Sequence, length: int) -> int:
        """The name of the block that ends with this many tokens."""
        whole, rest = divmod(length, self._block_size)
        names = sequence.names
        if whole > len(names):
            begin, parent = len(names) * self._block_size, names[-1] if names else None
            end = whole * self._block_size
            names += self._hasher.hashes(sequence.tokens[begin:end], parent)
        if not rest:
            return names[whole - 1]
        seed = names[whole - 1] if whole else self._hasher.root
        return xxh3_64_intdigest(token_bytes(sequence.tokens[length - rest : length]), seed)

    def _note(self, sequence: _Sequence, length: int) -> None:
        """Say that the block ending here is held, if it is a whole one."""
        whole, rest = divmod(length, self._block_size)
        if not rest:
            parent = sequence.names[whole - 2] if whole > 1 else None
            self._tell(BlocksStored((sequence.names[whole - 1],), parent))

    def _now(self) -> int:
        self._time += 1
        return self._time
