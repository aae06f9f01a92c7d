"""Pruning: tensors read and written as ggml has them, layers numbered anew."""

import struct
from pathlib import Path

import numpy as np
import pytest

from inference_svc.engines.gguf import read_gguf
from sidecache.errors import SetupError
from training.prune.gguf_tensors import (
    Model,
    Tensor,
    as_openvino_reads,
    read_model,
    with_weights,
    without_layers,
    write_model,
)
from training.prune.llama import Llama

LAYERS, WIDTH, HEADS, KV_HEADS, WORDS = 4, 64, 4, 2, 96


def tiny(seed: int = 0) -> Model:
    """A llama of random weights."""
    draw = np.random.default_rng(seed)

    def tensor(name: str, *shape: int) -> Tensor:
        values = draw.normal(0, 0.1, shape).astype("<f4")
        return Tensor(name, shape, "f32", values.tobytes())

    tensors = [tensor("token_embd.weight", WORDS, WIDTH), tensor("output_norm.weight", WIDTH)]
    narrow = WIDTH // HEADS * KV_HEADS
    shapes = {
        "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH),
        "attn_k": (narrow, WIDTH), "attn_v": (narrow, WIDTH), "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (128, WIDTH), "ffn_up": (128, WIDTH), "ffn_down": (WIDTH, 128),
    }  # fmt: skip
    for layer in range(LAYERS):
        tensors += [tensor(f"blk.{layer}.{name}.weight", *each) for name, each in shapes.items()]
    counts = {"block_count": LAYERS, "attention.head_count": HEADS,
              "attention.head_count_kv": KV_HEADS}  # fmt: skip
    header = [(f"llama.{name}", 4, struct.pack("<I", each)) for name, each in counts.items()]
    header += [
        ("llama.rope.freq_base", 6, struct.pack("<f", 10000.0)),
        ("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
    ]
    return Model(tuple(header), tuple(tensors))


def test_a_written_model_is_read_again(tmp_path: Path) -> None:
    """Header and tensors come back byte by byte, and the engines' own check accepts the file."""
    path = tmp_path / "tiny.gguf"
    write_model(tiny(), path)
    assert read_model(path) == tiny()
    assert read_gguf(path).get("llama.block_count", int) == LAYERS


def test_layers_that_stay_are_untouched() -> None:
    """Of 0 1 2 3 without 1, the old 2 is the new 1, with the same bytes; the count says 3."""
    whole, pruned = tiny(), without_layers(tiny(), [1])
    before = {each.name: each.data for each in whole.tensors}
    after = {each.name: each.data for each in pruned.tensors}
    assert pruned.number("llama.block_count") == LAYERS - 1
    for new, old in ((0, 0), (1, 2), (2, 3)):
        assert after[f"blk.{new}.ffn_up.weight"] == before[f"blk.{old}.ffn_up.weight"]
    assert "blk.3.ffn_up.weight" not in after
    assert after["token_embd.weight"] == before["token_embd.weight"]


@pytest.mark.parametrize(
    ("kind", "worst"), [("f16", 1e-3), ("q8_0", 5e-3), ("q4_0", 8e-2), ("q4_1", 4e-2)]
)
def test_rounding_stays_within_its_steps(kind: str, worst: float, tmp_path: Path) -> None:
    """Matrices are rounded by at most their type's step, vectors not at all."""
    whole = tiny()
    write_model(with_weights(whole, kind), tmp_path / "rounded.gguf")
    for before, after in zip(
        whole.tensors, read_model(tmp_path / "rounded.gguf").tensors, strict=True
    ):
        error = np.abs(before.numbers() - after.numbers()).max()
        if len(before.shape) == 1:
            assert error == 0
        else:
            assert after.kind == kind
            assert 0 < error < worst


def test_openvino_rounds_the_zero_of_q4_1() -> None:
    """Zero points are whole, values move by at most half a step, and other types not at all."""
    whole = with_weights(tiny(), "q4_1")
    read = as_openvino_reads(whole)
    for before, after in zip(whole.tensors, read.tensors, strict=True):
        if before.kind != "q4_1":
            assert after == before
            continue
        blocks = np.frombuffer(after.data, np.uint8).reshape(-1, 20)
        scale, least = (np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2") for at in (0, 2))
        zeros = -least.astype(np.float32) / scale.astype(np.float32)
        assert np.allclose(zeros, np.rint(zeros), atol=0.02)
        moved = np.abs(before.numbers() - after.numbers()).reshape(-1, 32).max(axis=1)
        assert moved.max() > 0
        assert (moved <= 0.52 * scale[:, 0].astype(np.float32)).all()
    assert as_openvino_reads(with_weights(tiny(), "q8_0")) == with_weights(tiny(), "q8_0")


def test_a_token_sees_only_what_is_before_it() -> None:
    """Changing the last token changes no earlier position of any layer."""
    llama = Llama(tiny())
    ids, other = [5, 6, 7, 8], [5, 6, 7, 9]
    one, two = llama.embed(ids), llama.embed(other)
    for number in range(LAYERS):
        one, two = llama.layer(number, one), llama.layer(number, two)
    assert np.array_equal(one[:3], two[:3])
    assert not np.array_equal(one[3], two[3])


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    """A tensor of a type that is not known here names itself."""
    path = tmp_path / "tiny.gguf"
    write_model(tiny(), path)
    data = path.read_bytes()
    name = b"output_norm.weight"
    at = data.index(name) + len(name) + 4 + 8
    path.write_bytes(data[:at] + struct.pack("<I", 14) + data[at + 4 :])
    with pytest.raises(SetupError, match="output_norm"):
        read_model(path)
