"""What cannot start says so at once, and why; on the strict fake."""

from pathlib import Path
from typing import Any

import pytest

from sidecache.errors import SetupError
from tests.contract.tensorrt_llm_bench import Bench
from tests.fakes.tensorrt_llm.llm import Script
from tests.fixtures.checkpoint import make_checkpoint


@pytest.mark.parametrize(
    ("script", "settings", "says"),
    [
        (Script(without=frozenset({"tensorrt_llm"})), {}, r"sidecache\[tensorrt-llm\].*nvidia"),
        (Script(gpus=()), {}, "needs an NVIDIA GPU"),
        (Script(), {"tensor_parallel_size": 2}, "needs 2 GPUs and 1 are visible"),
        (Script(die_at_start="CUDA out of memory"), {}, "lower kv_memory_share"),
        (Script(die_at_start="boom"), {}, "could not load .*: boom"),
        (Script(die_after_steps=1), {}, "cannot generate"),
        (
            Script(without=frozenset({"tensorrt_llm._tensorrt_engine"})),
            {"backend": "tensorrt"},
            "does not have any more",
        ),
        (Script(gpus=(("A100", (8, 0)),)), {"kv_cache_dtype": "nvfp4"}, "nvfp4 does not run on"),
        (Script(), {"quantization": "fp8"}, "is set to fp8, but .* holds none"),
    ],
)
async def test_what_cannot_start_says_why(
    checkpoint_folder: Path, script: Script, settings: dict[str, Any], says: str
) -> None:
    """No extra, no GPU, no memory, a crash at the start: one clear error each."""
    bench = Bench(checkpoint_folder, script, **settings)
    with pytest.raises(SetupError, match=says):
        async with bench:
            pass
    await bench.engine.aclose()


@pytest.mark.parametrize(
    ("algorithm", "capability", "runs"),
    [
        ("FP8", (9, 0), True),
        ("FP8", (8, 0), False),
        ("NVFP4", (10, 0), True),
        ("NVFP4", (9, 0), False),
        ("W4A16_AWQ", (8, 0), True),
        ("W4A16_AWQ", (10, 0), False),
        ("W4A16_GPTQ", (9, 0), True),
        ("FP8_BLOCK_SCALES", (12, 0), False),
    ],
)
async def test_quantization_must_suit_the_gpu(
    smollm2_path: Path,
    tmp_path: Path,
    algorithm: str,
    capability: tuple[int, int],
    runs: bool,
) -> None:
    """What the GPU has no kernels for is refused before anything is loaded."""
    make_checkpoint(tmp_path, smollm2_path)
    (tmp_path / "hf_quant_config.json").write_text(
        f'{{"quantization": {{"quant_algo": "{algorithm}", "kv_cache_quant_algo": "FP8"}}}}'
    )
    bench = Bench(tmp_path, Script(gpus=(("GPU", capability),)))
    if runs:
        async with bench:
            assert "kv auto/FP8" in bench.engine.facts.build
        return
    with pytest.raises(SetupError, match="does not run on GPU"):
        await bench.engine.load()
    assert not bench.fake.llms
