"""Models of other architectures than the pinned one's: run, or refused in words."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sidecache.errors import SetupError
from tests.contract.engines import Subject, openvino, real
from training.prune.gguf_tensors import Model, Tensor, read_model, write_model

__all__ = ["real"]
pytestmark = pytest.mark.asyncio(loop_scope="session")

QUESTION = "Why is the sky blue?"


def named(model: Model, architecture: str) -> Model:
    """The same tensors under another architecture's name."""
    name = architecture.encode()
    header = tuple(
        (key, kind, struct.pack("<Q", len(name)) + name)
        if key == "general.architecture"
        else (key.replace("llama.", f"{architecture}.", 1), kind, raw)
        for key, kind, raw in model.header
    )
    return replace(model, header=header)


def as_qwen2(model: Model) -> Model:
    """The very same function as Qwen2 writes it: biases of zero, and halves rotated together.

    Rows are moved whole, so that nothing is rounded again.
    """
    heads = {"attn_q": "head_count", "attn_k": "head_count_kv", "attn_v": "head_count_kv"}
    tensors = []
    for each in model.tensors:
        part = each.name.split(".")[-2]
        if part in ("attn_q", "attn_k"):
            each = halves(each, int(model.number(f"llama.attention.{heads[part]}")))  # noqa: PLW2901
        tensors.append(each)
        if part in heads:
            zeros = np.zeros(each.shape[0], "<f4").tobytes()
            bias = each.name.replace(".weight", ".bias")
            tensors.append(Tensor(bias, (each.shape[0],), "f32", zeros))
    return named(replace(model, tensors=tuple(tensors)), "qwen2")


def halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of neighbouring pairs as rows of first and second halves, head by head."""
    rows = tensor.shape[0]
    old = np.arange(rows).reshape(heads, -1, 2).transpose(0, 2, 1).reshape(-1)
    data = np.frombuffer(tensor.data, np.uint8).reshape(rows, -1)[old]
    return replace(tensor, data=data.tobytes())


async def test_a_second_architecture_gives_the_same_tokens(
    real: Subject, smollm2_path: Path, tmp_path: Path
) -> None:
    """The model rewritten as a Qwen2 answers token for token as it does as a Llama."""
    path = tmp_path / "qwen2.gguf"
    write_model(as_qwen2(read_model(smollm2_path)), path)
    as_llama = await real.ask(QUESTION, 24)
    async with openvino(path) as subject:
        assert (await subject.ask(QUESTION, 24)).ids() == as_llama.ids()


async def test_an_architecture_that_cannot_be_read_is_named(
    smollm2_path: Path, tmp_path: Path
) -> None:
    """With what can be read, and the way round it."""
    path = tmp_path / "gemma2.gguf"
    write_model(named(read_model(smollm2_path), "gemma2"), path)
    with pytest.raises(SetupError, match=r"architecture 'gemma2'.*OpenVINO folder") as refused:
        async with openvino(path):
            pass
    assert "/home/" not in refused.value.text
