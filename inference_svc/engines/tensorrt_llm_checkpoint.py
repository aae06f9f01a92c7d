"""What a checkpoint folder says of itself, and whether these GPUs can run it.

Reads config.json of Hugging Face's form and hf_quant_config.json, which NVIDIA's Model
Optimizer writes beside it. Nothing here touches a GPU.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_svc.engines.tensorrt_llm_api import Gpu
from inference_svc.tensorrt_llm_settings import Quantization
from sidecache.errors import SetupError

_READ_BYTES = 1 << 20
# Names of quant_algo in TensorRT-LLM's tensorrt_llm/quantization/mode.py.
_ALGORITHMS: dict[str, Quantization] = {
    "FP8": "fp8",
    "FP8_BLOCK_SCALES": "fp8_block_scales",
    "NVFP4": "nvfp4",
    "W8A8_SQ_PER_CHANNEL": "int8_smoothquant",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": "int8_smoothquant",
    "W4A16_AWQ": "int4_awq",
    "W4A8_AWQ": "int4_awq_fp8",
    "W4A16_GPTQ": "int4_gptq",
}
# quant_method in config.json, for checkpoints of other makers.
_METHODS: dict[str, Quantization] = {
    "awq": "int4_awq",
    "gptq": "int4_gptq",
    "fp8": "fp8_block_scales",
}
_AMPERE, _ADA, _HOPPER = (8, 0), (8, 9), (9, 0)
_BLACKWELL, _BLACKWELL_RTX = (10, 0), (12, 0)
# Oldest and first too new compute capability: "Hardware Support Matrix" of
# docs/source/features/quantization.md, main branch before 1.4.
_SUPPORTED: dict[Quantization, tuple[tuple[int, int], tuple[int, int] | None]] = {
    "fp8": (_ADA, None),
    "fp8_block_scales": (_HOPPER, _BLACKWELL_RTX),
    "nvfp4": (_BLACKWELL, None),
    "int4_awq": (_AMPERE, _BLACKWELL),
    "int4_awq_fp8": (_ADA, _BLACKWELL),
    "int4_gptq": (_AMPERE, _BLACKWELL),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder.

    Attributes:
        end_token_ids: any of them ends an answer; at least one.
        quantization: as in the settings; ``none`` if the weights are whole.
        kv_quantization: the KV cache's, as the checkpoint calls it; empty if it says nothing.
        revision: sha256 over names, sizes and contents of the folder's files, hex.
    """

    path: Path
    context_length: int
    vocabulary_size: int
    end_token_ids: tuple[int, ...]
    quantization: Quantization
    kv_quantization: str
    revision: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a folder; hashing its weights takes about a second for each GB.

    Raises:
        SetupError: it is no such folder; says which file and what to do.
    """
    if not path.is_dir():
        raise SetupError(
            f"model_path {path} is not a folder; the engine tensorrt_llm wants a checkpoint folder "
            "with config.json, tokenizer.json and safetensors"
        )
    config = _json(path / "config.json")
    text = config.get("text_config", config)
    generation = path / "generation_config.json"
    ends = (_json(generation) if generation.exists() else {}).get("eos_token_id")
    ends = text.get("eos_token_id") if ends is None else ends
    try:
        return Checkpoint(
            path=path,
            context_length=int(text["max_position_embeddings"]),
            vocabulary_size=int(text["vocab_size"]),
            end_token_ids=tuple(ends) if isinstance(ends, list) else (int(ends),),
            quantization=_quantization(path, config),
            kv_quantization=str(_optimizer(path).get("kv_cache_quant_algo") or ""),
            revision=_revision(path),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise SetupError(f"{path / 'config.json'} lacks or garbles {error}") from error


def check_quantization(
    checkpoint: Checkpoint, wanted: Quantization, kv_cache_dtype: str, gpus: Sequence[Gpu]
) -> None:
    """Refuse what these GPUs have no kernels for, before minutes of loading.

    Raises:
        SetupError: names the quantization, the GPU and what would do.
    """
    if wanted not in {"checkpoint", checkpoint.quantization}:
        raise SetupError(
            f"quantization is set to {wanted}, but {checkpoint.path} holds "
            f"{checkpoint.quantization}; change the setting or the checkpoint"
        )
    needed = [(checkpoint.quantization, "the checkpoint's quantization")]
    if kv_cache_dtype == "nvfp4":
        needed.append(("nvfp4", "kv_cache_dtype"))
    for quantization, what in needed:
        oldest, too_new = _SUPPORTED.get(quantization, ((0, 0), None))
        for gpu in gpus:
            if gpu.capability < oldest or (too_new is not None and gpu.capability >= too_new):
                raise SetupError(
                    f"{what} {quantization} does not run on {gpu.name}, compute capability "
                    f"{_dotted(gpu.capability)}: it needs {_dotted(oldest)} or newer"
                    + (f" and older than {_dotted(too_new)}" if too_new else "")
                )
    if kv_cache_dtype == "fp8" and any(gpu.capability < _AMPERE for gpu in gpus):
        raise SetupError(
            f"kv_cache_dtype fp8 needs compute capability {_dotted(_AMPERE)} or newer; these are "
            + ", ".join(f"{gpu.name} {_dotted(gpu.capability)}" for gpu in gpus)
        )


def _quantization(path: Path, config: dict[str, Any]) -> Quantization:
    algorithm = _optimizer(path).get("quant_algo")
    method = config.get("quantization_config", {}).get("quant_method")
    if algorithm:
        found = _ALGORITHMS.get(str(algorithm))
    elif method == "modelopt":
        found = _ALGORITHMS.get(str(config["quantization_config"].get("quant_algo")))
    elif method:
        found = _METHODS.get(str(method))
    else:
        return "none"
    if found is None:
        raise SetupError(
            f"{path} is quantized as {algorithm or method}, which this worker does not know; "
            f"known are {', '.join([*_ALGORITHMS, *_METHODS])}"
        )
    return found


def _optimizer(path: Path) -> dict[str, Any]:
    file = path / "hf_quant_config.json"
    found: dict[str, Any] = _json(file).get("quantization", {}) if file.exists() else {}
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SetupError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SetupError(f"{path} is not a JSON object")
    return content


def _revision(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as content:
                while block := content.read(_READ_BYTES):
                    digest.update(block)
    return digest.hexdigest()


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
