"""The instruments of each room, with typed methods to record into them.

Attribute values are names with few possibilities (a model, a tier, a queue):
never an id, never content.
"""

from collections.abc import Callable, Iterable
from typing import Literal

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from observability import names

Source = Literal["engine", "exact", "semantic", "coalesced"]
CacheOutcome = Literal["exact", "semantic", "miss", "unavailable"]


class GenerationMetrics:
    """What a caller feels of a generation; for the router and for workers."""

    def __init__(self, meter: Meter) -> None:
        self._duration = meter.create_histogram(
            names.GEN_AI_SERVER_REQUEST_DURATION,
            unit="s",
            description="Duration of generations",
            explicit_bucket_boundaries_advisory=names.REQUEST_DURATION_BUCKETS,
        )
        self._first_token = meter.create_histogram(
            names.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
            unit="s",
            description="From the request to its first token",
            explicit_bucket_boundaries_advisory=names.TIME_TO_FIRST_TOKEN_BUCKETS,
        )
        self._per_token = meter.create_histogram(
            names.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
            unit="s",
            description="Mean time between tokens after the first",
            explicit_bucket_boundaries_advisory=names.TIME_PER_OUTPUT_TOKEN_BUCKETS,
        )
        self._tokens = meter.create_counter(
            names.TOKENS, unit="{token}", description="Tokens taken in and given out"
        )

    def finished(
        self,
        *,
        model: str,
        source: Source,
        duration_s: float,
        first_token_s: float | None,
        input_tokens: int,
        output_tokens: int,
        error_type: str | None = None,
    ) -> None:
        """Record one generation that ended, well or not.

        Args:
            model: the model that was asked for.
            source: where the answer came from; a replayed one counts its tokens
                under its own source, since the model did not work for it.
            duration_s: from the request's arrival to the end of its stream.
            first_token_s: from the request's arrival to the first token; None when
                there was none.
            input_tokens: tokens of the prompt.
            output_tokens: tokens sent to the caller.
            error_type: a status code's name when the generation failed.
        """
        attributes = {names.GEN_AI_REQUEST_MODEL: model, names.SOURCE: source}
        if error_type is not None:
            attributes[names.ERROR_TYPE] = error_type
        self._duration.record(duration_s, attributes)
        if first_token_s is not None:
            self._first_token.record(first_token_s, attributes)
            if output_tokens > 1:
                mean = (duration_s - first_token_s) / (output_tokens - 1)
                self._per_token.record(mean, attributes)
        for kind, count in (("input", input_tokens), ("output", output_tokens)):
            if count:
                self._tokens.add(count, {**attributes, names.GEN_AI_TOKEN_TYPE: kind})


class LookupMetrics:
    """Cache lookups by outcome; for the router and for the sidecar."""

    def __init__(self, meter: Meter) -> None:
        self._lookups = meter.create_counter(
            names.CACHE_LOOKUPS, unit="{lookup}", description="Lookups by outcome"
        )
        self._duration = meter.create_histogram(
            names.CACHE_LOOKUP_DURATION,
            unit="s",
            description="Duration of lookups",
            explicit_bucket_boundaries_advisory=names.LOOKUP_DURATION_BUCKETS,
        )

    def looked_up(
        self, outcome: CacheOutcome, duration_s: float, *, miss_reason: str | None = None
    ) -> None:
        """Record one lookup.

        Args:
            outcome: the tier that hit, or why there is no answer.
            duration_s: as the caller of the lookup waited.
            miss_reason: a MissReason's name in lower case, for a miss.
        """
        attributes: dict[str, str] = {names.CACHE_OUTCOME: outcome}
        if miss_reason is not None:
            attributes[names.CACHE_MISS_REASON] = miss_reason
        self._lookups.add(1, attributes)
        self._duration.record(duration_s, attributes)


class StoreMetrics:
    """What the answer store takes in and gives up; for the sidecar.

    Args:
        entries: how many answers are kept now.
        stored_bytes: how many bytes they take.
        lost: how many the disk has refused after they were taken.
    """

    def __init__(
        self,
        meter: Meter,
        entries: Callable[[], int],
        stored_bytes: Callable[[], int],
        lost: Callable[[], int] = lambda: 0,
    ) -> None:
        self._stores = meter.create_counter(
            names.CACHE_STORES, unit="{entry}", description="Entries offered, by result"
        )
        self._evictions = meter.create_counter(
            names.CACHE_EVICTIONS, unit="{entry}", description="Entries given up, by reason"
        )
        _gauge(meter, names.CACHE_ENTRIES, "{entry}", "Answers kept", entries, {})
        _gauge(meter, names.CACHE_BYTES, "By", "Bytes of the answers kept", stored_bytes, {})
        lost_answers = "Answers taken that the disk then refused"
        _total(meter, names.CACHE_LOST_ANSWERS, "{entry}", lost_answers, lost)

    def stored(self, status: Literal["stored", "exact_only", "refused"]) -> None:
        """Record one entry offered to the store."""
        self._stores.add(1, {names.CACHE_STORE_STATUS: status})

    def evicted(self, reason: Literal["bytes", "ttl", "invalidated"], count: int = 1) -> None:
        """Record entries given up."""
        self._evictions.add(count, {names.CACHE_EVICTION_REASON: reason})


class DroppedStoreMetrics:
    """Answers that never reached the sidecar; for the router.

    Args:
        dropped: how many it gave up storing.
    """

    def __init__(self, meter: Meter, dropped: Callable[[], int]) -> None:
        said = "Answers not stored: too many waited, or the sidecar did not take them"
        _total(meter, names.CACHE_STORES_DROPPED, "{entry}", said, dropped)


class QueueMetrics:
    """How long one queue is.

    Args:
        queue: its name, e.g. admission, engine, store.
        depth: how many items wait now.
    """

    def __init__(self, meter: Meter, queue: str, depth: Callable[[], int]) -> None:
        attributes = {names.QUEUE_NAME: queue}
        _gauge(meter, names.QUEUE_DEPTH, "{item}", "Items that wait", depth, attributes)


def _total(meter: Meter, name: str, unit: str, description: str, read: Callable[[], int]) -> None:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(read())]

    meter.create_observable_counter(name, [observe], unit=unit, description=description)


def _gauge(
    meter: Meter,
    name: str,
    unit: str,
    description: str,
    read: Callable[[], int],
    attributes: dict[str, str],
) -> None:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(read(), attributes)]

    meter.create_observable_gauge(name, [observe], unit=unit, description=description)
