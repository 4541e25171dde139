"""Operators of a converted graph that no ONNX runtime knows, all of them at once.

Some converters leave what they cannot translate in the graph and succeed; the engine
then names one unknown operator at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import onnx

# onnx.defs has no list of ONNX Runtime's own operators: the engine itself looks at these.
_ENGINE = ("com.microsoft",)


def check_operators(model: onnx.ModelProto, what: str, where: object) -> None:
    """Raise InputError naming every operator that is not ONNX's."""
    if unknown := sorted(set(_unknown(model))):
        raise InputError(
            f"{what} uses operators that ONNX does not have",
            where=where,
            expected="ONNX operators only",
            found=", ".join(unknown),
            hint="take these steps out of the model (before or after it, in the client), or write "
            "them with other layers, and convert again",
        )


def _unknown(model: onnx.ModelProto) -> Iterator[str]:
    import onnx.defs

    versions = {_plain(o.domain): o.version for o in model.opset_import}
    local = {(_plain(f.domain), f.name) for f in model.functions}
    for node in _nodes(model):
        domain = _plain(node.domain)
        if (domain, node.op_type) in local or domain in _ENGINE:
            continue
        if not onnx.defs.has(node.op_type, versions.get(domain, 0), domain):
            yield f"{domain}.{node.op_type}" if domain else node.op_type


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of functions and of subgraphs too."""
    pending = [*model.graph.node, *(node for f in model.functions for node in f.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            pending += [*attribute.g.node, *(n for graph in attribute.graphs for n in graph.node)]
