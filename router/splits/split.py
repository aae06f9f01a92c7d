"""One split while it runs: its weights now, its results, its canary's trial."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.splits.results import Outcome, Results
from router.splits.settings import SplitSettings, VariantSettings
from router.splits.share import pick
from router.splits.trial import Trial
from sidecache.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Rollback:
    """A canary that lost its share, why, and when (the router's clock)."""

    variant: str
    why: str
    at: float


class Split:
    """A public name and its variants.

    Args:
        settings: as configured.
        is_ready: whether a variant has a ready worker.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: SplitSettings,
        is_ready: Callable[[VariantSettings], bool],
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.variants = {variant.label: variant for variant in settings.variants}
        self._configured = {label: v.weight for label, v in self.variants.items()}
        self._weights = dict(self._configured)
        self._is_ready = is_ready
        self._clock = clock
        self.rollback: Rollback | None = None
        self._begin()

    def _begin(self) -> None:
        """Nothing is known of any variant."""
        canary, shadow = self.settings.canary, self.settings.shadow
        labels = [*self.variants, *([shadow.label] if shadow else [])]
        self.results = {label: Results() for label in labels}
        self._trial = Trial(canary) if canary else None

    @property
    def canary(self) -> str:
        """The label of the variant on trial; empty: none is."""
        return self.settings.canary.variant if self.settings.canary else ""

    @property
    def baseline(self) -> str:
        """What the canary is compared with, and what stands in when nothing else has weight."""
        canary = self.settings.canary
        if canary is not None and canary.baseline:
            return canary.baseline
        others = [label for label in self.variants if label != self.canary]
        return max(others, key=lambda label: self._configured[label])

    @property
    def weights(self) -> dict[str, float]:
        """In force now: a canary that was rolled back has none."""
        weights = dict(self._weights)
        if self.rollback is not None:
            weights[self.rollback.variant] = 0.0
        if not sum(weights.values()):
            weights[self.baseline] = 1.0
        return weights

    def choose(self, key: bytes) -> VariantSettings:
        """The variant for this key, whatever became of earlier ones."""
        weights = self.weights
        if self.settings.fall_back:
            ready = {
                label: weight if self._is_ready(self.variants[label]) else 0.0
                for label, weight in weights.items()
            }
            # With none ready the error is to be the first choice's own.
            weights = ready if sum(ready.values()) else weights
        return self.variants[pick(self.settings.model, key, weights)]

    def record(
        self, label: str, outcome: Outcome, first_token_s: float | None, tokens_per_s: float
    ) -> Rollback | None:
        """Take in one request's end; the rollback it led to, if it did."""
        self.results[label].add(outcome, first_token_s, tokens_per_s)
        if self._trial is None or self.rollback is not None:
            return None
        # Who left without a token waited that long in vain: a canary that hangs must not
        # look well because its callers give up.
        if outcome not in ("ok", "error", "abandoned"):
            return None
        failed = outcome == "error"
        if label == self.baseline:
            self._trial.baseline(failed=failed, ttft_s=first_token_s)
        elif label == self.canary:
            why = self._trial.canary(failed=failed, ttft_s=first_token_s)
            if why:
                self.rollback = Rollback(label, why, self._clock())
                return self.rollback
        return None

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Change the weights of some variants; results begin anew.

        Raises:
            InvalidRequest: an unknown variant, a negative or infinite weight, a sum of 0, or
                a canary that was rolled back and not reset.
        """
        known = ", ".join(self.variants)
        for label, weight in weights.items():
            if label not in self.variants:
                raise InvalidRequest(
                    f"{label[:128]!r} is no variant of {self.settings.model!r}; may be {known}",
                    field="weights",
                )
            if not 0 <= weight <= 1e6:  # noqa: PLR2004 - as in the settings; refuses NaN too
                raise InvalidRequest(f"{weight:g}; may be 0 to 1e6", field=f"weights[{label}]")
            if weight and self.rollback is not None and label == self.rollback.variant:
                raise InvalidRequest(
                    f"{label!r} was rolled back ({self.rollback.why}); reset the split first",
                    field=f"weights[{label}]",
                )
        new = self._weights | dict(weights)
        if not sum(new.values()):
            raise InvalidRequest("they add up to 0; give one variant some", field="weights")
        self._weights = new
        self._begin()

    def reset(self) -> None:
        """Back to the configured weights, with no results, no rollback and a new trial."""
        self._weights = dict(self._configured)
        self.rollback = None
        self._begin()

    def take_over(self, before: "Split") -> None:
        """Go on from what this split was before its settings changed.

        A rollback stays in force while its variant is the same: a reload is no reset.
        """
        rollback = before.rollback
        if rollback is None or rollback.variant not in self.variants:
            return
        new, old = self.variants[rollback.variant], before.variants[rollback.variant]
        if (new.model, new.adapter) == (old.model, old.adapter) and len(self.variants) > 1:
            self.rollback = rollback
