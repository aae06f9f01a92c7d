"""What a flight remembers of its stream."""

import pytest

from router.flight_log import FlightLog
from sidecache.errors import (
    InvalidRequest,
)
from sidecache.v1 import inference_pb2 as pb


def _delta(offset: int, *ids: int, text: str = "x") -> pb.GenerateResponse:
    return pb.GenerateResponse(delta=pb.Delta(offset=offset, token_ids=ids, text=text))


def test_a_log_forgets_its_oldest() -> None:
    """Bounded in bytes; positions keep their meaning."""
    log = FlightLog(max_bytes=2000)
    for offset in range(400):
        log.append(_delta(offset, offset, text="abcdefgh"))
    assert log.end == 400
    assert log.trimmed > 0
    assert log.size <= 2000 + 32 * 20
    position = log.trimmed
    ids: list[int] = []
    while position < log.end:
        position, message = log.take(position)
        ids += message.delta.token_ids
    assert ids == list(range(log.trimmed, 400))


def test_a_log_is_read_on_from_a_token() -> None:
    """At the start of any message; elsewhere the text could not be cut."""
    log = FlightLog(max_bytes=2000)
    for message in (_delta(0, 5, 6), _delta(2, 7), pb.GenerateResponse(finished=pb.Finished())):
        log.append(message)
    assert log.take(log.position_of(2, 3))[1].delta.token_ids == [7]
    assert log.take(log.position_of(3, 3))[1].HasField("finished")
    with pytest.raises(InvalidRequest, match="only at 2"):
        log.position_of(1, 3)
    with pytest.raises(InvalidRequest, match="has 3 tokens so far"):
        log.position_of(4, 3)
    whole = FlightLog(max_bytes=2000)
    whole.append(_delta(0, 5, 6, 7))
    with pytest.raises(InvalidRequest, match="only at 3"):
        whole.position_of(1, 3)


def test_events_keep_their_order_in_a_merged_message() -> None:
    """What a message's fixed order would turn around stays in two."""
    log = FlightLog(max_bytes=2000)
    log.append(_delta(0, 5))
    log.append(pb.GenerateResponse(migrated=pb.Migrated(offset=1)))
    log.append(_delta(1, 6))
    log.append(pb.GenerateResponse(finished=pb.Finished()))
    position, first = log.take(0)
    assert (position, first.HasField("migrated")) == (1, False)
    position, rest = log.take(position)
    assert position == log.end
    assert (rest.migrated.offset, rest.delta.offset) == (1, 1)
    assert rest.HasField("finished")
