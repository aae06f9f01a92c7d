"""Token buckets: nothing is taken twice, nothing is lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admission.buckets import Bucket
from tests.unit.router.fleet import Clock


@given(
    per_minute=st.integers(1, 100_000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5000), st.floats(0, 1.5))),
)
def test_tokens_are_conserved(per_minute: int, steps: list[tuple[float, int, float]]) -> None:
    """What was used stays within a full bucket, the filling, and one estimate's error."""
    clock = Clock()
    bucket, begun = Bucket(per_minute, clock), clock.now
    used = over = 0.0
    for wait_s, cost, share in steps:
        clock.now += wait_s
        if bucket.seconds_until(cost) == 0:
            bucket.take(cost)
            bucket.give_back(cost - cost * share)
            used += cost * share
            # More than it holds was asked for, or more was used than was asked for.
            over = max(over, cost * max(1.0, share))
        assert bucket.level <= per_minute
    assert used <= per_minute + (clock.now - begun) * per_minute / 60 + over + 1e-3


@given(per_minute=st.integers(1, 10_000), cost=st.integers(1, 20_000), taken=st.integers(0, 20_000))
def test_the_time_that_is_told_is_enough(per_minute: int, cost: int, taken: int) -> None:
    """After the RetryInfo's delay the same amount can be taken."""
    clock = Clock()
    bucket = Bucket(per_minute, clock)
    bucket.take(taken)
    clock.now += bucket.seconds_until(cost) + 1e-6
    assert bucket.seconds_until(cost) == pytest.approx(0, abs=1e-5)
