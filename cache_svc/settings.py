"""Everything that can be set about the cache sidecar, read once at its start."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cache_svc.bound_settings import BoundSettings
from cache_svc.gpu_settings import GpuSettings
from cache_svc.prefix_settings import PrefixSettings
from observability.listening import is_local
from observability.settings import MIB, PositiveSeconds, ServerSettings, TelemetrySettings

DAY_S = 86_400.0
Count = Annotated[int, Field(ge=1)]


class SemanticSettings(BaseModel):
    """Answering from a prompt of the same meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    enabled: bool = True
    """False: exact hits only, and no embedder is loaded."""
    embedder: Literal["onnx", "sentence-transformers"] = "onnx"
    """What computes vectors; the second needs the extra of its name."""
    embedder_path: Path | None = None
    """ONNX file, or folder of a sentence-transformers model. Unset: the MiniLM that
    `sidecache pull` fetches."""
    embedder_device: Literal["cpu", "cuda"] = "cpu"
    """Where a sentence-transformers model runs. Its vectors are the same on both."""
    embedder_threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Threads of the ONNX embedder."""
    window_tokens: Annotated[int, Field(ge=8, le=8192)] = 256
    """Word pieces the embedder sees; longer prompts are not compared, never cut."""
    max_text_bytes: Count = 4096
    """Prompts longer than this are not even tokenized."""
    min_similarity: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] = 0.6
    """Floor of cosine similarity. A request may raise it, never lower it."""
    verifier: Literal["learned", "rules"] = "learned"
    """Who has the last word on a pair. The learned one needs the MiniLM that `sidecache pull`
    fetches; rules alone need no weights, cost less, and serve more wrong answers."""
    neighbors: Annotated[int, Field(ge=1, le=64)] = 4
    """How many of the nearest answers are considered."""
    budget_s: PositiveSeconds = 0.045
    """Longest time a lookup spends on similarity before it is a miss."""
    max_batch: Annotated[int, Field(ge=1, le=256)] = 4
    """Most texts embedded in one run. On a CPU a batch gains little and makes all wait."""
    max_waiting: Count = 256
    """Most texts waiting for the embedder; beyond it the tier is skipped."""
    kept_vectors: Count = 2048
    """Vectors of recent prompts that are kept, so that storing an answer is free."""
    inline_rows: Annotated[int, Field(ge=0)] = 2048
    """Scopes with up to so many vectors are searched without changing the thread."""
    index: Literal["flat", "ivf", "gpu_flat", "gpu_ivf", "gpu_cagra"] = "ivf"
    """What large scopes are searched through, built in the background. "flat": every
    vector, exact and slow; "ivf": inverted lists on the CPU; the others need the extra
    [gpu]. A GPU is never taken unasked: its memory may be somebody else's."""
    gpu: GpuSettings = GpuSettings()
    """What the gpu_ kinds of index may take."""
    flat_rows: Annotated[int, Field(ge=64)] = 5000
    """Scopes beyond so many vectors are large."""
    rebuild_factor: Annotated[float, Field(gt=1, le=16)] = 2.0
    """A large scope's index is built anew once the scope has grown or shrunk by this factor."""
    search_threads: Annotated[int, Field(ge=1, le=64)] = 2
    """Threads that search larger scopes."""
    reembed_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Most of the embedder's time that goes into stored answers after it was changed."""
    max_quarantined: Count = 10_000
    """Requests that stay barred from the tier after a wrong hit was reported."""
    bound: BoundSettings = BoundSettings()
    """The bound on false hits."""


class StoreSettings(BaseModel):
    """What of the answers outlives the process."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: Path | None = None
    """Folder of the database, mode 0700, for one sidecar alone. Unset: memory only."""
    durability: Literal["memory", "written", "synced"] = "written"
    """What an acknowledged Store outlives. "memory": nothing, it waits to be written.
    "written": a crash of the sidecar. "synced": a power cut. An acknowledged Invalidate
    or Feedback outlives a power cut whatever this says."""
    on_corrupt: Literal["set_aside", "refuse"] = "set_aside"
    """A damaged database: "set_aside" renames it and starts empty (damaged answers alone
    are dropped), with an error in the log. "refuse" does not start."""
    max_waiting_bytes: Annotated[int, Field(ge=MIB)] = 64 * MIB
    """Answers that wait for the disk; beyond it new ones are refused."""
    learnt_interval_s: PositiveSeconds = 1.0
    """How often hit counts and what the bound on false hits has learnt are written; an alarm
    is at once."""
    index_snapshots: bool = True
    """Keep the inverted lists of large scopes in `indexes` beside the database: a restart
    then spares learning them. They hold vectors, 0.8 KB each, also of answers that were
    removed since the lists were built; a scope's go when it is empty."""


class FlightSettings(BaseModel):
    """Generations under way, which routers may share."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    lease_s: PositiveSeconds = 10.0
    """How long a router is named that does not say again that it generates; several times the
    routers' `flights.renew_s`."""
    paraphrase_similarity: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Cosine below which nobody waits for the answer to a question in other words. Routers
    ask for that where their `flights.paraphrase_wait_s` is set."""


class AdmissionSettings(BaseModel):
    """How fast one tenant may fill the store: against floods and poisoning."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    new_entries_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 100.0
    """Entries that a tenant may store in the long run; more are refused."""
    burst: Count = 10_000
    """Entries that a tenant may store at once, after a rest."""


class CacheSettings(BaseSettings):
    """The cache sidecar."""

    model_config = SettingsConfigDict(
        env_prefix="SIDECACHE_CACHE_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    server: ServerSettings = ServerSettings()
    """Where it listens: a Unix socket or loopback, since its callers name the tenant."""
    telemetry: TelemetrySettings = TelemetrySettings()
    """Where traces, metrics and logs go."""
    semantic: SemanticSettings = SemanticSettings()
    """The semantic tier."""
    store: StoreSettings = StoreSettings()
    """Where answers are kept."""
    admission: AdmissionSettings = AdmissionSettings()
    """How fast each tenant may store."""
    flights: FlightSettings = FlightSettings()
    """Generations under way."""
    prefix: PrefixSettings = PrefixSettings()
    """What is known of the workers' KV caches."""
    max_bytes: Annotated[int, Field(ge=MIB)] = 256 * MIB
    """Bound on answers, vectors and their bookkeeping together."""
    max_answer_bytes: Annotated[int, Field(ge=1024)] = MIB
    """Largest answer stored."""
    default_ttl_s: PositiveSeconds = DAY_S
    """Life of an answer whose request names none."""
    max_ttl_s: PositiveSeconds = 7 * DAY_S
    """Longest life a request may ask for."""
    max_tags: Annotated[int, Field(ge=0, le=1024)] = 16
    """Most tags of one answer."""
    max_store_entries: Count = 64
    """Most answers in one Store call."""
    sweep_interval_s: PositiveSeconds = 1.0
    """How often answers past their time are removed; they are never served either way."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.default_ttl_s > self.max_ttl_s:
            msg = f"default_ttl_s is {self.default_ttl_s:g}, over max_ttl_s {self.max_ttl_s:g}"
            raise ValueError(msg)
        if self.max_answer_bytes > self.max_bytes // 2:
            msg = f"max_answer_bytes is {self.max_answer_bytes}, over half of {self.max_bytes}"
            raise ValueError(msg)
        if self.semantic.embedder == "onnx" and self.semantic.embedder_device != "cpu":
            msg = (
                "semantic.embedder_device is 'cuda', which needs the sentence-transformers embedder"
            )
            raise ValueError(msg)
        tls = self.server.tls
        if tls is not None and tls.client_ca_file is None and not is_local(self.server.listen):
            # Its callers state the tenant, so they must be known to be routers.
            msg = f"server.tls.client_ca_file is not set; {self.server.listen} needs mutual TLS"
            raise ValueError(msg)
        return self
