"""The settings of a worker, read once at its start."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from inference_svc.openvino_settings import OpenVinoSettings
from inference_svc.remote_settings import RemoteSettings
from inference_svc.tensorrt_llm_settings import TensorRtLlmSettings
from inference_svc.vllm_settings import VllmSettings
from observability.settings import (
    PositiveSeconds,
    Seconds,
    ServerSettings,
    SettingsPart,
    TelemetrySettings,
)

Count = Annotated[int, Field(ge=1)]


__all__ = ["OpenVinoSettings", "ScriptedSettings", "WorkerSettings"]


class ScriptedSettings(SettingsPart):
    """Pace and faults of the scripted engine."""

    ttft_s: Seconds = 0.0
    """Time from a granted slot to the first token."""
    tokens_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Pace of each choice after that; 0: as fast as possible."""
    prefill_tokens_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Pace of prefill, one prompt after another; cached tokens cost nothing. 0: at once."""
    block_size: Count = 32
    """Tokens in a block of the modelled KV cache."""
    kv_blocks: Count = 4096
    """Blocks the modelled KV cache can hold."""
    burst: Count = 1
    """Tokens that come together."""
    context_length: Count = 8192
    """Most tokens of prompt and answer together."""
    vocabulary: Literal["words", "bytes"] = "words"
    """What a token is: a word, or a byte of a text whose characters have one to four."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters it knows; each answers in its own words and has its own KV blocks."""
    answer_tokens: Count | None = None
    """Length at which an answer ends by itself, with reason STOP; unset: never."""
    die_after_tokens: Annotated[int, Field(ge=0)] | None = None
    """The engine dies as soon as a stream has this many tokens; 0: before the first."""
    poison: str = ""
    """The engine dies of a prompt that holds this text; empty: of none."""
    poison_after_tokens: Annotated[int, Field(ge=0)] = 0
    """It dies as soon as the answer to that prompt has this many tokens."""
    hang_after_tokens: Annotated[int, Field(ge=0)] | None = None
    """The engine hangs as soon as a stream has this many tokens."""


class WorkerSettings(BaseSettings):
    """One worker: where it serves, and what."""

    model_config = SettingsConfigDict(
        env_prefix="SIDECACHE_WORKER_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    server: ServerSettings = ServerSettings()
    """Where the worker listens."""
    telemetry: TelemetrySettings = TelemetrySettings()
    """Where its traces, metrics and logs go."""
    name: Annotated[str, Field(min_length=1)] = "worker"
    """What the worker calls itself in `started` and to routers."""
    engine: Literal["openvino", "scripted", "vllm", "tensorrt_llm", "remote"] = "openvino"
    """What generates the tokens."""
    model_name: str = ""
    """What requests call the model. Empty: smollm2-135m-instruct, scripted, or
    the folder's name."""
    model_path: Path | None = None
    """A GGUF file, or for openvino a folder with an OpenVINO model; for vllm and tensorrt_llm a
    Hugging Face folder; for remote a GGUF file or a folder, of which the tokenizer is read.
    Unset: what `sidecache pull` fetched."""
    max_sequences: Count = 16
    """Sequences generated at once."""
    max_waiting: Annotated[int, Field(ge=0)] = 64
    """Requests that may wait for a slot; the next is refused."""
    retry_after_s: Seconds = 1.0
    """What a refused caller is told to wait."""
    default_max_tokens: Count = 256
    """Length of an answer whose request names none."""
    max_prompt_bytes: Count = 2 * 1024 * 1024
    """Longest prompt text that is tokenized at all."""
    coalesce_max_tokens: Count = 64
    """Most tokens put together in one message."""
    coalesce_max_messages_per_s: Count = 1000
    """Messages written a second, all streams together; with more streams than that allows
    at the engine's pace, tokens of a stream wait a little to go together. The first token
    never waits."""
    progress_interval_s: PositiveSeconds = 1.0
    """Time between heartbeats while a request waits for its first token."""
    engine_silence_s: PositiveSeconds = 5.0
    """A busy engine silent for longer gets no more heartbeats: it hangs."""
    stall_timeout_s: PositiveSeconds = 30.0
    """How long a reader may take nothing before its stream is cut."""
    scripted: ScriptedSettings = ScriptedSettings()
    """Of the scripted engine."""
    openvino: OpenVinoSettings = OpenVinoSettings()
    """Of the OpenVINO engine."""
    vllm: VllmSettings = VllmSettings()
    """Of the vLLM engine."""
    tensorrt_llm: TensorRtLlmSettings = TensorRtLlmSettings()
    """Of the TensorRT-LLM engine."""
    remote: RemoteSettings = RemoteSettings()
    """Of the remote engine."""
