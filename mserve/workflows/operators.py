"""Operators: what a graph is made of, bodies of loops and functions included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

ONNX = "ai.onnx"


@dataclass(frozen=True, slots=True)
class Operators:
    """How many nodes there are of each operator, and the versions of operator sets, by domain."""

    nodes: Counter[tuple[str, str]]
    opsets: dict[str, int]

    def domains(self) -> set[str]:
        """Those that are used, not those that are only imported."""
        return {domain for domain, _ in self.nodes}


def operators(data: bytes) -> Operators:
    """Those of a serialised ModelProto, which was opened before."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    own = {(f.domain or ONNX, f.name) for f in model.functions}
    nodes = Counter((node.domain or ONNX, node.op_type) for node in _nodes(model))
    for name in own:
        nodes.pop(name, None)
    return Operators(nodes, {o.domain or ONNX: o.version for o in model.opset_import})


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    waiting = [*model.graph.node, *(node for f in model.functions for node in f.node)]
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            waiting += attribute.g.node
            waiting += [inner for graph in attribute.graphs for inner in graph.node]


def operator(domain: str, name: str) -> str:
    """An operator as a policy names it: Gemm, com.microsoft.FusedGemm."""
    return name if domain == ONNX else f"{domain}.{name}"
