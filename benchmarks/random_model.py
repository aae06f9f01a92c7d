"""Model folders without weights: a Llama's shape and a tokenizer made up on the spot.

An engine fills the weights in at random (``load_format`` dummy). Tokens then mean
nothing, and cost what a real model of that shape costs.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 32_000
CONTEXT = 8192

# hidden, inner, layers, heads, heads of keys and values; as in Llama 3.2 1B and 3.1 8B.
SHAPES = {
    "tiny": (128, 256, 2, 4, 2),
    "1b": (2048, 8192, 16, 32, 8),
    "8b": (4096, 14_336, 32, 32, 8),
}


def write_random_model(folder: Path, shape: str) -> Path:
    """config.json and tokenizer.json of one of SHAPES. No token ends an answer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(*SHAPES[shape])))
    (folder / "tokenizer.json").write_text(_tokenizer().to_str())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"})
    )
    return folder


def _config(hidden: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": None,
        "torch_dtype": "bfloat16",
    }


def _tokenizer() -> Tokenizer:
    """Byte-level: every byte, then made-up words of four letters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", *letters]
    number = 0
    while len(words) < VOCABULARY:
        digits = [number // 26**place % 26 for place in range(4)]
        words.append("Ġ" + "".join(chr(ord("a") + digit) for digit in digits))
        number += 1
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    return tokenizer
