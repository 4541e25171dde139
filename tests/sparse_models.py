"""Models over sparse and ragged inputs, and the same answers from dense rows in numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import mserve
from mserve.exporters.build import Graph
from mserve.exporters.sparse_graph import row_dots, row_sums, sparse_input
from mserve.sparse import Sparse
from mserve.tensors import Array, Signature, TensorSpec

Row = tuple[Sequence[int], Sequence[float]]


def publish(graph: Graph, signature: Signature, base: Path, **options: Any) -> Path:
    """Export the graph and return the version's directory."""
    signatures = {"serving_default": signature}
    found = mserve.export(graph.model(signature), base, signatures=signatures, **options)
    assert found.notes == ()
    return found.path


def answers(name: str = "y", columns: int = 1) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, "float32", ("batch", columns))}


def logistic(base: Path, weights: Array, bias: float = 0.0, *, size: int = -1, **options: Any) -> Path:
    """`y` = sigmoid(bias + xW); with a `size` of 0 any id may come."""
    graph, port = Graph(), sparse_input("features", len(weights) if size < 0 else size)
    dots = row_dots(graph, port, weights, name="W")
    shifted = graph.add("Add", dots, graph.weight(np.array(bias, np.float32)))
    graph.add("Sigmoid", shifted, name="y")
    ports = {"features": port}
    signature = Signature.of("predict", ports, answers(columns=weights.shape[1]))
    return publish(graph, signature, base, **options)


def machine(base: Path, bias: float, single: Array, factors: Array) -> Path:
    """A factorisation machine: `y` = w0 + xw + 1/2 sum((xV)^2 - x^2 V^2), as libFM computes it."""
    graph, port = Graph(), sparse_input("features", len(single))
    linear = row_dots(graph, port, single[:, None], name="w")
    once = row_dots(graph, port, factors, name="V")
    squares = graph.add("Mul", port.tensors["values"], port.tensors["values"])
    twice = row_dots(graph, port, factors * factors, values=squares, name="V2")
    pairs = graph.add("Sub", graph.add("Mul", once, once), twice)
    summed = graph.add("ReduceSum", pairs, graph.weight(np.array([1])), keepdims=1)
    half = graph.add("Mul", summed, graph.weight(np.array(0.5, np.float32)))
    shifted = graph.add("Add", linear, graph.weight(np.array(bias, np.float32)))
    graph.add("Add", shifted, half, name="y")
    return publish(graph, Signature.of("predict", {"features": port}, answers()), base)


def mixed(base: Path, weights: Array, **options: Any) -> Path:
    """`y` = xW + the sum of a dense row + twice the sums of a ragged input's values [entries, 2]."""
    graph, port = Graph(), sparse_input("x", len(weights), max_length=50)
    names = {role: f"r/{role}" for role in ("values", "lengths", "rows")}
    ragged = Sparse("ragged", "float32", names, ("batch", "?", 2))
    sums = row_sums(graph, ragged, names["values"], np.zeros((1, 2), np.float32))
    one = graph.weight(np.array([1]))
    total = graph.add("ReduceSum", sums, one, keepdims=1)
    dense = graph.add("ReduceSum", "d", one, keepdims=1)
    twice = graph.add("Add", total, total)
    graph.add("Add", graph.add("Add", row_dots(graph, port, weights), dense), twice, name="y")
    ports = {"x": port, "d": TensorSpec("d", "float32", ("batch", 3)), "r": ragged}
    return publish(graph, Signature.of("predict", ports, answers()), base, **options)


def triple() -> onnx.ModelProto:
    """`y` = xW with W = 0, 1, ... 9, from the tensors that tf.Example parsing has: indices, values, shape."""
    nodes = [
        helper.make_node("Gather", ["f/indices", "zero"], ["rows"], axis=1),
        helper.make_node("Gather", ["f/indices", "one"], ["ids"], axis=1),
        helper.make_node("Gather", ["W", "ids"], ["w"]),
        helper.make_node("Mul", ["w", "f/values"], ["terms"]),
        helper.make_node("Slice", ["f/shape", "begin", "end"], ["count"]),
        helper.make_node("ConstantOfShape", ["count"], ["zeros"]),
        helper.make_node("ScatterElements", ["zeros", "rows", "terms"], ["y"], reduction="add"),
    ]
    weights = [
        builders.weight("W", np.arange(10, dtype=np.float32)),
        numpy_helper.from_array(np.array(0), "zero"),
        numpy_helper.from_array(np.array(1), "one"),
        builders.weight("begin", np.array([0])),
        builders.weight("end", np.array([1])),
    ]
    ports = [
        ("f/indices", TensorProto.INT64, ["n", 2]),
        ("f/values", TensorProto.FLOAT, ["n"]),
        ("f/shape", TensorProto.INT64, [2]),
    ]
    return builders.model(nodes, ports, [("y", TensorProto.FLOAT, ["rows"])], weights)


TRIPLE = """
[signatures.serving_default]
method = "predict"
inputs.features = { kind = "sparse", size = 10, tensor = { indices = "f/indices", values = "f/values", \
shape = "f/shape" } }
outputs.y = {}
"""


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def dots(rows: Sequence[Row], weights: Array) -> Array:
    """xW in doubles, row by row; no dense row is made."""
    width = weights.shape[1]
    found = [np.asarray(v, np.float64) @ weights[np.asarray(i, np.int64)].astype(np.float64) if len(i)
             else np.zeros(width) for i, v in rows]  # fmt: skip
    return np.array(found).reshape(len(rows), width)


def fm(rows: Sequence[Row], bias: float, single: Array, factors: Array) -> Array:
    """A factorisation machine's answers, in doubles."""
    squares = [(ids, np.square(np.asarray(values, np.float64))) for ids, values in rows]
    pairs = dots(rows, factors) ** 2 - dots(squares, factors.astype(np.float64) ** 2)
    return bias + dots(rows, single[:, None]) + 0.5 * pairs.sum(1, keepdims=True)


def parts(rows: Sequence[Row], alias: str = "features") -> dict[str, Array]:
    """Rows as the arrays of a request."""
    return {
        f"{alias}.ids": np.array([i for ids, _ in rows for i in ids], np.int64),
        f"{alias}.values": np.array([v for _, values in rows for v in values], np.float32),
        f"{alias}.lengths": np.array([len(ids) for ids, _ in rows], np.int64),
    }


def objects(rows: Sequence[Row]) -> list[Mapping[str, Any]]:
    """Rows as JSON has them."""
    return [{"ids": list(map(int, ids)), "values": list(map(float, values))} for ids, values in rows]


def draw(count: int, size: int, length: int = 40, seed: int = 0) -> list[Row]:
    """Rows of up to `length` entries, in any order, some empty, some with an id that stands twice."""
    rng = np.random.default_rng(seed)
    found: list[Row] = []
    for _ in range(count):
        entries = int(rng.integers(0, length + 1))
        values = np.round(rng.standard_normal(entries), 3).astype(np.float32)
        found.append((rng.integers(0, size, entries), values))
    return found
