"""The runner: the phases in their order, and no experiment passes that proved nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from chaos.experiment import (
    Action,
    Between,
    Equals,
    Experiment,
    Hypothesis,
    NegativeControl,
    Probe,
    Recovery,
    Tolerance,
)
from chaos.runner import run


class Lamp:
    """A stage of one lamp."""

    def __init__(self) -> None:
        self.phase = ""
        self.is_broken = False
        self.brightness = 10
        self.log: list[str] = []


LAMPS: list[Lamp] = []


@asynccontextmanager
async def open_lamp(_folder: Path) -> AsyncIterator[Lamp]:
    lamp = Lamp()
    LAMPS.append(lamp)
    yield lamp
    lamp.log.append("closed")


async def brightness(stage: Lamp) -> int:
    stage.log.append(stage.phase)
    return stage.brightness


async def is_broken(stage: Lamp) -> bool:
    return stage.is_broken


async def break_it(stage: Lamp, dims_by: int, *, strikes: bool = True) -> None:
    stage.is_broken = strikes
    stage.brightness -= dims_by


async def mend(stage: Lamp) -> None:
    stage.log.append("mended")
    stage.is_broken = False
    stage.brightness = 10


async def explode(stage: Lamp) -> None:
    stage.brightness = 0
    raise RuntimeError("bang")


async def last_for_ever(_stage: Lamp) -> None:
    await asyncio.Event().wait()


def lamp_test(dims_by: int, **break_arguments: object) -> Experiment[Lamp]:
    return Experiment(
        name="lamp",
        title="A broken lamp still shines",
        description="",
        open_stage=open_lamp,
        configuration={"lamps": 1},
        steady_state=Hypothesis("It is bright", (Probe("bright", brightness, {}, Equals(10)),)),
        method=(Action("break it", break_it, {"dims_by": dims_by, **break_arguments}),),
        proof=Hypothesis("It is broken", (Probe("is broken", is_broken),)),
        invariant=Hypothesis("It shines", (Probe("shines", brightness, {}, Between(5, 10)),)),
        rollbacks=(Action("mend it", mend),),
        recovery=Recovery(Probe("bright again", brightness, {}, Equals(10)), within_s=0.2),
        stop_conditions=(Probe("not dark", brightness, {}, Between(1, 10)),),
        limit_s=2.0,
    )


CONTROL = NegativeControl("a lamp that breaks badly", lamp_test(9), frozenset({"shines"}))


@pytest.fixture(autouse=True)
def fresh_lamps() -> None:
    LAMPS.clear()


async def test_a_claim_that_holds_passes() -> None:
    """Steady, struck, held, mended, recovered, steady again: and the false claim was caught."""
    journal = await run(replace(lamp_test(1), negative_control=CONTROL))
    assert journal.passed, journal.summary()
    assert journal.control_caught
    assert journal.recovery_s is not None
    phases = [entry for entry in dict.fromkeys(LAMPS[0].log) if entry]
    assert phases == ["before", "fault", "mended", "recovery", "after", "closed"]


async def test_a_claim_that_does_not_hold_deviates() -> None:
    """The invariant is what is tested."""
    journal = await run(lamp_test(9))
    assert journal.status == "completed"
    assert journal.deviated
    assert not journal.passed
    assert [step.name for step in journal.broken] == ["shines"]


async def test_without_proof_that_the_fault_struck_nothing_was_shown() -> None:
    """An experiment whose fault missed fails, however well everything went."""
    journal = await run(lamp_test(1, strikes=False))
    assert (journal.status, journal.passed) == ("failed", False)
    assert "did not strike" in journal.why
    assert "mended" in LAMPS[0].log


async def test_a_control_that_notices_nothing_fails_the_experiment() -> None:
    """A probe that would pass anything is found out."""
    blind = NegativeControl("not bad at all", lamp_test(1), frozenset({"shines"}))
    journal = await run(replace(lamp_test(1), negative_control=blind))
    assert journal.control_caught is False
    assert not journal.passed


async def test_an_unsteady_stage_is_not_struck() -> None:
    """Without a steady state before, the method is not begun."""
    unsteady: Hypothesis[Lamp] = Hypothesis("It is dim", (Probe("dim", brightness, {}, Equals(3)),))
    journal = await run(replace(lamp_test(1), steady_state=unsteady))
    assert journal.status == "failed"
    assert journal.method == []


async def test_a_step_that_raises_ends_the_run_and_rolls_back() -> None:
    """A crash of the experiment itself is a failure with its reason, and leaves no fault."""
    journal = await run(
        replace(lamp_test(1), method=(Action("blow up", explode),), stop_conditions=())
    )
    assert (journal.status, journal.why) == ("failed", "blow up: RuntimeError: bang")
    assert "mended" in LAMPS[0].log


async def test_a_stop_condition_ends_the_run_at_once_and_rolls_back() -> None:
    """Worse than planned: the run is aborted in the middle of a step."""
    method: tuple[Action[Lamp], ...] = (
        Action("break it", break_it, {"dims_by": 10}),
        Action("go on for ever", last_for_ever),
    )
    journal = await run(replace(lamp_test(1), method=method))
    assert (journal.status, journal.why) == ("aborted", "not dark: 0")
    assert "mended" in LAMPS[0].log


async def test_the_time_limit_ends_the_run_and_rolls_back() -> None:
    """No experiment runs without a bound."""
    method: tuple[Action[Lamp], ...] = (Action("go on for ever", last_for_ever),)
    journal = await run(replace(lamp_test(1), method=method, limit_s=0.1))
    assert (journal.status, journal.why) == ("aborted", "not done within 0.1 s")
    assert "mended" in LAMPS[0].log


async def test_a_recovery_that_does_not_come_fails() -> None:
    """The recovery has a bound too, and the journal says what was seen last."""
    journal = await run(replace(lamp_test(1), rollbacks=()))
    assert journal.recovery_s is None
    assert journal.why == "not recovered within 0.2 s: 9"


async def test_the_journal_and_the_experiment_are_json() -> None:
    """Both are written in the Chaos Toolkit's schema, ours in an extension."""
    journal = await run(replace(lamp_test(1), negative_control=CONTROL))
    written = json.loads(json.dumps(journal.to_json()))
    assert written["status"] == "completed"
    assert written["steady_states"]["before"]["steady_state_met"] is True
    assert written["run"][0]["activity"]["provider"] == {
        "type": "python",
        "module": __name__,
        "func": "break_it",
        "arguments": {"stage": "${stage}", "dims_by": 1},
    }
    experiment = written["experiment"]
    probe = experiment["steady-state-hypothesis"]["probes"][0]
    assert (probe["type"], probe["tolerance"]) == ("probe", 10)
    assert experiment["extensions"][0]["negative-control"]["must-catch"] == ["shines"]
    assert written["negative_control"]["caught"] is True


@pytest.mark.parametrize(
    ("tolerance", "good", "bad"),
    [
        (Equals(0), [0], [1, False, None, 0.5]),
        (Equals(value=True), [True], [1, "yes", False]),
        (Equals([]), [[]], [["x"], None]),
        (Between(1, 2), [1, 1.5, 2], [0.9, 2.1, float("nan"), None, "1", True]),
    ],
    ids=str,
)
def test_tolerances(tolerance: Tolerance, good: list[object], bad: list[object]) -> None:
    """A tolerance takes what it says, and nothing that merely looks like it."""
    assert all(tolerance.allows(value) for value in good)
    assert not any(tolerance.allows(value) for value in bad)
