"""The client hands out no token that was lost, repeated or reordered on the way."""

import pytest

from sidecache.errors import BrokenInvariant
from sidecache.stream_order import StreamOrder
from sidecache.v1 import inference_pb2 as pb

from .events import PROGRESS, STARTED, delta, finished, migrated


def play(*events: pb.GenerateResponse, num_choices: int = 1) -> StreamOrder:
    order = StreamOrder(num_choices)
    for event in events:
        order.check(event)
    order.check_end()
    return order


def test_a_whole_stream_passes() -> None:
    """Heartbeats, migrations and deltas without tokens fit anywhere after the start."""
    order = play(
        PROGRESS,
        STARTED,
        migrated(0),
        delta(0, 1, 2),
        PROGRESS,
        delta(2, text="held back"),
        migrated(2),
        delta(2, 3),
        finished(),
    )
    assert order.num_tokens == 3


def test_choices_count_apart() -> None:
    """Each choice has offsets of its own."""
    play(
        STARTED,
        delta(0, 1),
        delta(0, 9, 8, choice=1),
        delta(1, 2),
        finished(1),
        finished(0),
        num_choices=2,
    )


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ((STARTED, delta(0, 1), delta(2, 3)), "lost tokens"),
        ((STARTED, delta(1, 1)), "lost tokens"),
        ((STARTED, delta(0, 1, 2), delta(1, 2)), "repeats tokens"),
        ((STARTED, STARTED), "started twice"),
        ((delta(0, 1),), "before the stream started"),
        ((STARTED, finished(), delta(0, 1)), "after it finished"),
        ((STARTED, finished(), finished()), "after it finished"),
        ((STARTED, delta(0, 1, choice=1)), "1 were asked for"),
        ((STARTED, delta(0, 1), migrated(0)), "migrated at offset 0"),
        ((STARTED, delta(0, 1)), "unfinished after 1 tokens"),
        ((), "unfinished"),
    ],
)
def test_a_broken_stream_is_named(events: tuple[pb.GenerateResponse, ...], fault: str) -> None:
    """Each way a stream can break raises, and says which one it was."""
    with pytest.raises(BrokenInvariant, match=fault):
        play(*events)
