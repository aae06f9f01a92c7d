"""The parts of an OpenVINO model folder: graph and weights, config.json, tokenizers.

OpenVINO GenAI itself turns a GGUF file into a graph and writes that down when asked to
(``enable_save_ov_model``); NNCF then rounds its matrices. The files of the tokenizer are
those that the engine makes of a GGUF file, so both models have the same fingerprints.
"""

import json
import sys
from pathlib import Path
from typing import Any

from inference_svc.engines.gguf import GgufFile, read_gguf
from inference_svc.engines.local_tokenizer import tokenizer_of
from training.prune.gguf_tensors import read_model, with_weights, write_model

# On import OpenVINO reports itself to its makers over HTTPS, unless the module
# that does so cannot be found.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402 - after the line above
import openvino_genai as genai  # noqa: E402

WEIGHTS = ("f16", "int8", "int4")
_GRAPH = "openvino_model.xml"
# Weights of a group share a scale; that of GGUF's own types.
_GROUP = 32
_FEW_BLOCKS = 64
_SPECIAL = (
    ("bos_token", "bos"),
    ("eos_token", "eos"),
    ("pad_token", "padding"),
    ("unk_token", "unknown"),
)


def from_gguf(model: Path, scratch: Path) -> Path:
    """The graph of a GGUF file, its matrices in f16; a file in ``scratch``."""
    read_gguf(model)  # refuses a damaged file in words
    whole = scratch / "model.gguf"
    write_model(with_weights(read_model(model), "f16"), whole)
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = _FEW_BLOCKS
    genai.ContinuousBatchingPipeline(str(whole), scheduler, "CPU", {"enable_save_ov_model": True})
    return scratch / _GRAPH


def round_weights(graph: Path, folder: Path, weights: str) -> None:
    """Write the graph into a folder, its matrices as one of :data:`WEIGHTS`."""
    model = ov.Core().read_model(graph)
    if weights != "f16":
        model = _compressed(model, weights)
    ov.save_model(model, folder / _GRAPH, compress_to_fp16=False)


def write_tokenizer(source: Path, folder: Path) -> None:
    """config.json, and the tokenizer for us and for OpenVINO."""
    header = read_gguf(source)
    tokenizer = tokenizer_of(header)
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.size,
        "max_position_embeddings": header.get("llama.context_length", int),
        "eos_token_id": sorted(tokenizer.end_token_ids),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_openvino_tokenizer(folder, _special_tokens(header))


def _compressed(model: Any, weights: str) -> Any:
    import nncf  # noqa: PLC0415 - large, and f16 does without

    if weights == "int8":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    # What is not a layer's matrix, the embedding, stays in INT8: NNCF's own choice.
    return nncf.compress_weights(
        model, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=_GROUP, ratio=1.0
    )


def _special_tokens(header: GgufFile) -> dict[str, str]:
    """By their names; OpenVINO takes no draft model whose ids of these differ."""
    tokens = header.get("tokenizer.ggml.tokens", list)
    ids = {name: header.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL}
    return {name: str(tokens[each]) for name, each in ids.items() if isinstance(each, int)}


def _write_openvino_tokenizer(folder: Path, special: dict[str, str]) -> None:
    """For grammars and draft models, where the library wants a tokenizer of its own."""
    from openvino_tokenizers import convert_tokenizer  # noqa: PLC0415 - as above
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    known = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=(folder / "chat_template.jinja").read_text(),
        **special,
    )
    tokenizer, detokenizer = convert_tokenizer(known, with_detokenizer=True)
    ov.save_model(tokenizer, folder / "openvino_tokenizer.xml")
    ov.save_model(detokenizer, folder / "openvino_detokenizer.xml")
