"""An experiment, after the Chaos Toolkit's schema, as typed objects.

`steady-state-hypothesis`, `method` and `rollbacks` are the toolkit's own. What
its schema has no word for, an experiment of ours must have too: the proof that
the fault struck, the invariant while it lasts, the recovery and its bound, stop
conditions and a negative control. :meth:`Experiment.to_json` writes those as an
extension, which the schema provides for.

https://chaostoolkit.org/reference/api/experiment/
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

EXTENSION = "sidecache"

Json = Any


class Stage(Protocol):
    """What an experiment plays on.

    Attributes:
        phase: set by the runner: ``before``, ``fault``, ``recovery``, ``after``.
    """

    phase: str


S = TypeVar("S", bound=Stage)


class Tolerance(Protocol):
    """Which results of a probe are good."""

    def allows(self, value: Json) -> bool:
        """Whether a result is good."""

    def to_json(self) -> Json:
        """As the Chaos Toolkit writes it."""


@dataclass(frozen=True, slots=True)
class Equals:
    """Exactly this value."""

    value: Json

    def allows(self, value: Json) -> bool:
        return type(value) is type(self.value) and bool(value == self.value)

    def to_json(self) -> Json:
        return self.value


@dataclass(frozen=True, slots=True)
class Between:
    """A number from ``lower`` to ``upper``, both included; NaN is never in it."""

    lower: float
    upper: float

    def allows(self, value: Json) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.lower <= value <= self.upper

    def to_json(self) -> Json:
        return {"type": "range", "range": [self.lower, self.upper]}


@dataclass(frozen=True)
class Action(Generic[S]):
    """Something done to the stage.

    Attributes:
        name: what it does, in words.
        do: ``async def do(stage, **arguments)``; what it returns goes into the journal.
    """

    name: str
    do: Callable[..., Awaitable[Json]]
    arguments: Mapping[str, Json] = field(default_factory=dict)

    async def run(self, stage: S) -> Json:
        """Do it."""
        return await self.do(stage, **self.arguments)

    def to_json(self) -> dict[str, Json]:
        provider = {
            "type": "python",
            "module": self.do.__module__,
            "func": self.do.__name__,
            # Resolved by the toolkit from the experiment's configuration.
            "arguments": {"stage": "${stage}", **self.arguments},
        }
        return {"type": "action", "name": self.name, "provider": provider}


@dataclass(frozen=True)
class Probe(Action[S]):
    """Something asked of the stage, and which answers are good."""

    tolerance: Tolerance = Equals(value=True)

    def to_json(self) -> dict[str, Json]:
        return {**super().to_json(), "type": "probe", "tolerance": self.tolerance.to_json()}


@dataclass(frozen=True)
class Hypothesis(Generic[S]):
    """Probes that are all within tolerance when the claim is true."""

    title: str
    probes: tuple[Probe[S], ...]

    def to_json(self) -> dict[str, Json]:
        return {"title": self.title, "probes": [probe.to_json() for probe in self.probes]}


@dataclass(frozen=True)
class Recovery(Generic[S]):
    """How one sees that the fault is over, and how long that may take after the rollback."""

    probe: Probe[S]
    within_s: float

    def to_json(self) -> dict[str, Json]:
        return {"probe": self.probe.to_json(), "within_s": self.within_s}


@dataclass(frozen=True)
class NegativeControl(Generic[S]):
    """The same experiment where its claim is false, to show that it would be noticed.

    Attributes:
        title: why the claim is false there.
        experiment: played up to the end of its invariant, which must not hold.
        must_catch: the invariant's probes that must be out of tolerance. Every
            other probe must hold, or something else went wrong than was planted.
    """

    title: str
    experiment: "Experiment[S]"
    must_catch: frozenset[str]


@dataclass(frozen=True)
class Experiment(Generic[S]):
    """A fault, and what must hold under it.

    Attributes:
        name: on the command line.
        open_stage: opens what it is played on; gets an empty folder.
        configuration: what the stage is made of, in words and figures.
        steady_state: holds before the method and after the recovery.
        method: brings the fault.
        proof: that the fault really struck; without it nothing was shown.
        invariant: must hold while the fault lasts.
        rollbacks: take the fault away; run whatever happened.
        stop_conditions: watched all the while; out of tolerance ends the run.
        limit_s: for everything between opening and closing the stage.
    """

    name: str
    title: str
    description: str
    open_stage: Callable[[Path], AbstractAsyncContextManager[S]]
    configuration: Mapping[str, Json]
    steady_state: Hypothesis[S]
    method: tuple[Action[S], ...]
    proof: Hypothesis[S]
    invariant: Hypothesis[S]
    rollbacks: tuple[Action[S], ...]
    recovery: Recovery[S]
    stop_conditions: tuple[Probe[S], ...]
    tags: tuple[str, ...] = ()
    limit_s: float = 60.0
    negative_control: NegativeControl[S] | None = None

    def to_json(self) -> dict[str, Json]:
        """The experiment in the Chaos Toolkit's schema, version 1.0.0."""
        extension = {
            "name": EXTENSION,
            "proof": self.proof.to_json(),
            "invariant": self.invariant.to_json(),
            "recovery": self.recovery.to_json(),
            "stop-conditions": [probe.to_json() for probe in self.stop_conditions],
            "limit_s": self.limit_s,
        }
        if self.negative_control is not None:
            extension["negative-control"] = {
                "title": self.negative_control.title,
                "configuration": dict(self.negative_control.experiment.configuration),
                "must-catch": sorted(self.negative_control.must_catch),
            }
        return {
            "version": "1.0.0",
            "title": self.title,
            "description": self.description,
            "tags": list(self.tags),
            "configuration": {"stage": dict(self.configuration)},
            "steady-state-hypothesis": self.steady_state.to_json(),
            "method": [step.to_json() for step in self.method],
            "rollbacks": [step.to_json() for step in self.rollbacks],
            "extensions": [extension],
        }
