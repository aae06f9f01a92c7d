"""A bound that is written down and read again is the bound it was."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cache_svc.bound.evidence import Evidence
from cache_svc.bound.scope import Regime, Rules, ScopeBound
from cache_svc.bound.snapshot import ScopeSnapshot

RULES = Rules(0.1, 0.5)
EVENTS = st.lists(
    st.tuples(st.floats(0.6, 1), st.none() | st.floats(0, 1), st.booleans(), st.integers(0, 5)),
    max_size=150,
)


def live(bound: ScopeBound, events: list[tuple[float, float | None, bool, int]]) -> list[Any]:
    """Decide about each candidate and learn from all; returns the decisions."""
    decisions = []
    for similarity, agreement, wrong, entry_id in events:
        evidence = Evidence(similarity, agreement)
        decision = bound.decide(entry_id, evidence)
        decisions.append((decision.serve, round(decision.risk, 9), bound.regime))
        if not decision.serve:
            bound.explored(entry_id, evidence, wrong=wrong)
        elif bound.draws_audit():
            bound.audited(entry_id, evidence, decision.risk, wrong=wrong)
    return decisions


def copy_of(bound: ScopeBound, entries: range, seed: int) -> ScopeBound:
    """The same bound out of its JSON and the records of its entries."""
    chance = random.Random(seed).random  # noqa: S311 - a simulation
    copy = ScopeBound(RULES, chance, lambda _: None)
    copy.resume(ScopeSnapshot.model_validate_json(bound.snapshot().model_dump_json()))
    for entry_id in entries:
        right, wrong = bound.record_of(entry_id)
        if right or wrong:
            copy.bring_record_back(entry_id, right, wrong)
    return copy


@given(EVENTS, EVENTS)
def test_a_bound_goes_on_where_it_was(before: Any, after: Any) -> None:
    """Regime, risks and means after a restart are those of a process that never ended."""
    bound = ScopeBound(RULES, lambda: 0.25, lambda _: None)
    live(bound, before)
    # A process that ends plans when it starts again: so does the one that goes on.
    bound._replan()
    first, second = copy_of(bound, range(6), 1), copy_of(bound, range(6), 1)
    assert first.regime is bound.regime
    assert first.plan == bound.plan
    assert first.snapshot() == bound.snapshot()
    for entry_id, (similarity, agreement, _, _) in zip(range(6), after, strict=False):
        evidence = Evidence(similarity, agreement)
        assert first.assess(entry_id, evidence) == bound.assess(entry_id, evidence)
    assert live(first, after) == live(second, after)


def test_an_alarm_comes_back() -> None:
    """A scope that fell back stays so, tells nobody again, and recovers by exploring."""
    told: list[Regime] = []
    bound = ScopeBound(RULES, lambda: 0.0, told.append)
    safe = Evidence(0.97, 1.0)
    for entry_id in range(100):
        bound.audited(entry_id, safe, 0.05, wrong=False)
    while bound.regime is Regime.SERVING:
        bound.audited(0, safe, 0.05, wrong=True)
    copy = ScopeBound(RULES, lambda: 0.0, told.append)
    copy.resume(bound.snapshot())
    assert told == [Regime.EXACT_ONLY]
    assert not copy.assess(7, safe).serve
    for entry_id in range(1000, 1400):
        copy.decide(entry_id, safe)
        copy.explored(entry_id, safe, wrong=False)
    assert told == [Regime.EXACT_ONLY, Regime.SERVING]


@given(st.data())
def test_what_is_no_bound_is_refused(data: st.DataObject) -> None:
    """Cut or bent JSON is an error, never a bound with numbers that no bound has."""
    text = ScopeBound(RULES, lambda: 0.5, lambda _: None).snapshot().model_dump_json()
    with pytest.raises(ValidationError):
        ScopeSnapshot.model_validate_json(text[: data.draw(st.integers(0, len(text) - 1))])
    fields = json.loads(text)
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(st.sampled_from([None, "x", -1, float("nan"), [1], {"99": 1}]))
    with pytest.raises(ValidationError):
        ScopeSnapshot.model_validate_json(json.dumps(fields))
