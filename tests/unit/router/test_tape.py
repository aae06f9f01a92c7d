"""The tape: what a stream has sent, checked and kept."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model import ServedModel
from router.tape import Tape
from router.ticket import Ticket
from sidecache.errors import BrokenInvariant
from sidecache.v1 import inference_pb2 as pb

MODEL = ServedModel("m", "r", "scripted", "1", 4096, 256, 8, 0, False, False, True, frozenset())


def ticket(n: int = 1, *, may_store: bool = True) -> Ticket:
    request = pb.GenerateRequest(text="x", n=n, max_tokens=9)
    return Ticket("id", "t", request, MODEL, None, False, may_store, 1.0, 0.0)


def delta(offset: int, *ids: int, text: str = "", choice: int = 0) -> pb.Delta:
    return pb.Delta(choice=choice, offset=offset, token_ids=ids, text=text)


END = pb.Finished(reason=pb.FINISH_REASON_STOP)


@pytest.mark.parametrize(
    "second", [delta(1, 5), delta(3, 5), delta(0, 5), delta(2, 5, choice=1)], ids=str
)
def test_a_worker_that_loses_or_repeats_is_caught(second: pb.Delta) -> None:
    """Only the very next offset of a known choice passes."""
    tape = Tape(ticket(), 1 << 20, float)
    tape.take(delta(0, 1, 2))
    with pytest.raises(BrokenInvariant, match="expected"):
        tape.take(second)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 255), max_size=40), st.text(max_size=9)), max_size=40
    )
)
def test_a_kept_answer_replays_what_was_sent(pieces: list[tuple[list[int], str]]) -> None:
    """Ids, text and contiguous offsets survive the merging into larger pieces."""
    tape = Tape(ticket(), 1 << 20, float)
    offset = 0
    for ids, text in pieces:
        tape.take(delta(offset, *ids, text=text))
        offset += len(ids)
    tape.finish(END)
    answer = tape.answer("w", "r")
    assert answer is not None
    replayed = Tape(ticket(), 1 << 20, float)
    for kept in answer.deltas:
        replayed.take(kept)
        assert len(kept.token_ids) < 256 + 40
    assert [i for kept in answer.deltas for i in kept.token_ids] == [
        i for p in pieces for i in p[0]
    ]
    assert "".join(kept.text for kept in answer.deltas) == "".join(text for _, text in pieces)
    tokens = sum(len(ids) for ids, _ in pieces)
    assert len(answer.deltas) == min(1, len(pieces)) or len(answer.deltas) <= 1 + tokens // 256


def test_a_long_answer_is_kept_in_pieces() -> None:
    """Few enough to be cheap, and none so large that a slow reader waits for all of it."""
    tape = Tape(ticket(), 1 << 20, float)
    for offset in range(0, 1000, 8):
        tape.take(delta(offset, *range(8)))
    tape.finish(END)
    answer = tape.answer("w", "r")
    assert answer is not None
    assert [len(piece.token_ids) for piece in answer.deltas] == [256, 256, 256, 232]


def test_choices_are_kept_apart() -> None:
    """Interleaved choices keep their own offsets and are never merged."""
    tape = Tape(ticket(2), 1 << 20, float)
    for offset in range(3):
        tape.take(delta(offset, 10 + offset))
        tape.take(delta(offset, 20 + offset, choice=1))
    tape.finish(END)
    halfway = tape.is_complete
    tape.finish(pb.Finished(choice=1, reason=pb.FINISH_REASON_LENGTH))
    assert (halfway, tape.is_complete) == (False, True)
    answer = tape.answer("w", "r")
    assert answer is not None
    for choice, ids in ((0, [10, 11, 12]), (1, [20, 21, 22])):
        kept = [d for d in answer.deltas if d.choice == choice]
        assert [i for d in kept for i in d.token_ids] == ids


def test_only_what_may_be_stored_is_kept() -> None:
    """Filtered, too large or no-store answers give nothing to store."""
    filtered = Tape(ticket(), 1 << 20, float)
    filtered.finish(pb.Finished(reason=pb.FINISH_REASON_FILTERED))
    assert filtered.answer("w", "r") is None
    large = Tape(ticket(), 100, float)
    for offset in range(50):
        large.take(delta(offset, 1, text="xx"))
    large.finish(END)
    assert large.answer("w", "r") is None
    private = Tape(ticket(may_store=False), 1 << 20, float)
    private.take(delta(0, 1))
    private.finish(END)
    assert private.answer("w", "r") is None


def test_a_ticket_does_not_change() -> None:
    """What was decided at the door stays decided."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        ticket().tenant = "other"  # type: ignore[misc]
