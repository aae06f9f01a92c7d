"""A Llama in a GGUF file as a checkpoint folder, for engines that take only those.

    python -m training.gguf_to_checkpoint MODEL.gguf FOLDER

vLLM and TensorRT-LLM read a folder as Hugging Face stores it: config.json, tokenizer.json and
*.safetensors. The weights are dequantized and written as float32 (an engine rounds them to
its own type); queries and keys, which ggml stores for a rotation of neighbouring pairs, are
put back in the order of halves. Source: convert_hf_to_gguf.py of llama.cpp, read backwards.
"""

import argparse
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from inference_svc.engines.gguf import GgufFile, read_gguf
from inference_svc.engines.gguf_tokenizer import GgufTokenizer
from training.prune.gguf_tensors import Array, Model, read_model

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(gguf: Path, folder: Path) -> None:
    """Write the folder.

    Raises:
        SetupError: the file is damaged, or no Llama whose tensors are of a known type.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checked, model = read_gguf(gguf), read_model(gguf)
    tokenizer = GgufTokenizer(checked)
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    named = json.loads(tokenizer.files["tokenizer_config.json"])
    named["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=1))
    config = _config(checked, model, len(tokenizer.vocabulary))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write(folder / "model.safetensors", _tensors(model))


def _config(checked: GgufFile, model: Model, vocabulary: int) -> dict[str, Any]:
    hidden = int(model.number("llama.embedding_length"))
    heads = int(model.number("llama.attention.head_count"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": int(model.number("llama.feed_forward_length")),
        "num_hidden_layers": int(model.number("llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(model.number("llama.attention.head_count_kv")),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": int(model.number("llama.context_length")),
        "rms_norm_eps": model.number("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": model.number("llama.rope.freq_base"),
        "vocab_size": vocabulary,
        "tie_word_embeddings": all(each.name != "output.weight" for each in model.tensors),
        "bos_token_id": checked.get("tokenizer.ggml.bos_token_id", int),
        "eos_token_id": checked.get("tokenizer.ggml.eos_token_id", int),
        "torch_dtype": "float32",
    }


def _tensors(model: Model) -> dict[str, Array]:
    heads = {
        "attn_q": int(model.number("llama.attention.head_count")),
        "attn_k": int(model.number("llama.attention.head_count_kv")),
    }
    found = {}
    for each in model.tensors:
        if each.name in _WHOLE:
            found[_WHOLE[each.name]] = each.numbers()
        elif each.name.startswith("blk."):
            _, layer, kind, _ = each.name.split(".")
            numbers = each.numbers()
            if kind in heads:
                numbers = _in_halves(numbers, heads[kind])
            found[f"model.layers.{layer}.{_IN_A_LAYER[kind]}.weight"] = numbers
    return found


def _in_halves(rows: Array, heads: int) -> Array:
    """Of each head: the even rows, then the odd ones."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _write(path: Path, tensors: dict[str, Array]) -> None:
    """A safetensors file of float32: lengths and places first, then the numbers."""
    header: dict[str, Any] = {}
    end = 0
    for name, each in tensors.items():
        begin, end = end, end + each.nbytes
        header[name] = {"dtype": "F32", "shape": list(each.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for each in tensors.values():
            file.write(np.ascontiguousarray(each, "<f4").tobytes())


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    convert(options.gguf, options.folder)


if __name__ == "__main__":
    main()
