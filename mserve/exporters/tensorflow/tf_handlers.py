"""Operators of TensorFlow that its converter does not know, written with ONNX's.

Each handler takes the converter's graph and a node, which it replaces by others with the
same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import tf_sparse
from .tf_nodes import Nodes

Handler = Callable[[Any, Any, str, Any], None]


def handlers() -> dict[str, tuple[Handler, list[Any]]]:
    """Every handler by its operator, as the converter takes them."""
    return {name: (handler, []) for name, handler in _HANDLERS.items()}


def _erfc(context: Any, node: Any, _: str, __: Any) -> None:
    """1 - Erf(x); GELU uses it."""
    from tf2onnx import utils

    nodes = Nodes(context, node)
    one = nodes.constant(1, utils.map_onnx_to_numpy_type(context.get_dtype(node.output[0])))
    nodes.replace([nodes.add("Sub", one, nodes.add("Erf", node.input[0]))])


def _bound(comparison: str) -> Handler:
    """How many of a row's sorted values [rows, sorted] are below each value [rows, values]."""

    def handle(context: Any, node: Any, _: str, __: Any) -> None:
        nodes = Nodes(context, node)
        known = nodes.add("Unsqueeze", node.input[0], nodes.ints(1))
        asked = nodes.add("Unsqueeze", node.input[1], nodes.ints(2))
        below = nodes.cast(nodes.add(comparison, known, asked), context.get_dtype(node.output[0]))
        nodes.replace([nodes.add("ReduceSum", below, nodes.ints(2), keepdims=0)])

    return handle


def _one_hot(context: Any, node: Any, _: str, __: Any) -> None:
    """A number below 0 is none of the classes, as in padding; ONNX would count it from the last one."""
    from tf2onnx.onnx_opset.tensor import OneHot

    nodes = Nodes(context, node)
    given, depth = nodes.wide(node.input[0]), nodes.wide(node.input[1])
    below = nodes.add("Less", given, nodes.constant(0, "int64"))
    context.replace_input(node, node.input[0], nodes.add("Where", below, depth, given), 0)
    OneHot.any_version_after9(context.opset, context, node)


_HANDLERS: Mapping[str, Handler] = {
    "Erfc": _erfc,
    "OneHot": _one_hot,
    "LowerBound": _bound("Less"),
    "UpperBound": _bound("LessOrEqual"),
    **tf_sparse.HANDLERS,
}
