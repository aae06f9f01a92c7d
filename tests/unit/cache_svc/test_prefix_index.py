"""The prefix index against a plain model of sets."""

from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache_svc.prefix_index import MAX_CHECKED_BLOCKS, PrefixIndex, TooManyBlocks

MAX_BLOCKS = 12
WORKERS = st.sampled_from(["w1", "w2", "w3"])
NAMES = st.integers(0, 20) | st.sampled_from([2**64 - 1, 2**63])
BATCHES = st.lists(NAMES, max_size=16)


class Machine(RuleBasedStateMachine):
    """Any events in any order: repeated, unknown, with holes, beyond a worker's limit."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(MAX_BLOCKS)
        self.model: defaultdict[str, set[int]] = defaultdict(set)
        self.limits: defaultdict[str, int] = defaultdict(lambda: MAX_BLOCKS)

    @rule(worker=WORKERS, names=BATCHES)
    def stored(self, worker: str, names: list[int]) -> None:
        if len(self.model[worker] | set(names)) > self.limits[worker]:
            with pytest.raises(TooManyBlocks):
                self.index.stored(worker, names)
            self.model[worker].clear()
        else:
            self.index.stored(worker, names)
            self.model[worker] |= set(names)

    @rule(worker=WORKERS, names=BATCHES)
    def removed(self, worker: str, names: list[int]) -> None:
        self.index.removed(worker, names)
        self.model[worker] -= set(names)

    @rule(worker=WORKERS)
    def cleared(self, worker: str) -> None:
        self.index.cleared(worker)
        self.model[worker].clear()

    @rule(worker=WORKERS)
    def forget(self, worker: str) -> None:
        self.index.forget(worker)
        self.model[worker].clear()
        self.limits.pop(worker, None)

    @rule(worker=WORKERS, blocks=st.integers(-1, 2 * MAX_BLOCKS))
    def limit(self, worker: str, blocks: int) -> None:
        self.limits[worker] = min(max(blocks, 0), MAX_BLOCKS)
        if len(self.model[worker]) > self.limits[worker]:
            with pytest.raises(TooManyBlocks):
                self.index.limit(worker, blocks)
            self.model[worker].clear()
        else:
            self.index.limit(worker, blocks)

    @rule(prompt=st.lists(NAMES, max_size=30, unique=True))
    def match(self, prompt: list[int]) -> None:
        expected = {}
        for worker, held in self.model.items():
            depth = next((at for at, name in enumerate(prompt) if name not in held), len(prompt))
            if depth:
                expected[worker] = depth
        assert self.index.match(prompt) == expected

    @invariant()
    def never_more_than_the_caches(self) -> None:
        assert len(self.index) == sum(map(len, self.model.values()))
        assert len(self.index) <= self.index.max_total <= MAX_BLOCKS * len(self.model)
        assert sorted(self.index.workers) == sorted(w for w, held in self.model.items() if held)


TestAgainstSets = Machine.TestCase
# Busy cores alone make its input slow.
TestAgainstSets.settings = settings(
    max_examples=200, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow]
)


@given(depths=st.lists(st.integers(0, 9_000), min_size=1, max_size=8))
@settings(max_examples=30)
def test_leaves_evicted_first_are_matched_exactly_at_any_length(depths: list[int]) -> None:
    """Beyond what is checked block by block, too: then halving alone is right."""
    prompt = list(range(1, 9_001))
    index = PrefixIndex()
    for number, depth in enumerate(depths):
        index.stored(str(number), prompt)
        index.removed(str(number), prompt[depth:])
    expected = {str(number): depth for number, depth in enumerate(depths) if depth}
    assert index.match(prompt) == expected


def test_a_hole_beyond_what_is_checked_costs_a_wrong_estimate_only() -> None:
    """The estimate still ends where the worker holds a block and not the next."""
    prompt = list(range(1, 3 * MAX_CHECKED_BLOCKS))
    index = PrefixIndex()
    index.stored("w", prompt)
    index.removed("w", [5])
    assert index.match(prompt)["w"] in {4, len(prompt)}


def test_equal_prefixes_of_two_prompts_are_one_set() -> None:
    """A block that two workers hold counts for both."""
    index = PrefixIndex()
    index.stored("a", [1, 2, 3])
    index.stored("b", [1, 2])
    assert index.match([1, 2, 3, 4]) == {"a": 3, "b": 2}
    assert len(index) == 5
