"""The settings of the OpenVINO engine, and which of them cannot stand together."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from observability.settings import PositiveSeconds, Seconds, SettingsPart

Count = Annotated[int, Field(ge=1)]


class OpenVinoSpeculation(SettingsPart):
    """Tokens guessed cheaply and checked by the model (Leviathan et al., 2023)."""

    method: Literal["prompt_lookup", "draft_model"]
    """Who guesses: the prompt and answer so far (Saxena, 2023), or a smaller model."""
    num_tokens: Annotated[int, Field(ge=1, le=32)] = 4
    """Tokens guessed before each check."""
    max_ngram_size: Annotated[int, Field(ge=1, le=16)] = 3
    """Longest run of last tokens that prompt_lookup looks for."""
    draft_model: Path | None = None
    """Folder of the draft's OpenVINO model, with openvino_tokenizer.xml of the same vocabulary."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "draft_model" and self.draft_model is None:
            raise ValueError("speculative.method draft_model needs speculative.draft_model")
        if self.method != "draft_model" and self.draft_model is not None:
            raise ValueError(f"speculative.method {self.method} takes no speculative.draft_model")
        return self


class OpenVinoSettings(SettingsPart):
    """The OpenVINO GenAI engine, on this machine's CPU or an Intel GPU.

    The defaults make a greedy token depend on the tokens before it alone. Any other
    kv_cache_precision or activation_group_size, or a GPU, gives that up; the worker's build
    says so, and streams never move between workers of different builds.
    """

    device: Annotated[str, Field(pattern=r"^(CPU|GPU(\.\d+)?)$")] = "CPU"
    """CPU, or an Intel GPU: GPU, GPU.0, GPU.1."""
    cache_gib: Count = 1
    """Memory for the KV cache."""
    kv_blocks: Annotated[int, Field(ge=0)] = 0
    """Blocks of the KV cache, instead of cache_gib; 0: as many as fit that."""
    kv_cache_precision: Literal["f32", "f16", "u8"] = "f32"
    """Of keys and values: f16 holds twice, u8 3.4 times as many tokens in the same memory."""
    activation_group_size: Literal[0, 32, 64, 128] = 0
    """Activations rounded to int8 in groups of so many, which is fast where weights are int8 or
    int4; 0: not rounded."""
    speculative: OpenVinoSpeculation | None = None
    """Speculative decoding; unset: none. No KV events and no grammars with it."""
    inference_threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of one step; 0: as many as OpenVINO likes."""
    max_num_batched_tokens: Count = 256
    """Tokens of one step; a longer prompt is prefilled in several (chunked prefill)."""
    load_timeout_s: PositiveSeconds = 120.0
    """Longest time to load the model and warm up."""
    prefix_min_tokens: Count = 64
    """A request waits for another's prefill if they share at least this many first tokens."""
    prefix_max_hold_s: Seconds = 10.0
    """Longest time it waits for that."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.device != "CPU" and self.inference_threads:
            raise ValueError(f"inference_threads is of device CPU, not of {self.device}")
        if self.speculative and self.speculative.num_tokens >= self.max_num_batched_tokens:
            raise ValueError(
                f"speculative.num_tokens {self.speculative.num_tokens} does not fit in "
                f"max_num_batched_tokens {self.max_num_batched_tokens}"
            )
        return self

    @property
    def exact(self) -> bool:
        """Whether a greedy token depends on the tokens before it alone."""
        return self.deviations() == []

    def deviations(self) -> list[str]:
        """Whatever may change a number, beyond the library and the processor."""
        found = []
        if self.kv_cache_precision != "f32":
            found.append(f"kv {self.kv_cache_precision}")
        if self.activation_group_size:
            found.append(f"int8 activations by {self.activation_group_size}")
        if self.speculative is not None:
            found.append(f"{self.speculative.method} {self.speculative.num_tokens}")
        if self.device != "CPU":
            found.append(self.device)
        return found

    def properties(self) -> dict[str, Any]:
        """In OpenVINO's words."""
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": self.kv_cache_precision,
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(self.activation_group_size),
        }
        if self.inference_threads:
            properties["INFERENCE_NUM_THREADS"] = self.inference_threads
        return properties
