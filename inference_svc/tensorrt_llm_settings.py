"""Settings of the TensorRT-LLM engine, and which of them clash.

Every clash refused here is one that TensorRT-LLM's own sources state; the check names
its source file, of several commits (docs/decisions/0019-tensorrt-llm.md). What the
sources call untested is only logged.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from observability.settings import PositiveSeconds, SettingsPart

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]

_COMBINATIONS = "docs/source/features/feature-combination-matrix.md"
_QUANTIZATION = "docs/source/features/quantization.md"
_ARGUMENTS = "tensorrt_llm/llmapi/llm_args.py"

Quantization = Literal[
    "checkpoint",
    "none",
    "fp8",
    "fp8_block_scales",
    "nvfp4",
    "int8_smoothquant",
    "int4_awq",
    "int4_awq_fp8",
    "int4_gptq",
]
"""What a checkpoint may hold, in our words."""


class SpeculativeSettings(SettingsPart):
    """Drafts several tokens, verifies them in one step of the model."""

    method: Literal["eagle3", "mtp", "ngram", "draft_target"]
    """Who drafts: an Eagle3 head, the model's own MTP layers, n-grams of the text so far, or a
    smaller model."""
    max_draft_len: Count | None = None
    """Tokens drafted at once. Only `mtp` has a default: as many as the checkpoint has layers."""
    draft_model: Path | None = None
    """Folder of the Eagle3 head or of the smaller model."""
    max_matching_ngram_size: Count = 2
    """Longest n-gram that `ngram` looks up."""
    max_concurrency: Count | None = None
    """With more sequences than this nothing is drafted; unset: always draft."""


class TensorRtLlmSettings(SettingsPart):
    """The TensorRT-LLM engine, on this machine's GPUs or several machines'."""

    backend: Literal["pytorch", "tensorrt"] = "pytorch"
    """`tensorrt` runs an engine that was built beforehand; only INT8 SmoothQuant needs it."""
    tensor_parallel_size: Count = 1
    """GPUs that share each layer."""
    pipeline_parallel_size: Count = 1
    """Groups of GPUs that share the layers out."""
    expert_parallel_size: Count | None = None
    """GPUs among which a mixture's experts are spread; unset: as TensorRT-LLM likes."""
    gpus_per_node: Count | None = None
    """GPUs of one machine, where several machines hold the model; unset: all there are."""
    dtype: str = "auto"
    """Type of weights that are not quantized."""
    max_seq_len: Count | None = None
    """Most tokens of prompt and answer together; unset: what the model allows."""
    max_num_tokens: Count = 8192
    """Tokens of one step, all sequences together."""
    chunked_prefill: bool = True
    """A prompt longer than a step is prefilled in several."""
    overlap_scheduler: bool = True
    """The next step is prepared while the GPU runs this one."""
    scheduler_policy: Literal["GUARANTEED_NO_EVICT", "MAX_UTILIZATION", "STATIC_BATCH"] = (
        "GUARANTEED_NO_EVICT"
    )
    """Who is admitted: only who surely fits, whoever fits now (and may be paused), or whole
    batches (no in-flight batching: only to compare with)."""
    chunking_policy: Literal["FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS"] | None = None
    """Whose prompt a step's tokens go to; unset: TensorRT-LLM's choice."""
    serve_by_priority: bool = True
    """Who waits in the engine is served by priority, where the installed version can."""
    sampler: Literal["auto", "TorchSampler", "TRTLLMSampler"] = "auto"
    """What draws the tokens."""
    seeded_sampling: bool = False
    """The installed version's sampler obeys a request's seed. Off until `inference_svc.smoke` has
    shown it: PyTorch samplers before August 2026 (their pull request 17172) ignore it."""
    max_top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    """Log-probabilities of so many other tokens may be asked for; older versions allow none."""
    quantization: Quantization = "checkpoint"
    """What the checkpoint must hold; anything else in it is refused. `checkpoint`: anything."""
    kv_cache_dtype: Literal["auto", "float16", "bfloat16", "fp8", "nvfp4"] = "auto"
    """Type of the KV cache; `auto`: what the checkpoint says."""
    kv_memory_share: Share = 0.9
    """Share of the GPU memory left after loading that the KV cache gets."""
    kv_host_cache_bytes: Annotated[int, Field(ge=0)] = 0
    """Host memory that evicted blocks move to; 0: none."""
    tokens_per_block: Count = 32
    """Tokens in one KV block."""
    block_reuse: bool = True
    """Prompts use the KV blocks of earlier ones."""
    kv_events: bool = True
    """Tell the sidecar which prompts' blocks are held."""
    kv_event_buffer: Count = 65536
    """Events the engine keeps until they are fetched; what does not fit is lost and noticed."""
    kv_silence_s: PositiveSeconds = 60.0
    """Prompts were served and no event came for so long: said once in the log."""
    max_known_blocks: Count = 1_000_000
    """KV blocks whose names are remembered; more, and everything is forgotten."""
    guided_decoding_backend: Literal["xgrammar", "llguidance"] | None = "xgrammar"
    """What follows grammars; unset: requests with one are refused."""
    adapters: dict[str, Path] = Field(default_factory=dict)
    """LoRA adapters: name to folder, in Hugging Face's form."""
    max_lora_rank: Count = 64
    """Rank of the largest of them."""
    speculative: SpeculativeSettings | None = None
    """Speculative decoding; unset: none."""
    trust_remote_code: bool = False
    """Run Python code that lies in the checkpoint."""
    otlp_traces_endpoint: str | None = None
    """Where the engine itself sends spans; they join the request's trace."""
    load_timeout_s: PositiveSeconds = 1800.0
    """Longest time to load the model and warm up."""
    feed_timeout_s: PositiveSeconds = 2.0
    """How long one listening for KV events or statistics lasts before it is begun again."""
    abort_timeout_s: PositiveSeconds = 5.0
    """An aborted request that the engine has not ended by then counts as a hang."""

    @model_validator(mode="after")
    def _refuse_clashes(self) -> Self:
        clashes = [*_speculative_clashes(self), *_backend_clashes(self), *_cache_clashes(self)]
        if clashes:
            raise ValueError("; ".join(clashes))
        return self

    def untested(self) -> list[str]:
        """Combinations that TensorRT-LLM allows but calls untested."""
        found = []
        if self.chunked_prefill and self.pipeline_parallel_size > 1:
            found.append("chunked_prefill with pipeline_parallel_size > 1")
        if self.adapters and self.speculative:
            found.append("adapters with speculative")
        if self.adapters and self.expert_parallel_size:
            found.append("adapters with expert_parallel_size")
        return found


def _speculative_clashes(settings: TensorRtLlmSettings) -> Iterator[str]:
    speculative = settings.speculative
    if speculative is None:
        return
    if settings.pipeline_parallel_size > 1:
        yield (
            f"speculative clashes with pipeline_parallel_size {settings.pipeline_parallel_size}: "
            f"it must be 1 ({_COMBINATIONS})"
        )
    if settings.sampler == "TRTLLMSampler":
        yield (
            "speculative clashes with sampler TRTLLMSampler: it must be auto or TorchSampler "
            f"({_COMBINATIONS})"
        )
    if settings.backend == "tensorrt":
        yield (
            f"speculative.method {speculative.method} clashes with backend tensorrt: it must be "
            f"pytorch ({_ARGUMENTS}, validate_speculative_config)"
        )
    if speculative.max_draft_len is None and speculative.method != "mtp":
        yield (
            f"speculative.method {speculative.method} needs speculative.max_draft_len "
            f"({_ARGUMENTS})"
        )
    if speculative.draft_model is None and speculative.method in {"eagle3", "draft_target"}:
        yield (
            f"speculative.method {speculative.method} needs speculative.draft_model ({_ARGUMENTS})"
        )


def _backend_clashes(settings: TensorRtLlmSettings) -> Iterator[str]:
    if settings.backend == "pytorch" and settings.quantization == "int8_smoothquant":
        yield (
            "quantization int8_smoothquant clashes with backend pytorch, which has no kernels "
            f"for it: backend must be tensorrt, with a built engine ({_QUANTIZATION})"
        )
    if settings.backend == "pytorch":
        return
    if settings.guided_decoding_backend == "llguidance":
        yield (
            "guided_decoding_backend llguidance clashes with backend tensorrt: it may be xgrammar "
            f"or unset ({_ARGUMENTS}, guided_decoding_backend)"
        )
    if settings.kv_cache_dtype != "auto":
        yield (
            f"kv_cache_dtype {settings.kv_cache_dtype} clashes with backend tensorrt, where the "
            f"built engine decides it: it must be auto ({_ARGUMENTS}, KvCacheConfig.dtype)"
        )
    if settings.sampler != "auto":
        yield (
            f"sampler {settings.sampler} clashes with backend tensorrt, which has its own: it "
            f"must be auto ({_ARGUMENTS}, TorchLlmArgs.sampler_type)"
        )


def _cache_clashes(settings: TensorRtLlmSettings) -> Iterator[str]:
    if settings.kv_events and not settings.block_reuse:
        yield (
            "kv_events clashes with block_reuse off: turn both on or both off "
            "(tensorrt_llm/llmapi/llm.py, get_kv_cache_events)"
        )
    size = settings.tokens_per_block
    if size < 2 or size & (size - 1):  # noqa: PLR2004 - a power of two greater than 1
        yield (
            f"tokens_per_block is {size}, must be a power of two greater than 1 "
            "(docs/source/features/kvcache.md)"
        )
