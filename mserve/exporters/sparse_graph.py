"""Graphs over sparse inputs: sums over the entries of each row, without a dense row.

    y[row] = sum of value * W[id] over the row's entries

That is a Gather and a scatter that adds. Sums of one column are scattered by ScatterElements.
ONNX Runtime's ScatterND is five times faster for several columns and adds on several threads
without locking, so that it loses terms; a session with such a node has one thread (see
`runtime/ort.py`). Zeros to add to come from the lengths: operators that take a shape as
values would keep the model off the event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ..sparse import IDS, LENGTHS, VALUES, Sparse
from ..tensors import DTYPES, Array, Dim, Signature, TensorSpec

if TYPE_CHECKING:
    import onnx


class Builder(Protocol):
    """A graph in the making; both methods return the name of a tensor."""

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """A node with one output."""

    def weight(self, array: Array, name: str = "") -> str:
        """A constant."""


def sparse_input(
    alias: str,
    size: int = 0,
    dtype: str = "float32",
    *,
    max_length: int = 0,
    doc: str = "",
    first_id: int = 0,
) -> Sparse:
    """A sparse input for `row_dots`; without a `size` any id may come, and those beyond the weights are 0."""
    roles = {role: f"{alias}.{role}" for role in (IDS, VALUES, LENGTHS, "rows")}
    shape = ("batch", size or "?")
    return Sparse("sparse", dtype, roles, shape, max_length, doc, first_id=first_id)


def row_dots(graph: Builder, port: Sparse, weights: Array, values: str = "", name: str = "") -> str:
    """The sums [batch, columns] of each row's values times the rows of `weights` [ids, columns] at its ids.

    `values` is a tensor to take in place of the input's own values: their squares, say.
    """
    return row_sums(graph, port, row_terms(graph, port, weights, values, name), weights[:1])


def row_terms(graph: Builder, port: Sparse, weights: Array, values: str = "", name: str = "") -> str:
    """What `row_dots` sums: each entry's value times its id's row of `weights`, [entries, columns]."""
    import numpy as np

    ids = port.tensors[IDS]
    if not port.size:  # ids that the weights do not have meet an appended row of zeros
        ids = graph.add("Min", ids, graph.weight(np.array([len(weights)])))
        weights = np.concatenate([weights, np.zeros_like(weights[:1])])
    picked = graph.add("Gather", graph.weight(weights, name), ids, axis=0)
    values = values or port.tensors[VALUES]
    column = graph.add("Unsqueeze", values, graph.weight(np.array([1])))
    return graph.add("Mul", picked, column)


def row_sums(graph: Builder, port: Sparse, terms: str, like: Array) -> str:
    """The sums [batch, columns] of the terms [entries, columns] of each row.

    `like` is an array of their dtype and columns.
    """
    import numpy as np

    one = graph.weight(np.array([1]))
    rows, lengths = (graph.add("Unsqueeze", port.tensors[role], one) for role in ("rows", LENGTHS))
    number = DTYPES[like.dtype.name].onnx
    zeros = graph.weight(np.zeros((1, like.shape[1]), like.dtype))
    start = graph.add("Mul", graph.add("Cast", lengths, to=number), zeros)
    if like.shape[1] == 1:
        return graph.add("ScatterElements", start, rows, terms, axis=0, reduction="add")
    return graph.add("ScatterND", start, rows, terms, reduction="add")


def row_picks(graph: Builder, port: Sparse, ids: Array) -> str:
    """Dense rows [batch, len(ids) + 1] of the values at some ids alone, in the order of `ids`.

    They are 0 where a row lacks the id; of an id that stands twice the last value counts. The last
    column is where all other values end. Elements are scattered into one long row, and one
    after the other: so an id that stands twice has one answer.
    """
    import numpy as np

    width = len(ids) + 1
    places = np.full(int(port.shape[1]), len(ids), np.int32)  # of a port that has a size
    places[ids] = np.arange(len(ids))
    picked = graph.add("Gather", graph.weight(places, "places"), port.tensors[IDS])
    begins = graph.add("Mul", port.tensors["rows"], graph.weight(np.array(width)))
    at = graph.add("Add", begins, graph.add("Cast", picked, to=DTYPES["int64"].onnx))
    lengths = graph.add("Unsqueeze", port.tensors[LENGTHS], graph.weight(np.array([1])))
    number = DTYPES[port.dtype]
    zeros = graph.weight(np.zeros((1, width), number.to_numpy()))
    start = graph.add("Mul", graph.add("Cast", lengths, to=number.onnx), zeros)
    line = graph.add("Reshape", start, graph.weight(np.array([-1])))
    filled = graph.add("ScatterElements", line, at, port.tensors[VALUES], axis=0)
    return graph.add("Reshape", filled, graph.weight(np.array([-1, width])))


def graph_inputs(signature: Signature) -> list[onnx.ValueInfoProto]:
    """The graph's inputs for the inputs of a signature, sparse ones by their roles."""
    found = []
    for alias, port in signature.ports().items():
        if not isinstance(port, Sparse):
            found.append(value_info(port))
            continue
        for role, tensor in port.tensors.items():
            shape = _shape(role, alias, port)
            found.append(value_info(TensorSpec(tensor, port.dtype if role == VALUES else "int64", shape)))
    return found


def value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    """A tensor as a graph's input or output."""
    from onnx import helper

    return helper.make_tensor_value_info(spec.name, DTYPES[spec.dtype].onnx, spec.shape)


def _shape(role: str, alias: str, port: Sparse) -> tuple[Dim, ...]:
    """The shape of the graph's tensor for a role."""
    first: dict[str, Dim] = {LENGTHS: port.shape[0], "splits": f"{alias}.splits", "shape": 2, "count": 1}
    shape = (first.get(role, f"{alias}.entries"),)
    if role == VALUES:
        return (*shape, *port.shape[2:])
    return (*shape, 2) if role == "indices" else shape
