"""Operators on text that the converter leaves in the ONNX graph, written with ONNX Runtime's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..build import ML, ML_OPSET, Graph
from .farmhash import buckets
from .utf8_bytes import MICROSOFT

if TYPE_CHECKING:
    import onnx

HASH = "StringToHashBucketFast"


def write_hashes(model: onnx.ModelProto) -> None:
    """Put FarmHash in the place of each operator that needs it; the model is changed."""
    from onnx import helper

    graph = model.graph
    nodes = list(graph.node)
    if not any(node.op_type == HASH for node in nodes):
        return
    del graph.node[:]
    for number, node in enumerate(nodes):
        if node.op_type != HASH:
            graph.node.append(node)
            continue
        count = next(a.i for a in node.attribute if a.name == "num_buckets")
        made = Graph(f"hash_{number}_")
        buckets(made, node.input[0], count, name=node.output[0])
        inner = made.inner("", [], [])
        graph.node.extend(inner.node)
        graph.initializer.extend(inner.initializer)
    known = {entry.domain for entry in model.opset_import}
    for domain, version in ((ML, ML_OPSET), (MICROSOFT, 1)):
        if domain not in known:
            model.opset_import.append(helper.make_opsetid(domain, version))
