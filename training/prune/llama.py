"""A Llama forward pass in numpy, to see what each layer does to a calibration text."""

import numpy as np

from training.prune.gguf_tensors import Array, Model


class Llama:
    """The model's layers, dequantized one at a time.

    Args:
        model: of architecture llama; its matrices in ggml's layout, queries and keys
            permuted for rotation of neighbouring pairs.
    """

    def __init__(self, model: Model) -> None:
        self._tensors = {each.name: each for each in model.tensors}
        self.layers = int(model.number("llama.block_count"))
        self._heads = int(model.number("llama.attention.head_count"))
        self._kv_heads = int(model.number("llama.attention.head_count_kv"))
        self._base = model.number("llama.rope.freq_base")
        self._epsilon = model.number("llama.attention.layer_norm_rms_epsilon")

    def embed(self, ids: list[int]) -> Array:
        """Rows of the embedding; shape (tokens, width)."""
        rows: Array = self._numbers("token_embd.weight")[ids]
        return rows

    def layer(self, number: int, hidden: Array) -> Array:
        """One layer's output of its input; both of shape (tokens, width)."""
        at = f"blk.{number}."
        normed = self._norm(hidden, f"{at}attn_norm.weight")
        query, key, value = (
            (normed @ self._numbers(f"{at}attn_{name}.weight").T).reshape(len(hidden), heads, -1)
            for name, heads in (("q", self._heads), ("k", self._kv_heads), ("v", self._kv_heads))
        )
        mixed = self._attend(self._rotate(query), self._rotate(key), value)
        hidden = hidden + mixed @ self._numbers(f"{at}attn_output.weight").T
        normed = self._norm(hidden, f"{at}ffn_norm.weight")
        gate = normed @ self._numbers(f"{at}ffn_gate.weight").T
        up = normed @ self._numbers(f"{at}ffn_up.weight").T
        inner = gate / (1 + np.exp(-gate)) * up
        return np.asarray(hidden + inner @ self._numbers(f"{at}ffn_down.weight").T, np.float32)

    def loss(self, hidden: Array, ids: list[int]) -> float:
        """Mean of -log p of each next token, natural, of the last layer's output."""
        normed = self._norm(hidden, "output_norm.weight")
        head = "output.weight" if "output.weight" in self._tensors else "token_embd.weight"
        scores = normed[:-1] @ self._numbers(head).T
        scores -= scores.max(axis=1, keepdims=True)
        chosen = scores[np.arange(len(ids) - 1), ids[1:]]
        return float((np.log(np.exp(scores).sum(axis=1)) - chosen).mean())

    def _attend(self, query: Array, key: Array, value: Array) -> Array:
        shared = self._heads // self._kv_heads
        key, value = np.repeat(key, shared, axis=1), np.repeat(value, shared, axis=1)
        scores = np.einsum("qhd,khd->hqk", query, key, optimize=True) / np.sqrt(query.shape[-1])
        scores += np.triu(np.full(scores.shape[1:], -np.inf, np.float32), 1)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, value, optimize=True)
        return np.asarray(mixed.reshape(len(query), -1), np.float32)

    def _rotate(self, vectors: Array) -> Array:
        """RoPE (Su et al., 2021) on neighbouring pairs, as ggml stores them."""
        tokens, _, width = vectors.shape
        angles = np.outer(np.arange(tokens), self._base ** (-np.arange(0, width, 2) / width))
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        even, odd = vectors[..., ::2], vectors[..., 1::2]
        turned = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
        return turned.reshape(vectors.shape).astype(np.float32)

    def _norm(self, hidden: Array, name: str) -> Array:
        scale = np.sqrt((hidden**2).mean(axis=1, keepdims=True) + self._epsilon)
        return np.asarray(hidden / scale * self._numbers(name), np.float32)

    def _numbers(self, name: str) -> Array:
        return self._tensors[name].numbers()
