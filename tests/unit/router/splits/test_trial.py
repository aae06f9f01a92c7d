"""A canary is rolled back when it is worse, and hardly ever when it is not."""

import random

import pytest

from router.splits.settings import CanarySettings
from router.splits.trial import Trial

SETTINGS = CanarySettings(variant="new", false_alarm=0.01, window_requests=2000)


def play(
    seed: int,
    *,
    errors: tuple[float, float] = (0.01, 0.01),
    ttft: tuple[float, float] = (0.2, 0.2),
    requests: int = 20_000,
    share: float = 0.1,
    settings: CanarySettings = SETTINGS,
) -> int:
    """Requests of the canary until it was rolled back; 0: it never was.

    Args:
        seed: of everything drawn.
        errors: error rates of baseline and canary.
        ttft: medians of a log-normal time to first token (sigma 0.7) of both.
        requests: of both together.
        share: the canary's.
        settings: of the trial.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    trial, count = Trial(settings), 0
    for _ in range(requests):
        is_canary = draw.random() < share
        failed = draw.random() < errors[is_canary]
        seconds = None if failed else ttft[is_canary] * draw.lognormvariate(0, 0.7)
        if not is_canary:
            trial.baseline(failed=failed, ttft_s=seconds)
            continue
        count += 1
        if trial.canary(failed=failed, ttft_s=seconds):
            return count
    return 0


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1])
def test_an_equal_canary_stays(rate: float) -> None:
    """Over seeds, false alarms are as rare as was asked for: 1 % a window of 2,000."""
    alarms = sum(bool(play(seed, errors=(rate, rate))) for seed in range(40))
    assert alarms <= 2


def test_looking_often_does_not_find_something_in_noise() -> None:
    """Nothing is tolerated, and yet an equal canary stays: a window's looks share its 1 %."""
    strict = SETTINGS.model_copy(update={"max_error_rise": 0.0, "max_ttft_ratio": 1.0})
    window = {"errors": (0.05, 0.05), "requests": 4000, "share": 0.5, "settings": strict}
    assert sum(bool(play(seed, **window)) for seed in range(100)) <= 3  # type: ignore[arg-type]  # all are play's


@pytest.mark.parametrize("seed", range(5))
def test_a_failing_canary_goes_within_a_hundred_requests(seed: int) -> None:
    """One request in five fails, against one in a hundred."""
    assert 0 < play(seed, errors=(0.01, 0.2)) <= 100


@pytest.mark.parametrize("seed", range(5))
def test_a_slow_canary_goes(seed: int) -> None:
    """Twice the time to first token is found within some hundred requests."""
    assert 0 < play(seed, ttft=(0.2, 0.4)) <= 300


@pytest.mark.parametrize("seed", range(3))
def test_what_is_tolerated_is_no_alarm(seed: int) -> None:
    """A tenth slower and half a percent more errors are within the tolerances."""
    assert not play(seed, errors=(0.01, 0.015), ttft=(0.2, 0.22))


def test_a_canary_that_turns_bad_late_is_found_in_the_next_window() -> None:
    """Thousands of good requests do not hide that it has become bad."""
    trial = Trial(SETTINGS)
    for _ in range(10_000):
        trial.baseline(failed=False, ttft_s=0.2)
        assert not trial.canary(failed=False, ttft_s=0.2)
    verdicts = []
    for _ in range(100):
        trial.baseline(failed=False, ttft_s=0.2)
        verdicts.append(trial.canary(failed=True, ttft_s=None))
    assert any(verdicts)


def test_a_canary_without_a_baseline_is_not_judged() -> None:
    """Where all traffic goes to it there is nothing to compare it with."""
    trial = Trial(SETTINGS)
    assert not any(trial.canary(failed=True, ttft_s=None) for _ in range(500))


def test_a_canary_beside_a_few_of_the_baseline_is_not_judged() -> None:
    """Ten answers say too little of what is usual, however bad the canary is."""
    trial = Trial(SETTINGS)
    for _ in range(SETTINGS.min_requests - 1):
        trial.baseline(failed=False, ttft_s=0.2)
    assert not any(trial.canary(failed=True, ttft_s=None) for _ in range(500))
    trial.baseline(failed=False, ttft_s=0.2)
    assert any(trial.canary(failed=True, ttft_s=None) for _ in range(500))


@pytest.mark.parametrize(("tolerated", "goes"), [(0.01, True), (0.2, False)])
def test_how_many_more_errors_are_tolerated_is_the_operators_word(
    tolerated: float, goes: bool
) -> None:
    """One request in ten fails, against none."""
    trial = Trial(SETTINGS.model_copy(update={"max_error_rise": tolerated}))
    verdicts = []
    for n in range(1000):
        trial.baseline(failed=False, ttft_s=0.2)
        verdicts.append(trial.canary(failed=not n % 10, ttft_s=0.2))
    assert any(verdicts) is goes
