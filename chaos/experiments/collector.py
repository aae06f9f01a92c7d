"""The OpenTelemetry collector dead, and silent: nothing may change for clients."""

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

CALLS = 48
TOLERANCE_MS = 10.0
# Two seconds for the last export, and what an interpreter takes to end.
SHUTDOWN_S = 2.5

PLAN = FleetPlan(collected=True, worker={"scripted__ttft_s": "0.02"})

NO_FAILED_CALL = "no call failed"
NO_WRONG_STREAM = "the history checker finds nothing"
SHUTDOWN = "the router shuts down in time (s)"


def _experiment(name: str, title: str, fault: str, plan: FleetPlan) -> Experiment[Fleet]:
    return Experiment(
        name=name,
        title=title,
        description=f"The fault {fault!r} between all services and their collector, under load.",
        open_stage=partial(Fleet.open, plan),
        configuration=plan.to_json(),
        tags=("telemetry", fault),
        steady_state=Hypothesis(
            "Clients get right answers and the collector hears of them",
            (
                Probe(NO_FAILED_CALL, steps.failed_calls, {"calls": CALLS}, Equals(0)),
                Probe(NO_WRONG_STREAM, steps.wrong_streams, tolerance=Equals([])),
                Probe(
                    "all services report",
                    steps.all_services_report_within,
                    {"seconds": 15.0},
                ),
            ),
        ),
        method=(
            Action("take the collector away", steps.break_collector, {"fault": fault}),
            Action("let clients go on", steps.observe, {"calls": CALLS}),
        ),
        proof=Hypothesis(
            "The services' connections are broken and no span arrives",
            (
                Probe(
                    "connections were struck",
                    steps.connections_struck_within,
                    {"seconds": 5.0},
                    Between(1, 1000),
                ),
                Probe("no span arrived", steps.spans_received, tolerance=Equals(0)),
            ),
        ),
        invariant=Hypothesis(
            "Clients see no difference, and a service can still end",
            (
                Probe(NO_FAILED_CALL, steps.failed_calls, tolerance=Equals(0)),
                Probe(
                    "the first token comes as before (median, ms)",
                    steps.first_token_change_ms,
                    tolerance=Between(-1000, TOLERANCE_MS),
                ),
                Probe(
                    SHUTDOWN,
                    steps.shutdown_s,
                    {"service": "router"},
                    Between(0, SHUTDOWN_S),
                ),
                Probe(NO_WRONG_STREAM, steps.wrong_streams, tolerance=Equals([])),
            ),
        ),
        rollbacks=(Action("bring the collector back", steps.mend_collector),),
        recovery=Recovery(
            Probe("all services report again", steps.all_services_report_within, {"seconds": 25.0}),
            within_s=25.0,
        ),
        stop_conditions=(
            Probe("nothing else died", steps.unexpected_deaths, tolerance=Equals([])),
        ),
        limit_s=90.0,
    )


DEAD = _experiment(
    "collector-dead", "A collector that is not there changes nothing for clients", "down", PLAN
)

_SILENT_TITLE = "A collector that accepts and never answers changes nothing for clients"
SILENT = replace(
    _experiment("collector-silent", _SILENT_TITLE, "blackhole", PLAN),
    negative_control=NegativeControl(
        "a router that grants the last export 4 s must be seen to end late",
        _experiment(
            "collector-silent/control",
            _SILENT_TITLE,
            "blackhole",
            replace(PLAN, router={"telemetry__shutdown_timeout_s": "4"}),
        ),
        must_catch=frozenset({SHUTDOWN}),
    ),
)
