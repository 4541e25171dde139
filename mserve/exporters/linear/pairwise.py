"""Probabilities of classes from those of their pairs, as LIBSVM computes them.

A pair's chance is a sigmoid of its decision, kept off 0 and 1. More than two classes are
coupled by the method of Wu, Lin and Weng (2004), equation 14: p minimises the sum over pairs of
(r_ji p_i - r_ij p_j) squared. LIBSVM looks for it by going through the classes one by one, at most 100
times, and stops early where the error falls below 0.005 / classes. The early stop shows
in the third digit, so we stop where it does: a loop in the graph, whose rows stop one by one.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from ...tensors import Array
from ..build import Graph

if TYPE_CHECKING:
    import onnx

LEAST = 1e-7
TURNS = 100
PRECISION = 0.005


def coupled(graph: Graph, decisions: str, sigmoid: tuple[Array, Array], classes: int) -> str:
    """float64 [batch, classes] from decisions [batch, pairs] and each pair's slope and shift."""
    import numpy as np

    slopes, shifts = sigmoid
    turned = graph.add("Mul", decisions, graph.weight(-slopes, "slopes"))
    chances = graph.add("Sigmoid", graph.add("Add", turned, graph.weight(-shifts, "shifts")))
    low, high = graph.scalar(LEAST, "float64"), graph.scalar(1 - LEAST, "float64")
    chances = graph.add("Min", graph.add("Max", chances, low), high)
    rest = graph.add("Sub", graph.scalar(1.0, "float64"), chances)
    if classes == 2:
        return graph.add("Concat", chances, rest, axis=1)
    # r[i, j]: the chance of i against j, [batch, classes * classes], zero on the diagonal.
    pairs = list(combinations(range(classes), 2))
    above, below = (np.zeros((len(pairs), classes * classes)) for _ in range(2))
    for at, (i, j) in enumerate(pairs):
        above[at, i * classes + j] = below[at, j * classes + i] = 1
    flat = graph.add(
        "Add",
        graph.add("MatMul", chances, graph.weight(above, "above")),
        graph.add("MatMul", rest, graph.weight(below, "below")),
    )
    square = graph.weight(np.array([-1, classes, classes]), "square")
    r = graph.add("Reshape", flat, square)
    other = graph.add("Transpose", r, perm=[0, 2, 1])
    sides = graph.add("Neg", graph.add("Mul", r, other))
    axis = graph.weight(np.array([1]), "axis_1")
    own = graph.add("ReduceSum", graph.add("Mul", r, r), axis, keepdims=1)  # over i of r[i, t] squared
    matrix = graph.add("Add", sides, graph.add("Mul", own, graph.weight(np.eye(classes), "diagonal")))
    return _looped(graph, matrix, classes)


def _looped(graph: Graph, matrix: str, classes: int) -> str:
    """The loop: p [batch, classes], from equal chances on, with `matrix` [batch, classes, classes]."""
    import numpy as np

    zeros = graph.add("ReduceSum", matrix, graph.weight(np.array([2]), "axis_2"), keepdims=0)
    zeros = graph.add("Mul", zeros, graph.scalar(0.0, "float64"))
    start = graph.add("Add", zeros, graph.scalar(1 / classes, "float64"))
    turns = graph.weight(np.array(max(TURNS, classes)), "turns")
    body = _body(matrix, classes)
    return graph.add("Loop", turns, graph.weight(np.array(True), "go"), start, body=body)


def _body(matrix: str, classes: int) -> onnx.GraphProto:
    """One turn: rows whose error is small keep their p; the others go through the classes."""
    import numpy as np
    from onnx import TensorProto, helper

    body = Graph("turn_")
    last, axis = body.weight(np.array([-1])), body.weight(np.array([1]))
    column = body.add("Unsqueeze", "p", last)
    q = body.add("Squeeze", body.add("MatMul", matrix, column), last)  # the matrix times p, [batch, classes]
    pqp = body.add("ReduceSum", body.add("Mul", "p", q), axis, keepdims=1)
    gap = body.add("Abs", body.add("Sub", q, pqp))
    worst = body.add("ReduceMax", gap, axis, keepdims=1)
    going = body.add("GreaterOrEqual", worst, body.scalar(PRECISION / classes, "float64"))
    one, p = body.scalar(1.0, "float64"), "p"
    for t in range(classes):
        at = body.weight(np.array([t]))
        row = body.add("Gather", matrix, body.weight(np.array(t)), axis=1)  # [batch, classes]
        diagonal, here = (body.add("Gather", x, at, axis=1) for x in (row, q))
        step = body.add("Div", body.add("Sub", pqp, here), diagonal)
        whole = body.add("Add", one, step)
        added = body.add("Add", body.add("Mul", step, diagonal), body.add("Add", here, here))
        pqp = body.add("Add", pqp, body.add("Mul", step, added))
        pqp = body.add("Div", body.add("Div", pqp, whole), whole)
        q = body.add("Div", body.add("Add", q, body.add("Mul", step, row)), whole)
        moved = body.add("Add", p, body.add("Mul", step, body.weight(np.eye(classes)[t])))
        p = body.add("Div", moved, whole)
    body.add("Where", going, p, "p", name="next_p")
    flags = body.cast(going, "int64")
    body.cast(body.add("ReduceMax", flags, keepdims=0), "bool", name="next_go")
    number, boolean, real = TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE
    return body.inner(
        "turn",
        [
            helper.make_tensor_value_info("turn", number, []),
            helper.make_tensor_value_info("going", boolean, []),
            helper.make_tensor_value_info("p", real, ["batch", classes]),
        ],
        [
            helper.make_tensor_value_info("next_go", boolean, []),
            helper.make_tensor_value_info("next_p", real, ["batch", classes]),
        ],
    )
