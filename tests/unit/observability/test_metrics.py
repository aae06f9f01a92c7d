from typing import Any

from observability import names
from observability.metrics.cache import StoreMetrics
from observability.metrics.router import DroppedStoreMetrics
from observability.metrics.shared import GenerationMetrics, LookupMetrics, QueueMetrics
from tests.unit.observability.conftest import End


def by(end: End, metric: str, *keys: str) -> dict[Any, Any]:
    """The points of a metric by the values of these attributes."""
    return {tuple(p.attributes.get(k) for k in keys): p for p in end.points(metric)}


def test_a_generation_is_recorded_as_its_caller_felt_it() -> None:
    """Duration, time to first token and mean time per token land in the convention's buckets."""
    end = End.start("sidecache-test")
    metrics = GenerationMetrics(end.telemetry.meter)
    metrics.finished(
        model="m",
        source="engine",
        duration_s=1.2,
        first_token_s=0.2,
        input_tokens=7,
        output_tokens=11,
    )
    [duration] = end.points(names.GEN_AI_SERVER_REQUEST_DURATION)
    [first] = end.points(names.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN)
    [each] = end.points(names.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN)
    assert tuple(duration.explicit_bounds) == names.REQUEST_DURATION_BUCKETS
    assert tuple(first.explicit_bounds) == names.TIME_TO_FIRST_TOKEN_BUCKETS
    assert tuple(each.explicit_bounds) == names.TIME_PER_OUTPUT_TOKEN_BUCKETS
    assert (duration.sum, first.sum, round(each.sum, 9)) == (1.2, 0.2, 0.1)
    assert duration.attributes == {names.GEN_AI_REQUEST_MODEL: "m", names.SOURCE: "engine"}
    tokens = by(end, names.TOKENS, names.GEN_AI_TOKEN_TYPE, names.SOURCE)
    assert {key: p.value for key, p in tokens.items()} == {
        ("input", "engine"): 7,
        ("output", "engine"): 11,
    }


def test_a_generation_without_tokens_has_no_token_times() -> None:
    """A failed generation counts with its error, and does not pretend to have been fast."""
    end = End.start("sidecache-test")
    GenerationMetrics(end.telemetry.meter).finished(
        model="m",
        source="engine",
        duration_s=0.5,
        first_token_s=None,
        input_tokens=3,
        output_tokens=0,
        error_type="UNAVAILABLE",
    )
    [duration] = end.points(names.GEN_AI_SERVER_REQUEST_DURATION)
    assert duration.attributes[names.ERROR_TYPE] == "UNAVAILABLE"
    assert end.points(names.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN) == []
    assert end.points(names.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN) == []


def test_one_token_has_no_time_between_tokens() -> None:
    """Time per output token needs a second token."""
    end = End.start("sidecache-test")
    GenerationMetrics(end.telemetry.meter).finished(
        model="m",
        source="exact",
        duration_s=0.5,
        first_token_s=0.1,
        input_tokens=0,
        output_tokens=1,
    )
    assert end.points(names.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN) == []
    assert len(end.points(names.TOKENS)) == 1


def test_lookups_are_counted_by_tier() -> None:
    """Hits of each tier and misses with their reason are told apart."""
    end = End.start("sidecache-test")
    metrics = LookupMetrics(end.telemetry.meter)
    metrics.looked_up("exact", 0.0004)
    metrics.looked_up("exact", 0.0006)
    metrics.looked_up("semantic", 0.006)
    metrics.looked_up("miss", 0.007, miss_reason="below_threshold")
    counts = by(end, names.CACHE_LOOKUPS, names.CACHE_OUTCOME, names.CACHE_MISS_REASON)
    assert {key: p.value for key, p in counts.items()} == {
        ("exact", None): 2,
        ("semantic", None): 1,
        ("miss", "below_threshold"): 1,
    }
    durations = by(end, names.CACHE_LOOKUP_DURATION, names.CACHE_OUTCOME)
    assert durations[("exact",)].count == 2
    assert tuple(durations[("exact",)].explicit_bounds) == names.LOOKUP_DURATION_BUCKETS


def test_gauges_are_read_when_metrics_are() -> None:
    """Queue depth and store size are what they are at the moment of the export."""
    end = End.start("sidecache-test")
    waiting: list[int] = []
    QueueMetrics(end.telemetry.meter, "admission", lambda: len(waiting))
    store = StoreMetrics(end.telemetry.meter, lambda: 4, lambda: 4096, lambda: 7)
    DroppedStoreMetrics(end.telemetry.meter, lambda: 3)
    waiting += [1, 2, 3]
    [depth] = end.points(names.QUEUE_DEPTH)
    assert (depth.value, depth.attributes) == (3, {names.QUEUE_NAME: "admission"})
    store.stored("stored")
    store.evicted("ttl", 2)
    assert [p.value for p in end.points(names.CACHE_LOST_ANSWERS)] == [7]
    assert [p.value for p in end.points(names.CACHE_STORES_DROPPED)] == [3]
    assert [p.value for p in end.points(names.CACHE_ENTRIES)] == [4]
    assert [p.value for p in end.points(names.CACHE_BYTES)] == [4096]
    assert [p.value for p in end.points(names.CACHE_EVICTIONS)] == [2]
    assert [p.value for p in end.points(names.CACHE_STORES)] == [1]
