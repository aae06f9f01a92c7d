"""Settings of the vLLM engine that contradict each other are refused by name."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from inference_svc.settings import WorkerSettings
from inference_svc.vllm_settings import VllmSettings

EXACT = {"batch_invariant": True, "exact_continuation": True}
CLASHES: list[tuple[dict[str, Any], str]] = [
    ({"prefix_caching": False}, "kv_events needs prefix_caching"),
    ({"quantization": "awq", "dtype": "float32"}, "awq does not go with dtype float32"),
    ({"quantization": "gptq", "dtype": "bfloat16"}, "not in dtype bfloat16"),
    ({"load_format": "dummy", "quantization": "awq"}, "no weights quantized as awq"),
    ({"load_format": "dummy", "adapters": {"a": Path("a")}}, "dummy does not go with adapters"),
    ({"speculative": {"method": "ngram"}, "pipeline_parallel": 2}, "pipeline_parallel above 1"),
    ({"speculative": {"method": "ngram"}, "batch_invariant": True}, "batch_invariant"),
    ({"exact_continuation": True}, "exact_continuation needs batch_invariant"),
    (EXACT | {"kv_cache_dtype": "fp8"}, "not go with kv_cache_dtype fp8"),
    (EXACT | {"quantization": "fp8"}, "not go with quantization fp8"),
    ({"speculative": {"method": "eagle3"}}, "eagle3 needs speculative.model"),
    ({"speculative": {"method": "ngram", "model": "m"}}, "takes no speculative.model"),
    ({"distributed_executor": "ray"}, "ray needs tensor_parallel or pipeline_parallel"),
    ({"max_model_len": 16, "block_size": 32}, "max_model_len 16 is below block_size 32"),
    ({"adapters": {"": Path("a")}}, "empty name"),
]


@pytest.mark.parametrize(("values", "named"), CLASHES)
def test_a_clash_is_named(values: dict[str, Any], named: str) -> None:
    """The refusal names both settings."""
    with pytest.raises(ValidationError, match=named):
        VllmSettings(**values)


def test_the_defaults_stand_together() -> None:
    """What nobody set is no contradiction."""
    assert VllmSettings().kv_events


def test_exactness_is_the_operators_word() -> None:
    """Whoever moves streams in the middle of an answer relies on it: nothing else implies it."""
    assert not VllmSettings(batch_invariant=True).exact_continuation
    assert VllmSettings(batch_invariant=True, exact_continuation=True).exact_continuation


def test_they_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As every setting of a worker, nested ones by __."""
    monkeypatch.setenv("SIDECACHE_WORKER_ENGINE", "vllm")
    monkeypatch.setenv("SIDECACHE_WORKER_VLLM__TENSOR_PARALLEL", "2")
    monkeypatch.setenv("SIDECACHE_WORKER_VLLM__ADAPTERS", '{"law": "/models/law"}')
    monkeypatch.setenv("SIDECACHE_WORKER_VLLM__BLOCK_SIZE", "32")
    monkeypatch.setenv("SIDECACHE_WORKER_VLLM__MAX_LORA_RANK", "64")
    monkeypatch.setenv("SIDECACHE_WORKER_VLLM__KV_CACHE_MIB", "512")
    settings = WorkerSettings()
    assert settings.vllm.tensor_parallel == 2
    assert (settings.vllm.block_size, settings.vllm.max_lora_rank) == (32, 64)
    assert settings.vllm.kv_cache_mib == 512
    assert settings.vllm.adapters == {"law": Path("/models/law")}
