"""The scale signal: what a load asks for, and that it neither flaps nor lags."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.arrivals import Burstiness, arrivals
from benchmarks.scale import Fleet, bursts, reaction
from router.admission.scale import ArrivalRate, Demand, ScaleSignal, desired_workers
from router.admission.settings import ScaleSettings

OBJECTIVES = ScaleSettings(target_utilization=0.8, target_wait_s=1.0, drain_s=10.0)


@pytest.mark.parametrize(
    ("demand", "workers", "reason"),
    [
        (Demand(workers=2, slots=20, running=0), 1, "bounds"),
        (Demand(workers=2, slots=20, running=16), 2, "running"),
        (Demand(workers=2, slots=20, running=17), 3, "running"),
        # Ten a second of four seconds each are forty at once, whether let in or refused.
        (Demand(2, 20, 20, arrivals_per_s=10.0, hold_s=4.0), 5, "offered"),
        # A queue of half a second is in order.
        (Demand(2, 20, 20, waiting=10, hold_s=1.0), 3, "running"),
        # One of four seconds is not: it is to be gone in ten.
        (Demand(2, 20, 20, waiting=80, hold_s=1.0), 4, "waiting"),
        (Demand(2, 20, 4, kv_usage=1.0), 3, "kv_cache"),
        (Demand(2, 20, 10_000), 64, "bounds"),
        # Nobody is ready, or nobody tells his slots: no reason to change anything.
        (Demand(0, 0, 0, waiting=50), 1, "none"),
        (Demand(3, 0, 50), 3, "none"),
    ],
)
def test_what_a_demand_asks_for(demand: Demand, workers: int, reason: str) -> None:
    """Slots that run or arrive over those of a worker, a queue that is too long, the KV cache."""
    assert desired_workers(demand, OBJECTIVES) == (workers, reason)


@given(running=st.integers(0, 500), waiting=st.integers(0, 500), more=st.integers(0, 100))
def test_more_load_never_asks_for_fewer(running: int, waiting: int, more: int) -> None:
    """Monotone in what runs and in what waits."""
    now = desired_workers(Demand(4, 40, running, waiting, hold_s=1.0), OBJECTIVES)[0]
    later = desired_workers(Demand(4, 40, running + more, waiting + more, hold_s=1.0), OBJECTIVES)
    assert later[0] >= now


def test_up_by_a_factor_at_a_time_and_down_after_the_window() -> None:
    """Twice as many each ten seconds; down to the window's highest, once it has passed."""
    signal = ScaleSignal(2, OBJECTIVES)
    high, low = Demand(2, 20, 200), Demand(2, 20, 20)
    assert [signal.update(high, now) for now in (0.0, 5.0, 10.0, 20.0, 30.0)] == [4, 4, 8, 16, 25]
    assert signal.update(low, 40.0) == 25
    assert signal.update(Demand(2, 20, 40), 100.0) == 25
    assert signal.update(low, 329.0) == 25
    assert signal.update(low, 331.0) == 5
    assert signal.update(low, 401.0) == 3


def test_the_rate_forgets() -> None:
    """A burst fades with its time constant; a steady rate is found."""
    rate = ArrivalRate(tau_s=10.0)
    for _ in range(100):
        rate.update(20, 2.0)
    assert rate.per_s == pytest.approx(10.0)
    rate.update(0, 10.0)
    assert rate.per_s == pytest.approx(10.0 / 2.718, rel=0.01)


def test_a_seed_makes_a_load_and_its_rates_are_those_asked_for() -> None:
    """Same seed, same requests; the mean rate is that of calm and bursts by their shares."""
    load = Burstiness()
    first = list(arrivals(load, 36_000, 5))
    assert first == list(arrivals(load, 36_000, 5))
    assert first != list(arrivals(load, 36_000, 6))
    expected = load.rate * (600 + 120 * load.burst_factor) / 720 * 36_000
    assert len(first) == pytest.approx(expected, rel=0.25)
    assert all(a.at_s <= b.at_s for a, b in pairwise(first))


def test_a_jump_is_answered_within_seconds_and_not_exceeded_far() -> None:
    """Five times the rate: the signal is enough within 15 s, and below twice what is needed."""
    told = reaction(Fleet(), ScaleSettings(), 5.0, seed=1)
    assert told["signal_enough_after_s"] <= 15
    assert told["most_desired_over_needed"] <= 2
    assert told["back_in_objective_after_s"] <= 2 * told["provision_s"]


def test_bursts_are_followed_without_flapping() -> None:
    """Better than a fleet of the mean size, smaller than twice the mean, few changes."""
    told = bursts(Fleet(), ScaleSettings(), Burstiness(), 3600.0, seed=3)
    assert told["followed"]["refused"] < 0.5 * told["mean"]["refused"]
    assert told["followed"]["signal_changes_an_hour"] <= 60
