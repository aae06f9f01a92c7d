"""A choice taken over anywhere gives what it would have given undisturbed."""

from hypothesis import given
from hypothesis import strategies as st

from inference_svc.choice import Choice
from inference_svc.engine import Continuation, FinishReason
from inference_svc.engines.script import Script, scripted_byte

SCRIPT = Script(in_bytes=True)
LENGTH = 60


def play(stops: list[str], seed: int, cuts: list[int]) -> tuple[list[int], str, FinishReason]:
    """The answer as clients get it when it is moved after so many tokens, in pieces of three."""
    ids: list[int] = []
    text = ""
    choice = Choice(0, SCRIPT.decoder(), stops)
    left = sorted(cuts, reverse=True)
    while choice.finished is None:
        if left and len(ids) >= left[-1]:
            left.pop()
            choice = Choice(0, SCRIPT.decoder(), stops)
            choice.resume(Continuation(tuple(ids), text))
        first = choice.num_tokens
        after = min(first + 3, LENGTH)
        tokens = [scripted_byte(seed, position) for position in range(first, after)]
        ended = FinishReason.LENGTH if after == LENGTH else None
        delta = choice.push(tokens, ended=ended)
        assert delta.offset == len(ids)
        ids += delta.token_ids
        text += delta.text
    return ids, text, choice.finished


@given(
    seed=st.integers(0, 2**64 - 1),
    cuts=st.lists(st.integers(0, LENGTH), max_size=4),
    stop_at=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=2),
)
def test_cuts_are_not_seen(seed: int, cuts: list[int], stop_at: list[tuple[int, int]]) -> None:
    """Characters of four bytes and stop strings across the cut included."""
    whole = bytes(scripted_byte(seed, position) for position in range(LENGTH)).decode()
    stops = [whole[at : at + length] for at, length in stop_at]
    undisturbed = play(stops, seed, [])
    assert play(stops, seed, cuts) == undisturbed
    ends = [whole.find(stop) for stop in stops]
    if not stops:
        assert undisturbed[1] == whole
    else:
        assert undisturbed[2] is FinishReason.STOP
        assert whole.startswith(undisturbed[1])
        assert len(undisturbed[1]) <= max(ends)


def test_a_cut_does_split_characters() -> None:
    """Else the property above would say little."""
    decoder = SCRIPT.decoder()
    pieces = [decoder.push((scripted_byte(7, position),)) for position in range(10)]
    assert [len(piece) for piece in pieces] == [1, 0, 1, 0, 0, 1, 0, 0, 0, 1]
