"""The checker: what is right passes, and every kind of wrong is called by its name."""

import copy

import pytest

from chaos.checker import check
from chaos.figures import quantile
from chaos.history import Call, Ended, History, HistoryFull
from chaos.sabotage import LIES, Lie
from chaos.violations import (
    AfterTerminal,
    ForeignAnswer,
    ManyTerminals,
    NoTerminal,
    NotStarted,
    UnexplainedHit,
    Violation,
    WrongText,
    WrongToken,
)
from sidecache.v1 import inference_pb2 as pb
from tests.unit.chaos.streams import REFERENCE, ask, call_of, events_of


def kinds(*calls: Call, closed_world: bool = True) -> set[type[Violation]]:
    return check(calls, REFERENCE, closed_world=closed_world).kinds()


@pytest.mark.parametrize(
    "request_",
    [
        ask(),
        ask(n=3),
        ask(max_tokens=1),
        ask(stop=[" ba", "ta"], max_tokens=200),
        ask(seed=7),
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6]), max_tokens=3),
        pb.GenerateRequest(
            chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="hé")]), max_tokens=3
        ),
        pb.GenerateRequest(text="as long as the default"),
    ],
    ids=["plain", "choices", "one", "stop", "seed", "ids", "chat", "default"],
)
def test_a_right_stream_passes(request_: pb.GenerateRequest) -> None:
    """The checker does not cry wolf, whatever was asked for and however it was cut."""
    for sizes in ((1,), (1, 3, 2), (100,)):
        assert check([call_of(request_, events_of(request_, sizes))], REFERENCE).violations == ()


@pytest.mark.parametrize(("lie", "violation"), LIES.items(), ids=lambda x: x.__name__)
def test_every_lie_is_called_by_its_name(lie: Lie, violation: type[Violation]) -> None:
    """Each way to corrupt a stream is caught, as what it is."""
    request = ask()
    assert violation in kinds(call_of(request, lie(events_of(request))))


@pytest.mark.parametrize("lie", LIES, ids=lambda x: x.__name__)
def test_a_lie_in_one_call_does_not_taint_the_others(lie: Lie) -> None:
    """Violations name the call they are in, and no other."""
    requests = [ask(f"prompt {number}") for number in range(3)]
    calls = [call_of(r, events_of(r), number=n) for n, r in enumerate(requests)]
    calls[1] = call_of(requests[1], lie(events_of(requests[1])), number=1)
    assert {violation.call for violation in check(calls, REFERENCE).violations} == {1}


def test_an_error_without_an_end_is_one_outcome() -> None:
    """A stream cut by an error status is no violation by itself; what it delivered is checked."""
    request = ask()
    events = events_of(request)[:4]
    error = Ended(1.0, "ABORTED", "STREAM_INTERRUPTED", "the worker was lost")
    assert kinds(call_of(request, events, ended=error)) == set()
    events[2].delta.token_ids[0] += 1
    assert WrongToken in kinds(call_of(request, events, ended=error))


def test_an_error_before_the_start_is_one_outcome() -> None:
    """A refused call has no stream, and needs none."""
    refused = Ended(1.0, "UNAVAILABLE", "NO_HEALTHY_WORKER")
    assert kinds(call_of(ask(), [], ended=refused)) == set()


def test_finished_and_failed_is_two_outcomes() -> None:
    """A server that ends every choice and then says ABORTED contradicts itself."""
    request = ask()
    spoken = Ended(1.0, "ABORTED", "STREAM_INTERRUPTED")
    assert kinds(call_of(request, events_of(request), ended=spoken)) == {ManyTerminals}
    torn = Ended(1.0, "UNAVAILABLE")  # no ErrorInfo: the client's own connection
    assert kinds(call_of(request, events_of(request), ended=torn)) == set()


def test_a_call_without_a_status_is_never_excused() -> None:
    """An open call is not a good call."""
    request = ask()
    call = call_of(request, events_of(request))
    call.entries.pop()
    assert kinds(call) == {NoTerminal}


def test_ok_without_a_single_event_is_caught() -> None:
    """An empty success is no success."""
    assert kinds(call_of(ask(), [])) == {NoTerminal, NotStarted}


def test_what_follows_the_status_is_caught() -> None:
    """Nothing comes after the end, and there is only one."""
    request = ask()
    call = call_of(request, events_of(request))
    call.entries.append(call.entries[1])
    call.entries.append(call.entries[-2])
    assert {AfterTerminal, ManyTerminals} <= kinds(call)


def test_another_calls_answer_is_foreign() -> None:
    """A stream that is right for somebody else names whose it is."""
    mine, theirs = ask("mine"), ask("theirs")
    calls = [
        call_of(theirs, events_of(theirs), number=0, tenant="b"),
        call_of(mine, events_of(theirs), number=1, tenant="a"),
    ]
    found = [v for v in check(calls, REFERENCE).violations if isinstance(v, ForeignAnswer)]
    assert found == [ForeignAnswer(1, 0, "b")]


def test_an_entry_served_to_two_tenants_is_foreign() -> None:
    """Even where the words are the same, one tenant's stored answer is not another's."""
    request = ask()
    hit = events_of(request, source=pb.SOURCE_EXACT, entry_id="e1")
    calls = []
    for number, tenant in ((0, "a"), (2, "b")):
        calls.append(call_of(request, events_of(request), number=number, tenant=tenant))
        calls.append(call_of(request, hit, number=number + 1, tenant=tenant))
    assert check(calls, REFERENCE).violations == (ForeignAnswer(3, 1, "a"),)


def test_a_hit_is_explained_by_an_earlier_whole_answer_only() -> None:
    """From the cache comes what was put there: not before, not by others, not what broke."""
    request = ask()
    hit = call_of(
        request, events_of(request, source=pb.SOURCE_EXACT, entry_id="e"), number=1, tenant="a"
    )
    first = call_of(request, events_of(request), number=0, tenant="a")
    broken = call_of(request, events_of(request)[:3], ended=Ended(1.0, "ABORTED", "X"))
    stranger = call_of(request, events_of(request), tenant="b")
    later = call_of(request, events_of(request), number=5, tenant="a")
    other = call_of(ask("other"), events_of(ask("other")))
    assert kinds(first, hit) == set()
    for wrong in ((broken, hit), (stranger, hit), (hit, later), (other, hit), (hit,)):
        assert kinds(*wrong) == {UnexplainedHit}
    assert kinds(hit, closed_world=False) == set()


def test_a_semantic_hit_is_the_answer_to_another_prompt_in_the_same_scope() -> None:
    """A paraphrase may get another prompt's answer, but only its own tenant's and scope's."""

    def chat(content: str, system: str) -> pb.GenerateRequest:
        messages = [
            pb.ChatMessage(role="system", content=system),
            pb.ChatMessage(role="user", content=content),
        ]
        return pb.GenerateRequest(chat=pb.Chat(messages=messages), max_tokens=6)

    asked, near = chat("how do I cancel", "s"), chat("cancelling, how", "s")
    far = chat("how do I cancel", "another scope")
    stored = call_of(asked, events_of(asked), number=0)
    served = events_of(asked, source=pb.SOURCE_SEMANTIC, entry_id="e")
    assert kinds(stored, call_of(near, copy.deepcopy(served), number=1)) == set()
    assert UnexplainedHit in kinds(stored, call_of(far, copy.deepcopy(served), number=1))
    assert UnexplainedHit in kinds(stored, call_of(near, served, number=1, tenant="b"))


def test_a_text_that_lags_is_right_and_one_that_stays_behind_is_not() -> None:
    """Text may come later than its tokens, as long as it comes."""
    request = ask()
    events = events_of(request)
    events[2].delta.text, late = "", events[2].delta.text
    assert kinds(call_of(request, copy.deepcopy(events))) == {WrongText}
    events[3].delta.text = late + events[3].delta.text
    assert kinds(call_of(request, events)) == set()


def test_a_huge_offset_is_convicted_without_counting_up_to_it() -> None:
    """A lie of four billion costs the checker nothing."""
    request = ask()
    events = events_of(request)
    events[2].delta.offset = 2**32 - 10
    assert not check([call_of(request, events)], REFERENCE).ok


def test_figures_are_those_of_the_log() -> None:
    """Times, tokens and outcomes are counted from the events, nothing else."""
    request = ask(max_tokens=4)
    report = check([call_of(request, events_of(request, (1, 3)))], REFERENCE)
    figures = report.figures
    assert (figures.calls, figures.tokens, figures.errors) == (1, 4, 0)
    assert figures.codes == {"OK": 1}
    assert figures.sources == {"ENGINE": 1}
    assert figures.ttft.p50_s == pytest.approx(0.002)
    assert figures.gaps.count == 1
    assert figures.gaps.max_s == pytest.approx(0.001)


def test_quantiles_are_values_that_occurred() -> None:
    """Nearest rank: no interpolation between two measurements."""
    assert [quantile([4, 1, 3, 2], share) for share in (0.25, 0.5, 0.99, 1)] == [1, 2, 4, 4]


def test_a_history_is_bounded() -> None:
    """A full history refuses the next call rather than forget one."""
    history = History(max_calls=1)
    history.open(ask(), "a", "", 0.0)
    with pytest.raises(HistoryFull):
        history.open(ask(), "a", "", 0.0)
