"""A split as an operator sees it."""

import math

from router.splits.estimates import Interval, Mean
from router.splits.results import Results
from router.splits.split import Split
from sidecache.v1 import admin_pb2 as pb


def describe(split: Split, *, ready: frozenset[str], now: float) -> pb.Split:
    """The message of one split.

    Args:
        split: which.
        ready: labels of the variants, and the shadow, with a ready worker.
        now: by the clock that its rollback was noted by.
    """
    settings = split.settings
    told = pb.Split(model=settings.model, sticky=settings.sticky, fall_back=settings.fall_back)
    total = math.fsum(split.weights.values())
    for label, variant in split.variants.items():
        weight = split.weights[label]
        line = told.variants.add(
            variant=label,
            model=variant.model,
            adapter=variant.adapter,
            weight=weight,
            share=weight / total,
            ready=label in ready,
            role=_role(split, label),
        )
        if split.rollback is not None and split.rollback.variant == label:
            line.rolled_back = split.rollback.why
            line.rolled_back_ago.FromNanoseconds(int((now - split.rollback.at) * 1e9))
        _add_results(line, split.results[label])
    if settings.shadow is not None:
        shadow = settings.shadow
        line = told.variants.add(
            variant=shadow.label,
            model=shadow.model,
            adapter=shadow.adapter,
            share=shadow.share,
            ready=shadow.label in ready,
            role=pb.SPLIT_ROLE_SHADOW,
        )
        _add_results(line, split.results[shadow.label])
    return told


def _role(split: Split, label: str) -> "pb.SplitRole.ValueType":
    if not split.canary:
        return pb.SPLIT_ROLE_VARIANT
    if label == split.canary:
        return pb.SPLIT_ROLE_CANARY
    return pb.SPLIT_ROLE_BASELINE if label == split.baseline else pb.SPLIT_ROLE_VARIANT


def _add_results(line: pb.SplitVariant, results: Results) -> None:
    outcomes = results.outcomes
    line.succeeded, line.failed = outcomes["ok"], outcomes["error"]
    line.cached, line.abandoned = outcomes["cached"], outcomes["abandoned"]
    line.refused = outcomes["refused"]
    line.error_rate.CopyFrom(_estimate(results.error_rate(), results.judged))
    line.first_token_s.CopyFrom(_of(results.first_token_s))
    line.tokens_per_s.CopyFrom(_of(results.tokens_per_s))


def _of(mean: Mean) -> pb.Estimate:
    return _estimate(mean.interval(), mean.count)


def _estimate(interval: Interval, count: int) -> pb.Estimate:
    told = pb.Estimate(count=count, value=interval.estimate)
    if count and math.isfinite(interval.low):
        told.low, told.high = interval.low, interval.high
    return told
