"""Settings to the arguments of TensorRT-LLM's LLM class."""

from pathlib import Path
from typing import Any

from inference_svc.engines.tensorrt_llm_api import TensorRtLlmApi
from inference_svc.tensorrt_llm_settings import SpeculativeSettings, TensorRtLlmSettings
from sidecache.errors import SetupError


def llm_arguments(
    settings: TensorRtLlmSettings, model_path: Path, max_sequences: int, api: TensorRtLlmApi
) -> dict[str, Any]:
    """What the LLM class is made with; ``max_sequences`` is the largest batch."""
    arguments: dict[str, Any] = {
        "model": str(model_path),
        # Text is tokenized by the worker itself; only grammars need the engine's tokenizer.
        "skip_tokenizer_init": settings.guided_decoding_backend is None,
        "trust_remote_code": settings.trust_remote_code,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "dtype": settings.dtype,
        "max_batch_size": max_sequences,
        "max_num_tokens": settings.max_num_tokens,
        "enable_chunked_prefill": settings.chunked_prefill,
        "kv_cache_config": _kv_cache(settings, api),
        "scheduler_config": _scheduler(settings, api),
    }
    optional = {
        "max_seq_len": settings.max_seq_len,
        "gpus_per_node": settings.gpus_per_node,
        "moe_expert_parallel_size": settings.expert_parallel_size,
        "guided_decoding_backend": settings.guided_decoding_backend,
        "otlp_traces_endpoint": settings.otlp_traces_endpoint,
    }
    arguments |= {name: value for name, value in optional.items() if value is not None}
    if settings.adapters:
        arguments["enable_lora"] = True
        arguments["lora_config"] = api.lora_config(
            lora_dir=[str(path) for path in settings.adapters.values()],
            max_lora_rank=settings.max_lora_rank,
        )
    if settings.backend == "pytorch":
        arguments |= _pytorch_only(settings, api)
    else:
        # Without it this backend has nothing to compute log-probabilities from.
        arguments["gather_generation_logits"] = True
    return arguments


def _pytorch_only(settings: TensorRtLlmSettings, api: TensorRtLlmApi) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "disable_overlap_scheduler": not settings.overlap_scheduler,
        # Without it there are no statistics to read the load from.
        "enable_iter_perf_stats": True,
    }
    if settings.sampler != "auto":
        arguments |= _sampler(settings.sampler, api)
    if settings.speculative is not None:
        arguments["speculative_config"] = _speculative(settings.speculative, api)
    return arguments


def _sampler(sampler: str, api: TensorRtLlmApi) -> dict[str, Any]:
    """The argument that names the sampler; the choice is gone where only one is left.

    Raises:
        SetupError: the sampler wanted is gone.
    """
    if "sampler_type" in api.llmapi.TorchLlmArgs.model_fields:
        return {"sampler_type": sampler}
    if sampler == "TorchSampler":
        return {}
    raise SetupError(
        f"sampler is {sampler}, which TensorRT-LLM {api.version} does not have any more; it must "
        "be auto or TorchSampler"
    )


def _kv_cache(settings: TensorRtLlmSettings, api: TensorRtLlmApi) -> Any:
    return api.llmapi.KvCacheConfig(
        enable_block_reuse=settings.block_reuse,
        free_gpu_memory_fraction=settings.kv_memory_share,
        host_cache_size=settings.kv_host_cache_bytes or None,
        event_buffer_max_size=settings.kv_event_buffer if settings.kv_events else 0,
        dtype=settings.kv_cache_dtype,
        tokens_per_block=settings.tokens_per_block,
    )


def _scheduler(settings: TensorRtLlmSettings, api: TensorRtLlmApi) -> Any:
    config = api.llmapi.SchedulerConfig
    chosen: dict[str, Any] = {
        "capacity_scheduler_policy": api.llmapi.CapacitySchedulerPolicy(settings.scheduler_policy)
    }
    if settings.chunking_policy is not None:
        chosen["context_chunking_policy"] = api.llmapi.ContextChunkingPolicy(
            settings.chunking_policy
        )
    # Younger than 1.2; there, priorities are not known either.
    if settings.serve_by_priority and "waiting_queue_policy" in config.model_fields:
        chosen["waiting_queue_policy"] = "priority"
    return config(**chosen)


def _speculative(settings: SpeculativeSettings, api: TensorRtLlmApi) -> Any:
    config = {
        "eagle3": "Eagle3DecodingConfig",
        "mtp": "MTPDecodingConfig",
        "ngram": "NGramDecodingConfig",
        "draft_target": "DraftTargetDecodingConfig",
    }[settings.method]
    chosen: dict[str, Any] = {
        "max_draft_len": settings.max_draft_len,
        "max_concurrency": settings.max_concurrency,
    }
    if settings.method == "ngram":
        chosen["max_matching_ngram_size"] = settings.max_matching_ngram_size
    if not hasattr(api.llmapi, config):  # older versions have one class for all Eagles
        config = "EagleDecodingConfig"
    config_class = getattr(api.llmapi, config)
    if settings.draft_model is not None:
        # Older versions know the second name only, and newer ones may drop it.
        known = "speculative_model" in config_class.model_fields
        name = "speculative_model" if known else "speculative_model_dir"
        chosen[name] = str(settings.draft_model)
    return config_class(**chosen)
