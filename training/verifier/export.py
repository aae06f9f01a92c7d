"""Write what ships: the graph without weights, the adapters, and a manifest of hashes.

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

OUT = Path(__file__).parents[2] / "cache_svc" / "pair_model"
# Contrib operators of ONNX Runtime: int8 weights, activations quantised on the fly.
_CONTRIB = "com.microsoft"
_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid(_CONTRIB, 1)]


def main() -> None:
    """Parse the arguments and write cache_svc/pair_model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--learned", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    onnx.save(graph(), args.out / "graph.onnx")
    learned = torch.load(args.learned, weights_only=True)
    arrays = {name.removeprefix("layers."): value.numpy() for name, value in learned.items()}
    np.savez(args.out / "adapters.npz", **arrays)
    path = args.out / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    manifest["base"] = _base(args.base)
    manifest["sha256"] = {
        name: hashlib.sha256((args.out / name).read_bytes()).hexdigest()
        for name in ("graph.onnx", "adapters.npz", "look_alike.npz")
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


class _Writer:
    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._outside: list[TensorProto] = []
        self._count = 0

    def write(self) -> onnx.ModelProto:
        x = self._embed()
        for layer in range(LAYERS):
            x = self._layer(x, layer)
        mean = self._node("ReduceMean", x, axes=[0], keepdims=1)
        first = self._node("Slice", x, self._ints([0]), self._ints([1]), self._ints([0]))
        both = self._node("Concat", first, mean, axis=1)
        self._node(
            "Gemm",
            both,
            self._array("head.weight", 1, 2 * WIDTH),
            self._array("head.bias", 1),
            transB=1,
        )
        self._nodes[-1].output[0] = "logit"
        body = helper.make_graph(
            self._nodes,
            "pair",
            [
                helper.make_tensor_value_info(n, TensorProto.INT64, ["length"])
                for n in ("pieces", "segments")
            ],
            [helper.make_tensor_value_info("logit", TensorProto.FLOAT, [1, 1])],
            self._outside,
        )
        return helper.make_model(body, opset_imports=_OPSETS, ir_version=9)

    def _embed(self) -> str:
        word = self._node(
            "Mul",
            self._node(
                "Cast",
                self._node(
                    "Gather", self._array("word.q", 30522, WIDTH, kind=TensorProto.INT8), "pieces"
                ),
                to=TensorProto.FLOAT,
            ),
            self._node("Gather", self._array("word.scale", 30522, 1), "pieces"),
        )
        length = self._node("Shape", "pieces")
        position = self._node(
            "Slice", self._array("position", 512, WIDTH), self._ints([0]), length, self._ints([0])
        )
        segment = self._node("Gather", self._array("segment", 2, WIDTH), "segments")
        return self._norm(self._node("Add", self._node("Add", word, segment), position), "norm")

    def _layer(self, x: str, layer: int) -> str:
        query, key, value = (self._heads(self._linear(x, layer, n)) for n in LINEARS[:3])
        scores = self._node("MatMul", query, self._node("Transpose", key, perm=[0, 2, 1]))
        scaled = self._node("Mul", scores, self._float((WIDTH / HEADS) ** -0.5))
        mixed = self._node("MatMul", self._node("Softmax", scaled, axis=-1), value)
        flat = self._node(
            "Reshape", self._node("Transpose", mixed, perm=[1, 0, 2]), self._ints([-1, WIDTH])
        )
        x = self._norm(
            self._node("Add", x, self._linear(flat, layer, "attended")), f"{layer}.norm1"
        )
        inner = self._node("Gelu", self._linear(x, layer, "inner"), domain=_CONTRIB)
        return self._norm(
            self._node("Add", x, self._linear(inner, layer, "outer")), f"{layer}.norm2"
        )

    def _heads(self, x: str) -> str:
        split = self._node("Reshape", x, self._ints([-1, HEADS, WIDTH // HEADS]))
        return self._node("Transpose", split, perm=[1, 0, 2])

    def _linear(self, x: str, layer: int, name: str) -> str:
        shape = {"inner": (WIDTH, INNER), "outer": (INNER, WIDTH)}.get(name, (WIDTH, WIDTH))
        where = f"{layer}.{name}"
        return self._node(
            "DynamicQuantizeMatMul",
            x,
            self._array(f"{where}.q", *shape, kind=TensorProto.INT8),
            self._array(f"{where}.scale", shape[1]),
            "",
            self._array(f"{where}.bias", shape[1]),
            domain=_CONTRIB,
        )

    def _norm(self, x: str, name: str) -> str:
        weight, bias = (self._array(f"{name}.{part}", WIDTH) for part in ("weight", "bias"))
        return self._node("LayerNormalization", x, weight, bias, axis=-1, epsilon=EPSILON)

    def _node(self, kind: str, *inputs: str, **attributes: object) -> str:
        self._count += 1
        name = f"{kind}_{self._count}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _array(self, name: str, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="given-at-start")
        self._outside.append(tensor)
        return name

    def _ints(self, values: list[int]) -> str:
        return self._node("Constant", value_ints=values)

    def _float(self, value: float) -> str:
        return self._node("Constant", value_float=value)


if __name__ == "__main__":
    main()
