"""What an operator says of a split: its variants, its canary, its shadow."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from observability.settings import PositiveSeconds, SettingsPart

Name = Annotated[str, Field(min_length=1, max_length=128)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class VariantSettings(SettingsPart):
    """One of the models behind a split."""

    model: Name
    """A served model's name; never another split's."""
    adapter: Annotated[str, Field(max_length=128)] = ""
    """A LoRA adapter of that model."""
    weight: Weight = 1.0
    """Its share is its weight over the sum of all weights; 0: no requests."""
    name: Annotated[str, Field(max_length=128)] = ""
    """In metrics, answers of AdminService and the canary; empty: model, or model+adapter."""

    @property
    def label(self) -> str:
        """What the variant is called."""
        return self.name or (f"{self.model}+{self.adapter}" if self.adapter else self.model)


class CanarySettings(SettingsPart):
    """When a variant loses its share because it is worse than the others' best known."""

    variant: Name
    """Which one is on trial."""
    baseline: str = ""
    """What it is compared with; empty: the other variant of the largest weight."""
    min_requests: Annotated[int, Field(ge=10)] = 30
    """Of both, before anything is concluded."""
    window_requests: Annotated[int, Field(ge=100)] = 5000
    """Of the canary; then the comparison begins anew, so that what was good once does not
    hide what has become bad."""
    false_alarm: Annotated[float, Field(gt=0, lt=0.5)] = 0.01
    """Most chance, in one window, of rolling back a canary that is within its tolerances."""
    max_error_rise: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Error rate above the baseline's that is tolerated, absolute."""
    max_ttft_ratio: Annotated[float, Field(ge=1, le=100)] = 1.2
    """Time to first token (geometric mean) over the baseline's that is tolerated."""


class ShadowSettings(SettingsPart):
    """A model that gets copies of requests; its answers are dropped."""

    model: Name
    """A served model's name."""
    adapter: Annotated[str, Field(max_length=128)] = ""
    """A LoRA adapter of that model."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Of the requests that go to a worker."""
    max_running: Annotated[int, Field(ge=1)] = 4
    """Copies at once; more are dropped."""
    timeout_s: PositiveSeconds = 60.0
    """Bound of one copy."""
    priority: int = -100
    """Highest priority a copy has in an engine that knows priorities."""

    @property
    def label(self) -> str:
        """What it is called beside the variants."""
        return f"shadow:{self.model}+{self.adapter}" if self.adapter else f"shadow:{self.model}"


class SplitSettings(SettingsPart):
    """A public model name and the variants it stands for."""

    model: Name
    """What clients ask for."""
    variants: Annotated[list[VariantSettings], Field(min_length=1, max_length=16)]
    """Of which each request gets one."""
    sticky: Literal["tenant", "request"] = "tenant"
    """Whose choice stays the same: all requests of a tenant, or the same request."""
    fall_back: bool = False
    """Where a variant has no ready worker, its requests go to the others."""
    canary: CanarySettings | None = None
    shadow: ShadowSettings | None = None

    @model_validator(mode="after")
    def _is_sound(self) -> "SplitSettings":
        labels = [variant.label for variant in self.variants]
        _refuse_repeats(f"split {self.model!r}: variant", labels)
        if not sum(variant.weight for variant in self.variants):
            raise ValueError(f"split {self.model!r}: the weights add up to 0")
        if self.canary is not None:
            self._check_canary(self.canary, labels)
        return self

    def _check_canary(self, canary: CanarySettings, labels: Sequence[str]) -> None:
        known = ", ".join(labels)
        for field, label in (("variant", canary.variant), ("baseline", canary.baseline)):
            if label and label not in labels:
                raise ValueError(
                    f"split {self.model!r}: canary.{field} {label!r} is no variant; may be {known}"
                )
        if len(labels) == 1 or canary.variant == canary.baseline:
            raise ValueError(f"split {self.model!r}: a canary needs another variant beside it")


def check_splits(splits: Iterable[SplitSettings]) -> None:
    """Refuse what cannot be resolved in one step.

    Raises:
        ValueError: a name that stands for two splits, or a variant that is itself a split.
    """
    names = [split.model for split in splits]
    _refuse_repeats("split", names)
    for split in splits:
        shadow = [split.shadow.model] if split.shadow else []
        for model in (*(variant.model for variant in split.variants), *shadow):
            if model in names:
                raise ValueError(
                    f"split {split.model!r} leads to the split {model!r}: a loop; a variant is a"
                    " served model, and a split's name is none of them"
                )


def _refuse_repeats(what: str, names: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{what} {repeated[0]!r} is named twice")
