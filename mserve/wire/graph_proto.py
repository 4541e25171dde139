"""The nodes and ports of an ONNX graph, one after the other, read without importing onnx.

Subgraphs and functions are folded: their nodes are counted, not entered.

Field numbers: onnx/onnx.proto3, https://github.com/onnx/onnx.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ..tensors import ANY_DIM, BY_ONNX, Dim, Shape, TensorSpec, show_shape
from . import protobuf
from .protobuf import BYTES, FIXED32, VARINT, Field, Malformed

MAX_RANK = 254
SHOWN_VALUES = 6
SHOWN_CHARACTERS = 40
_TYPE_ATTRIBUTES = ("to", "dtype")


@dataclass(frozen=True, slots=True)
class Subgraph:
    """A graph that is an attribute of a node, or the body of a function."""

    name: str
    nodes: int


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of a graph. Attributes are short texts by name; an input that is left out is ""."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, str]
    subgraphs: tuple[Subgraph, ...]


def nodes(data: bytes) -> Iterator[Node]:
    """The nodes of the main graph of a ModelProto, in stored order. Raises protobuf.Malformed."""
    for graph in (f for f in protobuf.fields(data) if f.number == 7):
        yield from (read_node(data, f) for f in protobuf.inside(data, graph) if f.number == 1)


def functions(data: bytes) -> Iterator[Subgraph]:
    """The functions of a ModelProto. Raises protobuf.Malformed."""
    for record in (f for f in protobuf.fields(data) if f.number == 25):
        name = domain = ""
        count = 0
        for f in protobuf.inside(data, record):
            if f.number == 1:
                name = protobuf.text(data, f)
            elif f.number == 10:
                domain = protobuf.text(data, f)
            elif f.number == 7:
                count += 1
        yield Subgraph(f"{domain}.{name}" if domain else name, count)


def ports(data: bytes) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of the main graph, weights among them where a model lists them so.

    The dtype of a port that is not a tensor is what it is: "sequence", "map", "optional".
    Raises protobuf.Malformed.
    """
    sides: dict[int, list[TensorSpec]] = {11: [], 12: []}
    for graph in (f for f in protobuf.fields(data) if f.number == 7):
        for f in protobuf.inside(data, graph):
            if f.number in sides:
                sides[f.number].append(_port(data, f))
    return sides[11], sides[12]


_KINDS = {1: "tensor", 4: "sequence", 5: "map", 8: "sparse_tensor", 9: "optional"}


def _port(data: bytes, record: Field) -> TensorSpec:
    name, dtype, shape = "", "?", None
    for f in protobuf.inside(data, record):
        if f.number == 1:
            name = protobuf.text(data, f)
        elif f.number == 2:
            for kind in protobuf.inside(data, f):
                if kind.number in _KINDS:
                    dtype = _KINDS[kind.number]
                if kind.number == 1:
                    dtype, shape = _tensor_type(data, kind)
    return TensorSpec(name, dtype, shape)


def _tensor_type(data: bytes, record: Field) -> tuple[str, Shape]:
    dtype, shape = "?", None
    for f in protobuf.inside(data, record):
        if f.number == 1:
            dtype = type_name(protobuf.integer(f))
        elif f.number == 2:
            dims = tuple(_dim(data, dim) for dim in protobuf.inside(data, f) if dim.number == 1)
            if len(dims) > MAX_RANK:
                raise Malformed(f"a shape of {len(dims)} axes", f.record_start)
            shape = dims
    return dtype, shape


def _dim(data: bytes, record: Field) -> Dim:
    dim: Dim = ANY_DIM
    for f in protobuf.inside(data, record):
        if f.number == 1:
            size = protobuf.signed(protobuf.integer(f))
            dim = size if size >= 0 else ANY_DIM
        elif f.number == 2:
            dim = protobuf.text(data, f) or ANY_DIM
    return dim


def type_name(number: int) -> str:
    """Our name of an ONNX element type, or "onnx:N" for one that mserve does not know."""
    known = BY_ONNX.get(number)
    return known.name if known else f"onnx:{number}"


def read_node(data: bytes, record: Field) -> Node:
    """One NodeProto. Raises protobuf.Malformed."""
    texts = {3: "", 4: "", 7: ""}
    names: dict[int, list[str]] = {1: [], 2: []}
    attributes: dict[str, str] = {}
    subgraphs: list[Subgraph] = []
    for f in protobuf.inside(data, record):
        if f.number in names:
            names[f.number].append(protobuf.text(data, f))
        elif f.number in texts:
            texts[f.number] = protobuf.text(data, f)
        elif f.number == 5:
            name, value, inner = _attribute(data, f)
            subgraphs += [Subgraph(f"{name}: {one.name}", one.nodes) for one in inner]
            if not inner:
                attributes[name] = value
    name, op, domain = texts.values()
    op = f"{domain}.{op}" if domain and domain != "ai.onnx" else op
    return Node(name, op, tuple(names[1]), tuple(names[2]), attributes, tuple(subgraphs))


def _attribute(data: bytes, record: Field) -> tuple[str, str, list[Subgraph]]:
    """Name, short value and subgraphs of an AttributeProto."""
    name = ""
    values: list[str] = []
    subgraphs: list[Subgraph] = []
    several = False
    for f in protobuf.inside(data, record):
        if f.number == 1:
            name = protobuf.text(data, f)
        elif f.number == 21:
            values.append(f"@{protobuf.text(data, f)}")  # the attribute of the function around it
        elif f.number in (6, 11):
            subgraphs.append(_subgraph(data, f))
        else:
            several = several or f.number in (7, 8, 9, 10)
            values += _values(data, f)
    if name in _TYPE_ATTRIBUTES and len(values) == 1 and values[0].isdigit():
        values = [type_name(int(values[0]))]
    shown = ", ".join(values[:SHOWN_VALUES])
    if several:
        shown = f"[{shown}{f', ... {len(values)} values' if len(values) > SHOWN_VALUES else ''}]"
    return name, shown, subgraphs


def _values(data: bytes, f: Field) -> list[str]:
    """One field of an attribute as text; nothing for fields that hold no value."""
    if f.number in (2, 7):
        payload = data[f.start : f.end]
        if f.wire_type not in (BYTES, FIXED32) or len(payload) % 4:
            raise Malformed("an attribute of floats that holds none", f.record_start)
        return [f"{x:g}" for (x,) in struct.iter_unpack("<f", payload)]
    if f.number in (3, 8):
        if f.number == 3 and f.wire_type != VARINT:
            raise Malformed("an attribute of an integer that holds none", f.record_start)
        return [str(x) for x in protobuf.packed_varints(data, f)]
    if f.number in (4, 9):
        word = bytes(protobuf.payload(data, f)).decode(errors="replace")
        return [repr(word if len(word) <= SHOWN_CHARACTERS else word[: SHOWN_CHARACTERS - 3] + "...")]
    if f.number in (5, 10):
        return [_tensor(data, f)]
    return [f"<{kind}>" for number, kind in _OTHER_KINDS.items() if number == f.number]


_OTHER_KINDS = {14: "type", 15: "type", 22: "sparse tensor", 23: "sparse tensor"}


def _tensor(data: bytes, record: Field) -> str:
    """A TensorProto as its dtype and shape."""
    dims: list[int] = []
    dtype = 0
    for f in protobuf.inside(data, record):
        if f.number == 1:
            dims += protobuf.packed_varints(data, f)
        elif f.number == 2:
            dtype = protobuf.integer(f)
    return f"<{type_name(dtype)} {show_shape(tuple(dims[:MAX_RANK]))}>"


def _subgraph(data: bytes, record: Field) -> Subgraph:
    name, count = "", 0
    for f in protobuf.inside(data, record):
        if f.number == 1:
            count += 1
        elif f.number == 2:
            name = protobuf.text(data, f)
    return Subgraph(name, count)
