"""A bare ONNX file: its graph, ports and weights, and the values of those.

Source: https://github.com/onnx/onnx/blob/main/docs/IR.md, and docs/ExternalData.md beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleIncomplete, InputError
from ..tensors import DTYPES, TensorSpec
from ..wire import graph_proto, protobuf, tensor_proto
from ..wire.graph_proto import Node, Subgraph
from ..wire.model_proto import Graph, Weight, read_model
from . import files


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An open ONNX file. `inputs` are those that are not weights; `external` the sizes of the files
    that weights lie in, None for absent ones; `problems` what keeps it from being complete."""

    path: Path
    data: bytes
    graph: Graph
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    external: dict[str, int | None]
    problems: tuple[BundleIncomplete, ...]


def open_onnx(path: Path) -> OnnxFile:
    """Read what an ONNX file says; the values of its weights are not read.

    Absent and short external files are `problems` of the result. Raises InputError when the
    file is corrupt, UnsafePath when weights lie outside of its directory.
    """
    data = files.read_message(path)
    with files.reading("the ONNX file", path):
        graph = read_model(data)
        inputs, outputs = graph_proto.ports(data)
        if any(size < 0 for weight in graph.weights for size in weight.shape):
            raise protobuf.Malformed("a weight of a negative size", 0)
    ends: dict[str, int] = {}
    for weight in graph.weights:
        if weight.shard:
            files.safe_relative(weight.shard, f"{path}: {weight.name}")
            ends[weight.shard] = max(ends.get(weight.shard, 0), weight.offset + weight.length)
    external = {name: files.size_of(path.parent / name) for name in sorted(ends)}
    problems = tuple(
        BundleIncomplete(
            "a file of weights is missing or too short",
            where=path.parent / name,
            expected=f"{ends[name]} bytes",
            found="nothing" if size is None else f"{size} bytes",
            hint="copy the data file beside the .onnx file",
        )
        for name, size in external.items()
        if (size or 0) < ends[name] or size is None
    )
    names = {weight.name for weight in graph.weights}
    kept = tuple(spec for spec in inputs if spec.name not in names)
    return OnnxFile(path, data, graph, kept, tuple(outputs), external, problems)


def nodes(model: OnnxFile) -> tuple[list[Node], list[Subgraph]]:
    """The nodes of the main graph, and the functions. Raises InputError at bytes that make no sense."""
    with files.reading("the ONNX file", model.path):
        return list(graph_proto.nodes(model.data)), list(graph_proto.functions(model.data))


def chunks(model: OnnxFile, weight: Weight) -> Iterator[bytes]:
    """The little-endian bytes of a weight of a known dtype that is not string, in pieces.

    Raises BundleIncomplete for an absent or short file, InputError when the bytes do not fit the shape.
    """
    size = DTYPES[weight.dtype].byte_size(weight.elements)
    if not weight.shard:
        with files.reading("a weight", model.path):
            yield from tensor_proto.chunks(model.data, weight)
    elif weight.length == size:
        yield from files.pieces(model.path.parent / weight.shard, weight.offset, size)
    else:
        raise InputError(
            "a weight has the wrong number of bytes",
            where=f"{model.path}: {weight.name}",
            expected=f"{size} bytes for {weight.dtype} {list(weight.shape)}",
            found=f"{weight.length} bytes",
        )
