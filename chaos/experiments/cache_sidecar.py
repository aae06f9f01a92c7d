"""The cache sidecar killed, and hung: clients must not notice more than the lookup deadline."""

from collections.abc import Mapping
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

LOOKUP_DEADLINE_MS = 50.0  # the router's default
# What a timer, a cancelled call and a busy machine add to a deadline at the median.
TOLERANCE_MS = 15.0
# A stall of a shared machine lands in somebody's call.
WORST_TOLERANCE_MS = 200.0
CALLS = 48

# A pace at which two clients leave a small machine idle most of the time, so that
# what is measured is the gateway and not the queue for the processor.
PLAN = FleetPlan(worker={"scripted__ttft_s": "0.02"})

NO_FAILED_CALL = "no call failed"
ADDED_TIME = "a lookup adds at most the deadline to the first token (median, ms)"
NO_WRONG_STREAM = "the history checker finds nothing"


def _steady() -> Hypothesis[Fleet]:
    return Hypothesis(
        "Clients get right answers, some of them from the cache, and a miss costs little",
        (
            Probe(NO_FAILED_CALL, steps.failed_calls, {"calls": CALLS}, Equals(0)),
            Probe(
                "a lookup adds little (median, ms)",
                steps.added_first_token_ms,
                tolerance=Between(-TOLERANCE_MS, TOLERANCE_MS),
            ),
            Probe(
                "popular prompts hit the cache",
                steps.exact_hits,
                {"calls": 12},
                Between(1, 12),
            ),
            Probe(NO_WRONG_STREAM, steps.wrong_streams, tolerance=Equals([])),
        ),
    )


def _invariant() -> Hypothesis[Fleet]:
    return Hypothesis(
        "Every client is served, and later by at most the lookup deadline",
        (
            Probe(NO_FAILED_CALL, steps.failed_calls, tolerance=Equals(0)),
            Probe(
                ADDED_TIME,
                steps.added_first_token_ms,
                tolerance=Between(-TOLERANCE_MS, LOOKUP_DEADLINE_MS + TOLERANCE_MS),
            ),
            Probe(
                "and in the worst of these calls not much more (p99, ms)",
                steps.added_first_token_ms,
                {"share": 0.99},
                Between(-TOLERANCE_MS, LOOKUP_DEADLINE_MS + WORST_TOLERANCE_MS),
            ),
            Probe(NO_WRONG_STREAM, steps.wrong_streams, tolerance=Equals([])),
        ),
    )


def _unanswered() -> Probe[Fleet]:
    return Probe("no answer comes from the cache", steps.exact_hits, {"calls": CALLS}, Equals(0))


def _recovery() -> Recovery[Fleet]:
    return Recovery(Probe("a popular prompt hits again", steps.serves_hits), within_s=10.0)


def _stops() -> tuple[Probe[Fleet], ...]:
    return (Probe("nothing else died", steps.unexpected_deaths, tolerance=Equals([])),)


def _killed(name: str, plan: FleetPlan) -> Experiment[Fleet]:
    return Experiment(
        name=name,
        title="A killed cache sidecar costs clients nothing but its hits",
        description="SIGKILL of the sidecar under load; later it is started again, empty.",
        open_stage=partial(Fleet.open, plan),
        configuration=plan.to_json(),
        tags=("cache sidecar", "SIGKILL"),
        steady_state=_steady(),
        method=(Action("kill the sidecar", steps.kill, {"service": "cache"}),),
        proof=Hypothesis(
            "SIGKILL ended the sidecar, and the router lost it",
            (
                Probe("it was ended by SIGKILL", steps.exit_code, {"service": "cache"}, Equals(-9)),
                _unanswered(),
            ),
        ),
        invariant=_invariant(),
        rollbacks=(Action("start the sidecar again", steps.restart, {"service": "cache"}),),
        recovery=_recovery(),
        stop_conditions=_stops(),
    )


def _hung(name: str, plan: FleetPlan) -> Experiment[Fleet]:
    return Experiment(
        name=name,
        title="A hung cache sidecar costs each request at most the lookup deadline",
        description=(
            "SIGSTOP of the sidecar under load. The router's breaker is held closed, so that "
            "every single lookup pays; by default it leaves a silent sidecar alone after five."
        ),
        open_stage=partial(Fleet.open, plan),
        configuration=plan.to_json(),
        tags=("cache sidecar", "SIGSTOP"),
        steady_state=_steady(),
        method=(Action("hang the sidecar", steps.hang, {"service": "cache"}),),
        proof=Hypothesis(
            "The kernel has stopped the sidecar, and the router hears nothing of it",
            (
                Probe("it is stopped", steps.is_hung, {"service": "cache"}),
                _unanswered(),
                Probe(
                    "lookups run into the deadline (median, ms)",
                    steps.added_first_token_ms,
                    tolerance=Between(LOOKUP_DEADLINE_MS / 2, 10_000),
                ),
            ),
        ),
        invariant=_invariant(),
        rollbacks=(Action("let the sidecar go on", steps.resume, {"service": "cache"}),),
        recovery=_recovery(),
        stop_conditions=_stops(),
    )


def _with_router(plan: FleetPlan, more: Mapping[str, str]) -> FleetPlan:
    return replace(plan, router={**plan.router, **more})


_BREAKER_CLOSED = {"lookup__failures_to_open": "1000000"}
_HUNG_PLAN = _with_router(PLAN, _BREAKER_CLOSED)
_PATIENT_PLAN = _with_router(_HUNG_PLAN, {"lookup__lookup_timeout_s": "0.12"})
# Clients who take an answer from the cache or none at all do see a dead sidecar.
_STRICT_PLAN = replace(PLAN, kinds=("fresh", "bypass", "popular", "only-if-cached"))

KILLED = replace(
    _killed("cache-killed", PLAN),
    negative_control=NegativeControl(
        "clients that insist on the cache must be seen to fail",
        replace(
            _killed("cache-killed/control", _STRICT_PLAN),
            # Such a client is refused until somebody else's answer is stored.
            steady_state=Hypothesis(
                "Clients get right answers, some of them from the cache",
                (
                    Probe("some calls", steps.observe, {"calls": CALLS}, Between(CALLS, 10_000)),
                    Probe(NO_WRONG_STREAM, steps.wrong_streams, tolerance=Equals([])),
                ),
            ),
        ),
        must_catch=frozenset({NO_FAILED_CALL}),
    ),
)

HUNG = replace(
    _hung("cache-hung", _HUNG_PLAN),
    negative_control=NegativeControl(
        "a router that waits 120 ms for the sidecar must be seen to be slow",
        _hung("cache-hung/control", _PATIENT_PLAN),
        must_catch=frozenset({ADDED_TIME}),
    ),
)
