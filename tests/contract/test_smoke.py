"""The smoke script sees what is wrong with an engine, and passes a right one."""

from pathlib import Path

import pytest

from inference_svc.engines.hf_tokenizer import HfTokenizer
from inference_svc.engines.tensorrt_llm import TensorRtLlmEngine
from inference_svc.engines.tensorrt_llm_api import TensorRtLlmApi
from inference_svc.slots import Slots
from inference_svc.smoke import main, smoke
from inference_svc.tensorrt_llm_settings import TensorRtLlmSettings
from tests.fakes.tensorrt_llm.kv_cache import Bugs
from tests.fakes.tensorrt_llm.llm import Script
from tests.fakes.tensorrt_llm.modules import FakeTensorRtLlm
from tests.fixtures.checkpoint import readable_tokens


async def try_fake(folder: Path, script: Script, adapters: Path) -> int:
    """Run every point against an engine on the fake."""
    tokenizer = HfTokenizer(folder)
    script.tokens = readable_tokens(folder)
    script.guided = tokenizer.encode('{"ok": true}')
    fake = FakeTensorRtLlm(script)
    engine = TensorRtLlmEngine(
        folder,
        "fake",
        TensorRtLlmSettings(seeded_sampling=True, adapters={"sql": adapters}, feed_timeout_s=0.2),
        Slots(4, 4),
        lambda: TensorRtLlmApi(fake.import_module),
    )
    try:
        return await smoke(engine, "sql")
    finally:
        await engine.aclose()


async def test_a_right_engine_passes_every_point(
    checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the fake nothing is skipped and nothing fails."""
    assert await try_fake(checkpoint_folder, Script(), tmp_path) == 0
    said = capsys.readouterr().out
    assert "FAIL" not in said
    assert "skipped" not in said


@pytest.mark.parametrize(
    ("script", "point"),
    [
        (Script(ignore_seeds=True), "seeds"),
        (Script(bugs=Bugs(no_events=True)), "KV events"),
    ],
)
async def test_a_wrong_engine_fails_its_point(
    checkpoint_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    script: Script,
    point: str,
) -> None:
    """The point that is broken says FAIL, and only that one."""
    monkeypatch.setattr("inference_svc.smoke_points._EVENTS_S", 1.0)
    assert await try_fake(checkpoint_folder, script, tmp_path) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert point in failed[0]


def test_the_command_passes_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 0 with a right engine, 2 where none can be made, and each says why."""
    assert main(["--engine", "scripted", "--scripted.tokens_per_s", "1000"]) == 0
    assert "0 of 14 points failed" in capsys.readouterr().out
    assert main(["--engine", "tensorrt_llm"]) == 2
    assert "needs model_path" in capsys.readouterr().out
    assert main(["--engine", "nothing"]) == 2
    assert "engine" in capsys.readouterr().err
