"""Plays an experiment: steady, fault, proof, invariant, rollback, recovery, steady again."""

import asyncio
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from chaos.experiment import Action, Experiment, Hypothesis, Probe, S
from chaos.journal import Journal, Status, Step

# Between two looks at a stop condition, or at whether it has recovered.
LOOK_S = 0.02


class _Over(Exception):
    """The run ends here; carries the journal's status and why."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


async def run(experiment: Experiment[Any], *, with_control: bool = True) -> Journal:
    """Play an experiment, and its negative control after it.

    Never raises for what a probe finds or a step raises: that is the journal's
    to tell.
    """
    journal = await _play(experiment)
    control = experiment.negative_control
    if with_control and control is not None and journal.status == "completed":
        journal.control = await _play(control.experiment, is_control=True)
    return journal


async def _play(experiment: Experiment[Any], *, is_control: bool = False) -> Journal:
    journal = Journal(experiment)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        try:
            async with experiment.open_stage(Path(folder)) as stage:
                await _Run(experiment, stage, journal, is_control=is_control).play()
        except Exception as error:  # noqa: BLE001 - a stage that cannot be opened is a result too
            over = next((leaf for leaf in _leaves(error) if isinstance(leaf, _Over)), None)
            journal.status = over.status if over else "failed"
            journal.why = over.why if over else "; ".join(map(_name, _leaves(error)))
    journal.duration_s = time.monotonic() - began_s
    return journal


class _Run:
    """One experiment on one open stage.

    A control ends with the invariant: it has nothing to say about recovery, and
    its stage is thrown away, fault and all.
    """

    def __init__(
        self, experiment: Experiment[S], stage: S, journal: Journal, *, is_control: bool
    ) -> None:
        self._experiment = experiment
        self._stage = stage
        self._journal = journal
        self._is_control = is_control
        self._began_s = time.monotonic()

    async def play(self) -> None:
        """All phases, under the stop conditions and the time limit."""
        over: _Over | None = None
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch())
                await self._phases_in_time()
                watch.cancel()
        except* _Over as overs:
            over = next(leaf for leaf in _leaves(overs) if isinstance(leaf, _Over))
        if over is not None:
            raise over

    async def _phases_in_time(self) -> None:
        limit_s = self._experiment.limit_s
        try:
            async with asyncio.timeout(limit_s):
                await self._phases()
        except TimeoutError:
            raise _Over("aborted", f"not done within {limit_s:g} s") from None

    async def _phases(self) -> None:
        experiment, journal, stage = self._experiment, self._journal, self._stage
        stage.phase = "before"
        await self._test(experiment.steady_state, journal.before)
        self._require(journal.before, "the steady state was not met before the fault")
        stage.phase = "fault"
        if self._is_control:
            await self._under_fault()
            return
        try:
            await self._under_fault()
        finally:
            # Whatever happened, the fault does not outlive the run.
            stage.phase = "recovery"
            await self._do(experiment.rollbacks, journal.rollbacks)
        await self._recover()
        stage.phase = "after"
        await self._test(experiment.steady_state, journal.after)

    async def _under_fault(self) -> None:
        experiment, journal = self._experiment, self._journal
        await self._do(experiment.method, journal.method)
        await self._test(experiment.proof, journal.proof)
        self._require(journal.proof, "the fault did not strike")
        await self._test(experiment.invariant, journal.invariant)

    async def _do(self, actions: Iterable[Action[Any]], steps: list[Step]) -> None:
        for action in actions:
            step = await self._step(action)
            steps.append(step)
            if step.error:
                raise _Over("failed", f"{step.name}: {step.error}")

    async def _test(self, hypothesis: Hypothesis[Any], steps: list[Step]) -> None:
        steps.extend([await self._step(probe) for probe in hypothesis.probes])

    def _require(self, steps: list[Step], otherwise: str) -> None:
        failed = [f"{step.name}: {step.error or step.output}" for step in steps if not step.held]
        if failed:
            raise _Over("failed", f"{otherwise}: {'; '.join(failed)}")

    async def _recover(self) -> None:
        recovery, journal = self._experiment.recovery, self._journal
        began_s = time.monotonic()
        while time.monotonic() - began_s < recovery.within_s:
            step = await self._step(recovery.probe)
            journal.recovery[:] = [step]  # the last look tells all
            if step.held:
                journal.recovery_s = time.monotonic() - began_s
                return
            await asyncio.sleep(LOOK_S)
        raise _Over("failed", f"not recovered within {recovery.within_s} s: {step.output}")

    async def _watch(self) -> None:
        """End the run as soon as a stop condition is out of tolerance."""
        while True:
            for probe in self._experiment.stop_conditions:
                step = await self._step(probe)
                if not step.held:
                    raise _Over("aborted", f"{step.name}: {step.error or step.output}")
            await asyncio.sleep(LOOK_S)

    async def _step(self, action: Action[Any]) -> Step:
        began_s = time.monotonic()
        step = Step(action.to_json(), began_s - self._began_s)
        try:
            step.output = await action.run(self._stage)
        except Exception as error:  # noqa: BLE001 - a failed step is a finding, not a crash
            step.error = "; ".join(map(_name, _leaves(error)))
        if isinstance(action, Probe):
            step.tolerance_met = not step.error and action.tolerance.allows(step.output)
        step.duration_s = time.monotonic() - began_s
        return step


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """What an exception group is made of, however nested; an error by itself."""
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
