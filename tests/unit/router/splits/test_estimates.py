"""Figures with their uncertainty, against values from elsewhere."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.splits.estimates import Mean, binomial_tail, wilson


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_a_running_mean_is_the_mean(values: list[float]) -> None:
    """Mean and variance agree with the standard library's two passes."""
    mean = Mean()
    for value in values:
        mean.add(value)
    assert mean.mean == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert mean.variance == pytest.approx(statistics.variance(values), rel=1e-6, abs=1e-3)


def test_too_few_numbers_say_nothing() -> None:
    """One number has no interval."""
    mean = Mean()
    mean.add(3.0)
    assert mean.interval().low == -math.inf


def test_wilson_by_a_published_example() -> None:
    """Newcombe 1998, table I: 81 of 263 gives .2553 to .3662; 0 of 20 gives 0 to .1611."""
    found = wilson(81, 263)
    assert found.low == pytest.approx(0.2553, abs=1e-4)
    assert found.high == pytest.approx(0.3662, abs=1e-4)
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=1e-4)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0, 1)


@given(st.integers(1, 60), st.floats(0.001, 0.999), st.data())
def test_the_tail_is_the_sum_of_its_terms(count: int, share: float, data: st.DataObject) -> None:
    """Against the sum by exact coefficients."""
    hits = data.draw(st.integers(0, count))
    exact = sum(
        math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(hits, count + 1)
    )
    assert binomial_tail(hits, count, share) == pytest.approx(exact, rel=1e-6, abs=1e-12)
