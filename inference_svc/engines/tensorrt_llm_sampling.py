"""A request in TensorRT-LLM's words."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from opentelemetry import propagate

from inference_svc.engine import GenerationRequest, Guided, Retention, TokenLogprob
from inference_svc.engines.tensorrt_llm_api import TensorRtLlmApi
from sidecache.errors import EngineFailed

# The middle of TensorRT-LLM's 0 to 1, and what it gives a request that says nothing.
_MIDDLE = 0.5
# Priorities differ up to here; beyond it they are all alike.
_HIGHEST = 100
# TensorRT-LLM's own for blocks nobody asked to keep.
_DECODE_PRIORITY = 35


def generate_arguments(
    request: GenerationRequest,
    prompt: list[int],
    sampling: Any,
    *,
    adapters: Mapping[str, Path],
    young: frozenset[str],
    api: TensorRtLlmApi,
) -> dict[str, Any]:
    """What LLM.generate_async is called with.

    ``sampling`` is from :func:`sampling_params`; ``adapters`` are those of the settings, in
    their order; ``young`` are the arguments that not every version has and this one does.
    """
    arguments: dict[str, Any] = {
        "inputs": {"prompt_token_ids": prompt},
        "sampling_params": sampling,
        "streaming": True,
    }
    if request.adapter:
        number = list(adapters).index(request.adapter) + 1
        arguments["lora_request"] = api.llmapi.LoRARequest(
            request.adapter, number, str(adapters[request.adapter])
        )
    if request.retention is not None:
        arguments["kv_cache_retention_config"] = retention(request.retention, api)
    if request.cache_salt:
        arguments["cache_salt"] = request.cache_salt
    if "priority" in young:
        arguments["priority"] = priority(request.priority)
    if "trace_headers" in young:
        headers: dict[str, str] = {}
        propagate.inject(headers)
        if headers:
            arguments["trace_headers"] = headers
    return arguments


def sampling_params(
    request: GenerationRequest,
    *,
    done: int,
    seed: int,
    end_token_ids: Sequence[int],
    api: TensorRtLlmApi,
) -> Any:
    """How the tokens of one choice are drawn.

    ``done`` tokens the choice already has; ``seed`` counts unless decoding is greedy; any
    of ``end_token_ids`` ends the choice, while stop strings are ours to find.
    """
    sampling = request.sampling
    chosen: dict[str, Any] = {
        "end_id": end_token_ids[0],
        "pad_id": end_token_ids[0],
        "max_tokens": request.max_tokens - done,
        "detokenize": False,
        "add_special_tokens": False,
    }
    if len(end_token_ids) > 1:
        chosen["stop_token_ids"] = list(end_token_ids[1:])
    if sampling.temperature > 0:
        chosen |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            # Without a seed everybody would draw with 0.
            "seed": seed % 2**63,
        }
    else:
        # The one way to say greedy that every version understands.
        chosen["top_k"] = 1
    if sampling.repetition_penalty != 1:
        chosen["repetition_penalty"] = sampling.repetition_penalty
    if sampling.presence_penalty:
        chosen["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        chosen["frequency_penalty"] = sampling.frequency_penalty
    if request.logprobs is not None:
        # In older versions 0 switches them off; one more than asked for, as the token itself
        # may be among them.
        chosen["logprobs"] = request.logprobs + 1
    if request.guided is not None:
        chosen["guided_decoding"] = _guided(request.guided, api)
    return api.llmapi.SamplingParams(**chosen)


def retention(wanted: Retention, api: TensorRtLlmApi) -> Any:
    """How long the prompt's first blocks are kept."""
    config = api.llmapi.KvCacheRetentionConfig
    duration = None if wanted.duration_s is None else timedelta(seconds=wanted.duration_s)
    kept = config.TokenRangeRetentionConfig(
        token_start=0,
        token_end=wanted.prompt_tokens,
        priority=wanted.priority,
        duration_ms=duration,
    )
    return config(
        token_range_retention_configs=[kept],
        decode_retention_priority=_DECODE_PRIORITY,
        # The binding's own default, None, is not a string and does not pass.
        directory="",
    )


def priority(value: int) -> float:
    """Ours, any integer around 0, as TensorRT-LLM's 0 to 1; the order stays."""
    return _MIDDLE + _MIDDLE * max(-_HIGHEST, min(_HIGHEST, value)) / _HIGHEST


def token_logprobs(
    token_ids: Sequence[int], entries: Sequence[Any], top: int
) -> tuple[TokenLogprob, ...]:
    """TensorRT-LLM's log-probabilities of these tokens, in our form.

    ``entries`` has for each token either its own value or a table of the likeliest.

    Raises:
        EngineFailed: one is missing.
    """
    if len(entries) != len(token_ids):
        raise EngineFailed(
            f"the engine gave {len(entries)} log-probabilities for {len(token_ids)} tokens"
        )
    return tuple(
        _token_logprob(token_id, entry, top)
        for token_id, entry in zip(token_ids, entries, strict=True)
    )


def _token_logprob(token_id: int, entry: Any, top: int) -> TokenLogprob:
    if isinstance(entry, float):
        return TokenLogprob(entry)
    if token_id not in entry:
        raise EngineFailed("the engine gave no log-probability of the chosen token")
    others = sorted(
        ((each, found.logprob) for each, found in entry.items() if each != token_id),
        key=lambda pair: -pair[1],
    )
    return TokenLogprob(entry[token_id].logprob, tuple(others[:top]))


def _guided(guided: Guided, api: TensorRtLlmApi) -> Any:
    kind = "json" if guided.kind == "json_schema" else "regex"
    return api.llmapi.GuidedDecodingParams(**{kind: guided.grammar})
