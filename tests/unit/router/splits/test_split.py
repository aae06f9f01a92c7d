"""One split: weights in force, who is chosen, and what ends a canary's trial."""

import math
from collections.abc import Iterable
from typing import Any

import pytest

from router.splits.describe import describe
from router.splits.settings import SplitSettings, VariantSettings
from router.splits.split import Rollback, Split
from sidecache.errors import InvalidRequest
from sidecache.v1 import admin_pb2
from tests.unit.router.fleet import Clock

WEIGHTS = {"old": 3.0, "other": 1.0, "new": 1.0}
CANARY = {"variant": "new", "min_requests": 10, "window_requests": 100}
KEYS = [str(n).encode() for n in range(200)]


def make(ready: Iterable[str] = WEIGHTS, **settings: Any) -> Split:
    """A split of three, ``new`` on trial."""
    variants = [{"model": model, "weight": weight} for model, weight in WEIGHTS.items()]
    values = {"model": "chat", "variants": variants, "canary": CANARY} | settings
    known = frozenset(ready)

    def is_ready(variant: VariantSettings) -> bool:
        return variant.label in known

    return Split(SplitSettings.model_validate(values), is_ready, Clock())


def fail(split: Split, label: str = "new", outcome: Any = "error") -> Rollback | None:
    """Requests of a good baseline and of a variant that ends like this; the rollback, if any."""
    for _ in range(60):
        split.record("old", "ok", 0.2, 10.0)
        rollback = split.record(label, outcome, 20.0, 0.0)
        if rollback is not None:
            return rollback
    return None


def chosen(split: Split) -> set[str]:
    return {split.choose(key).label for key in KEYS}


def test_a_canary_that_fails_has_no_weight_until_the_reset() -> None:
    """Its share goes to the others; a second alarm changes nothing."""
    split = make()
    rollback = fail(split)
    assert rollback == split.rollback
    assert rollback
    assert (rollback.variant, rollback.at) == ("new", Clock().now)
    assert "error rate" in rollback.why
    assert split.weights == WEIGHTS | {"new": 0.0}
    assert chosen(split) == {"old", "other"}
    assert fail(split) is None
    split.reset()
    assert (split.rollback, split.weights) == (None, WEIGHTS)
    assert split.results["new"].judged == 0
    assert chosen(split) == set(WEIGHTS)


def test_a_canary_that_keeps_its_callers_waiting_does_not_look_well() -> None:
    """Who gave up after twenty seconds waited twenty seconds."""
    rollback = fail(make(), outcome="abandoned")
    assert rollback
    assert "time to first token" in rollback.why


@pytest.mark.parametrize("outcome", ["cached", "refused"])
def test_what_the_canary_did_not_do_is_not_held_against_it(outcome: str) -> None:
    """Hits of the cache, and requests at fault."""
    assert fail(make(), outcome=outcome) is None


def test_only_the_canary_is_on_trial() -> None:
    """A third variant may be as bad as it likes."""
    assert fail(make(), "other") is None


def test_the_baseline_is_the_largest_other_variant() -> None:
    """Or the one that the settings name."""
    assert make().baseline == "old"
    assert make(canary=CANARY | {"baseline": "other"}).baseline == "other"
    assert make(canary=CANARY | {"variant": "old"}).baseline == "other"


def test_the_baseline_stands_in_when_nothing_else_has_weight() -> None:
    """A rollback never leaves a split without a variant."""
    split = make()
    split.set_weights({"old": 0, "other": 0})
    fail(split)
    assert split.weights == {"old": 1.0, "other": 0.0, "new": 0.0}


def test_weights_can_be_changed_and_results_begin_anew() -> None:
    """What was measured under other weights is not mixed in."""
    split = make()
    split.record("old", "ok", 0.2, 10.0)
    split.set_weights({"new": 6.0})
    assert split.weights == WEIGHTS | {"new": 6.0}
    assert split.results["old"].judged == 0


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, 1e7])
def test_weights_that_cannot_be_are_refused(weight: float) -> None:
    """And change nothing."""
    split = make()
    with pytest.raises(InvalidRequest, match="may be 0 to"):
        split.set_weights({"old": 9.0, "new": weight})
    assert split.weights == WEIGHTS


def test_a_rolled_back_canary_gets_no_weight() -> None:
    """0 is no weight; the others' may change."""
    split = make()
    fail(split)
    with pytest.raises(InvalidRequest, match="reset the split first"):
        split.set_weights({"new": 1.0})
    split.set_weights({"new": 0.0, "other": 2.0})
    assert split.weights == {"old": 3.0, "other": 2.0, "new": 0.0}


def test_without_ready_workers_the_others_take_over_if_they_may() -> None:
    """With none ready, the error is to be the first choice's own."""
    assert chosen(make(["old"])) == set(WEIGHTS)
    assert chosen(make(["old"], fall_back=True)) == {"old"}
    none = make([], fall_back=True)
    assert [none.choose(key) for key in KEYS] == [make().choose(key) for key in KEYS]


def test_a_reload_keeps_a_rollback_of_the_same_variant() -> None:
    """One that is another model by now, or not there, begins anew."""
    before = make()
    fail(before)
    same = make(sticky="request")
    same.take_over(before)
    assert same.rollback == before.rollback
    variants: list[dict[str, Any]] = [{"model": "old"}, {"model": "newer", "name": "new"}]
    for changed in (make(variants=variants), make(variants=variants[:1], canary=None)):
        changed.take_over(before)
        assert changed.rollback is None


def test_an_operator_sees_shares_and_who_was_rolled_back() -> None:
    """Shares add up to 1; the reason stands beside its variant only."""
    split = make(shadow={"model": "copy"})
    fail(split)
    told = describe(split, ready=frozenset({"old", "shadow:copy"}), now=Clock().now + 5)
    lines = {line.variant: line for line in told.variants}
    assert {label: line.share for label, line in lines.items()} == {
        "old": 0.75,
        "other": 0.25,
        "new": 0.0,
        "shadow:copy": 0.05,
    }
    assert {label for label, line in lines.items() if line.rolled_back} == {"new"}
    assert lines["new"].rolled_back_ago.seconds == 5
    assert {label for label, line in lines.items() if line.ready} == {"old", "shadow:copy"}
    assert {label: line.role for label, line in lines.items()} == {
        "old": admin_pb2.SPLIT_ROLE_BASELINE,
        "other": admin_pb2.SPLIT_ROLE_VARIANT,
        "new": admin_pb2.SPLIT_ROLE_CANARY,
        "shadow:copy": admin_pb2.SPLIT_ROLE_SHADOW,
    }
