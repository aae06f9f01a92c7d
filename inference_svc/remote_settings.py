"""The settings of the remote engine: where a server is, and how long to wait for it."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from observability.settings import PositiveSeconds, SettingsPart

Count = Annotated[int, Field(ge=1)]


class RemoteSettings(SettingsPart):
    """Any server of OpenAI's completions interface: vLLM, llama.cpp, SGLang, trtllm-serve, TGI."""

    base_url: str = ""
    """Where its /models and /completions are, such as http://10.0.0.7:8000/v1."""
    api_key_file: Path | None = None
    """A file with the key to send; unset: none."""
    ca_file: Path | None = None
    """Certificates (PEM) to trust for https://; unset: those of the public authorities."""
    model: str = ""
    """What the server calls the model; empty: as requests call it."""
    revision: str = ""
    """Hash or tag of the weights, which no server tells. Change it when they change: answers
    cached under the old one are then not used any more."""
    dialect: Literal["auto", "vllm", "llama_cpp", "openai"] = "auto"
    """What the server knows beyond OpenAI's fields; auto: as /models says who owns the model."""
    http: Literal["auto", "1.1", "2"] = "auto"
    """auto: HTTP/2 where TLS agrees on it. 2: also without TLS, by prior knowledge."""
    context_length: Count | None = None
    """Most tokens of prompt and answer; unset: as the server says."""
    exact_continuation: bool = False
    """That greedy tokens there do not depend on who shares the batch; no server tells."""
    priorities: bool = False
    """That requests of higher priority go first there (vLLM: ``--scheduling-policy priority``,
    else it ignores them); no server tells."""
    adapters: dict[str, str] = Field(default_factory=dict)
    """LoRA adapters: name in requests to the server's model name."""
    connect_timeout_s: PositiveSeconds = 2.0
    """Longest time to connect."""
    first_token_timeout_s: PositiveSeconds = 120.0
    """Longest time from sending a request to its first token, the server's queue included."""
    token_timeout_s: PositiveSeconds = 20.0
    """Longest time between two tokens."""
    load_timeout_s: PositiveSeconds = 120.0
    """Longest time at the start until the server answers and has the model."""
    probe_interval_s: PositiveSeconds = 2.0
    """A server that said nothing for so long is asked for its models."""
    probe_timeout_s: PositiveSeconds = 5.0
    """Longest time for that answer."""
    max_failed_probes: Count = 3
    """So many in a row, and the worker is NOT_SERVING."""

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} does not begin with http:// or https://")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(not name for name in self.adapters):
            raise ValueError("adapters has an empty name, which means the base model")
        return self
