"""Facts about an ONNX model, read from its bytes without importing onnx.

Only one level is walked: operators, inputs, outputs and initializers of the main graph.
Subgraphs and functions are counted and passed over.

Field numbers: onnx/onnx.proto3, https://github.com/onnx/onnx.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from ..tensors import BY_ONNX
from . import protobuf

METADATA_PROPS = 14
EXTERNAL = 1
DIGEST_KEY = "sha256"


@dataclass(frozen=True, slots=True)
class Weight:
    """One initializer: dtype is a key of DTYPES, or "onnx:N" for a type mserve does not know.

    `shard`, `offset` and `length` say where an external tensor's bytes lie; an inline
    tensor has shard "" and its bytes inside its TensorProto. That message is bytes `start`
    to `end` of the model.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    offset: int
    length: int
    sha256: str
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(slots=True)
class Graph:
    """What a ModelProto says of its main graph."""

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    weights: list[Weight] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    functions: int = 0
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of values in all initializers."""
        return sum(w.elements for w in self.weights)

    @property
    def nodes(self) -> int:
        """Number of operators in the main graph."""
        return self.operators.total()


def read_model(data: bytes) -> Graph:
    """Walk a serialised ModelProto. Raises protobuf.Malformed at bytes that make no sense."""
    graph = Graph()
    producer = {2: "", 3: ""}
    for f in protobuf.fields(data):
        if f.number == 1:
            graph.ir_version = protobuf.integer(f)
        elif f.number in producer:
            producer[f.number] = protobuf.text(data, f)
        elif f.number == 7:
            _read_main(data, f, graph)
        elif f.number == 8:
            domain, version = _opset(data, f)
            graph.opsets[domain or "ai.onnx"] = version
        elif f.number == METADATA_PROPS:
            key, value = read_prop(data, f)
            if not key.startswith("mserve."):
                graph.metadata[key] = value
        elif f.number == 25:
            graph.functions += 1
    graph.producer = " ".join(p for p in producer.values() if p)
    return graph


def _opset(data: bytes, record: protobuf.Field) -> tuple[str, int]:
    domain, version = "", 0
    for f in protobuf.inside(data, record):
        if f.number == 1:
            domain = protobuf.text(data, f)
        elif f.number == 2:
            version = protobuf.integer(f)
    return domain, version


def _read_main(data: bytes, record: protobuf.Field, graph: Graph) -> None:
    for f in protobuf.inside(data, record):
        if f.number == 1:
            graph.operators[_operator(data, f)] += 1
        elif f.number == 5:
            graph.weights.append(read_weight(data, f))
        elif f.number == 11:
            graph.inputs.append(_value_name(data, f))
        elif f.number == 12:
            graph.outputs.append(_value_name(data, f))


def _value_name(data: bytes, record: protobuf.Field) -> str:
    name = ""
    for f in protobuf.inside(data, record):
        if f.number == 1:
            name = protobuf.text(data, f)
    return name


def _operator(data: bytes, record: protobuf.Field) -> str:
    op = domain = ""
    for f in protobuf.inside(data, record):
        if f.number == 4:
            op = protobuf.text(data, f)
        elif f.number == 7:
            domain = protobuf.text(data, f)
    return f"{domain}.{op}" if domain and domain != "ai.onnx" else op


def read_weight(data: bytes, record: protobuf.Field) -> Weight:
    """One TensorProto, without its values. Raises protobuf.Malformed."""
    name, dtype, location, shape = "", 0, 0, list[int]()
    external: dict[str, str] = {}
    sha256, inline = "", 0
    for f in protobuf.inside(data, record):
        if f.number == 1:
            shape += protobuf.packed_varints(data, f)
        elif f.number == 2:
            dtype = protobuf.integer(f)
        elif f.number == 8:
            name = protobuf.text(data, f)
        elif f.number in (4, 5, 6, 7, 9, 10, 11):
            inline += f.end - f.start
        elif f.number == 13:
            key, value = read_prop(data, f)
            if key in external:
                raise protobuf.Malformed(f"external {key[:32]!r} stands twice", record.record_start)
            external[key] = value
        elif f.number == 14:
            location = protobuf.integer(f)
            if location not in (0, EXTERNAL):
                raise protobuf.Malformed(f"data location {location}", f.record_start)
        elif f.number == 16:
            key, value = read_prop(data, f)
            sha256 = value if key == DIGEST_KEY else sha256
    shard, offset, length = "", 0, inline
    if location == EXTERNAL:
        shard, offset = external.get("location", ""), _number(external, "offset", record)
        length = _number(external, "length", record)
        if not shard:
            raise protobuf.Malformed(f"tensor {name!r} names no file", record.record_start)
    known = BY_ONNX.get(dtype)
    kind = known.name if known else f"onnx:{dtype}"
    place = (record.start, record.end)
    return Weight(name, kind, tuple(shape), shard, offset, length, sha256, *place)


def _number(external: dict[str, str], key: str, record: protobuf.Field) -> int:
    text = external.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise protobuf.Malformed(f"external {key} {text[:32]!r} is not a number", record.record_start)
    return int(text)


def read_prop(data: bytes | memoryview, record: protobuf.Field) -> tuple[str, str]:
    """Key and value of one StringStringEntryProto. Raises protobuf.Malformed."""
    parts = {1: "", 2: ""}
    for f in protobuf.inside(data, record):
        if f.number in parts:
            parts[f.number] = protobuf.text(data, f)
    return parts[1], parts[2]
