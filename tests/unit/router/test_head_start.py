"""The head start of a lookup: short where hits are quick or rare, long enough where not."""

import random

import pytest

from router.head_start import HeadStart

LEAST_S = 0.002


def learned(hits: list[float], misses: list[float], share: float = 0.05) -> HeadStart:
    head_start = HeadStart(LEAST_S, share)
    lookups = [(s, True) for s in hits] + [(s, False) for s in misses]
    random.Random(0).shuffle(lookups)  # noqa: S311 - repeatable, no secret
    for duration_s, hit in lookups:
        head_start.looked_up(duration_s, hit=hit)
    return head_start


def wasted(head_start: HeadStart, hits: list[float], misses: list[float]) -> float:
    late = sum(1 for duration_s in hits if duration_s > head_start.seconds)
    return late / (len(hits) + len(misses))


def test_until_anything_is_known_it_is_what_is_set() -> None:
    """The first requests have to teach it."""
    assert HeadStart(LEAST_S, 0.05).seconds == LEAST_S


def test_misses_alone_leave_it_at_the_least() -> None:
    """However slow they are: nothing is begun for nothing."""
    assert learned([], [0.04] * 200).seconds == LEAST_S


def test_rare_hits_may_be_lost() -> None:
    """Fewer than the share of all requests."""
    assert learned([0.04] * 8, [0.04] * 248).seconds == LEAST_S


def test_slow_misses_do_not_wait_for_slow_misses() -> None:
    """Only for as long as hits take: the semantic tier is what a miss need not wait for."""
    head_start = learned([0.003] * 128, [0.02] * 128)
    assert 0.003 < head_start.seconds < 0.005


@pytest.mark.parametrize("hit_share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("typical_s", [0.001, 0.01, 0.1])
def test_no_more_is_begun_for_nothing_than_the_share(hit_share: float, typical_s: float) -> None:
    """For lookups like those it has seen, whatever their spread."""
    chance = random.Random(1)  # noqa: S311 - repeatable, no secret
    hits = [typical_s * chance.lognormvariate(0, 0.5) for _ in range(int(512 * hit_share))]
    misses = [2 * typical_s * chance.lognormvariate(0, 0.5) for _ in range(512 - len(hits))]
    head_start = learned(hits, misses)
    assert wasted(head_start, hits, misses) <= 0.05
    later = [typical_s * chance.lognormvariate(0, 0.5) for _ in range(int(5120 * hit_share))]
    assert wasted(head_start, later, [0.0] * (5120 - len(later))) <= 0.06


def test_it_forgets_what_was_long_ago() -> None:
    """A sidecar that is quick again."""
    head_start = learned([0.1] * 512, [])
    assert head_start.seconds > 0.1
    for _ in range(512):
        head_start.looked_up(0.001, hit=True)
    assert head_start.seconds == LEAST_S
