"""How a handler puts nodes of ONNX into the graph of TensorFlow's converter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Nodes:
    """Nodes in the place of one of TensorFlow's; every method returns the name of a tensor."""

    def __init__(self, context: Any, node: Any) -> None:
        self._context, self._node = context, node

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        return str(self._context.make_node(op, list(inputs), attr=attributes).output[0])

    def constant(self, value: Any, dtype: Any = None) -> str:
        """A constant, in a dtype of numpy's."""
        import numpy as np
        from tf2onnx import utils

        array = np.asarray(value, dtype)
        return str(self._context.make_const(utils.make_name("constant"), array).output[0])

    def ints(self, *values: int) -> str:
        """A vector of whole numbers, int64."""
        import numpy as np

        return self.constant(values, np.int64)

    def cast(self, tensor: str, dtype: Any) -> str:
        """A tensor in a dtype of ONNX's."""
        return self.add("Cast", tensor, to=dtype)

    def wide(self, tensor: str) -> str:
        """Whole numbers as int64."""
        from onnx import TensorProto

        return self.cast(tensor, TensorProto.INT64)

    def filled(self, shape: str, value: Any, dtype: Any) -> str:
        """A tensor of some shape that is one number, in a dtype of ONNX's, all over."""
        from onnx import helper

        return self.add("ConstantOfShape", shape, value=helper.make_tensor("value", dtype, [1], [value]))

    def replace(self, tensors: Sequence[str]) -> None:
        """Give tensors out as the outputs of TensorFlow's node, which goes."""
        context, outputs = self._context, list(self._node.output)
        known = [(context.get_shape(x), context.get_dtype(x)) for x in outputs]
        context.remove_node(self._node.name)
        for tensor, output, (shape, dtype) in zip(tensors, outputs, known, strict=False):
            context.make_node("Identity", [tensor], outputs=[output], shapes=[shape], dtypes=[dtype])
