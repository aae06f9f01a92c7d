"""Any change to a right history is caught, or changes nothing a client could care about."""

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.checker import check
from chaos.history import Call, Ended, Received
from sidecache.stream_events import kind_of
from sidecache.v1 import inference_pb2 as pb
from tests.unit.chaos.streams import REFERENCE, ask, call_of, events_of

Entries = list[Received | Ended]

requests = st.builds(
    ask,
    prompt=st.text(min_size=1, max_size=8),
    max_tokens=st.integers(1, 10),
    n=st.sampled_from([1, 1, 2]),
)
cuts = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@st.composite
def histories(draw: st.DrawFn) -> list[Call]:
    """Two right calls of different prompts, cut at random, with heartbeats at random."""
    calls = []
    for number in range(2):
        request = draw(requests)
        request.text += f" {number}"
        events = events_of(request, draw(cuts))
        for at in draw(st.lists(st.integers(1, len(events)), max_size=2)):
            events.insert(at, pb.GenerateResponse(progress=pb.Progress()))
        calls.append(call_of(request, events, number=number))
    return calls


def meaning(call: Call) -> Any:
    """What a client learns from a call: everything but how tokens and text were cut.

    Written without the checker, from the contract: for each choice its tokens
    with their positions, its text up to each token at most as far as readable,
    its end; for the call where `started` and the statuses stood.
    """
    choices: dict[int, list[object]] = {}
    texts: dict[int, str] = {}
    frame: list[str] = []
    for entry in call.entries:
        if isinstance(entry, Ended):
            frame.append(entry.code)
            continue
        event = entry.event
        match kind_of(event):
            case "delta":
                said = choices.setdefault(event.delta.choice, [])
                said += list(enumerate(event.delta.token_ids, event.delta.offset))
                texts[event.delta.choice] = texts.get(event.delta.choice, "") + event.delta.text
            case "finished":
                end = (event.finished.reason, event.finished.usage.SerializeToString())
                choices.setdefault(event.finished.choice, []).append(end)
            case "started":
                frame.append("started")
            case "progress":
                pass
        # An event is inside the call or outside of it.
        if not frame or frame[0] != "started" or frame[-1] != "started":
            frame.append("outside")
    return choices, texts, frame


def drop(entries: Entries, at: int, other: int) -> None:  # noqa: ARG001 - as the others
    del entries[at]


def repeat(entries: Entries, at: int, other: int) -> None:
    entries.insert(other, copy.deepcopy(entries[at]))


def swap(entries: Entries, at: int, other: int) -> None:
    entries[at], entries[other] = entries[other], entries[at]


def move(entries: Entries, at: int, other: int) -> None:
    entries.insert(other, entries.pop(at))


def corrupt(entries: Entries, at: int, other: int) -> None:
    """Change a number or a letter of one event, whichever it has."""
    entry = entries[at]
    if isinstance(entry, Ended):
        entries[at] = Ended(entry.at_s, "ABORTED", "STREAM_INTERRUPTED")
    elif entry.event.HasField("delta"):
        delta = entry.event.delta
        match other % 4:
            case 0:
                delta.token_ids[other % len(delta.token_ids)] ^= 1 + other
            case 1:
                delta.offset += 1 + other
            case 2:
                delta.text = delta.text[1:]
            case _:
                delta.choice += 1
    elif entry.event.HasField("finished"):
        entry.event.finished.usage.completion_tokens += 1 + other
    else:
        entry.event.Clear()


@settings(max_examples=400, deadline=None)
@given(histories())
def test_right_histories_pass_however_they_are_cut(calls: list[Call]) -> None:
    """No false alarm: cuts and heartbeats are the server's to choose."""
    assert check(calls, REFERENCE).violations == ()


@settings(max_examples=1500, deadline=None)
@given(
    histories(),
    st.sampled_from([drop, repeat, swap, move, corrupt]),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_every_mutation_is_caught_or_harmless(
    calls: list[Call],
    mutate: Callable[[Entries, int, int], None],
    at: int,
    other: int,
) -> None:
    """No missed lie: where the meaning changed, there is a violation."""
    before = meaning(calls[0])
    entries = calls[0].entries
    mutate(entries, at % len(entries), other % len(entries))
    report = check(calls, REFERENCE)
    assert not report.ok or meaning(calls[0]) == before


@settings(max_examples=100, deadline=None)
@given(histories())
def test_swapped_answers_are_caught(calls: list[Call]) -> None:
    """Two calls that got each other's streams cannot pass, however right each stream is."""
    first, second = calls
    first.entries, second.entries = second.entries, first.entries
    assert not check(calls, REFERENCE).ok
