"""Everything an operator can set on a router, read once at start."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from observability.settings import ChannelSettings, ServerSettings, TelemetrySettings

Seconds = Annotated[float, Field(gt=0)]


class AdmissionSettings(BaseModel):
    """How much work the router takes on before it refuses more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_streams: int = Field(512, ge=1, description="streams in flight, all tenants together")
    max_streams_per_tenant: int = Field(512, ge=1, description="streams in flight of one tenant")


class LimitSettings(BaseModel):
    """What a single request may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_max_tokens: int = Field(256, ge=1, description="max_tokens where a request has none")
    max_prompt_bytes: int = Field(1 << 20, ge=1, description="prompt, tools and history together")
    max_messages: int = Field(1024, ge=1, description="messages of one chat")
    max_choices: int = Field(8, ge=1, description="n")
    max_stop_strings: int = Field(16, ge=0, description="stop strings")
    max_stop_bytes: int = Field(256, ge=1, description="bytes of one stop string")
    max_tags: int = Field(16, ge=0, description="cache tags")
    max_name_bytes: int = Field(128, ge=1, description="bytes of a namespace, tag or adapter name")
    max_request_s: Seconds = Field(600.0, description="a request without a deadline gets this one")
    worker_silence_s: Seconds = Field(
        10.0, description="a worker that sends neither token nor heartbeat for this long has failed"
    )
    reader_stall_s: Seconds = Field(
        30.0, description="a client that takes no message for this long is cut off"
    )


class CacheSettings(BaseModel):
    """How the router uses its cache sidecar."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lookup_timeout_s: Seconds = Field(0.05, description="a later answer counts as a miss")
    store_timeout_s: Seconds = Field(2.0, description="bound of one background store call")
    max_pending_stores: int = Field(256, ge=1, description="answers waiting to be stored")
    max_pending_bytes: int = Field(32 << 20, ge=1, description="their bytes together")
    max_answer_bytes: int = Field(1 << 20, ge=1, description="a larger answer is not stored")
    failures_to_open: int = Field(
        5, ge=1, description="lookups failing in a row after which the sidecar is left alone"
    )
    open_s: Seconds = Field(1.0, description="for how long, until one lookup tries again")


class PoolSettings(BaseModel):
    """How the router finds and watches its workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolve_interval_s: Seconds = Field(10.0, description="between two looks at a DNS target")
    probe_timeout_s: Seconds = Field(2.0, description="bound of connecting and of GetModel")
    min_backoff_s: Seconds = Field(0.1, description="first wait after a worker was lost")
    max_backoff_s: Seconds = Field(5.0, description="longest wait")
    max_workers: int = Field(1024, ge=1, description="workers of all targets together")


class RouterSettings(BaseSettings):
    """The router's settings: environment, flags or a TOML file."""

    model_config = SettingsConfigDict(
        env_prefix="SIDECACHE_ROUTER_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    server: ServerSettings = ServerSettings(listen="127.0.0.1:7070")
    telemetry: TelemetrySettings = TelemetrySettings()
    workers: list[str] = Field(
        default_factory=list,
        description="worker targets: host:port, unix:/path, or dns:host:port for every address",
    )
    cache: str | None = Field(None, description="the cache sidecar's target; none: no cache")
    keys_file: Path | None = Field(None, description="API keys, as `sidecache keys create` makes")
    insecure: bool = Field(
        False, description="no credentials at all; only on loopback or a Unix socket"
    )
    default_model: str = Field("", description="for requests that name none; empty: the only one")
    channels: ChannelSettings = ChannelSettings()
    admission: AdmissionSettings = AdmissionSettings()
    limits: LimitSettings = LimitSettings()
    lookup: CacheSettings = CacheSettings()
    pool: PoolSettings = PoolSettings()

    @model_validator(mode="after")
    def _one_way_in(self) -> "RouterSettings":
        if self.insecure == (self.keys_file is not None):
            msg = "set either keys_file or insecure=true, and not both"
            raise ValueError(msg)
        return self
