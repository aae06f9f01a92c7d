"""A worker killed before its streams had a token: another takes over, unseen."""

from dataclasses import replace
from functools import partial

from chaos.experiment import (
    Action,
    Between,
    Equals,
    Experiment,
    Hypothesis,
    NegativeControl,
    Probe,
    Recovery,
)
from chaos.experiments import steps
from chaos.fleet import Fleet, FleetPlan

# Long enough that a worker which holds two streams has sent neither a token.
TTFT_S = 0.4
# A killed worker's streams wait twice for a first token; the rest is slack.
SLOWEST_S = 2 * TTFT_S + 1.0
CALLS = 24

PLAN = FleetPlan(
    workers=2,
    cached=False,
    kinds=("fresh",),
    clients=4,
    worker={"scripted__ttft_s": str(TTFT_S)},
)

NO_FAILED_CALL = "no call failed"
ALL_IN_TIME = "the slowest call ends in good time (s)"
NO_WRONG_STREAM = "the history checker finds nothing"


def _experiment(name: str, plan: FleetPlan) -> Experiment[Fleet]:
    return Experiment(
        name=name,
        title="A worker killed before its first token is replaced unseen",
        description="SIGKILL of a worker while it holds streams that have had no token yet.",
        open_stage=partial(Fleet.open, plan),
        configuration=plan.to_json(),
        tags=("worker", "SIGKILL"),
        steady_state=Hypothesis(
            "Every worker is ready and every client gets right answers",
            (
                Probe("no call failed", steps.failed_calls, {"calls": CALLS}, Equals(0)),
                Probe("all workers are ready", steps.ready_workers, {}, Equals(plan.workers)),
                Probe(NO_WRONG_STREAM, steps.wrong_streams, tolerance=Equals([])),
            ),
        ),
        method=(
            Action(
                "kill a worker that is generating",
                steps.kill_while_generating,
                {"service": "worker-1", "streams": 2},
            ),
            Action("let clients go on", steps.observe, {"calls": CALLS}),
        ),
        proof=Hypothesis(
            "SIGKILL ended the worker while it held streams",
            (
                Probe(
                    "it was ended by SIGKILL", steps.exit_code, {"service": "worker-1"}, Equals(-9)
                ),
                Probe(
                    "streams lost their worker before the first token",
                    steps.streams_struck,
                    {"service": "worker-1"},
                    Between(1, 1000),
                ),
            ),
        ),
        invariant=Hypothesis(
            "Every client gets its whole answer, the struck ones from another worker",
            (
                Probe(NO_FAILED_CALL, steps.failed_calls, tolerance=Equals(0)),
                Probe(
                    "whoever failed was told UNAVAILABLE",
                    steps.failed_otherwise,
                    {"code": "UNAVAILABLE"},
                    Equals(0),
                ),
                Probe(ALL_IN_TIME, steps.slowest_call_s, tolerance=Between(0, SLOWEST_S)),
                Probe(NO_WRONG_STREAM, steps.wrong_streams, tolerance=Equals([])),
            ),
        ),
        rollbacks=(Action("start the worker again", steps.restart, {"service": "worker-1"}),),
        recovery=Recovery(
            Probe("all workers are ready", steps.ready_workers, {}, Equals(plan.workers)),
            within_s=10.0,
        ),
        stop_conditions=(
            Probe("nothing else died", steps.unexpected_deaths, tolerance=Equals([])),
        ),
    )


BEFORE_FIRST_TOKEN = replace(
    _experiment("worker-killed", PLAN),
    negative_control=NegativeControl(
        "without a second worker calls must fail, with UNAVAILABLE and in good time",
        _experiment("worker-killed/control", replace(PLAN, workers=1)),
        must_catch=frozenset({NO_FAILED_CALL}),
    ),
)
