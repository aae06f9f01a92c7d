"""The breaker in front of the sidecar."""

from router.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_opens_after_failures_in_a_row_only() -> None:
    """A success in between starts the count again."""
    breaker = Breaker(3, 1.0, Clock())
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.admit()
    for _ in range(3):
        breaker.failed()
    assert not breaker.admit()


def test_half_open_admits_one_probe() -> None:
    """After the pause one call finds out; the crowd waits for its outcome."""
    clock = Clock()
    breaker = Breaker(1, 1.0, clock)
    breaker.failed()
    assert not breaker.admit()
    clock.now = 1.0
    assert [breaker.admit() for _ in range(5)] == [True, False, False, False, False]
    breaker.failed()
    clock.now = 1.9
    assert not breaker.admit()
    clock.now = 2.0
    assert breaker.admit()
    breaker.succeeded()
    assert [breaker.admit() for _ in range(5)] == [True] * 5


def test_a_probe_that_never_reports_does_not_close_the_way_for_good() -> None:
    """A cancelled probe is followed by another after one more pause."""
    clock = Clock()
    breaker = Breaker(1, 1.0, clock)
    breaker.failed()
    clock.now = 1.0
    assert breaker.admit()
    clock.now = 2.0
    assert breaker.admit()
