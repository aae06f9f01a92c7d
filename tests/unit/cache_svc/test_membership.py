"""Which workers the routers speak of."""

from cache_svc.membership import Membership
from tests.fixtures.cache import TurnedClock


def membership(clock: TurnedClock, max_workers: int = 10) -> Membership:
    return Membership(silence_s=30.0, max_routers=2, max_workers=max_workers, clock=clock)


def test_workers_of_several_routers_add_up() -> None:
    """Each router replaces only what it said itself."""
    known = membership(TurnedClock())
    known.heard("r1", ["a", "b"])
    known.heard("r2", ["b", "c"])
    assert sorted(known.addresses()) == ["a", "b", "c"]
    known.heard("r1", ["a"])
    assert sorted(known.addresses()) == ["a", "b", "c"]
    known.heard("r2", [])
    assert known.addresses() == ["a"]


def test_a_silent_router_is_forgotten_with_its_workers() -> None:
    """A router that repeats itself stays."""
    clock = TurnedClock()
    known = membership(clock)
    known.heard("r1", ["a"])
    known.heard("r2", ["b"])
    clock.now_s += 20
    known.heard("r1", ["a"])
    clock.now_s += 20
    assert known.addresses() == ["a"]
    clock.now_s += 20
    assert known.addresses() == []


def test_routers_and_workers_are_bounded() -> None:
    """Names without end take no memory without end."""
    known = membership(TurnedClock(), max_workers=3)
    for number in range(100):
        known.heard(f"r{number}", [f"{number}-{each}" for each in range(100)])
    assert len(known.addresses()) == 3
