"""Starts TensorRT-LLM: what would fail after minutes is refused at once."""

import asyncio
from pathlib import Path
from typing import Any

from inference_svc.engines.tensorrt_llm_api import Gpu, TensorRtLlmApi
from inference_svc.engines.tensorrt_llm_config import llm_arguments
from inference_svc.tensorrt_llm_settings import TensorRtLlmSettings
from sidecache.errors import SetupError


def check_gpus(settings: TensorRtLlmSettings, gpus: list[Gpu]) -> list[Gpu]:
    """The GPUs, if there are as many as the settings need.

    Raises:
        SetupError: there are none, or too few.
    """
    needed = settings.tensor_parallel_size * settings.pipeline_parallel_size
    if not gpus:
        raise SetupError(
            "the engine tensorrt_llm needs an NVIDIA GPU, and none is visible; check "
            "nvidia-smi, CUDA_VISIBLE_DEVICES and that the container was started with GPUs"
        )
    if settings.gpus_per_node is None and needed > len(gpus):
        raise SetupError(
            f"tensor_parallel_size {settings.tensor_parallel_size} x pipeline_parallel_size "
            f"{settings.pipeline_parallel_size} needs {needed} GPUs and {len(gpus)} are "
            "visible; for several machines set gpus_per_node, see docs/engines.md"
        )
    return gpus


async def make_llm(
    settings: TensorRtLlmSettings, model_path: Path, max_sequences: int, api: TensorRtLlmApi
) -> Any:
    """Build the engine in a thread, as the library blocks for minutes; its LLM.

    Raises:
        SetupError: it failed or took longer than ``load_timeout_s``; says what to change.
    """
    arguments = llm_arguments(settings, model_path, max_sequences, api)
    llm_class = api.llm_class(settings.backend)
    building = asyncio.create_task(asyncio.to_thread(llm_class, **arguments))
    done, _ = await asyncio.wait({building}, timeout=settings.load_timeout_s)
    if not done:
        building.add_done_callback(_shut_down_late)
        raise SetupError(
            f"{model_path} was not loaded within {settings.load_timeout_s:g} s; "
            "raise load_timeout_s, or see TensorRT-LLM's own log above"
        )
    error = building.exception()
    if error is None:
        return building.result()
    if "out of memory" in str(error).lower():
        raise SetupError(
            f"the GPU's memory does not suffice ({error}); lower kv_memory_share, "
            "max_num_tokens or max_sequences, or raise tensor_parallel_size"
        ) from error
    raise SetupError(f"TensorRT-LLM {api.version} could not load {model_path}: {error}") from error


def _shut_down_late(building: "asyncio.Task[Any]") -> None:
    """A model that was loaded after all, when nobody waited for it any more."""
    if not building.cancelled() and building.exception() is None:
        building.result().shutdown()
