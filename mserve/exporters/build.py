"""Graphs put together node by node, for readers that know what a model computes.

Names follow from the order of calls, so one source always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..tensors import DTYPES, Array, Ports, Signature, TensorSpec
from .sparse_graph import graph_inputs, value_info

if TYPE_CHECKING:
    import onnx

OPSET, ML_OPSET, IR_VERSION = 18, 3, 9
ML = "ai.onnx.ml"


class Graph:
    """Nodes and weights of a graph in the making; every method returns the name of a tensor."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, domain: str = "", name: str = "", **attributes: Any) -> str:
        """A node with one output, which has the given name or one of its own."""
        from onnx import helper

        name = name or f"{self._prefix}{op.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, list(inputs), [name], domain=domain, **attributes))
        return name

    def add_many(self, op: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """A node with so many outputs."""
        from onnx import helper

        first = f"{self._prefix}{op.lower()}_{len(self._nodes)}"
        names = [first, *(f"{first}_also_{number}" for number in range(1, count))]
        self._nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def weight(self, array: Array, name: str = "") -> str:
        """A constant."""
        import numpy as np
        from onnx import numpy_helper

        name = name or f"{self._prefix}constant_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def scalar(self, value: float, dtype: str = "float32") -> str:
        """A constant of one number."""
        import numpy as np

        return self.weight(np.array(value, dtype))

    def cast(self, tensor: str, dtype: str, name: str = "") -> str:
        """The tensor in another dtype."""
        return self.add("Cast", tensor, name=name, to=DTYPES[dtype].onnx)

    def inner(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """The graph as the body of a node of another one, whose names it must not use."""
        from onnx import helper

        return helper.make_graph(self._nodes, name, list(inputs), list(outputs), self._weights)

    def model(self, signature: Signature, opset: int = OPSET) -> onnx.ModelProto:
        """The model whose inputs and outputs are the tensors of a signature."""
        from onnx import helper

        inputs, outputs = graph_inputs(signature), [value_info(s) for s in signature.outputs.values()]
        graph = helper.make_graph(self._nodes, "model", inputs, outputs, self._weights)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(ML, ML_OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mserve")


def predicts(inputs: Ports, outputs: Mapping[str, TensorSpec]) -> Signature:
    """A signature whose rows are independent."""
    return Signature.of("predict", inputs, dict(outputs), 0)
