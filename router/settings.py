"""Everything an operator can set on a router, read once at start."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from observability.settings import (
    ChannelSettings,
    PositiveSeconds,
    Seconds,
    ServerSettings,
    SettingsPart,
    TelemetrySettings,
)
from router.admission.settings import AdmissionSettings, ScaleSettings
from router.routing.choice import DEFAULT_POLICY, PolicyName
from router.routing.cost import Weights
from router.splits.settings import SplitSettings, check_splits

_WEIGHTS = Weights()


class LimitSettings(SettingsPart):
    """What a single request may ask for."""

    default_max_tokens: Annotated[int, Field(ge=1)] = 256
    """max_tokens where a request has none."""
    max_prompt_bytes: Annotated[int, Field(ge=1)] = 1 << 20
    """Prompt, tools and history together."""
    max_messages: Annotated[int, Field(ge=1)] = 1024
    """Messages of one chat."""
    max_choices: Annotated[int, Field(ge=1)] = 8
    """Choices (n) of one request."""
    max_stop_strings: Annotated[int, Field(ge=0)] = 16
    """Stop strings."""
    max_stop_bytes: Annotated[int, Field(ge=1)] = 256
    """Bytes of one stop string."""
    max_tags: Annotated[int, Field(ge=0)] = 16
    """Cache tags."""
    max_name_bytes: Annotated[int, Field(ge=1)] = 128
    """Bytes of a namespace, tag or adapter name."""
    max_request_s: PositiveSeconds = 600.0
    """A request without a deadline gets this one."""
    max_attach_window_s: Seconds = 60.0
    """Longest a request may have its stream kept for a client that was cut off; 0: never."""
    max_retention_s: PositiveSeconds = 3600.0
    """Longest a request may have its prefix kept by retention, and for how long it is kept
    where the request names no time. Does not bound an operator's WarmPrefix."""
    worker_silence_s: PositiveSeconds = 10.0
    """A worker that sends neither token nor heartbeat for this long has failed."""
    worker_answer_s: PositiveSeconds = 3.0
    """The same before its first word, which a worker says as soon as it has the request."""
    token_silence_s: PositiveSeconds = 1.5
    """The same after the first token, for a stream that can go on at another worker."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """Workers tried for one request before its first token."""
    max_migrations: Annotated[int, Field(ge=0)] = 8
    """Moves of one stream after its first token that all found it within 16 tokens of the one
    before; 0: a lost worker ends it."""
    migration_wait_s: Seconds = 2.0
    """Longest wait for a worker to go on at, when none is ready; and of a prompt under
    suspicion for one to be tried on."""
    reader_stall_s: PositiveSeconds = 30.0
    """A client that takes no message for this long is cut off."""


class RetrySettings(SettingsPart):
    """How many requests may be begun again at another worker, all together."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Retries for each request that comes."""
    floor_per_s: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """Retries a second beside that, so that a quiet router may retry at all."""
    reserve: Annotated[float, Field(ge=1, le=1e6)] = 100.0
    """Most retries saved up: what the loss of one busy worker may cost at once."""


class HedgeSettings(SettingsPart):
    """When a second worker begins because the first is late with its first token."""

    enabled: bool = False
    """Off, a late worker is waited for."""
    after_s: PositiveSeconds | None = None
    """How long the first worker is alone; unset: what 95 of 100 first tokens take at the model's
    usual worker, learned."""
    least_s: PositiveSeconds = 0.05
    """A learned delay is never shorter."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Hedges for each request that comes."""
    reserve: Annotated[float, Field(ge=1, le=1e6)] = 10.0
    """Most hedges saved up."""


class QuarantineSettings(SettingsPart):
    """When a prompt that workers are lost under is refused."""

    losses_to_suspect: Annotated[int, Field(ge=1)] = 2
    """Workers lost in a row at the same place of its answer, after which it is tried alone."""
    memory_s: PositiveSeconds = 60.0
    """After this long without another one, they are forgotten."""
    trial_wait_s: Seconds = 1.0
    """Longest wait for a worker that has nobody else, to try it on."""
    refuse_s: PositiveSeconds = 300.0
    """For how long a prompt is refused that ended a worker alone as well."""
    max_prompts: Annotated[int, Field(ge=1)] = 4096
    """Prompts remembered; the oldest is forgotten first."""


class OutlierSettings(SettingsPart):
    """When a worker that is healthy by its own word gets no streams for a while."""

    failures_to_open: Annotated[int, Field(ge=1)] = 5
    """Streams lost in a row, after which one alone tries again."""
    open_s: PositiveSeconds = 1.0
    """For how long nobody tries."""
    window_s: PositiveSeconds = 10.0
    """Time over which a worker is compared with its peers."""
    min_streams: Annotated[int, Field(ge=1)] = 10
    """Fewer in that time say nothing."""
    error_share: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of its streams lost beyond that of its peers' median."""
    ttft_factor: Annotated[float, Field(gt=1)] = 4.0
    """Its mean time to first token over that of its peers' median."""
    ttft_min_s: PositiveSeconds = 0.5
    """Below this no time to first token is slow."""
    eject_s: PositiveSeconds = 5.0
    """First time out; twice as long each time it comes back no better."""
    max_eject_s: PositiveSeconds = 120.0
    """Longest time out."""


class FlightSettings(SettingsPart):
    """Which generations are shared, and how many are kept for clients that were cut off."""

    single_flight: bool = True
    """Requests with one key share the generation that is under way for it."""
    max_readers: Annotated[int, Field(ge=1)] = 1024
    """Of one generation; the next caller gets his own."""
    max_kept: Annotated[int, Field(ge=1)] = 256
    """Streams whose clients may come back, running and ended ones together."""
    max_kept_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    """Of those that nobody reads; one that still runs counts as lookup.max_answer_bytes."""
    advertise: str = ""
    """Where other routers reach this one; with mesh_key_file and one sidecar for all of them,
    routers share generations. Empty: each has its own."""
    mesh_key_file: Path | None = None
    """A secret of 32 bytes or more that all routers have; with it a router may read any
    tenant's running streams at another."""
    remote_wait_s: PositiveSeconds = 0.25
    """Another router that does not answer for so long is not waited for."""
    paraphrase_wait_s: PositiveSeconds | None = None
    """Longest wait for the answer to a question of the same meaning that is being generated
    (see the sidecar's `flights.paraphrase_similarity`). Unset: nobody waits."""
    renew_s: PositiveSeconds = 2.0
    """How often the sidecar is told again of a generation that others may share; several times
    in its `flights.lease_s`."""
    linger_s: Seconds = 2.0
    """An ended stream is shared for so long with who asked before its answer was stored."""
    max_lingering: Annotated[int, Field(ge=0)] = 512
    """Ended streams that are still shared."""
    max_linger_bytes: Annotated[int, Field(ge=0)] = 32 << 10
    """A longer one is not shared once it has ended."""


class LookupSettings(SettingsPart):
    """How the router uses its cache sidecar."""

    lookup_timeout_s: PositiveSeconds = 0.05
    """A later answer counts as a miss."""
    speculative_start_s: PositiveSeconds | None = None
    """Start a worker as well when the sidecar has not answered for so long, or for as long as
    speculative_share asks; a stored answer that comes before the first token wins. Unset: wait
    for the sidecar."""
    speculative_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Most generations begun for nothing, of all requests; the head start is learned by it."""
    store_timeout_s: PositiveSeconds = 2.0
    """Bound of one background store call."""
    max_pending_stores: Annotated[int, Field(ge=1)] = 256
    """Answers waiting to be stored."""
    max_pending_bytes: Annotated[int, Field(ge=1)] = 32 << 20
    """Their bytes together."""
    max_answer_bytes: Annotated[int, Field(ge=1)] = 1 << 20
    """A larger answer is not stored."""
    operator_timeout_s: PositiveSeconds = 5.0
    """Bound of a call that a person makes: feedback, explain, invalidate, statistics."""
    prefix_hints: bool = True
    """Ask which worker holds how much of a prompt, where there are workers to choose from."""
    announce_interval_s: PositiveSeconds = 5.0
    """How often the sidecar is told again which workers there are; a change is told sooner."""
    failures_to_open: Annotated[int, Field(ge=1)] = 5
    """Lookups failing in a row after which the sidecar is left alone."""
    open_s: PositiveSeconds = 1.0
    """For how long, until one lookup tries again."""


class AuditSettings(SettingsPart):
    """How served semantic hits are generated again, for the sidecar to judge."""

    max_audits: Annotated[int, Field(ge=0)] = 2
    """At once; more are dropped. 0: none, and false hits go unseen."""
    timeout_s: PositiveSeconds = 60.0
    """Bound of one."""
    priority: int = -100
    """Highest priority an audit has in an engine that knows priorities."""


class PoolSettings(SettingsPart):
    """How the router finds and watches its workers."""

    resolve_interval_s: PositiveSeconds = 10.0
    """Between two looks at a DNS target."""
    file_interval_s: PositiveSeconds = 1.0
    """Between two looks at a file target."""
    probe_timeout_s: PositiveSeconds = 2.0
    """Bound of connecting and of GetModel."""
    min_backoff_s: PositiveSeconds = 0.1
    """First wait after a worker was lost."""
    max_backoff_s: PositiveSeconds = 5.0
    """Longest wait."""
    leave_grace_s: Seconds = 600.0
    """Longest time a worker's streams go on after its target stopped naming it."""
    flap_losses: Annotated[float, Field(ge=1)] = 3.0
    """A worker lost more often than that of late waits before it is used again, unless it
    is the only one."""
    flap_half_life_s: PositiveSeconds = 10.0
    """After this long a loss counts half."""
    flap_hold_s: PositiveSeconds = 1.0
    """The first such wait; each further loss doubles it."""
    max_flap_hold_s: PositiveSeconds = 60.0
    """Longest one."""
    max_workers: Annotated[int, Field(ge=1)] = 1024
    """Workers of all targets together."""


class QuietSettings(SettingsPart):
    """When a worker that says nothing on any of its streams is asked whether it lives.

    Without an answer they all leave it. Only a worker that owes words is quiet: a prefill
    takes its time.
    """

    quiet_s: PositiveSeconds = 0.25
    """Shortest silence after which it is asked; until it answers it gets nothing new."""
    factor: Annotated[float, Field(ge=1, le=100)] = 3.0
    """Times the longest silence of late that it came back from, where that is more."""
    max_quiet_s: PositiveSeconds = 1.0
    """Longest silence after which it is asked, whatever is usual."""
    least_answer_s: PositiveSeconds = 0.15
    """No answer for so long, or ``factor`` times the slowest of late of the median worker, and
    its streams go on elsewhere."""
    answer_s: PositiveSeconds = 1.0
    """The same at most, and where it was asked nothing before."""
    memory_s: PositiveSeconds = 30.0
    """After this long a usual silence counts 1/e."""


class WeightSettings(SettingsPart):
    """What the policy ``prefix`` weighs; a token to be prefilled weighs 1."""

    active: Annotated[float, Field(ge=0, le=100)] = _WEIGHTS.active
    """A token of a running sequence."""
    recent: Annotated[float, Field(ge=0, le=100)] = _WEIGHTS.recent
    """A token prefilled of late: it stands for blocks that had to make room."""
    sequence: Annotated[float, Field(ge=0, le=1e6)] = _WEIGHTS.sequence
    """A running sequence, whatever its length; for workers that do not tell their slots."""
    loyalty: Annotated[float, Field(ge=0, le=1000)] = _WEIGHTS.loyalty
    """Most that a token held elsewhere weighs beyond its own prefill."""
    patience_tokens: Annotated[float, Field(ge=0, le=1e12)] = _WEIGHTS.patience_tokens
    """Beyond this scale loyalty grows with the root only."""


class RoutingSettings(SettingsPart):
    """Which worker gets a stream. docs/decisions/0015-routing.md has the reasons."""

    policy: PolicyName = DEFAULT_POLICY
    """Goes by prefixes: prefix, cost, threshold, bounded_affinity; by conversation:
    session_affinity; by load: least_loaded, power_of_two; by nothing: round_robin."""
    weights: WeightSettings = WeightSettings()
    recent_tau_s: PositiveSeconds = 300.0
    """After this long a prefilled token counts 1/e of itself among the recent ones."""
    bytes_per_token: Annotated[float, Field(ge=0.5, le=16)] = 4.0
    """Of a prompt nobody has counted, until a model's own rate is learned."""
    note_s: PositiveSeconds = 2.0
    """For how long a route counts as a prefix held, beside what the sidecar says."""
    guess_s: PositiveSeconds = 300.0
    """The same where the sidecar says nothing."""
    max_notes: Annotated[int, Field(ge=1)] = 65536
    """Prefixes remembered for that."""
    load_interval_s: PositiveSeconds = 1.0
    """Between two GetLoad of a worker, give or take a fifth."""
    load_timeout_s: PositiveSeconds = 1.0
    """Bound of one."""
    max_foreign_tokens: Annotated[int, Field(ge=0)] = 65536
    """Load of other routers that is believed of a worker; its lies end here."""
    forward_token_ids: bool = True
    """Send a worker the ids the sidecar made with the worker's own tokenizer."""
    tenant_salt: bool = True
    """Tenants share no KV blocks, so none can time another's prompts."""
    salt_secret: str = ""
    """Makes the salts unguessable; the same on every router, or they share no blocks."""


class RouterSettings(BaseSettings):
    """The router's settings: environment, flags or a TOML file."""

    model_config = SettingsConfigDict(
        env_prefix="SIDECACHE_ROUTER_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    server: ServerSettings = ServerSettings(listen="127.0.0.1:7070")
    telemetry: TelemetrySettings = TelemetrySettings()
    workers: list[str] = []
    """Worker targets: host:port, unix:/path, dns:host:port for every address of a name, or
    file:/path, a list that may change while the router runs."""
    cache: str | None = None
    """The cache sidecar's target; none: no cache."""
    keys_file: Path | None = None
    """API keys, as `sidecache keys create` makes."""
    keys_interval_s: PositiveSeconds = 2.0
    """Between two looks at the keys file."""
    insecure: bool = False
    """No credentials at all; only on loopback or a Unix socket."""
    default_model: str = ""
    """For requests that name none; empty: the only one."""
    channels: ChannelSettings = ChannelSettings()
    admission: AdmissionSettings = AdmissionSettings()
    scale: ScaleSettings = ScaleSettings()
    limits: LimitSettings = LimitSettings()
    lookup: LookupSettings = LookupSettings()
    retries: RetrySettings = RetrySettings()
    hedge: HedgeSettings = HedgeSettings()
    quarantine: QuarantineSettings = QuarantineSettings()
    outliers: OutlierSettings = OutlierSettings()
    flights: FlightSettings = FlightSettings()
    audit: AuditSettings = AuditSettings()
    pool: PoolSettings = PoolSettings()
    quiet: QuietSettings = QuietSettings()
    routing: RoutingSettings = RoutingSettings()
    splits: Annotated[list[SplitSettings], Field(max_length=64)] = []
    """Public model names that stand for weighted variants."""

    @model_validator(mode="after")
    def _one_way_in(self) -> "RouterSettings":
        if self.insecure == (self.keys_file is not None):
            msg = "set either keys_file or insecure=true, and not both"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _no_loops(self) -> "RouterSettings":
        check_splits(self.splits)
        return self
