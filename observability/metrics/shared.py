"""What more than one service measures: generations, lookups, queues."""

from collections.abc import Callable
from typing import Literal

from opentelemetry.metrics import Meter

from observability import names
from observability.metrics.observed import gauge

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
        variant: str = "",
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
            variant: what a split made of the model; empty: it is no split.
        """
        attributes = {names.GEN_AI_REQUEST_MODEL: model, names.SOURCE: source}
        if variant:
            attributes[names.VARIANT] = variant
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


class QueueMetrics:
    """How long one queue is.

    Args:
        queue: its name, e.g. admission, engine, store.
        depth: how many items wait now.
    """

    def __init__(self, meter: Meter, queue: str, depth: Callable[[], int]) -> None:
        attributes = {names.QUEUE_NAME: queue}
        gauge(meter, names.QUEUE_DEPTH, "{item}", "Items that wait", depth, attributes)
