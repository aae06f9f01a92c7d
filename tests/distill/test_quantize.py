"""A GGUF model as an OpenVINO folder is the same model."""

from pathlib import Path

import pytest

from inference_svc.engine import Chat, ChatMessage, GenerationRequest, ModelFacts
from inference_svc.engines.openvino import OpenVinoEngine
from inference_svc.openvino_settings import OpenVinoSettings
from inference_svc.slots import Slots
from training.prune.gguf_tensors import read_model, with_weights, write_model
from training.quantize.folder import from_gguf, round_weights, write_tokenizer

QUESTION = Chat((ChatMessage("user", "Why is the sky blue?"),))


async def asked(model: Path) -> tuple[list[int], ModelFacts]:
    """The ids of a greedy answer, and what the engine says of the model."""
    engine = OpenVinoEngine(model, "m", OpenVinoSettings(load_timeout_s=300), Slots(2, 2))
    try:
        await engine.load()
        prompt = tuple(await engine.tokenize(QUESTION))
        ids: list[int] = []
        async with engine.submit(GenerationRequest("t", prompt, 16)) as deltas:
            async for delta in deltas:
                ids += delta.token_ids
        return ids, engine.facts
    finally:
        await engine.aclose()


@pytest.mark.timeout(600)
async def test_a_folder_answers_as_the_file_it_was_made_of(
    smollm2_path: Path, tmp_path: Path
) -> None:
    """Token by token with weights in f16; tokenizer, ends and context are the file's."""
    folder, file = tmp_path / "folder", tmp_path / "f16.gguf"
    folder.mkdir()
    write_model(with_weights(read_model(smollm2_path), "f16"), file)
    round_weights(from_gguf(smollm2_path, tmp_path), folder, "f16")
    write_tokenizer(smollm2_path, folder)
    expected, facts = await asked(file)
    ids, ours = await asked(folder)
    assert len(ids) == 16
    assert ids == expected
    assert ours.tokenizer_fingerprint == facts.tokenizer_fingerprint
    assert ours.chat_template_fingerprint == facts.chat_template_fingerprint
    assert ours.context_length == facts.context_length
    assert ours.vocabulary_size == facts.vocabulary_size
