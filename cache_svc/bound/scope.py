"""One scope's bound: serve a candidate, or explore it.

Exploring costs the caller nothing but the hit: he gets a fresh answer at once,
and the pair is judged afterwards. Labels come from nowhere else but explored
candidates, audited hits and feedback.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from cache_svc.bound.alarm import DriftAlarm
from cache_svc.bound.evidence import Evidence
from cache_svc.bound.ledger import CREDIT, Ledger
from cache_svc.bound.noise import PERFECT, JudgeNoise
from cache_svc.bound.plan import Plan, make_plan
from cache_svc.bound.prior import new_tallies
from cache_svc.bound.snapshot import ScopeSnapshot

# Observations of its band that an entry's own have to overrule.
_ENTRY_PRIOR_WEIGHT = 4.0
# Candidates and observations between two plans; a plan costs some 50 us.
_PLAN_EVERY = 16
# The mix of candidates planned for is that of the last two thousand or so.
_SEEN_DECAY = 1.0 - _PLAN_EVERY / 2000
# On trust, before there is any plan, no single candidate may be riskier.
_MAX_RISK_ON_TRUST = 0.35
# After an alarm so much of what was believed is kept, and so many explored
# candidates are seen before the scope may serve again.
_KEPT_AFTER_ALARM = 0.05
EXPLORED_TO_RECOVER = 100
# Fallen back, every candidate is observed, and the bad days are to be forgotten.
_MEMORY_AFTER_ALARM = 300
# Audits are so much more frequent while the alarm is suspicious.
_SUSPICION = 4.0


class Regime(Enum):
    """What a scope does with candidates."""

    SERVING = "serving"
    EXACT_ONLY = "exact_only"


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator sets.

    Attributes:
        delta: largest share of false answers among semantic hits, in (0, 1).
        audit_share: share of hits that are generated again and judged, in (0, 1].
        noise: how often the judge errs.
        max_entries: entries whose own observations are kept.
        credit: wrong answers a new scope may be charged on trust, beyond δ.
    """

    delta: float
    audit_share: float
    noise: JudgeNoise = PERFECT
    max_entries: int = 10_000
    credit: float = CREDIT


class Decision(NamedTuple):
    """What to do with a candidate, why, and the risk a hit is charged."""

    serve: bool
    risk: float
    reason: str


@dataclass(slots=True)
class _Record:
    """An entry's own observations, and as what it was served last."""

    right: int = 0
    wrong: int = 0
    band: int = -1
    risk: float = 0.0


class ScopeBound:
    """Decides for the candidates of one tenant and namespace.

    Args:
        rules: what the operator set.
        random: uniform numbers in [0, 1).
        on_regime: told whenever the scope falls back or recovers.
        on_judged: told of an entry whose record changed.
    """

    def __init__(
        self,
        rules: Rules,
        random: Callable[[], float],
        on_regime: Callable[[Regime], None],
        on_judged: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._rules = rules
        self._random = random
        self._on_regime = on_regime
        self._on_judged = on_judged
        self._tallies = new_tallies()
        self._records: OrderedDict[int, _Record] = OrderedDict()
        self._ledger = Ledger(rules.delta, rules.credit)
        self._alarm = DriftAlarm()
        self._explored_since_alarm = 0
        self._promised: dict[int, float] = {}
        self._plan = self._new_plan()
        self._until_plan = _PLAN_EVERY
        self.regime = Regime.SERVING
        self.alarms = 0
        # How often anything changed; to be compared, for whoever writes it down.
        self.changes = 0

    @property
    def delta(self) -> float:
        """The share of wrong answers that the operator allows."""
        return self._rules.delta

    @property
    def known_entries(self) -> int:
        """Entries whose own observations are kept."""
        return len(self._records)

    @property
    def plan(self) -> Plan:
        """The bands served now."""
        return self._plan

    @property
    def ledger(self) -> Ledger:
        """What was served so far, by the bound's own accounting."""
        return self._ledger

    def snapshot(self) -> ScopeSnapshot:
        """All that was learnt but the records of entries."""
        return ScopeSnapshot(
            delta=self._rules.delta,
            bands=tuple((tally.observed, tally.wrong, tally.seen) for tally in self._tallies),
            promised=dict(self._promised),
            hits=self._ledger.hits,
            charged=self._ledger.charged,
            credit=self._ledger.credit,
            wealth=self._alarm.wealth,
            exact_only=self.regime is Regime.EXACT_ONLY,
            explored_since_alarm=self._explored_since_alarm,
            alarms=self.alarms,
        )

    def resume(self, snapshot: ScopeSnapshot) -> None:
        """Go on where an earlier process was; tells no listener."""
        for tally, (observed, wrong, seen) in zip(self._tallies, snapshot.bands, strict=True):
            tally.observed, tally.wrong, tally.seen = observed, min(wrong, observed), seen
        self._promised = dict(snapshot.promised)
        # A credit that the operator cut meanwhile is not spent, one used up not renewed.
        credit = min(snapshot.credit, self._rules.credit)
        self._ledger = Ledger(self._rules.delta, credit)
        self._ledger.hits, self._ledger.charged = snapshot.hits, snapshot.charged
        self._alarm.wealth = snapshot.wealth
        self._explored_since_alarm = snapshot.explored_since_alarm
        self.alarms = snapshot.alarms
        self.regime = Regime.EXACT_ONLY if snapshot.exact_only else Regime.SERVING
        self._plan = self._new_plan()

    def record_of(self, entry_id: int) -> tuple[int, int]:
        """How often candidates of an entry were judged right, and wrong."""
        record = self._records.get(entry_id)
        return (0, 0) if record is None else (record.right, record.wrong)

    def bring_record_back(self, entry_id: int, right: int, wrong: int) -> None:
        """Take in an entry's record of before a restart."""
        record = self._record(entry_id)
        record.right, record.wrong = right, wrong

    def assess(self, entry_id: int, evidence: Evidence) -> Decision:
        """Decide, and change nothing."""
        band = evidence.band
        if self.regime is Regime.EXACT_ONLY:
            return Decision(False, 1.0, "bound: exact hits only since audits found too many wrong")
        risk = self._risk(entry_id, band)
        limit = self._limit()
        said = f"{evidence}: risk {risk:.3f}"
        planned = self._plan.served[band] and risk <= max(limit, self._plan.risks[band])
        if not planned and risk > limit:
            return Decision(False, risk, f"bound: {said} is over {limit:.3f}")
        if not self._ledger.affords(risk):
            return Decision(False, risk, f"bound: {said} is more than the hits so far allow")
        return Decision(True, risk, f"bound: {said}")

    def decide(self, entry_id: int, evidence: Evidence) -> Decision:
        """Decide about a candidate of a real request, and book it."""
        decision = self.assess(entry_id, evidence)
        self._tallies[evidence.band].seen += 1
        self._tick()
        if decision.serve:
            self._ledger.charge(decision.risk)
            record = self._record(entry_id)
            record.band, record.risk = evidence.band, decision.risk
        return decision

    def draws_audit(self) -> bool:
        """Whether chance picks this hit to be audited; the same chance for every hit."""
        suspicion = _SUSPICION if self._alarm.is_suspicious else 1.0
        return self._random() < self._rules.audit_share * suspicion

    def explored(self, entry_id: int, evidence: Evidence, *, wrong: bool) -> None:
        """Take in the judgement of a candidate that was not served."""
        promised = self._promised.get(evidence.band)
        record = self._records.get(entry_id)
        if promised and not self._plan.served[evidence.band] and not (record and record.wrong):
            # The band was served until lately: such a candidate is as good as an audit.
            self._check(promised, wrong=wrong)
        self._observe(entry_id, evidence.band, wrong=wrong)
        if self.regime is Regime.EXACT_ONLY:
            self._explored_since_alarm += 1
            if self._explored_since_alarm >= EXPLORED_TO_RECOVER:
                self._recover()

    def audited(self, entry_id: int, evidence: Evidence, risk: float, *, wrong: bool) -> None:
        """Take in the judgement of a hit that was audited at random."""
        self._observe(entry_id, evidence.band, wrong=wrong)
        self._check(risk, wrong=wrong)

    def complained(self, entry_id: int) -> None:
        """Take in feedback that a hit on this entry was wrong."""
        record = self._records.get(entry_id)
        if record is not None and record.band >= 0:
            self._observe(entry_id, record.band, wrong=True)
            self._check(record.risk, wrong=True)

    def _risk(self, entry_id: int, band: int) -> float:
        """The band's risk, sharpened by the entry's own observations."""
        risk = self._plan.risks[band]
        record = self._records.get(entry_id)
        if record is None:
            return risk
        weight = _ENTRY_PRIOR_WEIGHT + record.right + record.wrong
        return (_ENTRY_PRIOR_WEIGHT * risk + record.wrong) / weight

    def _limit(self) -> float:
        """The highest risk that left-over means may be spent on."""
        return self._plan.marginal if any(self._plan.served) else _MAX_RISK_ON_TRUST

    def _observe(self, entry_id: int, band: int, *, wrong: bool) -> None:
        record = self._record(entry_id)
        if self.regime is Regime.EXACT_ONLY or record.wrong <= record.right:
            # While others are served, entries known to be wrong are explored every
            # time; they are counted apart, so that an observation stands for the
            # candidates like it (post-stratification: the weight 1/chance without its
            # variance).
            tally = self._tallies[band]
            tally.observe(wrong=wrong)
            if self.regime is Regime.EXACT_ONLY and tally.observed > _MEMORY_AFTER_ALARM:
                tally.fade(0.5)
        record.wrong += wrong
        record.right += not wrong
        self._on_judged(entry_id)
        self._tick()

    def _check(self, risk: float, *, wrong: bool) -> None:
        promised = self._rules.noise.blur(max(self._rules.delta, risk))
        self._alarm.observe(wrong=wrong, promised=promised)
        if self._alarm.rings and self.regime is Regime.SERVING:
            self._fall_back()

    def _fall_back(self) -> None:
        self.regime = Regime.EXACT_ONLY
        self.alarms += 1
        self._explored_since_alarm = 0
        self._promised.clear()
        for tally in self._tallies:
            tally.fade(_KEPT_AFTER_ALARM)
        self._on_regime(self.regime)

    def _recover(self) -> None:
        self._replan()
        if not any(self._plan.served):
            return
        self.regime = Regime.SERVING
        self._alarm.reset()
        forgotten, self._records = self._records, OrderedDict()  # of the days of wrong answers
        for entry_id in forgotten:
            self._on_judged(entry_id)
        # Trust is given once: from here on only evidence pays.
        self._ledger = Ledger(self._rules.delta, credit=0.0)
        self._on_regime(self.regime)

    def _record(self, entry_id: int) -> _Record:
        record = self._records.get(entry_id)
        if record is None:
            record = self._records[entry_id] = _Record()
            if len(self._records) > self._rules.max_entries:
                self._records.popitem(last=False)
        else:
            self._records.move_to_end(entry_id)
        return record

    def _tick(self) -> None:
        self.changes += 1
        self._until_plan -= 1
        if self._until_plan <= 0:
            self._replan()

    def _replan(self) -> None:
        self._until_plan = _PLAN_EVERY
        for tally in self._tallies:
            tally.seen *= _SEEN_DECAY
        self._plan = self._new_plan()
        for band, served in enumerate(self._plan.served):
            if served:
                self._promised[band] = self._plan.risks[band]

    def _new_plan(self) -> Plan:
        return make_plan(self._tallies, self._rules.noise, self._rules.delta)
