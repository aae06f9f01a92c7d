"""What a history measures: outcomes, time to first token, gaps between tokens."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chaos.history import Call


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile: a value that occurred; NaN of none.

    Args:
        values: in any order.
        share: in (0, 1]; 0.5 is the median.
    """
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Spread:
    """How durations lie; seconds, NaN where there are none."""

    count: int
    p50_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(len(values), quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1))


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of some calls.

    Attributes:
        codes: calls by status; an open call counts under the empty name.
        sources: calls by where the answer came from.
        ttft: from sending to the first token.
        gaps: between two deltas with tokens of one choice.
    """

    calls: int
    tokens: int
    migrations: int
    codes: dict[str, int]
    sources: dict[str, int]
    ttft: Spread
    gaps: Spread

    @property
    def errors(self) -> int:
        return self.calls - self.codes.get("OK", 0)

    @classmethod
    def of(cls, calls: Iterable[Call]) -> "Figures":
        kept = list(calls)
        gaps: list[float] = []
        tokens = migrations = 0
        for call in kept:
            gaps.extend(call.gaps())
            tokens += sum(len(event.delta.token_ids) for event in call.events())
            migrations += sum(event.HasField("migrated") for event in call.events())
        return cls(
            calls=len(kept),
            tokens=tokens,
            migrations=migrations,
            codes=dict(Counter(call.code for call in kept)),
            sources=dict(Counter(call.source for call in kept if call.source)),
            ttft=Spread.of([call.ttft_s for call in kept if call.ttft_s is not None]),
            gaps=Spread.of(gaps),
        )
