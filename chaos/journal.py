"""What came of an experiment, as the Chaos Toolkit writes its journal, and the verdict."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from chaos.experiment import Experiment, NegativeControl

Json = Any
Status = Literal["completed", "aborted", "failed"]


@dataclass(slots=True)
class Step:
    """One action or probe that was run.

    Attributes:
        activity: its JSON form.
        output: what it returned.
        tolerance_met: of a probe; None for an action.
        error: what it raised, if it did.
    """

    activity: dict[str, Json]
    started_s: float
    duration_s: float = 0.0
    output: Json = None
    tolerance_met: bool | None = None
    error: str = ""

    @property
    def name(self) -> str:
        return str(self.activity["name"])

    @property
    def held(self) -> bool:
        return not self.error and self.tolerance_met is not False

    def to_json(self) -> dict[str, Json]:
        written = {
            "activity": self.activity,
            "status": "failed" if self.error else "succeeded",
            "output": self.output,
            "start_s": round(self.started_s, 6),
            "duration": round(self.duration_s, 6),
        }
        if self.tolerance_met is not None:
            written["tolerance_met"] = self.tolerance_met
        if self.error:
            written["exception"] = self.error
        return written


@dataclass(slots=True)
class Journal:
    """The record of one run.

    Attributes:
        status: ``completed`` when every phase was played; ``aborted`` by a stop
            condition or the time limit; ``failed`` when a step raised, the steady
            state was not met before, or the fault did not strike.
        why: what ended it, when it was not completed.
        recovery_s: from the end of the rollbacks to the recovery probe's first
            good answer; None if it never came.
    """

    experiment: Experiment[Any]
    status: Status = "completed"
    why: str = ""
    start: datetime = field(default_factory=lambda: datetime.now(UTC))
    duration_s: float = 0.0
    before: list[Step] = field(default_factory=list)
    method: list[Step] = field(default_factory=list)
    proof: list[Step] = field(default_factory=list)
    invariant: list[Step] = field(default_factory=list)
    rollbacks: list[Step] = field(default_factory=list)
    recovery: list[Step] = field(default_factory=list)
    recovery_s: float | None = None
    after: list[Step] = field(default_factory=list)
    control: "Journal | None" = None

    @property
    def broken(self) -> list[Step]:
        """Probes of the invariant and of the steady state after that did not hold."""
        return [step for step in (*self.invariant, *self.after) if not step.held]

    @property
    def deviated(self) -> bool:
        return bool(self.broken)

    @property
    def control_caught(self) -> bool | None:
        """Whether the negative control failed exactly where it had to; None without one."""
        control: NegativeControl[Any] | None = self.experiment.negative_control
        if control is None or self.control is None:
            return None
        return (
            self.control.status == "completed"
            and {step.name for step in self.control.broken} == control.must_catch
        )

    @property
    def passed(self) -> bool:
        """The claim held, the fault struck, everything recovered, and a false claim is noticed."""
        return (
            self.status == "completed"
            and not self.deviated
            and self.recovery_s is not None
            and self.control_caught is not False
        )

    def figure(self, name: str) -> Json:
        """The output of the invariant's or the proof's probe of this name."""
        for step in (*self.invariant, *self.proof):
            if step.name == name:
                return step.output
        raise KeyError(f"no probe named {name!r} in {self.experiment.name}")

    def summary(self) -> str:
        """A few lines for a person."""
        verdict = "passed" if self.passed else "FAILED"
        lines = [f"{self.experiment.name}: {verdict} in {self.duration_s:.1f} s"]
        if self.why:
            lines.append(f"  {self.status}: {self.why}")
        lines += [
            f"  {'ok  ' if step.held else 'FAIL'} {step.name}: {step.error or _short(step.output)}"
            for step in (*self.before, *self.proof, *self.invariant, *self.after)
        ]
        if self.recovery_s is not None:
            lines.append(f"  recovered in {self.recovery_s:.2f} s")
        if self.control is not None and self.experiment.negative_control is not None:
            caught = "caught" if self.control_caught else "NOT CAUGHT"
            lines.append(f"  negative control {caught}: {self.experiment.negative_control.title}")
            if not self.control_caught:
                lines += [f"    {line}" for line in self.control.summary().splitlines()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Json]:
        """The toolkit's journal, with our phases beside its own."""
        written: dict[str, Json] = {
            "experiment": self.experiment.to_json(),
            "status": self.status,
            "deviated": self.deviated,
            "passed": self.passed,
            "start": self.start.isoformat(),
            "duration": round(self.duration_s, 3),
            "steady_states": {
                "before": _state(self.before),
                "after": _state(self.after),
            },
            "run": [step.to_json() for step in self.method],
            "rollbacks": [step.to_json() for step in self.rollbacks],
            "proof": _state(self.proof),
            "invariant": _state(self.invariant),
            "recovery": {
                "recovered_s": self.recovery_s,
                "probes": [step.to_json() for step in self.recovery[-1:]],
            },
        }
        if self.why:
            written["why"] = self.why
        if self.control is not None:
            written["negative_control"] = {
                "caught": self.control_caught,
                "journal": self.control.to_json(),
            }
        return written


def _state(steps: list[Step]) -> dict[str, Json]:
    return {
        "steady_state_met": all(step.held for step in steps) if steps else None,
        "probes": [step.to_json() for step in steps],
    }


def _short(output: Json) -> str:
    return f"{output:.2f}" if isinstance(output, float) else str(output)
