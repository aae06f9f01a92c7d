"""A GGUF file's numbers come back in the order that Hugging Face's Llama has them."""

import numpy as np

from training.gguf_to_checkpoint import _in_halves


def test_queries_and_keys_get_their_order_back() -> None:
    """What llama.cpp's converter does to them is undone, head by head."""
    heads, width, columns = 3, 8, 5
    original = np.arange(heads * width * columns, dtype=np.float32).reshape(-1, columns)
    halves = original.reshape(heads, 2, width // 2, columns)
    in_pairs = halves.swapaxes(1, 2).reshape(original.shape)
    assert not np.array_equal(in_pairs, original)
    assert np.array_equal(_in_halves(in_pairs, heads), original)
