"""All splits of a router: which variant a request gets, and what became of it."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from opentelemetry import trace

from observability import names
from observability.metrics.router import SplitMetrics
from router.pool import WorkerPool
from router.splits.describe import describe
from router.splits.results import outcome_of
from router.splits.settings import SplitSettings, VariantSettings
from router.splits.split import Rollback, Split
from router.ticket import Ticket
from sidecache.errors import InvalidRequest, NotFound
from sidecache.key import request_key
from sidecache.v1 import admin_pb2
from sidecache.v1 import inference_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a request got: the split's public name, and the variant's label."""

    split: str
    variant: str


class Splits:
    """The splits by their public names.

    Args:
        settings: of each.
        pool: knows which models have ready workers.
        metrics: of results and rollbacks.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Iterable[SplitSettings],
        pool: WorkerPool,
        metrics: SplitMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._metrics = metrics
        self._clock = clock
        self._splits = {each.model: self._make(each) for each in settings}
        metrics.watch(self._weights)

    @property
    def all(self) -> list[Split]:
        """In the order of the configuration."""
        return list(self._splits.values())

    def find(self, name: str) -> Split | None:
        """The split of that public name, if there is one (still)."""
        return self._splits.get(name)

    def get(self, name: str) -> Split:
        """The split of that public name.

        Raises:
            NotFound: there is none.
        """
        split = self._splits.get(name)
        if split is None:
            known = ", ".join(self._splits) or "none"
            raise NotFound(f"no split {name[:128]!r}; there are: {known}", kind="split", name=name)
        return split

    def describe(self, split: Split) -> admin_pb2.Split:
        """A split as an operator sees it."""
        parts = list(split.variants.items())
        shadow = split.settings.shadow
        ready = {label for label, variant in parts if self._is_ready(variant)}
        if shadow is not None and self._pool.serves(shadow.model, shadow.adapter):
            ready.add(shadow.label)
        return describe(split, ready=frozenset(ready), now=self._clock())

    def reconfigure(self, settings: Iterable[SplitSettings]) -> None:
        """Take new settings; an unchanged split goes on with its weights and results."""
        before, self._splits = self._splits, {}
        for each in settings:
            old = before.get(each.model)
            if old is not None and old.settings == each:
                self._splits[each.model] = old
                continue
            self._splits[each.model] = self._make(each)
            if old is not None:
                self._splits[each.model].take_over(old)

    def resolve(self, request: pb.GenerateRequest, tenant: str) -> Chosen | None:
        """Make the request one for a variant, if it names a split; None: it does not.

        Raises:
            InvalidRequest: it names an adapter, which is the split's to choose.
        """
        split = self._splits.get(request.model or self._default()) if self._splits else None
        if split is None:
            return None
        if request.adapter and any(v.adapter for v in split.variants.values()):
            raise InvalidRequest(
                f"the split {split.settings.model!r} chooses it; leave it out", field="adapter"
            )
        variant = split.choose(_sticky_key(split.settings, request, tenant))
        request.model = variant.model
        if variant.adapter:
            request.adapter = variant.adapter
        return Chosen(split.settings.model, variant.label)

    def served_name(self, name: str) -> str:
        """A served model for what needs one and no answer: a split's is its baseline."""
        split = self._splits.get(name or self._default()) if self._splits else None
        return name if split is None else split.variants[split.baseline].model

    def ended(
        self,
        ticket: Ticket,
        error: BaseException | None,
        *,
        from_engine: bool,
        first_token_s: float | None,
        duration_s: float,
        output_tokens: int,
    ) -> None:
        """Take in how a request of a split ended."""
        split = self._splits.get(ticket.split)
        # A reload may have taken the split or its variant away meanwhile.
        if split is None or ticket.variant not in split.results:
            return
        outcome = outcome_of(error, from_engine=from_engine)
        self._metrics.ended(ticket.split, ticket.variant, outcome)
        if outcome == "abandoned" and first_token_s is None:
            first_token_s = duration_s
        after_first_s = duration_s - (first_token_s or 0.0)
        rate = (output_tokens - 1) / after_first_s if output_tokens > 1 and after_first_s else 0.0
        rollback = split.record(ticket.variant, outcome, first_token_s, rate)
        if rollback is not None:
            self._tell(ticket.split, rollback)

    def _make(self, settings: SplitSettings) -> Split:
        return Split(settings, self._is_ready, self._clock)

    def _is_ready(self, variant: VariantSettings) -> bool:
        return self._pool.serves(variant.model, variant.adapter)

    def _default(self) -> str:
        return self._pool.default_model()

    def _weights(self) -> Mapping[tuple[str, str], float]:
        """The shares in force, by split and variant."""
        shares: dict[tuple[str, str], float] = {}
        for name, split in self._splits.items():
            total = math.fsum(split.weights.values())
            shares |= {(name, label): w / total for label, w in split.weights.items()}
        return shares

    def _tell(self, name: str, rollback: Rollback) -> None:
        log.warning(
            "canary rolled back: %s",
            rollback.why,
            extra={"split": name, "variant": rollback.variant},
        )
        self._metrics.rolled_back(name, rollback.variant)
        trace.get_current_span().add_event(
            names.CANARY_ROLLED_BACK,
            {names.SPLIT: name, names.VARIANT: rollback.variant, names.ROLLBACK_WHY: rollback.why},
        )


def _sticky_key(settings: SplitSettings, request: pb.GenerateRequest, tenant: str) -> bytes:
    if settings.sticky == "tenant":
        return tenant.encode()
    # The same question is the same answer's: of the name asked for, not of a variant.
    return request_key(request, tenant=tenant, model=settings.model, revision="").exact
