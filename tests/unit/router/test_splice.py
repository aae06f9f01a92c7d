"""Two readings of one stream, joined at a place that neither of them chose."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.splice import Splice
from router.tape import Tape
from sidecache.errors import BrokenInvariant
from sidecache.stream_events import single_events
from sidecache.stream_order import StreamOrder
from sidecache.v1 import inference_pb2 as pb
from tests.unit.router.flying import ticket

TOKENS = 12
TEXTS = ["Gr", "üße", " ", "an", "", "alle", "!", " ", "", "", "ende", "."]


def spoken(cuts: list[int], lag: int = 0) -> list[pb.GenerateResponse]:
    """The stream in messages that end where ``cuts`` say; text comes ``lag`` tokens late."""
    messages = [pb.GenerateResponse(started=pb.Started(request_id="other"))]
    bounds = sorted({0, TOKENS, *cuts})
    told = 0
    for begin, end in itertools.pairwise(bounds):
        readable = TOKENS if end == TOKENS else max(told, end - lag)
        delta = pb.Delta(offset=begin, token_ids=range(begin, end))
        delta.text, told = "".join(TEXTS[told:readable]), readable
        delta.logprobs.extend(pb.TokenLogprobs(logprob=-i) for i in range(begin, end))
        messages.append(pb.GenerateResponse(delta=delta))
    messages[-1].finished.reason = pb.FINISH_REASON_STOP
    return messages


def begun(messages: list[pb.GenerateResponse], count: int) -> Tape:
    """The tape of who has read so many messages."""
    tape = Tape(ticket(), 1 << 20, lambda: 0.0)
    for message in messages[:count]:
        tape.started = tape.started or message.HasField("started")
        if message.HasField("delta"):
            tape.take(message.delta)
    return tape


@given(
    mine=st.lists(st.integers(1, TOKENS - 1)),
    theirs=st.lists(st.integers(1, TOKENS - 1)),
    read=st.integers(0, TOKENS),
    lags=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_nothing_comes_twice_and_nothing_is_missing(
    mine: list[int], theirs: list[int], read: int, lags: tuple[int, int]
) -> None:
    """Wherever either reading was cut, and however late its text came."""
    first = spoken(mine, lags[0])
    first = first[: min(read, len(first) - 1)]
    order, ids, text, logprobs = StreamOrder(), list[int](), "", list[float]()
    splice = Splice(begun(first, len(first)))
    rest = [splice.rest(message) for message in spoken(theirs, lags[1])]
    for message in [*first, *filter(None, rest)]:
        for event in single_events(message):
            order.check(event)
            ids += event.delta.token_ids
            text += event.delta.text
            logprobs += [one.logprob for one in event.delta.logprobs]
    order.check_end()
    assert ids == list(range(TOKENS))
    assert text == "".join(TEXTS)
    assert logprobs == [-float(i) for i in range(TOKENS)]


@pytest.mark.parametrize("what", ["ids", "text", "offset"])
def test_another_stream_is_found_out(what: str) -> None:
    """Before any of it reaches the reader."""
    tape = begun(spoken([4, 8]), 3)
    other = spoken([6])
    delta = other[1].delta
    if what == "ids":
        delta.token_ids[2] = 99
    elif what == "text":
        delta.text = "Grau" + delta.text
    else:
        delta.offset = 1
    splice = Splice(tape)
    assert splice.rest(other[0]) is None
    with pytest.raises(BrokenInvariant):
        splice.rest(other[1])


def test_a_move_within_the_known_part_is_no_news() -> None:
    """Only one that comes later is told."""
    splice = Splice(begun(spoken([4]), 2))
    old = pb.GenerateResponse(migrated=pb.Migrated(from_worker="a", to_worker="b", offset=2))
    assert splice.rest(old) is None
    later = pb.GenerateResponse(migrated=pb.Migrated(from_worker="a", to_worker="b", offset=6))
    assert splice.rest(later) == later
