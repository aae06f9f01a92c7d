"""Prune a GGUF model by whole layers, or write its weights in another type.

``python -m training.prune --model IN.gguf --output OUT.gguf --drop-layers 6`` leaves out the
layers that change least what flows through them on a calibration text (block influence, one
minus the cosine of a layer's input and output: ShortGPT, Men et al., 2024).
"""

import argparse
import json
from pathlib import Path

import numpy as np

from inference_svc.engines.gguf import read_gguf
from inference_svc.engines.gguf_tokenizer import GgufTokenizer
from sidecache.errors import SetupError
from training.prune.gguf_tensors import TYPES, Model, read_model, with_weights, without_layers
from training.prune.gguf_tensors import write_model as write
from training.prune.llama import Llama

_CALIBRATION = Path(__file__).with_name("calibration.txt")
_MOST_TOKENS = 256


def main() -> None:
    """Read the flags, write the file, print what was done as JSON."""
    flags = _flags()
    report = prune(flags.model, flags.output, flags.drop_layers, flags.weights, flags.calibration)
    print(json.dumps(report))


def prune(
    source: Path, output: Path, drop: int, weights: str | None, calibration: Path = _CALIBRATION
) -> dict[str, object]:
    """Write the pruned model; what was dropped, and the loss on the text before and after.

    Raises:
        SetupError: the file is no model that this understands, or has too few layers.
    """
    ids = GgufTokenizer(read_gguf(source)).encode(calibration.read_text())[:_MOST_TOKENS]
    model = read_model(source)
    before, influence = block_influence(model, ids)
    # The first layer makes the stream that all others add to, the last feeds the output.
    inner = range(1, len(influence) - 1)
    if not 0 <= drop <= len(inner):
        raise SetupError(f"--drop-layers {drop} is not between 0 and {len(inner)}")
    dropped = sorted(sorted(inner, key=lambda each: influence[each])[:drop])
    pruned = without_layers(model, dropped)
    if weights is not None:
        pruned = with_weights(pruned, weights)
    write(pruned, output)
    after, _ = block_influence(pruned, ids)
    return {
        "dropped": dropped,
        "weights": weights or "as they were",
        "loss_before": round(before, 4),
        "loss_after": round(after, 4),
        "bytes": output.stat().st_size,
        "influence": [round(each, 4) for each in influence],
    }


def block_influence(model: Model, ids: list[int]) -> tuple[float, list[float]]:
    """Loss on a text, and each layer's block influence, 0 to 2."""
    llama = Llama(model)
    hidden = llama.embed(ids)
    influence = []
    for number in range(llama.layers):
        out = llama.layer(number, hidden)
        sizes = np.linalg.norm(hidden, axis=1) * np.linalg.norm(out, axis=1)
        influence.append(float(1 - ((hidden * out).sum(axis=1) / sizes).mean()))
        hidden = out
    return llama.loss(hidden, ids), influence


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file, llama")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--drop-layers", type=int, default=0)
    parser.add_argument("--weights", choices=sorted(TYPES), help="of matrices")
    parser.add_argument("--calibration", type=Path, default=_CALIBRATION, help="a text file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
