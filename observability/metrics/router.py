"""What the router measures beside its generations and lookups."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from observability import names
from observability.metrics.observed import gauge, observe_each, total
from observability.metrics.shared import QueueMetrics

HedgeOutcome = Literal["won", "lost", "failed", "no_room", "no_budget"]
MigrationOutcome = Literal[
    "exact", "best_effort", "not_exact", "too_many", "no_worker", "suspected"
]
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
Promise = Literal["kept", "short", "broken", "untold"]


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
            [observe_each(tokens, names.ADMISSION_STATE)],
            unit="{token}",
            description="Tokens reserved by requests",
        )
        meter.create_observable_gauge(
            names.ROUTER_DESIRED_WORKERS,
            [observe_each(desired_workers, names.GEN_AI_REQUEST_MODEL)],
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


class ParaphraseMetrics:
    """Waits for the answer to a question of the same meaning; for the router."""

    def __init__(self, meter: Meter) -> None:
        self._waits = meter.create_counter(
            names.PARAPHRASE_WAITS,
            unit="{wait}",
            description="Waits for a paraphrase's answer, by what came of them",
        )

    def waited(self, outcome: Literal["hit", "miss", "late"]) -> None:
        """Record one wait.

        Args:
            outcome: its answer was served; it was not, or there was none; it took too long.
        """
        self._waits.add(1, {names.PARAPHRASE_OUTCOME: outcome})


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
        gauge(meter, names.QUARANTINED_PROMPTS, "{prompt}", said, quarantined, {})
        said = "Times a worker was left out for doing worse than its peers"
        total(meter, names.WORKER_EJECTIONS, "{ejection}", said, ejections)

    def migrated(self, outcome: MigrationOutcome) -> None:
        """Record one worker lost by one stream."""
        self._migrations.add(1, {names.MIGRATION_OUTCOME: outcome})

    def retried(self, outcome: Literal["made", "refused"]) -> None:
        """Record one request whose first token had not come."""
        self._retries.add(1, {names.RETRY_OUTCOME: outcome})


class HedgeMetrics:
    """Second workers that begin before the first one's first token; for the router."""

    def __init__(self, meter: Meter) -> None:
        self._hedges = meter.create_counter(
            names.HEDGES,
            unit="{request}",
            description="Requests whose worker was late, by what a second worker came to",
        )
        self._prompt_tokens = meter.create_counter(
            names.HEDGED_PROMPT_TOKENS,
            unit="{token}",
            description="Prompt tokens that were given to two workers",
        )

    def hedged(self, outcome: HedgeOutcome) -> None:
        """Record one request.

        Args:
            outcome: the second worker had its first token sooner, later, or failed; or there
                was no second one, for want of room or of budget.
        """
        self._hedges.add(1, {names.HEDGE_OUTCOME: outcome})

    def wasted(self, prompt_tokens: int) -> None:
        """Record the prompt of a request that had two workers."""
        self._prompt_tokens.add(prompt_tokens)


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


class DroppedStoreMetrics:
    """Answers that never reached the sidecar; for the router.

    Args:
        dropped: how many it gave up storing.
    """

    def __init__(self, meter: Meter, dropped: Callable[[], int]) -> None:
        said = "Answers not stored: too many waited, or the sidecar did not take them"
        total(meter, names.CACHE_STORES_DROPPED, "{entry}", said, dropped)
