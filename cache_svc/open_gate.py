"""The bound on false hits out of its settings, joined to log, metrics and counters."""

import logging
import random

from opentelemetry.metrics import Meter

from cache_svc.bound.bounds import BoundRules, Bounds
from cache_svc.bound.noise import JudgeNoise
from cache_svc.bound.scope import Regime, Rules
from cache_svc.bound_settings import BoundSettings
from cache_svc.embedding_queue import EmbeddingQueue
from cache_svc.gate import Gate
from cache_svc.judge import AnswerJudge
from cache_svc.senses import Senses
from cache_svc.stats import Stats
from observability import names

log = logging.getLogger(__name__)


def open_gate(
    settings: BoundSettings, queue: EmbeddingQueue, stats: Stats, meter: Meter
) -> Gate | None:
    """The gate that the settings describe, or None where they turn it off."""
    if not settings.enabled:
        return None
    changes = meter.create_counter(
        names.CACHE_BOUND_CHANGES,
        unit="{change}",
        description="Scopes that fell back to exact hits because of wrong ones, or recovered",
    )

    def tell(tenant: str, namespace: str, regime: Regime) -> None:
        changes.add(1, {names.CACHE_BOUND_REGIME: regime.value})
        fields = {"tenant": tenant, "namespace": namespace}
        if regime is Regime.EXACT_ONLY:
            stats.count(tenant, "bound_alarms")
            log.warning("too many semantic hits were wrong: exact hits only", extra=fields)
        else:
            log.warning("semantic hits are within their bound again", extra=fields)

    noise = JudgeNoise(settings.judge_false_accept, settings.judge_false_reject)
    default = Rules(
        settings.max_false_hit_rate,
        settings.audit_share,
        noise,
        settings.max_entries,
        settings.trusted_false_hits,
    )
    rules = BoundRules(default, settings.overrides, settings.max_scopes)
    # Which hits are audited must not be foreseeable by who could profit from it.
    bounds = Bounds(rules, random.SystemRandom().random, tell)
    return Gate(
        bounds,
        Senses(settings.max_senses),
        AnswerJudge(queue, settings.judge_min_similarity, settings.judge_chars),
        stats.count,
        company=settings.company,
        max_pending=settings.max_pending,
    )
