"""Who generates which answer: bounded in time and number, and never across tenants."""

import pytest

from cache_svc import flight_leases
from cache_svc.flight_leases import LEASE_S, FlightLeases
from tests.fixtures.cache import TurnedClock


def test_the_first_to_ask_has_the_lease() -> None:
    """Others are told where; asking again keeps it one's own, under the newer request."""
    leases = FlightLeases(TurnedClock())
    assert leases.claim("acme", b"k", "r1:1", "a") is None
    told = leases.claim("acme", b"k", "r2:1", "b")
    assert told
    assert (told.router, told.request_id) == ("r1:1", "a")
    assert leases.claim("acme", b"k", "r1:1", "c") is None
    told = leases.claim("acme", b"k", "r2:1", "b")
    assert told
    assert told.request_id == "c"


def test_a_lease_ends_by_itself_or_with_the_answer() -> None:
    """A dead router's lease is nobody's after a while."""
    clock = TurnedClock()
    leases = FlightLeases(clock)
    leases.claim("acme", b"k", "r1:1", "a")
    clock.now_s += LEASE_S
    assert leases.claim("acme", b"k", "r2:1", "b") is None
    leases.release("acme", b"k")
    assert leases.claim("acme", b"k", "r3:1", "c") is None


def test_tenants_have_their_own() -> None:
    """One key of two tenants is two answers."""
    leases = FlightLeases(TurnedClock())
    assert leases.claim("acme", b"k", "r1:1", "a") is None
    assert leases.claim("umbrella", b"k", "r2:1", "b") is None


def test_leases_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes, and ended ones with the next that comes."""
    monkeypatch.setattr(flight_leases, "MAX_LEASES", 3)
    clock = TurnedClock()
    leases = FlightLeases(clock)
    for number in range(5):
        leases.claim("acme", bytes([number]), "r1:1", "a")
    assert len(leases) == 3
    clock.now_s += LEASE_S
    leases.claim("acme", b"new", "r1:1", "a")
    assert len(leases) == 1
