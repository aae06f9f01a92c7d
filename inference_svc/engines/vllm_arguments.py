"""Our settings and requests in vLLM's words: 0.25.1 to 0.32.

What is unset is left to vLLM. Beside vllm_api the only place that knows its names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference_svc.engine import GenerationRequest, Guided
from inference_svc.vllm_settings import VllmSettings
from sidecache.errors import InvalidRequest


def engine_arguments(
    model_path: Path,
    settings: VllmSettings,
    max_sequences: int,
    kv_endpoints: tuple[str, str] | None,
) -> dict[str, Any]:
    """Our settings in vLLM's words; what is unset is left to vLLM."""
    given: dict[str, Any] = {
        "model": str(model_path),
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "kv_cache_dtype": settings.kv_cache_dtype,
        "block_size": settings.block_size,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "enable_prefix_caching": settings.prefix_caching,
        "max_num_seqs": max_sequences,
        # One more than promised, since the chosen token may be among the best.
        "max_logprobs": settings.max_top_logprobs + 1,
        "scheduling_policy": "priority" if settings.priority_scheduling else "fcfs",
        "enforce_eager": settings.enforce_eager,
        "load_format": settings.load_format,
        "quantization": settings.quantization,
        "tensor_parallel_size": settings.tensor_parallel,
        "pipeline_parallel_size": settings.pipeline_parallel,
        "speculative_config": _speculative(settings),
        "enable_log_requests": False,
        "disable_log_stats": True,
        # Sampling parameters come from the request and from nowhere else.
        "generation_config": "vllm",
    }
    if settings.kv_cache_mib is not None:
        given["kv_cache_memory_bytes"] = settings.kv_cache_mib << 20
    if settings.distributed_executor != "auto":
        given["distributed_executor_backend"] = settings.distributed_executor
    if settings.adapters:
        given |= {
            "enable_lora": True,
            "max_loras": min(len(settings.adapters), 8),
            "max_lora_rank": settings.max_lora_rank,
        }
    if kv_endpoints is not None:
        given["kv_events_config"] = _kv_events(kv_endpoints, settings.kv_event_buffer_steps)
    return {name: value for name, value in given.items() if value is not None}


def _kv_events(endpoints: tuple[str, str], buffer_steps: int) -> Any:
    from vllm.config.kv_events import KVEventsConfig  # noqa: PLC0415

    publish, replay = endpoints
    return KVEventsConfig(
        enable_kv_cache_events=True,
        publisher="zmq",
        endpoint=publish,
        replay_endpoint=replay,
        buffer_steps=buffer_steps,
    )


def _speculative(settings: VllmSettings) -> dict[str, Any] | None:
    chosen = settings.speculative
    if chosen is None:
        return None
    config: dict[str, Any] = {"method": chosen.method, "num_speculative_tokens": chosen.num_tokens}
    if chosen.model is not None:
        config["model"] = str(chosen.model)
    if chosen.method == "ngram":
        config["prompt_lookup_max"] = chosen.prompt_lookup_max
    return config


def sampling_parameters(
    request: GenerationRequest, done: int, seed: int, end: Sequence[int]
) -> Any:
    """The request in vLLM's words; stop strings and text are ours.

    Args:
        request: of one choice or more.
        seed: of this choice; counts only where it is sampled.
        done: tokens of the choice that were delivered before.
        end: ids that end an answer.
    """
    from vllm import SamplingParams  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415

    sampling = request.sampling
    given: dict[str, Any] = {
        "max_tokens": request.max_tokens - done,
        "temperature": sampling.temperature,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "stop_token_ids": list(end),
        "detokenize": False,
        "output_kind": RequestOutputKind.DELTA,
    }
    if sampling.temperature > 0:
        # torch takes a signed seed.
        given |= {"top_p": sampling.top_p, "top_k": sampling.top_k, "seed": seed % 2**63}
    if request.logprobs is not None:
        given["logprobs"] = request.logprobs + 1 if request.logprobs else 0
    if request.guided is not None:
        given["structured_outputs"] = _grammar(request.guided)
    try:
        return SamplingParams(**given)
    except ValueError as error:
        raise InvalidRequest(f"the engine refuses it: {error}", field="sampling") from error


def _grammar(guided: Guided) -> Any:
    from vllm.sampling_params import StructuredOutputsParams  # noqa: PLC0415

    if guided.kind == "regex":
        return StructuredOutputsParams(regex=guided.grammar)
    return StructuredOutputsParams(json=guided.grammar)
