"""Write what ships: the graphs without weights, the adapters, and a manifest of hashes.

    python -m training.verifier.export --base minilm.onnx --learned adapter.pt

The frozen weights stay in the file of the embedder. The manifest says where in it
each array lies, so that a reader needs neither torch nor onnx.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from training.verifier.cross_encoder import (
    EPSILON,
    HEADS,
    INNER,
    LAYERS,
    LINEARS,
    WIDTH,
    base_names,
)
from training.verifier.filter_graph import filter_graph
from training.verifier.graph_writer import CONTRIB, GraphWriter

OUT = Path(__file__).parents[2] / "cache_svc" / "pair_model"


def main() -> None:
    """Parse the arguments and write cache_svc/pair_model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--learned", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    onnx.save(graph(), args.out / "graph.onnx")
    onnx.save(filter_graph(), args.out / "look_alike.onnx")
    learned = torch.load(args.learned, weights_only=True)
    arrays = {name.removeprefix("layers."): value.numpy() for name, value in learned.items()}
    np.savez(args.out / "adapters.npz", **arrays)
    path = args.out / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    manifest["base"] = _base(args.base)
    manifest["sha256"] = {
        name: hashlib.sha256((args.out / name).read_bytes()).hexdigest()
        for name in ("graph.onnx", "adapters.npz", "look_alike.onnx", "look_alike.npz")
        if (args.out / name).exists()
    }
    path.write_text(json.dumps(manifest, indent=1) + "\n")


def _base(path: Path) -> dict[str, dict[str, tuple[int, str, list[int]]]]:
    """Offset, type and shape of each array in the embedder's file."""
    raw = path.read_bytes()
    arrays = {a.name: a for a in onnx.load_from_string(raw).graph.initializer}
    places = {}
    for ours, theirs in base_names(list(arrays)).items():
        array = arrays[theirs]
        kind = {TensorProto.FLOAT: "<f4", TensorProto.INT8: "|i1"}[array.data_type]
        places[ours] = (raw.index(array.raw_data), kind, list(array.dims))
    return {"arrays": places}


def graph() -> onnx.ModelProto:
    """The network for one pair; every weight is an outside array that has a name only."""
    return _Writer().write()


class _Writer(GraphWriter):
    def write(self) -> onnx.ModelProto:
        x = self._embed()
        for layer in range(LAYERS):
            x = self._layer(x, layer)
        mean = self.node("ReduceMean", x, axes=[0], keepdims=1)
        first = self.node("Slice", x, self.ints([0]), self.ints([1]), self.ints([0]))
        both = self.node("Concat", first, mean, axis=1)
        self.node(
            "Gemm",
            both,
            self.array("head.weight", 1, 2 * WIDTH),
            self.array("head.bias", 1),
            transB=1,
        )
        inputs = [
            helper.make_tensor_value_info(n, TensorProto.INT64, ["length"])
            for n in ("pieces", "segments")
        ]
        logit = helper.make_tensor_value_info("logit", TensorProto.FLOAT, [1, 1])
        return self.model("pair", inputs, logit)

    def _embed(self) -> str:
        word = self.node(
            "Mul",
            self.node(
                "Cast",
                self.node(
                    "Gather", self.array("word.q", 30522, WIDTH, kind=TensorProto.INT8), "pieces"
                ),
                to=TensorProto.FLOAT,
            ),
            self.node("Gather", self.array("word.scale", 30522, 1), "pieces"),
        )
        length = self.node("Shape", "pieces")
        position = self.node(
            "Slice", self.array("position", 512, WIDTH), self.ints([0]), length, self.ints([0])
        )
        segment = self.node("Gather", self.array("segment", 2, WIDTH), "segments")
        return self._norm(self.node("Add", self.node("Add", word, segment), position), "norm")

    def _layer(self, x: str, layer: int) -> str:
        query, key, value = (self._heads(self._linear(x, layer, n)) for n in LINEARS[:3])
        scores = self.node("MatMul", query, self.node("Transpose", key, perm=[0, 2, 1]))
        scaled = self.node("Mul", scores, self.float((WIDTH / HEADS) ** -0.5))
        mixed = self.node("MatMul", self.node("Softmax", scaled, axis=-1), value)
        flat = self.node(
            "Reshape", self.node("Transpose", mixed, perm=[1, 0, 2]), self.ints([-1, WIDTH])
        )
        x = self._norm(self.node("Add", x, self._linear(flat, layer, "attended")), f"{layer}.norm1")
        inner = self.node("Gelu", self._linear(x, layer, "inner"), domain=CONTRIB)
        return self._norm(
            self.node("Add", x, self._linear(inner, layer, "outer")), f"{layer}.norm2"
        )

    def _heads(self, x: str) -> str:
        split = self.node("Reshape", x, self.ints([-1, HEADS, WIDTH // HEADS]))
        return self.node("Transpose", split, perm=[1, 0, 2])

    def _linear(self, x: str, layer: int, name: str) -> str:
        shape = {"inner": (WIDTH, INNER), "outer": (INNER, WIDTH)}.get(name, (WIDTH, WIDTH))
        where = f"{layer}.{name}"
        return self.node(
            "DynamicQuantizeMatMul",
            x,
            self.array(f"{where}.q", *shape, kind=TensorProto.INT8),
            self.array(f"{where}.scale", shape[1]),
            "",
            self.array(f"{where}.bias", shape[1]),
            domain=CONTRIB,
        )

    def _norm(self, x: str, name: str) -> str:
        weight, bias = (self.array(f"{name}.{part}", WIDTH) for part in ("weight", "bias"))
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=EPSILON)


if __name__ == "__main__":
    main()
