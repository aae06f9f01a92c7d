"""The admission bound."""

import pytest

from router.admission import Admission
from router.settings import AdmissionSettings
from sidecache.errors import Overloaded, QuotaExceeded


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_full_router_refuses_and_says_when_to_come_back() -> None:
    """The bound holds, and retry_after_s follows the streams' real durations."""
    clock = Clock()
    admission = Admission(AdmissionSettings(max_streams=2), clock)
    for _ in range(200):
        with admission.admit("a"):
            clock.now += 4.0
    with (
        admission.admit("a"),
        admission.admit("b"),
        pytest.raises(Overloaded, match="bound of 2 streams") as refused,
        admission.admit("c"),
    ):
        pass
    # Two streams of four seconds: one of them ends every two seconds.
    assert refused.value.retry_after_s == pytest.approx(2.0, rel=0.01)
    assert type(refused.value) is Overloaded


def test_a_tenant_at_its_bound_leaves_room_for_others() -> None:
    """One tenant's bound is its own."""
    admission = Admission(AdmissionSettings(max_streams=8, max_streams_per_tenant=1), Clock())
    with admission.admit("greedy"):
        with pytest.raises(QuotaExceeded) as refused, admission.admit("greedy"):
            pass
        with admission.admit("quiet"):
            assert admission.streams == 2
    assert refused.value.subject == "tenant:greedy"


def test_a_place_is_given_back_whatever_ended_the_stream() -> None:
    """An error inside the block frees its place."""
    admission = Admission(AdmissionSettings(max_streams=1), Clock())
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), admission.admit("a"):
            raise ZeroDivisionError
    assert admission.streams == 0
