"""Writes an ONNX graph node by node; weights are outside arrays that have a name only."""

import onnx
from onnx import TensorProto, helper

# Contrib operators of ONNX Runtime: int8 weights, activations quantised on the fly.
CONTRIB = "com.microsoft"
_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid(CONTRIB, 1)]


class GraphWriter:
    """Collects nodes in the order in which they run."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._outside: list[TensorProto] = []
        self._count = 0

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Add a node; returns the name of its first output."""
        self._count += 1
        name = f"{kind}_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def array(self, name: str, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        """An array that the session is given at its start, however often it is used."""
        if any(tensor.name == name for tensor in self._outside):
            return name
        tensor = TensorProto(name=name, data_type=kind, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="given-at-start")
        self._outside.append(tensor)
        return name

    def ints(self, values: list[int]) -> str:
        """A constant of whole numbers, shape (n,)."""
        return self.node("Constant", value_ints=values)

    def float(self, value: float) -> str:
        """A constant number."""
        return self.node("Constant", value_float=value)

    def model(
        self, name: str, inputs: list[onnx.ValueInfoProto], output: onnx.ValueInfoProto
    ) -> onnx.ModelProto:
        """The whole graph; the last node's output gets the name of ``output``."""
        self.nodes[-1].output[0] = output.name
        body = helper.make_graph(self.nodes, name, inputs, [output], self._outside)
        return helper.make_model(body, opset_imports=_OPSETS, ir_version=9)
