"""The fake's modules: importing anything the real package does not offer fails."""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.fakes.tensorrt_llm.llm import FakeLLM, RequestError, Script
from tests.fakes.tensorrt_llm.surface import Surface

# What LLM checks of its arguments beyond their types (tensorrt_llm/llmapi/llm_args.py).
_DRAFTS = {
    "NGramDecodingConfig": False,
    "DraftTargetDecodingConfig": True,
    "Eagle3DecodingConfig": True,
    "EagleDecodingConfig": True,
}
_DRAFT_MODEL = ("speculative_model", "speculative_model_dir")


class FakeTensorRtLlm:
    """Stands for the installed package; give ``import_module`` to TensorRtLlmApi.

    Attributes:
        llms: those that were made.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or Script()
        self.surface = Surface(self.script.without, self.script.renamed)
        self.llms: list[FakeLLM] = []

    def import_module(self, name: str) -> Any:
        """Import a module of the package, or torch.

        Raises:
            ModuleNotFoundError: there is no such module.
        """
        modules: dict[str, Callable[[], Any]] = {
            "tensorrt_llm": lambda: _Module(
                name, {"LLM": self._llm("TorchLlmArgs"), "__version__": self._version()}
            ),
            "tensorrt_llm._tensorrt_engine": lambda: _Module(
                name, {"LLM": self._llm("TrtLlmArgs")}
            ),
            "tensorrt_llm.lora_helper": lambda: _Module(
                name, {"LoraConfig": self.surface.make("LoraConfig")}
            ),
            "tensorrt_llm.llmapi": self._llmapi,
            "torch": self._torch,
        }
        moved = {new: old for old, new in self.script.renamed.items()}
        found = moved.get(name, name)
        if found not in modules or name in {*self.script.without, *self.script.renamed}:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return modules[found]()

    def _version(self) -> str:
        return f"{self.surface.document['version']}-fake"

    def _llmapi(self) -> Any:
        names: dict[str, Any] = {"RequestError": RequestError}
        for name in self.surface.exports:
            if name in self.surface.document["classes"]:
                names[name] = self.surface.make(name, _validator(name))
        retention = names["KvCacheRetentionConfig"]
        retention.TokenRangeRetentionConfig = self.surface.make("TokenRangeRetentionConfig")
        return _Module("tensorrt_llm.llmapi", names)

    def _torch(self) -> Any:
        gpus = self.script.gpus
        cuda = SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_name=lambda index: gpus[index][0],
            get_device_capability=lambda index: gpus[index][1],
        )
        return _Module("torch", {"cuda": cuda})

    def _llm(self, arguments_class: str) -> type:
        """The LLM class: its arguments are those of LlmArgs."""
        fake, surface = self, self.surface

        class LLM:
            def __init__(self, **arguments: Any) -> None:
                known = surface.entry(arguments_class)["fields"]
                for name in arguments:
                    if name not in known:
                        raise ValueError(f"LLM got invalid argument: {name}")
                made: Any = surface.make(arguments_class)(**arguments)
                complete = {name: getattr(made, name) for name in known}
                self._fake = FakeLLM(surface, fake.script, complete)
                fake.llms.append(self._fake)

            def get_kv_cache_events_async(self, timeout: float | None = 2) -> Any:
                surface.check_call("BaseLLM", "get_kv_cache_events_async", {"timeout": timeout})
                return self._fake.kv_events(timeout)

            def get_stats_async(self, timeout: float | None = 2) -> Any:
                surface.check_call("BaseLLM", "get_stats_async", {"timeout": timeout})
                return self._fake.stats(timeout)

            def shutdown(self) -> None:
                self._fake.stop()

            def generate_async(self, **given: Any) -> Any:
                surface.check_call("BaseLLM", "generate_async", given)
                return self._fake.begin(given)

        # The engine looks at the signature to learn what the version can.
        LLM.generate_async.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
                *(
                    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
                    for name in surface.arguments("BaseLLM", "generate_async")
                ),
            ]
        )
        return LLM


class _Module:
    """A module with these names and no others."""

    def __init__(self, name: str, names: dict[str, Any]) -> None:
        self.__dict__.update(names)
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _validator(name: str) -> Callable[[Any], None] | None:
    if name == "KvCacheRetentionConfig":
        return _refuse_no_directory
    if name not in _DRAFTS:
        return None

    def validate(config: Any) -> None:
        if not config.max_draft_len:
            raise ValueError(f"max_draft_len must be > 0 for {name}")
        models = [getattr(config, each, None) for each in _DRAFT_MODEL]
        if _DRAFTS[name] and not any(models):
            raise ValueError(f"{name} needs a draft model")

    return validate


def _refuse_no_directory(config: Any) -> None:
    # nanobind casts the default, None, to std::string and fails.
    if config.directory is None:
        raise TypeError("KvCacheRetentionConfig: incompatible function arguments")
