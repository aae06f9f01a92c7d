"""Write a GGUF model as an OpenVINO folder, its weights rounded by NNCF.

``python -m training.quantize --model IN.gguf --output FOLDER --weights int8`` (or int4, or f16:
not rounded) makes what the engine openvino takes as ``model_path`` or as a draft model. Needs
NNCF and transformers: the extra ``train``.
"""

import argparse
import json
import tempfile
from pathlib import Path

from training.quantize.folder import WEIGHTS, from_gguf, round_weights, write_tokenizer


def main() -> None:
    """Read the flags, write the folder, print its size as JSON."""
    flags = _flags()
    flags.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=flags.output) as scratch:
        plain = from_gguf(flags.model, Path(scratch))
        round_weights(plain, flags.output, flags.weights)
    write_tokenizer(flags.model, flags.output)
    size = (flags.output / "openvino_model.bin").stat().st_size
    print(json.dumps({"folder": str(flags.output), "weights": flags.weights, "bytes": size}))


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file, llama")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--weights", choices=WEIGHTS, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
