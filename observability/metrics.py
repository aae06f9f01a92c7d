"""The instruments of each room, with typed methods to record into them.

Attribute values are names with few possibilities (a model, a tier, a queue):
never an id, never content.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from observability import names

Source = Literal["engine", "exact", "semantic", "coalesced"]
CacheOutcome = Literal["exact", "semantic", "miss", "unavailable"]
MigrationOutcome = Literal["exact", "best_effort", "not_exact", "too_many", "no_worker"]
AdmissionOutcome = Literal[
    "admitted",
    "router_full",
    "tenant_full",
    "tenant_rate",
    "tenant_tokens",
    "too_late",
    "waited_too_long",
    "left",
]
HintOutcome = Literal[
    "given", "unknown_model", "no_tokenizer", "too_long", "busy", "late", "refused", "failed"
]
Promise = Literal["kept", "short", "broken", "untold"]


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


class SpeculationMetrics:
    """Generations that were begun before the cache had answered; for the router."""

    def __init__(self, meter: Meter) -> None:
        self._races = meter.create_counter(
            names.SPECULATIONS,
            unit="{generation}",
            description="Generations begun before the lookup's answer, by what ended the race",
        )

    def ended(self, winner: Literal["hit", "miss", "worker"]) -> None:
        """Record one race.

        Args:
            winner: a stored answer (the generation was for nothing), a miss that came
                before the first token, or the worker's first token.
        """
        self._races.add(1, {names.SPECULATION_WINNER: winner})


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


class PrefixMetrics:
    """Prefix hints, and the index of KV blocks they come from; for the sidecar.

    Args:
        blocks: how many the index holds now.
        states: how many workers are followed in which way now.
        resyncs: snapshots asked for again so far, by what was wrong.
        events: blocks stored and removed so far.
    """

    def __init__(
        self,
        meter: Meter,
        blocks: Callable[[], int],
        states: Callable[[], Mapping[str, int]],
        resyncs: Callable[[], Mapping[str, int]],
        events: Callable[[], int],
    ) -> None:
        self._hints = meter.create_counter(
            names.PREFIX_HINTS, unit="{hint}", description="Prefix hints asked for, by outcome"
        )
        self._duration = meter.create_histogram(
            names.PREFIX_HINT_DURATION,
            unit="s",
            description="Time to tokenize a prompt and to look for its blocks",
            explicit_bucket_boundaries_advisory=names.LOOKUP_DURATION_BUCKETS,
        )
        self._blocks = meter.create_counter(
            names.PREFIX_PROMPT_BLOCKS,
            unit="{block}",
            description="Blocks of prompts, by whether the worker with most of them holds them",
        )
        _gauge(meter, names.PREFIX_BLOCKS, "{block}", "KV blocks in the index", blocks, {})
        meter.create_observable_gauge(
            names.PREFIX_WORKERS,
            [_observe_each(states, names.PREFIX_STATE)],
            unit="{worker}",
            description="Workers, by how they are followed",
        )
        meter.create_observable_counter(
            names.PREFIX_RESYNCS,
            [_observe_each(resyncs, names.PREFIX_FAULT)],
            unit="{resync}",
            description="Snapshots asked for again, by what was wrong",
        )
        meter.create_observable_counter(
            names.PREFIX_EVENTS,
            [lambda _: [Observation(events(), {})]],
            unit="{block}",
            description="KV blocks stored and removed",
        )

    def hinted(self, outcome: HintOutcome, duration_s: float) -> None:
        """Record one hint that was asked for."""
        self._hints.add(1, {names.PREFIX_OUTCOME: outcome})
        self._duration.record(duration_s, {names.PREFIX_OUTCOME: outcome})

    def matched(self, prompt_blocks: int, held_blocks: int) -> None:
        """Record a prompt's blocks, of which some worker holds so many."""
        self._blocks.add(held_blocks, {names.PREFIX_HELD: True})
        self._blocks.add(prompt_blocks - held_blocks, {names.PREFIX_HELD: False})


class RoutingMetrics:
    """What the sidecar's hints were worth to the streams that ended well; for the router."""

    def __init__(self, meter: Meter) -> None:
        self._streams = meter.create_counter(
            names.ROUTING_STREAMS,
            unit="{stream}",
            description="Streams of workers, by whether there was a hint and its ids were sent on",
        )
        self._blocks = meter.create_counter(
            names.ROUTING_PROMPT_BLOCKS,
            unit="{block}",
            description="Blocks of hinted prompts: held by the worker chosen, by another, by none",
        )
        self._promises = meter.create_counter(
            names.ROUTING_PROMISES,
            unit="{stream}",
            description="Streams sent to a holder, by whether the engine found what it was to hold",
        )

    def routed(self, *, hinted: bool, token_ids: bool) -> None:
        """Record one stream."""
        hint = "given" if hinted else "none"
        self._streams.add(1, {names.ROUTING_HINT: hint, names.ROUTING_TOKEN_IDS: token_ids})

    def placed(self, here: int, elsewhere: int, nowhere: int) -> None:
        """Record the blocks of one hinted prompt.

        Args:
            here: leading ones that the chosen worker was said to hold.
            elsewhere: those beyond, that another one was said to hold.
            nowhere: the rest.
        """
        for held, blocks in (("here", here), ("elsewhere", elsewhere), ("nowhere", nowhere)):
            if blocks:
                self._blocks.add(blocks, {names.ROUTING_HELD: held})

    def promised(self, promise: Promise) -> None:
        """Record what became of a hint that said the chosen worker held something."""
        self._promises.add(1, {names.ROUTING_PROMISE: promise})


class DroppedStoreMetrics:
    """Answers that never reached the sidecar; for the router.

    Args:
        dropped: how many it gave up storing.
    """

    def __init__(self, meter: Meter, dropped: Callable[[], int]) -> None:
        said = "Answers not stored: too many waited, or the sidecar did not take them"
        _total(meter, names.CACHE_STORES_DROPPED, "{entry}", said, dropped)


class RecoveryMetrics:
    """Streams that lost their worker, and what was done for them; for the router.

    Args:
        quarantined: how many prompts are refused now.
        ejections: how often a worker was left out for doing worse than its peers.
    """

    def __init__(
        self, meter: Meter, quarantined: Callable[[], int], ejections: Callable[[], int]
    ) -> None:
        self._migrations = meter.create_counter(
            names.MIGRATIONS,
            unit="{stream}",
            description="Streams that lost their worker after the first token, by what came of it",
        )
        self._retries = meter.create_counter(
            names.RETRIES,
            unit="{request}",
            description="Requests begun again before the first token, or not for want of budget",
        )
        said = "Prompts refused because workers were lost under them"
        _gauge(meter, names.QUARANTINED_PROMPTS, "{prompt}", said, quarantined, {})
        said = "Times a worker was left out for doing worse than its peers"
        _total(meter, names.WORKER_EJECTIONS, "{ejection}", said, ejections)

    def migrated(self, outcome: MigrationOutcome) -> None:
        """Record one worker lost by one stream."""
        self._migrations.add(1, {names.MIGRATION_OUTCOME: outcome})

    def retried(self, outcome: Literal["made", "refused"]) -> None:
        """Record one request whose first token had not come."""
        self._retries.add(1, {names.RETRY_OUTCOME: outcome})


class SplitMetrics:
    """Requests of splits, by variant and outcome; for the router."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._requests = meter.create_counter(
            names.SPLIT_REQUESTS, unit="{request}", description="Requests of splits that ended"
        )
        self._rollbacks = meter.create_counter(
            names.SPLIT_ROLLBACKS, unit="{rollback}", description="Canaries that lost their share"
        )

    def watch(self, shares: Callable[[], Mapping[tuple[str, str], float]]) -> None:
        """Show the shares in force, by split and variant."""

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [
                Observation(share, {names.SPLIT: split, names.VARIANT: variant})
                for (split, variant), share in shares().items()
            ]

        self._meter.create_observable_gauge(
            names.SPLIT_SHARE, [observe], unit="1", description="Share of a split's requests"
        )

    def ended(self, split: str, variant: str, outcome: str) -> None:
        """Record one request."""
        self._requests.add(
            1, {names.SPLIT: split, names.VARIANT: variant, names.SPLIT_OUTCOME: outcome}
        )

    def rolled_back(self, split: str, variant: str) -> None:
        """Record one rollback."""
        self._rollbacks.add(1, {names.SPLIT: split, names.VARIANT: variant})


class QueueMetrics:
    """How long one queue is.

    Args:
        queue: its name, e.g. admission, engine, store.
        depth: how many items wait now.
    """

    def __init__(self, meter: Meter, queue: str, depth: Callable[[], int]) -> None:
        attributes = {names.QUEUE_NAME: queue}
        _gauge(meter, names.QUEUE_DEPTH, "{item}", "Items that wait", depth, attributes)


class AdmissionMetrics:
    """Who was let in, who was not and why, and how long it took; for the router.

    Args:
        waiting: requests that wait for a worker now.
        tokens: reserved by those that run, and by those that wait.
        desired_workers: of each model, by its name.
    """

    def __init__(
        self,
        meter: Meter,
        waiting: Callable[[], int],
        tokens: Callable[[], Mapping[str, int]],
        desired_workers: Callable[[], Mapping[str, int]],
    ) -> None:
        QueueMetrics(meter, "admission", waiting)
        self._decisions = meter.create_counter(
            names.ADMISSION_DECISIONS, unit="{request}", description="Requests, by what became"
        )
        self._waited = meter.create_histogram(
            names.QUEUE_WAIT_DURATION,
            unit="s",
            description="Wait for a turn",
            explicit_bucket_boundaries_advisory=names.REQUEST_DURATION_BUCKETS,
        )
        meter.create_observable_gauge(
            names.ADMISSION_TOKENS,
            [_observe_each(tokens, names.ADMISSION_STATE)],
            unit="{token}",
            description="Tokens reserved by requests",
        )
        meter.create_observable_gauge(
            names.ROUTER_DESIRED_WORKERS,
            [_observe_each(desired_workers, names.GEN_AI_REQUEST_MODEL)],
            unit="{worker}",
            description="Workers that the load and its objectives ask for",
        )

    def decided(self, outcome: AdmissionOutcome, priority_class: str, waited_s: float) -> None:
        """Record one request that was let in or refused.

        Args:
            outcome: let in, or why not.
            priority_class: of its key.
            waited_s: for its turn, where it was let in.
        """
        attributes = {names.ADMISSION_OUTCOME: outcome, names.PRIORITY_CLASS: priority_class}
        self._decisions.add(1, attributes)
        if outcome == "admitted":
            wait = {names.QUEUE_NAME: "admission", names.PRIORITY_CLASS: priority_class}
            self._waited.record(waited_s, wait)


def _total(meter: Meter, name: str, unit: str, description: str, read: Callable[[], int]) -> None:
    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(read())]

    meter.create_observable_counter(name, [observe], unit=unit, description=description)


def _observe_each(
    read: Callable[[], Mapping[str, int]], attribute: str
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    """An observation for each kind; there are few, and all of them are named in code."""

    def observe(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, {attribute: kind}) for kind, count in read().items()]

    return observe


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
