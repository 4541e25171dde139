"""What export and `validate` both ask of a ModelProto.

The tensors that are not initializers of the main graph, those of subgraphs, functions
and sparse initializers: the bundle format keeps them inline, so the exporter brings them
in and `validate` looks whether one points elsewhere. And a form of the model that
onnx.checker can look at without opening files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def inner_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that is not an initializer of the main graph."""
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in model.graph.node:
        yield from _node_tensors(node)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
            yield from (sparse.values, sparse.indices)
        for graph in [attribute.g, *attribute.graphs]:
            yield from graph.initializer
            for inner in graph.node:
                yield from _node_tensors(inner)


def checkable(model: onnx.ModelProto, stored: Collection[str]) -> onnx.ModelProto:
    """A copy for onnx.checker, in which the initializers in `stored` stand in as inputs.

    Inputs and outputs of unknown rank, which ONNX Runtime runs and the checker refuses,
    get a shape.
    """
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for value in (*probe.graph.input, *probe.graph.output):
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()
    kept = [t for t in model.graph.initializer if t.name not in stored]
    del probe.graph.initializer[:]
    probe.graph.initializer.extend(kept)
    for t in model.graph.initializer:
        if t.name in stored:
            probe.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    return probe
