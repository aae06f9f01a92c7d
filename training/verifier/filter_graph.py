"""The quick filter as a graph without weights, for ONNX Runtime; see distill.py for the network.

One prompt against several: ``pieces`` (1 + others, length), the prompt asked first, each with a
gap before and after and filled up with gaps to one length; ``facts`` (others, 3).
"""

import onnx
from onnx import TensorProto, helper

from training.verifier.graph_writer import GraphWriter

# As in training/verifier/distill.py, which needs torch.
WIDTH = 64
_NEVER = -1e9


def filter_graph() -> onnx.ModelProto:
    """The network; the session is given its weights, and the number of the gap."""
    return _FilterWriter().write()


class _FilterWriter(GraphWriter):
    def write(self) -> onnx.ModelProto:
        pieces, present = self._pieces(), self._present()
        x, y = self._rows(pieces, 0, 1), self._rows(pieces, 1, 0)
        here, there = self._find(x, y, present)
        every = self.node("Expand", x, self.node("Shape", here))
        asked = self.node("Expand", self._rows(present, 0, 1), self.node("Shape", self._stored))
        mean, most = self._pool(
            self.node("Concat", every, y, axis=0),
            self.node("Concat", here, there, axis=0),
            self.node("Concat", asked, self._stored, axis=0),
        )
        sides = []
        for pooled in (mean, most):
            one, other = self.node("Split", pooled, axis=0), f"{pooled}_other"
            self.nodes[-1].output.append(other)
            sides += [self.node("Add", one, other)]
            sides += [self.node("Abs", self.node("Sub", one, other))]
        features = self.node("Concat", *sides, "facts", axis=1)
        hidden = self.node("Relu", self._affine("f.0", features, 4 * WIDTH + 3, WIDTH))
        self._affine("f.2", hidden, WIDTH, 1)
        return self.model("look_alike", self._inputs(), self._output())

    def _inputs(self) -> list[onnx.ValueInfoProto]:
        info = helper.make_tensor_value_info
        return [
            info("pieces", TensorProto.INT64, ["prompts", "length"]),
            info("facts", TensorProto.FLOAT, ["others", 3]),
        ]

    def _output(self) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["others", 1])

    def _pieces(self) -> str:
        """Each piece with its neighbours, shape (prompts, length - 2, width)."""
        x = self.node("Gather", self.array("table", 30523, WIDTH), "pieces")
        around = [self._slice(x, at, at - 2, axis=1) for at in range(3)]
        flat = self._flat(self.node("Concat", *around, axis=2), 3 * WIDTH)
        mixed = self.node("Tanh", self._affine("conv", flat, 3 * WIDTH, WIDTH))
        shaped = self.node("Reshape", mixed, self.node("Shape", around[1]))
        return self.node("Add", around[1], shaped)

    def _present(self) -> str:
        """Which pieces are none of the gaps, shape (prompts, length - 2)."""
        gaps = self.node("Equal", "pieces", self.array("gap", 1, kind=TensorProto.INT64))
        present = self._slice(self.node("Not", gaps), 1, -1, axis=1)
        self._stored = self._rows(present, 1, 0)
        return present

    def _find(self, x: str, y: str, present: str) -> tuple[str, str]:
        """What each piece finds on the other side."""
        scaled = self.node("Mul", x, self.array("t", 1))
        matches = self.node("MatMul", scaled, self.node("Transpose", y, perm=[0, 2, 1]))
        back = self.node("Transpose", matches, perm=[0, 2, 1])
        here = self.node("MatMul", self._shares(matches, self._stored), y)
        return here, self.node("MatMul", self._shares(back, self._rows(present, 0, 1)), x)

    def _shares(self, matches: str, present: str) -> str:
        only = self.node("Unsqueeze", present, self.ints([1]))
        never = self.float(_NEVER)
        return self.node("Softmax", self.node("Where", only, matches, never), axis=2)

    def _pool(self, x: str, found: str, present: str) -> tuple[str, str]:
        """What each side says beyond the other, two ways of pooling; shapes (sides, width)."""
        apart = self.node("Abs", self.node("Sub", x, found))
        z = self.node("Concat", x, found, apart, self.node("Mul", x, found), axis=2)
        flat = self._affine("gw", self._flat(z, 4 * WIDTH), 4 * WIDTH, WIDTH + 1)
        said = self.node("Relu", self._slice(flat, 0, WIDTH, axis=1))
        v = self.node("Reshape", said, self.node("Shape", x))
        last = self._slice(flat, WIDTH, WIDTH + 1, axis=1)
        weight = self.node("Reshape", last, self.node("Shape", present))
        weight = self.node("Where", present, weight, self.float(_NEVER))
        share = self.node("Unsqueeze", self.node("Softmax", weight, axis=1), self.ints([1]))
        mean = self.node("Squeeze", self.node("MatMul", share, v), self.ints([1]))
        shown = self.node("Cast", present, to=TensorProto.FLOAT)
        v = self.node("Mul", v, self.node("Unsqueeze", shown, self.ints([2])))
        return mean, self.node("ReduceMax", v, axes=[1], keepdims=0)

    def _flat(self, x: str, width: int) -> str:
        return self.node("Reshape", x, self.ints([-1, width]))

    def _rows(self, x: str, start: int, end: int) -> str:
        """Prompts from ``start`` to ``end``; 0: to the last."""
        return self._slice(x, start, end, axis=0)

    def _slice(self, x: str, start: int, end: int, *, axis: int) -> str:
        last = end or 2**31
        return self.node("Slice", x, self.ints([start]), self.ints([last]), self.ints([axis]))

    def _affine(self, name: str, x: str, width: int, out: int) -> str:
        weight = self.array(f"{name}.weight", width, out)
        return self.node("Gemm", x, weight, self.array(f"{name}.bias", out))
