"""Retries are a share of what is asked, and a small floor."""

from router.retry_budget import RetryBudget
from router.settings import RetrySettings
from tests.unit.router.fleet import Clock


def test_retries_are_at_most_their_share_of_the_load() -> None:
    """A thousand requests that all fail cost a hundred more, beside the reserve."""
    budget = RetryBudget(RetrySettings(share=0.1, floor_per_s=0, reserve=5), Clock())
    made = 0
    for _ in range(1000):
        budget.asked()
        made += budget.take()
    assert 100 <= made <= 105
    assert budget.refused == 1000 - made


def test_a_quiet_router_may_retry_at_its_floor() -> None:
    """So many a second, saved up to the reserve and no further."""
    clock = Clock()
    budget = RetryBudget(RetrySettings(share=0, floor_per_s=2, reserve=3), clock)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    clock.now += 1.0
    assert [budget.take() for _ in range(3)] == [True, True, False]
    clock.now += 1000.0
    assert sum(budget.take() for _ in range(10)) == 3
