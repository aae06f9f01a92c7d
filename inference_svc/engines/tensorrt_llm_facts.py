"""What a TensorRT-LLM worker says of itself: its model, its build, and what it can."""

from inference_svc.engine import EngineCapabilities, ModelFacts
from inference_svc.engines.hf_tokenizer import HfTokenizer
from inference_svc.engines.tensorrt_llm_api import Gpu
from inference_svc.engines.tensorrt_llm_checkpoint import Checkpoint
from inference_svc.tensorrt_llm_settings import TensorRtLlmSettings

MAX_CHOICES = 8


def model_facts(
    settings: TensorRtLlmSettings,
    model_name: str,
    checkpoint: Checkpoint,
    tokenizer: HfTokenizer,
    *,
    build: str,
    priorities: bool,
    max_sequences: int,
) -> ModelFacts:
    """What routers and sidecars are told; ``priorities``: the installed version has them."""
    return ModelFacts(
        name=model_name,
        revision=checkpoint.revision,
        engine="tensorrt_llm",
        build=build,
        context_length=min(
            checkpoint.context_length, settings.max_seq_len or checkpoint.context_length
        ),
        vocabulary_size=checkpoint.vocabulary_size,
        block_size=settings.tokens_per_block if settings.block_reuse else 0,
        tokenizer_fingerprint=tokenizer.fingerprint,
        chat_template_fingerprint=tokenizer.template_fingerprint,
        tokenizer_files=tokenizer.files,
        capabilities=EngineCapabilities(
            guided_decoding=settings.guided_decoding_backend is not None,
            # With drafts they crash the engine or are left out (its pull request 12547).
            logprobs=settings.speculative is None,
            seeded_sampling=settings.seeded_sampling,
            priorities=priorities and settings.serve_by_priority,
            tools=tokenizer.knows_tools,
            max_choices=min(MAX_CHOICES, max_sequences),
            max_top_logprobs=settings.max_top_logprobs,
            kv_events=settings.kv_events,
            cache_salt=settings.block_reuse,
            retention=settings.block_reuse,
        ),
        adapters=tuple(settings.adapters),
    )


def build(
    settings: TensorRtLlmSettings, checkpoint: Checkpoint, gpus: list[Gpu], version: str
) -> str:
    """Everything that changes the numbers: streams move only between equals."""
    drafts = settings.speculative.method if settings.speculative else "plain"
    parts = (
        f"tensorrt-llm {version}",
        settings.backend,
        "+".join(sorted({gpu.name for gpu in gpus})),
        f"tp{settings.tensor_parallel_size} pp{settings.pipeline_parallel_size}",
        f"{settings.dtype}/{checkpoint.quantization}",
        f"kv {settings.kv_cache_dtype}/{checkpoint.kv_quantization or '-'}",
        f"{settings.sampler} {drafts}",
    )
    return ", ".join(parts)
