"""What the sidecar measures beside its lookups: its store, and its prefix index."""

from collections.abc import Callable, Mapping
from typing import Literal

from opentelemetry.metrics import Meter, Observation

from observability import names
from observability.metrics.observed import gauge, observe_each, total

HintOutcome = Literal[
    "given", "unknown_model", "no_tokenizer", "too_long", "busy", "late", "refused", "failed"
]


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
        lost: Callable[[], int],
    ) -> None:
        self._stores = meter.create_counter(
            names.CACHE_STORES, unit="{entry}", description="Entries offered, by result"
        )
        self._evictions = meter.create_counter(
            names.CACHE_EVICTIONS, unit="{entry}", description="Entries given up, by reason"
        )
        gauge(meter, names.CACHE_ENTRIES, "{entry}", "Answers kept", entries, {})
        gauge(meter, names.CACHE_BYTES, "By", "Bytes of the answers kept", stored_bytes, {})
        lost_answers = "Answers taken that the disk then refused"
        total(meter, names.CACHE_LOST_ANSWERS, "{entry}", lost_answers, lost)

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
        behind: changes not applied yet, of the worker furthest behind.
    """

    def __init__(
        self,
        meter: Meter,
        blocks: Callable[[], int],
        states: Callable[[], Mapping[str, int]],
        resyncs: Callable[[], Mapping[str, int]],
        events: Callable[[], int],
        behind: Callable[[], int] = lambda: 0,
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
        gauge(meter, names.PREFIX_BLOCKS, "{block}", "KV blocks in the index", blocks, {})
        lag = "Changes not applied yet, of the worker furthest behind"
        gauge(meter, names.PREFIX_BEHIND, "{change}", lag, behind, {})
        meter.create_observable_gauge(
            names.PREFIX_WORKERS,
            [observe_each(states, names.PREFIX_STATE)],
            unit="{worker}",
            description="Workers, by how they are followed",
        )
        meter.create_observable_counter(
            names.PREFIX_RESYNCS,
            [observe_each(resyncs, names.PREFIX_FAULT)],
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
