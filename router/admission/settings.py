"""What an operator says of admission: how much is taken on, in what order, and what to ask for."""

from typing import Annotated

from pydantic import Field

from observability.settings import PositiveSeconds, Seconds, SettingsPart

Weight = Annotated[float, Field(gt=0, le=1e6)]


class ClassWeights(SettingsPart):
    """Tokens that one class gets for each of another's, while requests of both wait."""

    interactive: Weight = 100.0
    """Keys with class = "interactive"."""
    standard: Weight = 10.0
    """Keys that say nothing."""
    batch: Weight = 1.0
    """Keys with class = "batch"."""


class AdmissionSettings(SettingsPart):
    """How much work the router takes on, and in what order, before it refuses more."""

    max_streams: Annotated[int, Field(ge=1)] = 2048
    """Streams in flight, all tenants together, cache hits and waiting ones too."""
    max_streams_per_tenant: Annotated[int, Field(ge=1)] = 2048
    """Streams in flight of a tenant whose max_in_flight the keys file does not say."""
    max_running: Annotated[int, Field(ge=1)] | None = None
    """Sequences of one model at the workers at once; unset: what the workers say they have."""
    max_running_tokens: Annotated[int, Field(ge=1)] | None = None
    """Their tokens (prompt and max_tokens); unset: what the workers' KV caches hold."""
    kv_overcommit: Annotated[float, Field(gt=0, le=100)] = 2.0
    """Tokens let in for each that the KV caches hold: answers end early, prompts share prefixes."""
    ahead: Annotated[int, Field(ge=0, le=1024)] = 0
    """Sequences beyond a worker's slots that wait there: no slot waits for the router, but those
    that do wait at the worker are in no order and no estimate."""
    min_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Of a worker's slots that this router uses, however many streams other routers have there."""
    max_queue: Annotated[int, Field(ge=1)] = 1024
    """Requests of one model that wait for their turn."""
    max_queue_tokens: Annotated[int, Field(ge=1)] = 8_000_000
    """Their tokens."""
    max_wait_s: PositiveSeconds = 30.0
    """Longest wait for a turn; what would take longer is refused at once."""
    class_weights: ClassWeights = ClassWeights()


class ScaleSettings(SettingsPart):
    """What the scale signal aims at."""

    interval_s: PositiveSeconds = 2.0
    """Between two looks at the demand."""
    target_utilization: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Of the workers' slots, so that a burst finds some free."""
    target_wait_s: PositiveSeconds = 1.0
    """Wait of the queue that is in order."""
    drain_s: PositiveSeconds = 30.0
    """In which a queue that waits longer than that is to be emptied."""
    rate_tau_s: PositiveSeconds = 15.0
    """Over which the rate of arrivals is smoothed."""
    target_kv_usage: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Of the workers' KV caches."""
    min_workers: Annotated[int, Field(ge=0)] = 1
    """The signal is never lower."""
    max_workers: Annotated[int, Field(ge=1)] = 64
    """The signal is never higher."""
    max_growth: Annotated[float, Field(gt=1, le=100)] = 2.0
    """Most that the signal grows by at a time."""
    up_interval_s: Seconds = 10.0
    """Between two times it grows."""
    down_after_s: PositiveSeconds = 300.0
    """For so long nothing must have asked for more before it falls."""
