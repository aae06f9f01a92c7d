"""The embedder's own network, reading two prompts at once, with low-rank adapters.

The frozen weights are those of the int8 MiniLM that embeds (all-MiniLM-L6-v2,
Apache-2.0), so only the adapters (LoRA, Hu et al., arXiv 2106.09685), norms,
biases and a head are new, and only they ship.
"""

import math
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

LAYERS, WIDTH, HEADS, INNER = 6, 384, 12, 1536
EPSILON = 1e-12
# The lower layers read words; they stay as they are, which saves a third of the training.
FROZEN_LAYERS = 2
LINEARS = ("query", "key", "value", "attended", "inner", "outer")


def read_base(path: Path) -> dict[str, np.ndarray]:
    """The arrays of the int8 model, under names of our own.

    Quantised matrices appear as NAME.q (int8, shape (in, out)) and NAME.scale.
    """
    found = {
        array.name: numpy_helper.to_array(array) for array in onnx.load(path).graph.initializer
    }
    return {ours: found[theirs] for ours, theirs in base_names(list(found)).items()}


def base_names(names: list[str]) -> dict[str, str]:
    """Our name of each array of the base model to its name there."""
    matrices = sorted({n[:-2] for n in names if n.startswith("val_") and n.endswith("_q")},
                      key=lambda n: int(n.removeprefix("val_")))  # fmt: skip
    ours = {}
    for kind in ("word", "position"):
        for part in ("q", "scale"):
            ours[f"{kind}.{part}"] = f"inner.embeddings.{kind}_embeddings.weight_{part}"
    ours["segment"] = "inner.embeddings.token_type_embeddings.weight"
    ours["norm.weight"] = "inner.embeddings.LayerNorm.weight"
    ours["norm.bias"] = "inner.embeddings.LayerNorm.bias"
    inside = {
        "query": "attention.self.query", "key": "attention.self.key",
        "value": "attention.self.value", "attended": "attention.output.dense",
        "inner": "intermediate.dense", "outer": "output.dense",
    }  # fmt: skip
    for layer in range(LAYERS):
        where = f"inner.encoder.layer.{layer}"
        for at, name in enumerate(LINEARS):
            matrix = matrices[layer * len(LINEARS) + at]
            ours[f"{layer}.{name}.q"] = f"{matrix}_q"
            ours[f"{layer}.{name}.scale"] = f"{matrix}_scale"
            ours[f"{layer}.{name}.bias"] = f"{where}.{inside[name]}.bias"
        for norm, theirs in (
            ("norm1", "attention.output.LayerNorm"),
            ("norm2", "output.LayerNorm"),
        ):
            for part in ("weight", "bias"):
                ours[f"{layer}.{norm}.{part}"] = f"{where}.{theirs}.{part}"
    return ours


class Adapted(nn.Module):  # type: ignore[misc]  # torch is absent where this is checked
    """A frozen matrix with a low-rank change and a bias of its own."""

    def __init__(self, quantised: np.ndarray, scale: np.ndarray, bias: np.ndarray, rank: int):
        super().__init__()
        weight = torch.from_numpy(quantised.astype(np.float32) * scale)
        self.register_buffer("weight", weight.to(torch.bfloat16))
        self.down = nn.Parameter(torch.randn(weight.shape[0], rank) / math.sqrt(weight.shape[0]))
        self.up = nn.Parameter(torch.zeros(rank, weight.shape[1]))
        self.bias = nn.Parameter(torch.from_numpy(bias.copy()))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in), float32."""
        y = torch.matmul(x.to(torch.bfloat16), self.weight).float()
        return y + (x @ self.down) @ self.up + self.bias


class Layer(nn.Module):  # type: ignore[misc]  # as above
    """One post-norm transformer layer."""

    def __init__(self, base: dict[str, np.ndarray], layer: int, rank: int):
        super().__init__()
        for name in LINEARS:
            quantised, scale, bias = (
                base[f"{layer}.{name}.{part}"] for part in ("q", "scale", "bias")
            )
            self.add_module(name, Adapted(quantised, scale, bias, rank))
        self.norm1, self.norm2 = (_norm(base, f"{layer}.{norm}") for norm in ("norm1", "norm2"))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (batch, length, width); mask: (batch, 1, 1, length), 0 or very negative."""
        query, key, value = (
            getattr(self, name)(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.norm1(x + self.attended(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.outer(F.gelu(self.inner(x))))


class CrossEncoder(nn.Module):  # type: ignore[misc]  # as above
    """Reads [CLS] a [SEP] b [SEP] and says how surely one answer serves both (a logit)."""

    def __init__(self, base: dict[str, np.ndarray], rank: int):
        super().__init__()
        word = base["word.q"].astype(np.float32) * base["word.scale"]
        self.register_buffer("word", torch.from_numpy(word))
        position = base["position.q"].astype(np.float32) * base["position.scale"]
        self.register_buffer("position", torch.from_numpy(position))
        self.register_buffer("segment", torch.from_numpy(base["segment"].copy()))
        self.norm = _norm(base, "norm")
        self.layers = nn.ModuleList(Layer(base, layer, rank) for layer in range(LAYERS))
        self.head = nn.Linear(2 * WIDTH, 1)
        self.norm.requires_grad_(requires_grad=False)
        self.layers[:FROZEN_LAYERS].requires_grad_(requires_grad=False)

    def forward(self, pieces: Tensor, segments: Tensor, present: Tensor) -> Tensor:
        """All (batch, length); ``present`` is 1 where a piece stands."""
        x = self.word[pieces] + self.segment[segments] + self.position[: pieces.shape[1]]
        x = self.norm(x)
        mask = (1.0 - present[:, None, None, :].float()) * -1e9
        for layer in self.layers:
            x = layer(x, mask)
        weights = present[:, :, None].float()
        mean = (x * weights).sum(1) / weights.sum(1)
        return self.head(torch.cat([x[:, 0], mean], dim=1)).squeeze(1)


def _norm(base: dict[str, np.ndarray], name: str) -> nn.LayerNorm:
    norm = nn.LayerNorm(WIDTH, eps=EPSILON)
    norm.load_state_dict(
        {p: torch.from_numpy(base[f"{name}.{p}"].copy()) for p in ("weight", "bias")}
    )
    return norm
