"""What is wrong with a checkpoint folder is said before an engine sees it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference_svc.engine import Chat, ChatMessage
from inference_svc.engines.checkpoint import read_checkpoint
from inference_svc.engines.hf_tokenizer import HfTokenizer
from inference_svc.engines.vllm import VllmEngine
from inference_svc.serve import make_engine
from inference_svc.settings import WorkerSettings
from inference_svc.slots import Slots
from inference_svc.vllm_settings import VllmSettings
from sidecache.errors import SetupError
from tests.fixtures.tiny_llama import END_TOKEN_ID, write_safetensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least that is a checkpoint."""
    config = '{"architectures": ["A"], "vocab_size": 10, "eos_token_id": 2}'
    (tmp_path / "config.json").write_text(config)
    write_safetensors(tmp_path / "model.safetensors", {"a": np.zeros((4, 4))})
    return tmp_path


def test_a_whole_folder_is_read(folder: Path) -> None:
    """Size of the vocabulary, ends, and a revision that follows from the content."""
    first = read_checkpoint(folder)
    assert first.vocabulary_size == 10
    assert first.end_token_ids == {2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert read_checkpoint(folder).end_token_ids == {2, 5}
    write_safetensors(folder / "model.safetensors", {"a": np.ones((4, 4))})
    assert read_checkpoint(folder).revision != first.revision


@pytest.mark.parametrize(
    ("config", "quantized"),
    [
        ('{"architectures": ["A"], "vocab_size": 9}', False),
        ('{"architectures": ["A"], "vocab_size": 9, "quantization_config": {}}', True),
        (
            '{"architectures": ["A"], "text_config": {"vocab_size": 9, "quantization_config": 1}}',
            True,
        ),
    ],
)
def test_quantized_weights_are_known_from_the_config(
    folder: Path, config: str, quantized: bool
) -> None:
    """Of the whole model, or of the part that writes; exactness is not claimed of them."""
    (folder / "config.json").write_text(config)
    assert read_checkpoint(folder).quantized is quantized


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")


def _part_missing(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}')


BROKEN: list[tuple[Any, str]] = [
    (lambda folder: (folder / "config.json").unlink(), r"config\.json cannot be read"),
    (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is not JSON"),
    (lambda folder: (folder / "config.json").write_text("{}"), "names no architectures"),
    (lambda folder: (folder / "model.safetensors").unlink(), r"has no \*\.safetensors"),
    (_truncate, r"model\.safetensors are truncated"),
    (_no_safetensors, r"model\.safetensors are damaged"),
    (_part_missing, r"x\.safetensors cannot be read"),
]


@pytest.mark.parametrize(("break_it", "named"), BROKEN)
def test_a_broken_folder_is_refused(folder: Path, break_it: Any, named: str) -> None:
    """The refusal names the file."""
    break_it(folder)
    with pytest.raises(SetupError, match=named):
        read_checkpoint(folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """It says what a model folder is."""
    with pytest.raises(SetupError, match="nowhere does not exist"):
        read_checkpoint(tmp_path / "nowhere")


def test_the_engine_needs_a_path() -> None:
    """No model is fetched by itself for vLLM."""
    with pytest.raises(SetupError, match="SIDECACHE_WORKER_MODEL_PATH"):
        make_engine(WorkerSettings(engine="vllm"))


async def test_without_the_package_it_says_what_to_install(tiny_llama: Path) -> None:
    """A missing extra is a SetupError with the command."""
    pytest.importorskip("openvino_genai", reason="in the environment with vLLM it is not missing")
    engine = VllmEngine(tiny_llama, "m", VllmSettings(), Slots(1, 1))
    with pytest.raises(SetupError, match=r"install sidecache\[vllm\]"):
        await engine.load()
    await engine.aclose()


async def test_an_adapter_that_is_not_there_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """Before anything is loaded."""
    settings = VllmSettings(adapters={"law": tmp_path})
    engine = VllmEngine(tiny_llama, "m", settings, Slots(1, 1))
    with pytest.raises(SetupError, match=r"'law'.*adapter_config\.json"):
        await engine.load()
    await engine.aclose()


def test_the_tokenizer_of_a_folder_is_the_models(tiny_llama: Path) -> None:
    """Text and chats come out as from the file it was made of; ids beyond it have no text."""
    checkpoint = read_checkpoint(tiny_llama)
    tokenizer = HfTokenizer(tiny_llama, checkpoint.vocabulary_size + 5)
    ids = tokenizer.encode("naïve café, 日本語 😀")
    decoder = tokenizer.decoder()
    text = "".join([decoder.push([each]) for each in [*ids, checkpoint.vocabulary_size + 4]])
    assert text + decoder.flush() == tokenizer.decode(ids) == "naïve café, 日本語 😀"
    chat = tokenizer.encode(Chat((ChatMessage("user", "hi"),)))
    assert chat[0] == 1
    assert checkpoint.end_token_ids == {END_TOKEN_ID}
