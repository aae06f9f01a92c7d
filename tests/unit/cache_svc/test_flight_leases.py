"""Who generates which answer: one holder at a time, bounded in time and number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_svc import flight_leases
from cache_svc.flight_leases import Claim, Ending, FlightLeases
from tests.fixtures.cache import TurnedClock

LEASE_S = 10.0
A, B, C = (Claim(f"r{number}:1", f"of {number}") for number in (1, 2, 3))


def make(clock: TurnedClock | None = None) -> FlightLeases:
    return FlightLeases(clock or TurnedClock(), LEASE_S)


def holder(leases: FlightLeases) -> str | None:
    lease = leases.holder("acme", b"k")
    return None if lease is None else lease.router


def test_the_first_to_ask_has_the_lease() -> None:
    """Others are told where; asking again keeps it one's own."""
    leases = make()
    assert leases.claim("acme", b"k", A) is None
    told = leases.claim("acme", b"k", B)
    assert told
    assert (told.router, told.request_id) == (A.router, A.request_id)
    assert leases.claim("acme", b"k", A._replace(request_id="another")) is None
    assert holder(leases) == A.router


def test_a_lease_lasts_while_it_is_kept() -> None:
    """A long answer outlives the first lease; a dead router's is nobody's after a while."""
    clock = TurnedClock()
    leases = make(clock)
    leases.claim("acme", b"k", A)
    for _ in range(10):
        clock.now_s += LEASE_S * 0.9
        assert leases.claim("acme", b"k", A) is None
        assert leases.claim("acme", b"k", B)
    clock.now_s += LEASE_S
    assert leases.claim("acme", b"k", B) is None
    assert leases.claim("acme", b"k", A)


def test_a_lease_that_is_given_back_is_free_at_once() -> None:
    """So that the next one need not wait for its end; nobody gives back another's."""
    leases = make()
    leases.claim("acme", b"k", A)
    leases.give_back("acme", b"k", B.router)
    assert holder(leases) == A.router
    leases.give_back("acme", b"k", A.router)
    assert holder(leases) is None
    assert leases.claim("acme", b"k", B) is None


def test_one_successor_takes_over_from_a_lost_router() -> None:
    """Of several that lose it at the same time the first one; the others are told of him."""
    leases = make()
    leases.claim("acme", b"k", A)
    assert leases.claim("acme", b"k", B._replace(instead_of=A.router)) is None
    told = leases.claim("acme", b"k", C._replace(instead_of=A.router))
    assert told
    assert told.router == B.router
    # Not lost after all: it hears whose it is.
    told = leases.claim("acme", b"k", A)
    assert told
    assert told.router == B.router


def test_who_can_share_nothing_gives_way() -> None:
    """A private lease is no hint to others; it is kept only until one comes who can share."""
    private = A._replace(is_private=True)
    leases = make()
    leases.claim("acme", b"k", private)
    assert leases.claim("acme", b"k", B._replace(is_private=True))
    assert leases.claim("acme", b"k", B) is None
    assert leases.claim("acme", b"k", private)


def test_tenants_have_their_own() -> None:
    """One key of two tenants is two answers."""
    leases = make()
    assert leases.claim("acme", b"k", A) is None
    assert leases.claim("umbrella", b"k", B) is None


def test_leases_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that would end first goes, and ended ones with the next that comes."""
    monkeypatch.setattr(flight_leases, "MAX_LEASES", 3)
    clock = TurnedClock()
    leases = make(clock)
    for number in range(5):
        leases.claim("acme", bytes([number]), A)
    assert len(leases) == 3
    clock.now_s += LEASE_S
    leases.claim("acme", b"new", A)
    assert len(leases) == 1


def test_every_ending_is_told_once() -> None:
    """Who waits for a generation hears how it ended; a change of hands is no end."""
    clock, told = TurnedClock(), list[tuple[str, bytes, Ending]]()
    leases = FlightLeases(clock, LEASE_S, lambda *end: told.append(end))
    for key in (b"1", b"2", b"3"):
        leases.claim("acme", key, A)
    leases.claim("acme", b"1", B._replace(instead_of=A.router))
    assert not told
    leases.answered("acme", b"1")
    leases.give_back("acme", b"2", A.router)
    clock.now_s += LEASE_S
    leases.expire()
    leases.answered("acme", b"3")
    assert told == [
        ("acme", b"1", Ending.ANSWERED),
        ("acme", b"2", Ending.GIVEN_BACK),
        ("acme", b"3", Ending.EXPIRED),
    ]


steps = st.one_of(
    st.tuples(st.just("claim"), st.integers(0, 2), st.none() | st.integers(0, 2)),
    st.tuples(st.just("give back"), st.integers(0, 2), st.none()),
    st.tuples(st.just("answered"), st.just(0), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 12), st.none()),
)


@given(st.lists(steps, max_size=40))
def test_one_router_at_a_time_has_the_lease(taken: list[tuple[str, int, int | None]]) -> None:
    """Whatever the order of taking, keeping, taking over, giving back and forgetting.

    Who was told that the lease is his, has not given it back, was not accused of being
    lost, and has kept it in time: he is the holder, and nobody else believes so.
    """
    clock = TurnedClock()
    leases = make(clock)
    believers: dict[str, float] = {}
    for step, number, lost in taken:
        claim = (A, B, C)[number % 3]
        if step == "claim":
            accused = "" if lost is None else (A, B, C)[lost].router
            other = leases.claim("acme", b"k", claim._replace(instead_of=accused))
            believed = {r for r, until_s in believers.items() if until_s > clock.now_s}
            if other is None:
                assert believed <= {claim.router, accused}
                believers = {claim.router: clock.now_s + LEASE_S}
            else:
                assert other.router in believed - {claim.router}
                believers.pop(claim.router, None)
        elif step == "give back":
            leases.give_back("acme", b"k", claim.router)
            believers.pop(claim.router, None)
        elif step == "answered":
            leases.answered("acme", b"k")
            believers.clear()
        else:
            clock.now_s += number
        believed = {r for r, until_s in believers.items() if until_s > clock.now_s}
        assert ({holder(leases)} - {None}) == believed


def test_a_kept_lease_outlasts_those_that_came_after_it() -> None:
    """Kept, it ends later than it would have; what nobody keeps ends in its own time."""
    clock = TurnedClock()
    leases = make(clock)
    leases.claim("acme", b"kept", A)
    leases.claim("acme", b"left", A)
    clock.now_s += LEASE_S * 0.9
    leases.claim("acme", b"kept", A)
    clock.now_s += LEASE_S * 0.2
    assert leases.holder("acme", b"left") is None
    assert leases.holder("acme", b"kept")
    assert leases.claim("acme", b"kept", B)
