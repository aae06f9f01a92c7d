"""A Llama in torch, made of a GGUF file's tensors and written back into them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from training.prune.gguf_tensors import Model, Tensor

_MATRICES = (
    "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
)  # fmt: skip
_NORMS = ("attn_norm", "ffn_norm")


class TorchLlama:
    """The layers of a model of architecture llama, in float32.

    Args:
        model: its matrices in ggml's layout, as :class:`training.prune.llama.Llama` has them.
        trained: layers whose weights are to learn; all others stay as they are.
    """

    def __init__(self, model: Model, trained: Sequence[int] = ()) -> None:
        tensors = {each.name: each for each in model.tensors}
        self.count = int(model.number("llama.block_count"))
        self._heads = int(model.number("llama.attention.head_count"))
        self._kv_heads = int(model.number("llama.attention.head_count_kv"))
        self._base = model.number("llama.rope.freq_base")
        self._epsilon = model.number("llama.attention.layer_norm_rms_epsilon")
        self.trained = tuple(trained)
        self._embedding = _tensor(tensors["token_embd.weight"])
        head = tensors.get("output.weight")
        self._head = self._embedding if head is None else _tensor(head)
        self._last_norm = _tensor(tensors["output_norm.weight"])
        self._layers: list[dict[str, torch.Tensor]] = []
        for number in range(self.count):
            layer = {
                name: _tensor(tensors[f"blk.{number}.{name}.weight"])
                for name in (*_MATRICES, *_NORMS)
            }
            if number in self.trained:
                layer = {name: torch.nn.Parameter(each) for name, each in layer.items()}
            self._layers.append(layer)

    def learning(self) -> list[torch.Tensor]:
        """The weights that learn."""
        return [each for number in self.trained for each in self._layers[number].values()]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding; ids of shape (texts, tokens)."""
        return F.embedding(ids, self._embedding)

    def run(self, hidden: torch.Tensor, layers: range) -> torch.Tensor:
        """What some layers make of their input, shape (texts, tokens, width)."""
        cos, sin = self._angles(hidden.shape[1])
        for number in layers:
            hidden = self._layer(self._layers[number], hidden, cos, sin)
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of the last layer's output; shape (..., vocabulary)."""
        return self._norm(hidden, self._last_norm) @ self._head.T

    def written(self, model: Model, kind: str) -> Model:
        """The model with what has been learnt in it, its matrices rounded to a type."""
        names = {
            f"blk.{number}.{name}.weight": each.detach()
            for number in self.trained
            for name, each in self._layers[number].items()
        }
        return replace(
            model,
            tensors=tuple(
                _rounded(each, names[each.name], kind) if each.name in names else each
                for each in model.tensors
            ),
        )

    def _layer(
        self,
        weights: dict[str, torch.Tensor],
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        texts, tokens, width = hidden.shape
        normed = self._norm(hidden, weights["attn_norm"])
        query, key, value = (
            (normed @ weights[name].T).view(texts, tokens, heads, -1).transpose(1, 2)
            for name, heads in (
                ("attn_q", self._heads),
                ("attn_k", self._kv_heads),
                ("attn_v", self._kv_heads),
            )
        )
        shared = self._heads // self._kv_heads
        mixed = F.scaled_dot_product_attention(
            _rotated(query, cos, sin),
            _rotated(key, cos, sin).repeat_interleave(shared, dim=1),
            value.repeat_interleave(shared, dim=1),
            is_causal=True,
        )
        mixed = mixed.transpose(1, 2).reshape(texts, tokens, width)
        hidden = hidden + mixed @ weights["attn_output"].T
        normed = self._norm(hidden, weights["ffn_norm"])
        inner = F.silu(normed @ weights["ffn_gate"].T) * (normed @ weights["ffn_up"].T)
        return hidden + inner @ weights["ffn_down"].T

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, hidden.shape[-1:], weight, self._epsilon)

    def _angles(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        width = self._embedding.shape[1] // self._heads
        steps = self._base ** (-torch.arange(0, width, 2) / width)
        angles = torch.outer(torch.arange(tokens), steps)
        return angles.cos(), angles.sin()


def _rotated(vectors: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE (Su et al., 2021) on neighbouring pairs, as ggml stores them."""
    even, odd = vectors[..., ::2], vectors[..., 1::2]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2)


def _tensor(tensor: Tensor) -> torch.Tensor:
    return torch.from_numpy(tensor.numbers().copy())


def _rounded(tensor: Tensor, values: torch.Tensor, kind: str) -> Tensor:
    data: Any = values.contiguous().numpy()
    whole = replace(tensor, kind="f32", data=data.astype("<f4").tobytes())
    return whole.as_kind(kind if len(tensor.shape) > 1 else "f32")
