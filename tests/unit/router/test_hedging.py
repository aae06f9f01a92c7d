"""When a second worker may begin."""

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from observability.metrics.router import HedgeMetrics
from router.hedging import Hedging
from router.model import ServedModel
from router.settings import HedgeSettings
from tests.unit.router.fleet import MODEL, Clock, make_worker

SERVED = ServedModel.from_worker(MODEL)


def hedging(clock: Clock, *, room: bool = True, **settings: Any) -> Hedging:
    metrics = HedgeMetrics(MeterProvider([InMemoryMetricReader()]).get_meter("test"))
    return Hedging(HedgeSettings(enabled=True, **settings), lambda _: room, metrics, clock)


async def test_one_slow_worker_of_six_does_not_set_the_delay() -> None:
    """A sixth of all first tokens is more than a twentieth: their common p95 would be its own."""
    one = hedging(Clock())
    workers = [make_worker(f"w{number}") for number in range(6)]
    for worker in workers[:5]:
        for number in range(100):
            one.took(worker, 0.1 + 0.001 * (number % 20))
    for _ in range(100):
        one.took(workers[5], 3.0)
    delay_s = one.delay_s(SERVED, workers)
    assert delay_s is not None
    assert 0.115 < delay_s < 0.12


async def test_before_enough_is_known_nothing_is_hedged() -> None:
    """Fifteen first tokens are not enough; and what is learned is used within a second."""
    clock = Clock()
    one, worker = hedging(clock), make_worker("w1")
    for _ in range(15):
        one.took(worker, 0.2)
    assert one.delay_s(SERVED, [worker]) is None
    one.took(worker, 0.2)
    clock.now += 1.0
    assert one.delay_s(SERVED, [worker]) == 0.2


async def test_a_learned_delay_has_a_least() -> None:
    """Where first tokens take no time, noise is no reason."""
    one, worker = hedging(Clock(), least_s=0.05), make_worker("w1")
    for _ in range(20):
        one.took(worker, 0.001)
    assert one.delay_s(SERVED, [worker]) == 0.05


def test_the_budget_is_a_share_of_what_comes() -> None:
    """One saved up, and one for every ten requests; none by time alone."""
    clock = Clock()
    one = hedging(clock, share=0.125, reserve=1.0)
    assert one.may_begin(SERVED)
    clock.now += 1e6
    assert not one.may_begin(SERVED)
    for _ in range(80):
        one.asked()
        one.may_begin(SERVED)
    begun = 0
    for _ in range(800):
        one.asked()
        begun += one.may_begin(SERVED)
    assert begun == 100


def test_without_room_nothing_is_taken_from_the_budget() -> None:
    """Whoever waits for a place comes first."""
    one = hedging(Clock(), room=False, reserve=1.0)
    assert not one.may_begin(SERVED)
    assert one._budget.take()
