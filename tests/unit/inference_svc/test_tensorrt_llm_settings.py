"""What clashes is named, with what it clashes with and what it may be."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inference_svc.serve import make_engine
from inference_svc.settings import WorkerSettings
from inference_svc.tensorrt_llm_settings import SpeculativeSettings, TensorRtLlmSettings
from sidecache.errors import SetupError

NGRAM = {"method": "ngram", "max_draft_len": 4}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (
            {"speculative": NGRAM, "pipeline_parallel_size": 2},
            ("speculative", "pipeline_parallel_size 2", "must be 1", "combination-matrix"),
        ),
        (
            {"speculative": NGRAM, "sampler": "TRTLLMSampler"},
            ("speculative", "sampler TRTLLMSampler", "auto or TorchSampler"),
        ),
        (
            {"speculative": NGRAM, "backend": "tensorrt"},
            ("method ngram", "backend tensorrt", "pytorch"),
        ),
        ({"speculative": {"method": "ngram"}}, ("ngram", "max_draft_len")),
        (
            {"speculative": {"method": "eagle3", "max_draft_len": 3}},
            ("eagle3", "speculative.draft_model"),
        ),
        (
            {"speculative": {"method": "draft_target"}},
            ("speculative.max_draft_len", "speculative.draft_model"),
        ),
        ({"quantization": "int8_smoothquant"}, ("int8_smoothquant", "backend must be tensorrt")),
        (
            {"backend": "tensorrt", "guided_decoding_backend": "llguidance"},
            ("llguidance", "backend tensorrt", "xgrammar"),
        ),
        (
            {"backend": "tensorrt", "kv_cache_dtype": "fp8"},
            ("kv_cache_dtype fp8", "backend tensorrt", "must be auto"),
        ),
        ({"block_reuse": False}, ("kv_events", "block_reuse")),
        ({"tokens_per_block": 48}, ("tokens_per_block is 48", "power of two")),
    ],
)
def test_a_clash_is_named(settings: dict[str, Any], named: tuple[str, ...]) -> None:
    """Both sides of it, and the way out."""
    with pytest.raises(ValidationError) as refused:
        TensorRtLlmSettings(**settings)
    for part in named:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"tensor_parallel_size": 8, "pipeline_parallel_size": 2},
        {"speculative": {"method": "mtp"}, "tensor_parallel_size": 8},
        {"speculative": {"method": "eagle3", "max_draft_len": 3, "draft_model": "/eagle"}},
        {"speculative": NGRAM, "sampler": "TorchSampler"},
        {"backend": "tensorrt", "quantization": "int8_smoothquant"},
        {"kv_cache_dtype": "fp8", "quantization": "fp8", "scheduler_policy": "MAX_UTILIZATION"},
        {"block_reuse": False, "kv_events": False},
        {"tokens_per_block": 64},
    ],
)
def test_what_goes_together_is_accepted(settings: dict[str, Any]) -> None:
    """No combination is refused that the sources allow."""
    TensorRtLlmSettings(**settings)


def test_untested_combinations_are_known() -> None:
    """What TensorRT-LLM calls untested is allowed, and can be said."""
    adapters = {"sql": Path("/sql")}
    speculative = SpeculativeSettings(method="ngram", max_draft_len=4)
    settings = TensorRtLlmSettings(
        adapters=adapters, speculative=speculative, expert_parallel_size=2
    )
    assert settings.untested() == [
        "adapters with speculative",
        "adapters with expert_parallel_size",
    ]
    assert TensorRtLlmSettings().untested() == []


def test_the_worker_needs_a_checkpoint() -> None:
    """Without model_path there is nothing to load, and the error says so."""
    with pytest.raises(SetupError, match="model_path"):
        make_engine(WorkerSettings(engine="tensorrt_llm"))
