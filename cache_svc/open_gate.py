"""The bound on false hits out of its settings, joined to log, metrics and counters."""

import logging
import random
from typing import NamedTuple

from opentelemetry.metrics import Meter

from cache_svc.bound.bounds import BoundRules, Bounds
from cache_svc.bound.noise import JudgeNoise
from cache_svc.bound.scope import Regime, Rules
from cache_svc.bound_settings import BoundSettings
from cache_svc.durable.opening import Opened
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.gate import Gate
from cache_svc.judge import AnswerJudge
from cache_svc.learnt import Learnt, lineage
from cache_svc.senses import Senses
from cache_svc.stats import Stats
from observability import names

log = logging.getLogger(__name__)


class OpenGate(NamedTuple):
    """A gate, and what of its learning is kept on disk; None: there is no disk."""

    gate: Gate
    learnt: Learnt | None


def open_gate(
    settings: BoundSettings,
    queue: EmbeddingQueue,
    stats: Stats,
    meter: Meter,
    durable: Opened | None = None,
) -> OpenGate | None:
    """The gate that the settings describe, or None where they turn it off.

    Args:
        settings: of the bound.
        queue: embeds answers for the judge.
        stats: counts for GetStats.
        meter: counts for the operator.
        durable: knows what was learnt before, and keeps what is learnt now.
    """
    if not settings.enabled:
        return None
    changes = meter.create_counter(
        names.CACHE_BOUND_CHANGES,
        unit="{change}",
        description="Scopes that fell back to exact hits because of wrong ones, or recovered",
    )

    learnt: Learnt | None = None
    judged: dict[int, None] = {}

    def note(entry_id: int) -> None:
        if durable is not None:
            judged[entry_id] = None

    def tell(tenant: str, namespace: str, regime: Regime) -> None:
        if learnt is not None:
            learnt.write_scope(tenant, namespace)
        changes.add(1, {names.CACHE_BOUND_REGIME: regime.value})
        fields = {"tenant": tenant, "namespace": namespace}
        if regime is Regime.EXACT_ONLY:
            stats.count(tenant, "bound_alarms")
            log.warning("too many semantic hits were wrong: exact hits only", extra=fields)
        else:
            log.warning("semantic hits are within their bound again", extra=fields)

    # Which hits are audited must not be foreseeable by who could profit from it.
    bounds = Bounds(_rules(settings), random.SystemRandom().random, tell, note)
    senses = Senses(settings.max_senses, note)
    if durable is not None:
        own = lineage(settings, queue.fingerprint)
        learnt = Learnt(bounds, senses, durable.store, judged, own)
        learnt.bring_back(durable.judgements, durable.bounds)
    gate = Gate(
        bounds,
        senses,
        AnswerJudge(queue, settings.judge_min_similarity, settings.judge_chars),
        stats.count,
        company=settings.company,
        max_pending=settings.max_pending,
    )
    return OpenGate(gate, learnt)


def _rules(settings: BoundSettings) -> BoundRules:
    default = Rules(
        settings.max_false_hit_rate,
        settings.audit_share,
        JudgeNoise(settings.judge_false_accept, settings.judge_false_reject),
        settings.max_entries,
        settings.trusted_false_hits,
    )
    return BoundRules(default, settings.overrides, settings.max_scopes)
