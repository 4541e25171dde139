"""Operators of TensorFlow that its converter does not know, written with ONNX's.

Each handler takes the converter's graph and a node, which it replaces by others with the
same outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Handler = Callable[[Any, Any, str, Any], None]


def handlers() -> dict[str, tuple[Handler, list[Any]]]:
    """Every handler by its operator, as the converter takes them."""
    return {name: (handler, []) for name, handler in _HANDLERS.items()}


def _replace(context: Any, node: Any, made: Callable[[], tuple[str, list[str], dict[str, Any]]]) -> None:
    """A last operator, its inputs and attributes, in place of a node."""
    name, outputs = node.name, node.output
    shapes, dtypes = [context.get_shape(x) for x in outputs], [context.get_dtype(x) for x in outputs]
    op, inputs, attributes = made()
    context.remove_node(name)
    context.make_node(op, inputs, attr=attributes, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


def _constant(context: Any, value: Any) -> str:
    import numpy as np
    from tf2onnx import utils

    return str(context.make_const(utils.make_name("constant"), np.asarray(value)).output[0])


def _erfc(context: Any, node: Any, _: str, __: Any) -> None:
    """1 - Erf(x); GELU uses it."""
    import numpy as np
    from tf2onnx import utils

    kind = utils.map_onnx_to_numpy_type(context.get_dtype(node.output[0]))

    def made() -> tuple[str, list[str], dict[str, Any]]:
        one = _constant(context, np.ones((), kind))
        return "Sub", [one, context.make_node("Erf", [node.input[0]]).output[0]], {}

    _replace(context, node, made)


def _bound(comparison: str) -> Handler:
    """How many of a row's sorted values [rows, sorted] are below each value [rows, values]."""

    def handle(context: Any, node: Any, _: str, __: Any) -> None:
        import numpy as np

        def made() -> tuple[str, list[str], dict[str, Any]]:
            one, two = (_constant(context, np.array([axis], np.int64)) for axis in (1, 2))
            known = context.make_node("Unsqueeze", [node.input[0], one]).output[0]
            asked = context.make_node("Unsqueeze", [node.input[1], two]).output[0]
            below = context.make_node(comparison, [known, asked]).output[0]
            number = context.get_dtype(node.output[0])
            counted = context.make_node("Cast", [below], attr={"to": number}).output[0]
            return "ReduceSum", [counted, two], {"keepdims": 0}

        _replace(context, node, made)

    return handle


_HANDLERS: Mapping[str, Handler] = {
    "Erfc": _erfc,
    "LowerBound": _bound("Less"),
    "UpperBound": _bound("LessOrEqual"),
}
