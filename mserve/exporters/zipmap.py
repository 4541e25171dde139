"""Answers as columns instead of a list of maps: what some converters put last is taken out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def without_maps(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, each ZipMap replaced by the probabilities that it wraps; changed in place."""
    from onnx import TensorProto, helper

    for node in [n for n in model.graph.node if n.op_type == "ZipMap"]:
        keys = next(len(a.strings) or len(a.ints) for a in node.attribute if a.name.startswith("classlabels"))
        output = next(v for v in model.graph.output if v.name == node.output[0])
        columns = helper.make_tensor_value_info(output.name, TensorProto.FLOAT, ["batch", keys])
        output.CopyFrom(columns)
        plain = helper.make_node("Identity", [node.input[0]], [node.output[0]])
        node.CopyFrom(plain)
    return model
