"""Versions of TensorRT-LLM that are otherwise than the fake's surface.

Where each difference was read is in docs/decisions/0019-tensorrt-llm.md.
"""

from pathlib import Path

import pytest

from inference_svc.tensorrt_llm_settings import SpeculativeSettings
from sidecache.errors import SetupError
from tests.contract.tensorrt_llm_bench import LONG, QUESTION, Bench, names, until
from tests.fakes.tensorrt_llm.llm import Script

OLDER = Script(
    without=frozenset(
        {
            "BaseLLM.generate_async(priority)",
            "BaseLLM.generate_async(trace_headers)",
            "SchedulerConfig.waiting_queue_policy",
            "Eagle3DecodingConfig",
        }
    ),
    renamed={"DecodingBaseConfig.speculative_model": "speculative_model_dir"},
)
NEWER = Script(
    without=frozenset({"TorchLlmArgs.sampler_type", "tensorrt_llm._tensorrt_engine"}),
    renamed={"tensorrt_llm.lora_helper": "tensorrt_llm._torch.peft.lora.config"},
    hex_hashes=True,
)
EAGLE = SpeculativeSettings(method="eagle3", max_draft_len=3, draft_model=Path("/models/head"))


async def test_an_older_version_does_without(checkpoint_folder: Path) -> None:
    """What it does not have is not used, and not claimed."""
    async with Bench(checkpoint_folder, OLDER) as bench:
        assert not bench.engine.facts.capabilities.priorities
        answer = await bench.subject.ask(QUESTION, 8, priority=50)
        assert len(answer.ids()) == 8
        assert not {"priority", "trace_headers"} & set(bench.llm.calls[-1])


@pytest.mark.parametrize(
    ("script", "kind", "name"),
    [
        (Script(), "Eagle3DecodingConfig", "speculative_model"),
        (OLDER, "EagleDecodingConfig", "speculative_model_dir"),
    ],
)
async def test_a_draft_model_goes_by_the_versions_name(
    checkpoint_folder: Path, script: Script, kind: str, name: str
) -> None:
    """An older version refuses the newer name, and has one class for all Eagles."""
    async with Bench(checkpoint_folder, script, speculative=EAGLE) as bench:
        config = bench.llm.arguments["speculative_config"]
        assert (type(config).__name__, getattr(config, name)) == (kind, "/models/head")


@pytest.mark.parametrize("script", [Script(), NEWER])
async def test_lora_config_is_found_where_it_is(
    checkpoint_folder: Path, tmp_path: Path, script: Script
) -> None:
    """Newer versions have it in another module."""
    async with Bench(checkpoint_folder, script, adapters={"sql": tmp_path}) as bench:
        assert bench.llm.arguments["lora_config"].lora_dir == [str(tmp_path)]


async def test_lora_config_nowhere_is_said(checkpoint_folder: Path, tmp_path: Path) -> None:
    """Adapters on a version that has moved it again: one clear error before minutes of loading."""
    script = Script(without=frozenset({"tensorrt_llm.lora_helper"}))
    bench = Bench(checkpoint_folder, script, adapters={"sql": tmp_path})
    with pytest.raises(SetupError, match=r"adapters are set, and .* has LoraConfig neither in"):
        await bench.engine.load()
    assert not bench.fake.llms
    await bench.engine.aclose()


async def test_the_sampler_may_be_the_only_one_left(checkpoint_folder: Path) -> None:
    """Where there is no choice any more, the one that is left may still be asked for."""
    async with Bench(checkpoint_folder, Script(), sampler="TorchSampler") as bench:
        assert bench.llm.arguments["sampler_type"] == "TorchSampler"
    async with Bench(checkpoint_folder, NEWER, sampler="TorchSampler") as bench:
        assert "sampler_type" not in bench.llm.arguments
    bench = Bench(checkpoint_folder, NEWER, sampler="TRTLLMSampler")
    with pytest.raises(SetupError, match=r"sampler is TRTLLMSampler, which .* any more"):
        await bench.engine.load()
    await bench.engine.aclose()


async def test_blocks_numbered_by_digits_are_followed(checkpoint_folder: Path) -> None:
    """KV cache manager 2 gives hashes in hexadecimal: chains and removals are told all the same."""
    script = Script(blocks=24, hex_hashes=True)
    async with Bench(checkpoint_folder, script) as bench:
        prompt = list((await bench.subject.request(LONG, 4)).prompt_token_ids)
        await bench.subject.ask(LONG, 4)
        await until(lambda: set(names(prompt)) <= bench.holder.held)
        for index in range(8):
            await bench.subject.ask(f"{index} " + QUESTION * 12, 70)
        await until(lambda: len(bench.holder.held) == len(bench.llm.cache.numbers))
        assert not set(names(prompt)) <= bench.holder.held
        assert bench.engine.kv_translator is not None
        counts = bench.engine.kv_translator.counts
        assert (counts.unknown_parents, counts.garbled) == (0, 0)
