"""The installed TensorRT-LLM: the one place that imports it, and what its version can.

The package is large, wants a GPU and is only imported when the engine loads.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sidecache.errors import SetupError

Importer = Callable[[str], Any]
"""Import a module by name."""

# Where LoraConfig has been, the older place first.
_LORA_MODULES = ("tensorrt_llm.lora_helper", "tensorrt_llm._torch.peft.lora.config")
# Arguments of LLM.generate_async that not every version has.
_YOUNG_ARGUMENTS = ("trace_headers", "priority")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    Attributes:
        capability: major and minor compute capability.
    """

    name: str
    capability: tuple[int, int]


class TensorRtLlmApi:
    """The names this project uses of the packages tensorrt_llm and torch.

    Args:
        import_module: how modules are found.

    Raises:
        SetupError: TensorRT-LLM or torch is not installed; says what to install.
    """

    def __init__(self, import_module: Importer = importlib.import_module) -> None:
        self._import = import_module
        self.version: str = str(self._module("tensorrt_llm").__version__)
        self.llmapi = self._module("tensorrt_llm.llmapi")
        self.request_error: type[Exception] = self.llmapi.RequestError
        self._torch = self._module("torch")

    def llm_class(self, backend: str) -> Any:
        """The class that generates, for a backend."""
        if backend == "pytorch":
            return self._module("tensorrt_llm").LLM
        try:
            return self._import("tensorrt_llm._tensorrt_engine").LLM
        except ImportError as error:
            raise SetupError(
                f"backend is tensorrt, which TensorRT-LLM {self.version} does not have any more; "
                "use backend pytorch, or install a version from 1.0 to 1.3"
            ) from error

    def lora_config(self, **fields: Any) -> Any:
        """How adapters are loaded.

        Raises:
            SetupError: this version has LoraConfig in no known place.
        """
        for name in _LORA_MODULES:
            try:
                return self._import(name).LoraConfig(**fields)
            except ImportError:
                continue
        raise SetupError(
            f"adapters are set, and TensorRT-LLM {self.version} has LoraConfig neither in "
            f"{' nor in '.join(_LORA_MODULES)}; serve without adapters, or install another version"
        )

    def gpus(self) -> list[Gpu]:
        """The GPUs of this machine."""
        if not self._torch.cuda.is_available():
            return []
        return [
            Gpu(
                str(self._torch.cuda.get_device_name(index)),
                self._torch.cuda.get_device_capability(index),
            )
            for index in range(self._torch.cuda.device_count())
        ]

    def _module(self, name: str) -> Any:
        try:
            return self._import(name)
        except ImportError as error:
            raise SetupError(
                f"the engine tensorrt_llm cannot import {name} ({error}). It needs an NVIDIA GPU "
                "and the extra: pip install 'sidecache[tensorrt-llm]' "
                "--extra-index-url https://pypi.nvidia.com (NVIDIA's index has the wheel, the "
                "Python index only a stub), or run inside NVIDIA's release container, see "
                "docs/engines.md"
            ) from error


def young_arguments(generate_async: Callable[..., Any]) -> frozenset[str]:
    """Which arguments of newer versions this one has."""
    known = inspect.signature(generate_async).parameters
    return frozenset(name for name in _YOUNG_ARGUMENTS if name in known)
