"""What the router refuses by itself, before any worker is asked."""

import pytest
from google.protobuf.duration_pb2 import Duration

from router.model import ServedModel
from router.settings import LimitSettings
from router.validation import validate
from sidecache.errors import InvalidRequest
from sidecache.v1 import inference_pb2 as pb
from tests.unit.router.fleet import MODEL, chat


def check(wish: pb.PrefixRetention) -> None:
    request = chat("Be brief.", "Yes.", "Why?")
    request.retention.CopyFrom(wish)
    validate(request, ServedModel.from_worker(MODEL), LimitSettings())


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        (pb.PrefixRetention(priority=0), "priority"),
        (pb.PrefixRetention(priority=101), "priority"),
        (pb.PrefixRetention(priority=1, leading_messages=4), "leading_messages"),
        (pb.PrefixRetention(priority=1, duration=Duration()), "duration"),
        (pb.PrefixRetention(priority=1, duration=Duration(seconds=-1)), "duration"),
    ],
)
def test_a_prefix_that_cannot_be_retained_is_refused(wish: pb.PrefixRetention, field: str) -> None:
    """By the field that is wrong."""
    with pytest.raises(InvalidRequest) as refused:
        check(wish)
    assert refused.value.field == f"retention.{field}"


def test_the_bounds_of_a_retained_prefix_are_within_it() -> None:
    """The lowest and the highest priority, all of the messages, the shortest time."""
    check(pb.PrefixRetention(priority=1, leading_messages=3, duration=Duration(nanos=1)))
    check(pb.PrefixRetention(priority=100))
