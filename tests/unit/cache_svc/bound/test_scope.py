"""The bound in simulated worlds whose error rates are known."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_svc.bound.bounds import BoundRules, Bounds
from cache_svc.bound.evidence import BANDS, Evidence, Neighbour, weigh
from cache_svc.bound.ledger import Ledger
from cache_svc.bound.noise import PERFECT, JudgeNoise
from cache_svc.bound.plan import make_plan
from cache_svc.bound.scope import EXPLORED_TO_RECOVER, Regime, Rules, ScopeBound
from cache_svc.bound.tally import Tally

SAFE = Evidence(0.97, 1.0)
DOUBTFUL = Evidence(0.86, 0.85)
BAD = Evidence(0.81, 0.3)
LONE = Evidence(0.9, None)
# P(wrong) of each kind of candidate in the simulated world, and its share.
RULES = Rules(0.02, 0.05)
WORLD = {SAFE: (0.004, 0.5), DOUBTFUL: (0.06, 0.3), BAD: (0.4, 0.2)}


@dataclass
class Run:
    """What a simulated stream came to."""

    bound: ScopeBound
    hits: int = 0
    false: int = 0
    audits: int = 0
    regimes: list[Regime] = field(default_factory=list)


def simulate(
    seed: int,
    requests: int,
    kinds: Callable[[int, random.Random], tuple[Evidence, float]],
    rules: Rules = RULES,
    into: Run | None = None,
) -> Run:
    """A stream of candidates; ``kinds`` gives each one's evidence and P(wrong).

    An audited hit is a hit here: the caller has got the stored answer.
    """
    chance = random.Random(seed)  # noqa: S311 - a simulation
    regimes: list[Regime] = []
    own = random.Random(seed + 1).random  # noqa: S311 - the same
    run = into or Run(ScopeBound(rules, own, regimes.append), regimes=regimes)
    for number in range(requests):
        evidence, rate = kinds(number, chance)
        wrong = chance.random() < rate
        entry_id = chance.randrange(1000)
        decision = run.bound.decide(entry_id, evidence)
        if not decision.serve:
            reported = wrong != (chance.random() < _noise(rules.noise, wrong=wrong))
            run.bound.explored(entry_id, evidence, wrong=reported)
            continue
        run.hits += 1
        run.false += wrong
        if run.bound.draws_audit():
            run.audits += 1
            reported = wrong != (chance.random() < _noise(rules.noise, wrong=wrong))
            run.bound.audited(entry_id, evidence, decision.risk, wrong=reported)
    return run


def _noise(noise: JudgeNoise, *, wrong: bool) -> float:
    return noise.false_accept if wrong else noise.false_reject


def mixed(_: int, chance: random.Random) -> tuple[Evidence, float]:
    """Candidates of all kinds, in random order."""
    kinds = list(WORLD)
    (kind,) = chance.choices(kinds, [WORLD[kind][1] for kind in kinds])
    return kind, WORLD[kind][0]


def in_blocks(number: int, _: random.Random) -> tuple[Evidence, float]:
    """Long runs of one kind after another: first the safe, then ever riskier ones."""
    kind = list(WORLD)[number // 500 % 3]
    return kind, WORLD[kind][0]


def tolerated(hits: int, delta: float) -> float:
    """The most false hits of so many that δ leaves plausible, one-sided 5 %, and the credit."""
    return delta * hits + 1.645 * math.sqrt(hits * delta * (1 - delta)) + 1


@pytest.mark.parametrize("kinds", [mixed, in_blocks])
def test_the_stated_error_holds_in_a_steady_world(
    kinds: Callable[[int, random.Random], tuple[Evidence, float]],
) -> None:
    """In at least 95 % of streams false hits are within tolerance of δ, in any order."""
    runs = [simulate(seed, 2000, kinds) for seed in range(40)]
    kept = sum(run.false <= tolerated(run.hits, 0.02) for run in runs)
    assert kept >= 38
    # And not by serving nothing: the safe half of the requests is served.
    assert sum(run.hits for run in runs) / (40 * 2000) > 0.2


def test_a_noisy_judge_is_accounted_for() -> None:
    """A judge that takes a tenth of wrong answers for right hides no errors from the bound."""
    rules = Rules(0.02, 0.05, JudgeNoise(false_accept=0.1))
    runs = [simulate(seed, 3000, mixed, rules) for seed in range(20)]
    assert sum(run.false <= tolerated(run.hits, 0.02) for run in runs) >= 19
    assert all(run.hits > 600 for run in runs)


def test_a_judge_that_rejects_right_answers_costs_hits_not_safety() -> None:
    """With a tenth of right answers called wrong, the bound still holds."""
    rules = Rules(0.02, 0.05, JudgeNoise(false_reject=0.1))
    runs = [simulate(seed, 3000, mixed, rules) for seed in range(10)]
    assert all(run.false <= tolerated(run.hits, 0.02) for run in runs)


def test_a_tighter_bound_serves_no_more() -> None:
    """Over the same world a smaller δ never means more hits, and a tiny one hardly any."""
    hits = [
        sum(simulate(seed, 2000, mixed, Rules(delta, 0.05)).hits for seed in range(5))
        for delta in (0.001, 0.01, 0.02, 0.05, 0.1)
    ]
    assert hits == sorted(hits)
    assert hits[0] < hits[2] / 10


def test_drift_ends_semantic_hits_soon() -> None:
    """Answers that went stale stop being served within a bounded number of audits and hits."""
    alarms = 0
    for seed in range(10):
        run = simulate(seed, 2000, mixed)
        audits, hits = run.audits, run.hits
        run = simulate(seed + 100, 2000, lambda _, __: (SAFE, 0.3), into=run)
        alarms += run.bound.regime is Regime.EXACT_ONLY
        late = run.hits
        run = simulate(seed + 200, 300, lambda _, __: (SAFE, 0.3), into=run)
        assert run.hits == late
        assert run.audits - audits <= 60
        assert run.hits - hits <= 600
    # And the operator hears of it.
    assert alarms >= 9


def test_a_scope_recovers_by_exploring() -> None:
    """Once explored candidates are right again, the scope serves again."""
    run = simulate(1, 2000, mixed)
    simulate(2, 1500, lambda _, __: (SAFE, 0.5), into=run)
    assert Regime.EXACT_ONLY in run.regimes
    before = run.hits
    simulate(3, EXPLORED_TO_RECOVER - 1, lambda _, __: (SAFE, 0.0), into=run)
    simulate(4, 4000, lambda _, __: (SAFE, 0.002), into=run)
    assert run.regimes[-1] is Regime.SERVING
    assert run.hits - before > 1000


def test_false_alarms_are_rare() -> None:
    """A world within its bound is not sent to exact-only."""
    alarms = sum(simulate(seed, 3000, mixed).bound.alarms for seed in range(20))
    assert alarms <= 2


def test_an_entry_that_was_wrong_is_not_served_in_a_band_that_is() -> None:
    """An entry's own record outweighs what is known of candidates like it."""
    run = simulate(5, 3000, mixed)
    assert run.bound.assess(5000, SAFE).serve
    run.bound.explored(5000, SAFE, wrong=True)
    assert not run.bound.assess(5000, SAFE).serve
    assert run.bound.assess(5001, SAFE).serve


def test_a_complaint_counts_against_the_entry() -> None:
    """Feedback on a hit is an observation of the band and the entry it was served from."""
    bound = ScopeBound(Rules(0.02, 0.05), lambda: 0.5, lambda _: None)
    assert bound.decide(7, LONE).serve
    risk = bound.assess(7, LONE).risk
    bound.complained(7)
    bound.complained(8)  # never served: nothing to learn
    assert bound.assess(7, LONE).risk > risk


@given(
    st.lists(
        st.tuples(
            st.floats(-1, 1),
            st.none() | st.floats(0, 1),
            st.booleans(),
            st.integers(0, 5),
            st.sampled_from(["none", "audit", "complain"]),
        ),
        max_size=300,
    ),
    st.floats(0.001, 0.3),
    st.floats(0, 2),
)
def test_by_its_own_accounting_it_never_serves_above_the_bound(
    events: list[tuple[float, float | None, bool, int, str]], delta: float, credit: float
) -> None:
    """Whatever comes, charges stay within δ of the hits and the credit, and plans within δ."""
    bound = ScopeBound(Rules(delta, 0.1, credit=credit), lambda: 0.5, lambda _: None)
    for similarity, agreement, wrong, entry_id, after in events:
        evidence = Evidence(similarity, agreement)
        decision = bound.decide(entry_id, evidence)
        if not decision.serve:
            bound.explored(entry_id, evidence, wrong=wrong)
        elif after == "audit":
            bound.audited(entry_id, evidence, decision.risk, wrong=wrong)
        elif after == "complain":
            bound.complained(entry_id)
        ledger = bound.ledger
        assert ledger.charged <= delta * ledger.hits + ledger.credit + 1e-9
        assert bound.plan.upper <= delta


@given(st.lists(st.booleans(), max_size=200))
def test_what_is_not_observed_changes_nothing(labels: list[bool]) -> None:
    """No label leaks: with the same observations, decisions are the same."""
    one = ScopeBound(Rules(0.02, 0.05), lambda: 0.99, lambda _: None)
    other = ScopeBound(Rules(0.02, 0.05), lambda: 0.99, lambda _: None)
    for number, wrong in enumerate(labels):
        first, second = one.decide(number, LONE), other.decide(number, LONE)
        assert first == second
        if not first.serve:  # explored: both see the same label
            one.explored(number, LONE, wrong=wrong)
            other.explored(number, LONE, wrong=wrong)


@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 1000)), max_size=12
    ),
    st.floats(0.001, 0.2),
    st.floats(0.001, 0.2),
)
def test_a_plan_grows_with_delta(
    counts: list[tuple[int, int, int]], one: float, other: float
) -> None:
    """What a tight δ serves, a loose one serves too, and each plan keeps its δ."""
    tallies = [
        Tally(0.05, 8.0, float(right + wrong), float(wrong), float(seen))
        for right, wrong, seen in counts
    ]
    tight, loose = (make_plan(tallies, PERFECT, d) for d in sorted((one, other)))
    assert all(not t or s for t, s in zip(tight.served, loose.served, strict=True))
    assert tight.upper <= min(one, other)


@given(st.floats(-1, 1), st.none() | st.floats(0, 1))
def test_every_evidence_has_a_band(similarity: float, agreement: float | None) -> None:
    """Any similarity and agreement falls into one of the bands."""
    assert 0 <= Evidence(similarity, agreement).band < BANDS


def test_company_speaks_for_or_against() -> None:
    """Neighbours that say the same raise agreement; far or unjudged ones have no voice."""
    candidate = Neighbour(0.9, 1)
    assert weigh(candidate, []).agreement is None
    assert weigh(candidate, [Neighbour(0.2, 2)]).agreement is None
    assert weigh(candidate, [Neighbour(0.9, None)]).agreement is None
    assert weigh(Neighbour(0.9, None), [Neighbour(0.9, 1)]).agreement is None
    assert weigh(candidate, [Neighbour(0.9, 1)]).agreement == 1.0
    assert weigh(candidate, [Neighbour(0.9, 2)]).agreement == 0.5
    assert weigh(candidate, [Neighbour(0.95, 2)]).agreement == 0.5


def test_records_of_entries_are_bounded() -> None:
    """Observations of entries are kept for so many entries only."""
    bound = ScopeBound(Rules(0.02, 0.05, max_entries=10), lambda: 0.5, lambda _: None)
    for entry_id in range(100):
        bound.explored(entry_id, BAD, wrong=True)
    assert bound.known_entries == 10


def test_old_savings_do_not_pay_for_a_bad_day() -> None:
    """The ledger forgets: after any number of free hits its means are bounded."""
    ledger = Ledger(0.02, 1.0)
    for _ in range(100_000):
        ledger.charge(0.0)
    spent = 0
    while ledger.affords(1.0):
        ledger.charge(1.0)
        spent += 1
    assert spent <= 0.02 * 4001 + 1


def test_whose_bound_is_whose() -> None:
    """Tenants never share; a namespace has a bound of its own where the operator named it."""
    rules = BoundRules(Rules(0.02, 0.05), {"acme": 0.05, "acme/legal": 0.001}, max_scopes=3)
    bounds = Bounds(rules, lambda: 0.5, lambda *_: None)
    assert bounds.of("acme", "a") is bounds.of("acme", "b")
    assert bounds.of("acme", "legal") is not bounds.of("acme", "a")
    assert bounds.of("umbrella", "a") is not bounds.of("acme", "a")
    assert bounds.of("umbrella", "").delta == 0.02
    assert bounds.of("acme", "").delta == 0.05
    assert bounds.of("acme", "legal").delta == 0.001
    first = bounds.of("acme", "")
    for tenant in "xyz":
        bounds.of(tenant, "")
    assert bounds.of("acme", "") is not first


@given(st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 1))
def test_noise_is_taken_out_as_it_came_in(accept: float, reject: float, rate: float) -> None:
    """Sharpening undoes blurring."""
    noise = JudgeNoise(accept, reject)
    sharp, _ = noise.sharpen(noise.blur(rate), 0.0)
    assert sharp == pytest.approx(rate, abs=1e-9)


@given(st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0, 1), st.integers(200, 2000))
def test_a_tally_takes_the_noise_out(
    accept: float, reject: float, rate: float, observed: int
) -> None:
    """Many reports of a noisy judge lead to the true rate; none leave the belief as it was."""
    noise = JudgeNoise(accept, reject)
    assert Tally(0.05, 8.0).rate(noise)[0] == 0.05
    assert Tally(0.05, 8.0).rate(JudgeNoise(accept)) == Tally(0.05, 8.0).rate(PERFECT)
    tally = Tally(0.05, 8.0, float(observed), observed * noise.blur(rate))
    mean, deviation = tally.rate(noise)
    assert abs(mean - rate) <= 8.0 / (8.0 + observed * noise.power**2) + 1e-9
    # What is known for less is less certain.
    assert deviation >= Tally(0.05, 8.0, float(observed), observed * rate).rate(PERFECT)[1] * 0.99
