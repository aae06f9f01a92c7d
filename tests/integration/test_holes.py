"""Caches that evict from the middle of a prefix, from the engine's events to the index.

What the index credits a worker with is the longest run from a prompt's beginning that its
engine holds, however long the prompt is and whatever was evicted of it.
"""

import asyncio
import random
from collections import OrderedDict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cache_svc.followed_models import FollowedModels, ModelIdentity
from cache_svc.kv_stream import KvStream
from cache_svc.prefix_index import MAX_CHECKED_BLOCKS
from cache_svc.prompt_tokenizer import Fingerprints
from inference_svc.engines.vllm_blocks import BlockNames
from inference_svc.kv_ledger import KvLedger
from inference_svc.kv_wire import to_wire
from inference_svc.reachable_blocks import ReachableBlocks
from sidecache.kv_blocks import BlockHasher

# A token is a block, so that prompts of thousands of blocks are short.
IDENTITY = ModelIdentity("m", "r1", 1, Fingerprints("t", "c"), 1 << 20, 1 << 20, salted=True)
LONG = 3 * MAX_CHECKED_BLOCKS


class PagedCache:
    """A cache as vLLM's: blocks by an engine's own hash, the longest unused evicted first.

    A finished request's blocks become unused from its last to its first, as vLLM frees
    them; :meth:`evict` takes any of them out of turn.
    """

    def __init__(self, capacity: int, names: BlockNames) -> None:
        self._capacity = capacity
        self._names = names
        self._held: OrderedDict[int, None] = OrderedDict()

    def run(self, prompt: tuple[int, ...]) -> None:
        """Prefill what is not held of a prompt, told in runs, and free it."""
        hashes = [hash(prompt[: end + 1]) for end in range(len(prompt))]
        at = 0
        while at < len(prompt):
            end = at
            while end < len(prompt) and hashes[end] not in self._held:
                end += 1
            if end > at:
                self._store(prompt, hashes, at, end)
            at = max(end, at + 1)
        for each in reversed(hashes):
            self._held.move_to_end(each)
        self._shrink()

    def evict(self, hashes: list[int]) -> None:
        """These go, wherever in a prefix they are."""
        for each in hashes:
            self._held.pop(each, None)
        self._tell("BlockRemoved", block_hashes=hashes)

    def clear(self) -> None:
        self._held.clear()
        self._tell("AllBlocksCleared")

    def depth(self, prompt: tuple[int, ...]) -> int:
        """Leading blocks of a prompt that are held."""
        for end in range(len(prompt)):
            if hash(prompt[: end + 1]) not in self._held:
                return end
        return len(prompt)

    def _store(self, prompt: tuple[int, ...], hashes: list[int], at: int, end: int) -> None:
        for each in hashes[at:end]:
            self._held[each] = None
        parent = hashes[at - 1] if at else None
        self._tell(
            "BlockStored", block_hashes=hashes[at:end], parent_block_hash=parent,
            token_ids=[*prompt[at:end]], medium="GPU",
        )  # fmt: skip

    def _shrink(self) -> None:
        gone: list[Any] = []
        while len(self._held) > self._capacity:
            gone.append(self._held.popitem(last=False)[0])
        if gone:
            self._tell("BlockRemoved", block_hashes=gone)

    def _tell(self, kind: str, **event: Any) -> None:
        assert self._names.apply({"type": kind, **event})


class Followed:
    """An engine's cache, its worker's ledger, and the index of a sidecar that follows it."""

    def __init__(self, capacity: int) -> None:
        self.ledger = KvLedger()
        names = BlockNames(1, capacity + LONG, ReachableBlocks(self.ledger.record))
        self.cache = PagedCache(capacity, names)
        self._models = FollowedModels(1 << 20, 1 << 20)
        self._models.join("w", IDENTITY)
        model = self._models.of_worker("w")
        assert model is not None
        self._index = model.index
        self._stream = KvStream("w", model, self._models, "e1")
        self._cursor = self.ledger.follow(0)

    async def credited(self, prompt: tuple[int, ...]) -> int:
        """Leading blocks that the index says the worker holds, all events applied."""
        self.ledger.flush()
        while items := self._cursor.take():
            for item in items:
                await self._stream.apply(to_wire("e1", item, self.ledger.sequence))
        return self._index.match(BlockHasher(1).hashes(prompt)).get("w", 0)


PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple)
STEPS = st.lists(st.tuples(st.sampled_from(["run", "run", "evict", "clear"]), PROMPTS))


@settings(max_examples=200)
@given(steps=STEPS, capacity=st.integers(8, 20))
def test_a_match_ends_at_the_first_hole(
    steps: list[tuple[str, tuple[int, ...]]], capacity: int
) -> None:
    """After every eviction, in turn and out of turn, each prompt's credit is the truth."""

    async def follow() -> None:
        followed = Followed(capacity)
        for kind, prompt in steps:
            if kind == "run":
                followed.cache.run(prompt)
            elif kind == "evict":
                followed.cache.evict([hash(prompt)])
            else:
                followed.cache.clear()
            for _, each in steps:
                assert await followed.credited(each) == followed.cache.depth(each)

    asyncio.run(follow())


async def test_holes_in_prompts_longer_than_what_is_looked_through() -> None:
    """Thousands of blocks, any of them evicted, and computed again: the credit is exact."""
    chance = random.Random(4)  # noqa: S311 - repeatable, not secret
    prompt = tuple(chance.randrange(1 << 20) for _ in range(LONG))
    followed = Followed(capacity=2 * LONG)
    followed.cache.run(prompt)
    assert await followed.credited(prompt) == LONG
    for _ in range(12):
        holes = [hash(prompt[: chance.randrange(1, LONG + 1)]) for _ in range(3)]
        followed.cache.evict(holes)
        depth = followed.cache.depth(prompt)
        assert await followed.credited(prompt) == depth < LONG
        # A shorter prompt fills the first hole, so that a match goes on to the next.
        followed.cache.run(prompt[: depth + 1])
        depth_then = followed.cache.depth(prompt)
        assert await followed.credited(prompt) == depth_then > depth
        followed.cache.run(prompt)
        assert await followed.credited(prompt) == LONG


async def test_a_day_of_a_cache_that_is_too_small() -> None:
    """Conversations grow, turn by turn and mixed, in a cache that holds a fifth of them."""
    chance = random.Random(7)  # noqa: S311 - repeatable, not secret
    followed = Followed(capacity=600)
    talks: list[tuple[int, ...]] = [(0, 1, 2, 3)] * 12
    for _ in range(150):
        number = chance.randrange(len(talks))
        grown = talks[number] + tuple(chance.randrange(100) for _ in range(chance.randrange(1, 40)))
        talks[number] = grown[:300]
        followed.cache.run(talks[number])
        asked = talks[chance.randrange(len(talks))]
        assert await followed.credited(asked) == followed.cache.depth(asked)
