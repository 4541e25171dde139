"""What `mserve inspect` says of a graph, its ports and its tensors, whatever file they lie in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import BundleIncomplete
from ..tensors import DTYPES, show_shape
from . import _output

if TYPE_CHECKING:
    from ..wire.graph_proto import Node, Subgraph
    from ..wire.model_proto import Graph, Weight

PORT_COLUMNS = ("signature", "side", "name", "dtype", "shape", "tensor")
TENSOR_COLUMNS = ("weight", "dtype", "shape", "size", "shard", "min", "max", "mean", "nan")
SHOWN_OPERATORS = 8


def graph(facts: Graph) -> dict[str, Any]:
    """The facts about an ONNX graph, as `--json` prints them."""
    return {
        "nodes": facts.nodes,
        "parameters": facts.parameters,
        "weights": len(facts.weights),
        "opsets": facts.opsets,
        "operators": dict(facts.operators.most_common()),
        "functions": facts.functions,
        "producer": facts.producer,
        "ir_version": facts.ir_version,
        "metadata": facts.metadata,
    }


def operators(counts: Mapping[str, int]) -> str:
    """`12: Gemm x2, Relu x1, and 3 more`: the number of nodes, and the commonest operators."""
    common = Counter(counts).most_common(SHOWN_OPERATORS)
    more = len(counts) - len(common)
    names = ", ".join(f"{name} x{count}" for name, count in common)
    return f"{sum(counts.values())}: {names}" + (f", and {more} more" if more > 0 else "")


def opsets(versions: Mapping[str, int]) -> str:
    """`ai.onnx 21, ai.onnx.ml 3`."""
    return ", ".join(f"{domain} {version}" for domain, version in versions.items())


def port_rows(label: str, signature: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """The rows of PORT_COLUMNS for one signature in its `--json` form."""
    rows: list[tuple[object, ...]] = []
    for side in ("inputs", "outputs", "tensors"):
        for alias, spec in signature.get(side, {}).items():
            kind = "" if spec.get("kind", "dense") == "dense" else f" {spec['kind']}"
            tensors = spec["tensor"] if isinstance(spec["tensor"], dict) else {}
            tensor = ", ".join(spec.get("parts") or tensors.values()) or spec["tensor"]
            shape = show_shape(spec["shape"]) + _padded(spec.get("pad"))
            rows.append((label, side[:-1], alias, spec["dtype"] + kind, shape, tensor))
    return rows


def _padded(pad: Mapping[str, Any] | None) -> str:
    return f", axis {pad['axis']} padded to {', '.join(map(str, pad['buckets']))}" if pad else ""


def weight(one: Weight, chunks: Callable[[], Iterable[bytes]]) -> dict[str, Any]:
    """A weight of an ONNX graph with its statistics, as `--json` prints it."""
    return {
        "name": one.name,
        "dtype": one.dtype,
        "shape": list(one.shape),
        "bytes": one.length,
        "shard": one.shard or None,
        "statistics": statistics(one.dtype, one.shape, chunks),
    }


def statistics(
    dtype: str, shape: tuple[int, ...], chunks: Callable[[], Iterable[bytes]]
) -> dict[str, Any] | None:
    """Count, min, max, mean and NaNs of a tensor; only the count of strings.

    None for dtypes whose values cannot be read, and where the file that holds them is
    missing, which is reported as a problem of the whole. Numbers that JSON does not know
    are text: "inf", "-inf", "nan".
    """
    from ..numerics import tally

    elements = math.prod(shape)
    if dtype == "string":
        return {"count": elements}
    if dtype not in DTYPES:
        return None
    try:
        found = tally(dtype, elements, chunks())
    except BundleIncomplete:
        return None
    numbers = {"min": found.minimum, "max": found.maximum, "mean": found.mean}
    plain = {k: v if v is None or math.isfinite(v) else str(v) for k, v in numbers.items()}
    return {"count": found.count, **plain, "nan": found.nan}


def tensor_rows(tensors: Iterable[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    """The rows of TENSOR_COLUMNS for weights or variables in their `--json` form."""
    return [
        (
            t["name"],
            t["dtype"],
            show_shape(t["shape"]),
            _output.size(t["bytes"]),
            t["shard"] or "inline",
            *(_number((t["statistics"] or {}).get(key)) for key in ("min", "max", "mean", "nan")),
        )
        for t in tensors
    ]


def _number(value: float | str | None) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def nodes(found: Iterable[Node], functions: Iterable[Subgraph]) -> dict[str, Any]:
    """The nodes and functions of an ONNX graph, as `--json` prints them."""
    listed = [
        {
            "name": node.name,
            "op": node.op,
            "inputs": list(node.inputs),
            "outputs": list(node.outputs),
            "attributes": node.attributes,
            "subgraphs": [subgraph(one) for one in node.subgraphs],
        }
        for node in found
    ]
    return {"nodes": listed, "functions": [subgraph(one) for one in functions]}


def subgraph(one: Subgraph) -> dict[str, Any]:
    """A folded graph, as `--json` prints it."""
    return {"name": one.name, "nodes": one.nodes}


def show_nodes(facts: Mapping[str, Any]) -> None:
    """`name = Op(inputs) attributes -> outputs`, a line for each node; graphs inside it are one line each."""
    for node in facts["nodes"]:
        name = f"{node['name']} = " if node["name"] else ""
        attributes = "".join(f" {key}={value}" for key, value in node["attributes"].items())
        outputs = ", ".join(node["outputs"])
        text = f"{name}{node['op']}({', '.join(node['inputs'])}){attributes} -> {outputs}"
        _output.line(_output.printable(text))
        for one in node["subgraphs"]:
            _output.line(_output.printable(f"    graph {one['name']}: {one['nodes']} nodes"))
    for one in facts["functions"]:
        _output.line(_output.printable(f"function {one['name']}: {one['nodes']} nodes"))
