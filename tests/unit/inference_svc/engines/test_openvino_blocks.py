"""The modelled block manager does what the library was seen to do."""

from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc.engines.openvino_blocks import OpenVinoBlocks
from inference_svc.kv_events import BlocksRemoved, BlocksStored, KvEvent
from inference_svc.reachable_blocks import ReachableBlocks
from sidecache.kv_blocks import BlockHasher

SIZE = 4


class Told:
    """What the events add up to; a block without its parent is a failure."""

    def __init__(self) -> None:
        self.parents: dict[int, int | None] = {}

    def __call__(self, event: KvEvent) -> None:
        if isinstance(event, BlocksStored):
            (name,) = event.hashes
            assert name not in self.parents
            assert event.parent is None or event.parent in self.parents
            self.parents[name] = event.parent
        else:
            assert isinstance(event, BlocksRemoved)
            for name in event.hashes:
                del self.parents[name]
            assert not set(event.hashes) & set(self.parents.values())


def model(capacity: int, step_tokens: int = 8) -> tuple[OpenVinoBlocks, Told]:
    told = Told()
    return OpenVinoBlocks(capacity, SIZE, step_tokens, ReachableBlocks(told)), told


def run(blocks: OpenVinoBlocks, key: int, prompt: list[int], answer: list[int]) -> int:
    """One sequence alone, to its end; how much was cached."""
    cached = blocks.joined(key, prompt)
    todo = len(prompt) - cached
    while todo > 8:
        blocks.stepped({}, ())
        todo -= 8
    for number, token in enumerate(answer, 1):
        blocks.stepped({key: [token]}, (key,) if number == len(answer) else ())
    return cached


def tokens(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def test_a_prompt_comes_back() -> None:
    """Whole blocks, and of a prompt known to its end all but the last token."""
    blocks, told = model(20)
    assert run(blocks, 1, tokens(0, 10), [90]) == 0
    assert run(blocks, 2, tokens(0, 10), [90]) == 9
    assert run(blocks, 3, tokens(0, 8), [90]) == 7
    assert run(blocks, 4, [*tokens(0, 8), 77, 78, 79], [90]) == 8
    assert set(BlockHasher(SIZE).hashes(tokens(0, 8))) <= set(told.parents)
    assert blocks.in_use == 3


def test_a_later_turn_finds_the_unfinished_block_of_the_one_before() -> None:
    """Question and answer end inside a block; the next turn goes on from there.

    The answer's last token was never computed.
    """
    blocks, _ = model(20)
    run(blocks, 1, tokens(0, 9), [50, 51])
    assert run(blocks, 2, [*tokens(0, 9), 50, 51, 60, 61], [90]) == 10


def test_the_root_of_the_longest_unused_goes_first() -> None:
    """One evicted block makes its whole prompt unusable, and the events say so."""
    blocks, told = model(6)
    run(blocks, 1, tokens(0, 16), [90])
    run(blocks, 2, tokens(100, 12), [90])
    assert not set(BlockHasher(SIZE).hashes(tokens(0, 16))) & set(told.parents)
    assert set(BlockHasher(SIZE).hashes(tokens(100, 12))) <= set(told.parents)
    assert run(blocks, 3, tokens(0, 16), [90]) == 0


def test_a_cancelled_sequence_leaves_with_the_next_step() -> None:
    """Until then its blocks are in use."""
    blocks, _ = model(20)
    blocks.joined(1, tokens(0, 8))
    blocks.stepped({1: [50]}, ())
    blocks.joined(2, tokens(100, 4))
    blocks.cancelled(1)
    blocks.stepped({2: [60]}, ())
    assert blocks.in_use == 3
    blocks.stepped({2: [61]}, ())
    assert blocks.in_use == 2


PROMPTS = st.lists(st.integers(1, 3), min_size=1, max_size=14)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(PROMPTS, st.integers(0, 3)), min_size=1, max_size=25), st.integers(2, 12))
def test_it_stays_within_the_cache(requests: list[tuple[list[int], int]], capacity: int) -> None:
    """Whatever comes, however many run at once, no more is told than there are blocks."""
    blocks, told = model(capacity)
    running: dict[int, int] = {}
    for key, (prompt, answer) in enumerate(requests):
        cached = blocks.joined(key, prompt)
        assert 0 <= cached < len(prompt)
        running[key] = answer
        finished = [each for each, left in running.items() if not left]
        blocks.stepped({each: [each] for each in running}, finished)
        running = {each: left - 1 for each, left in running.items() if left}
        assert blocks.in_use <= capacity
        assert len(told.parents) <= capacity
    for key in running:
        blocks.cancelled(key)
    blocks.stepped({}, ())
    blocks.stepped({}, ())
    assert blocks.in_use == 0
