"""A graph as a comparison needs it: nodes whose attributes are digests, edges, and two hashes per node.

Exporters name nodes and tensors as they like and store them in any order, so a node is known by what
it computes. `up` is a hash of a node, its attributes and, through its inputs, of everything that it is
computed from, with a weight standing for its dtype and shape only; `down` is one of everything that is
computed from it. Two nodes with equal hashes do the same thing in the same place. `content` is `up` with
the weights' digests in it: it tells twins apart. `own` is a node with the weights that it takes itself: it
is found again in a graph that was changed all around it.

Operand order is forgotten where the operator does not care. Nothing here recurses on edges, so a chain of
a million nodes is as good as any; nodes on a cycle, which only a hostile file has, get a hash that says so.
Graphs inside attributes (the body of a Loop) and functions are reduced to one digest each, nested to a
depth of MAX_DEPTH; what is deeper counts byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ..tensors import DTYPES
from ..wire import graph_proto, protobuf
from ..wire.graph_proto import Node
from ..wire.model_proto import Weight, read_model, read_weight
from ..wire.protobuf import Field
from ..wire.tensor_proto import chunks

MAX_NODES = 200_000
MAX_DEPTH = 32
INLINE_HASHED = 16 << 20  # values of inline weights that are read for `content`
COMMUTATIVE = frozenset("Add Mul And Or Xor Equal Max Min Sum Mean BitwiseAnd BitwiseOr BitwiseXor".split())
Source = tuple[str, int, int]  # ("op", index, slot), ("in", index, 0), ("weight", index, 0), ("", 0, 0)
ABSENT: Source = ("", 0, 0)


@dataclass(slots=True)
class Op:
    """A node, the digests of its attributes, and where each of its inputs comes from.

    Behind its inputs stand the tensors that the graphs in its attributes take from outside.
    """

    node: Node
    digests: dict[str, bytes]
    inputs: list[str]
    sources: list[Source] = field(default_factory=list)
    kind: bytes = b""
    up: bytes = b""
    down: bytes = b""
    content: bytes = b""
    own: bytes = b""

    @property
    def commutes(self) -> bool:
        return self.node.op in COMMUTATIVE


@dataclass(slots=True)
class Dag:
    """A main graph. `consumers` has, by the maker of values, who takes them: (node, slot, its slot)."""

    ops: list[Op] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    results: list[Source] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=dict)
    functions: dict[str, bytes] = field(default_factory=dict)
    consumers: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    constants: set[str] = field(default_factory=set)


def _digest(*parts: bytes) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


def read_dag(data: bytes) -> Dag:
    """The main graph of a ModelProto, of at most MAX_NODES nodes. Raises protobuf.Malformed."""
    facts = read_model(data)
    dag = Dag(opsets=dict(facts.opsets), weights=facts.weights)
    known = {w.name for w in facts.weights}
    dag.inputs = [spec.name for spec in graph_proto.ports(data)[0] if spec.name not in known]
    dag.outputs = facts.outputs
    for f in protobuf.fields(data):
        if f.number == 7:
            for record in protobuf.inside(data, f):
                if record.number == 1:
                    _add(dag, data, record)
        elif f.number == 25:
            name, digest = _function(data, f)
            dag.functions[name] = digest
    _connect(dag)
    return dag


def _add(dag: Dag, data: bytes, record: Field) -> None:
    """A node; one that is a constant becomes a weight, as which another exporter would store it."""
    node = graph_proto.read_node(data, record)
    if node.op == "Constant" and len(node.outputs) == 1:
        tensor = _constant(data, record, node.outputs[0])
        if tensor is not None:
            dag.weights.append(tensor)
            dag.constants.add(tensor.name)
            return
    digests, captured = _attributes(data, record, 0)
    dag.ops.append(Op(node, digests, [*node.inputs, *captured]))


def _constant(data: bytes, record: Field, name: str) -> Weight | None:
    for f in protobuf.inside(data, record):
        if f.number == 5:
            for part in protobuf.inside(data, f):
                if part.number == 5:
                    w = read_weight(data, part)
                    place = (w.shard, w.offset, w.length, w.sha256, w.start, w.end)
                    return Weight(name, w.dtype, w.shape, *place)
    return None


# --- attributes


def _attributes(data: bytes, record: Field, depth: int) -> tuple[dict[str, bytes], list[str]]:
    """The digest of each attribute of a node by name, and the names that graphs in them take from outside."""
    found: dict[str, bytes] = {}
    captured: dict[str, None] = {}
    for f in protobuf.inside(data, record):
        if f.number == 5:
            name, digest, names = attribute(data, f, depth)
            found[name] = digest
            captured.update(dict.fromkeys(names))
    return found, list(captured)


def attribute(data: bytes, record: Field, depth: int = 0) -> tuple[str, bytes, list[str]]:
    """Name and digest of an AttributeProto, and what graphs in it take from outside."""
    name, parts, captured = "", list[bytes](), list[str]()
    for f in protobuf.inside(data, record):
        if f.number == 1:
            name = protobuf.text(data, f)
        elif f.number in (3, 8):
            value = b"".join(v.to_bytes(8, "little", signed=True) for v in protobuf.packed_varints(data, f))
            parts += [bytes([f.number]), value]
        elif f.number in (5, 10):
            parts += [b"\x05", _tensor(data, read_weight(data, f))]
        elif f.number in (6, 11):
            digest, names = _graph(data, f, depth + 1)
            parts += [b"\x06", digest]
            captured += names
        elif f.number not in (13, 20):  # documentation; the type, which the field says as well
            parts += [bytes([f.number & 0xFF]), data[f.start : f.end]]
    return name, _digest(*_joined(parts)), captured


def _joined(parts: list[bytes]) -> Iterator[bytes]:
    """Values of one kind in one piece: a list of numbers may be packed, or a record for each."""
    kind, value = b"", b""
    for tag, part in zip(parts[::2], parts[1::2], strict=True):
        if tag != kind or tag not in (b"\x07", b"\x08"):
            yield kind + value
            kind, value = tag, b""
        value += part
    yield kind + value


def _tensor(data: bytes, weight: Weight) -> bytes:
    """A digest of dtype, shape and values."""
    head = f"{weight.dtype} {list(weight.shape)}".encode()
    if weight.shard:
        return _digest(head, f"{weight.shard} {weight.offset} {weight.length}".encode())
    if weight.dtype not in DTYPES or weight.dtype == "string":
        fields = protobuf.fields(data, weight.start, weight.end)
        return _digest(head, *(data[f.start : f.end] for f in fields if f.number not in (1, 2, 8, 12)))
    return _digest(head, b"".join(chunks(data, weight)))


def _graph(data: bytes, record: Field, depth: int) -> tuple[bytes, list[str]]:
    """A digest of a graph inside another that does not depend on names, and what it takes from outside."""
    if depth > MAX_DEPTH:
        return _digest(data[record.start : record.end]), []
    inner = Dag()
    known: dict[str, bytes] = {}
    for f in protobuf.inside(data, record):
        if f.number == 1:
            node = graph_proto.read_node(data, f)
            digests, captured = _attributes(data, f, depth)
            inner.ops.append(Op(node, digests, [*node.inputs, *captured]))
        elif f.number == 5:
            weight = read_weight(data, f)
            known[weight.name] = b"value" + _tensor(data, weight)
        elif f.number in (11, 12):
            name = next((protobuf.text(data, g) for g in protobuf.inside(data, f) if g.number == 1), "")
            (inner.inputs if f.number == 11 else inner.outputs).append(name)
    return _body(inner, known)


def _function(data: bytes, record: Field) -> tuple[str, bytes]:
    inner, names = Dag(), {1: "", 10: ""}
    for f in protobuf.inside(data, record):
        if f.number in names:
            names[f.number] = protobuf.text(data, f)
        elif f.number in (4, 5):
            (inner.inputs if f.number == 4 else inner.outputs).append(protobuf.text(data, f))
        elif f.number == 7:
            node = graph_proto.read_node(data, f)
            digests, captured = _attributes(data, f, 1)
            inner.ops.append(Op(node, digests, [*node.inputs, *captured]))
    digest, _ = _body(inner, {})
    return f"{names[10]}.{names[1]}" if names[10] else names[1], digest


def _body(inner: Dag, known: dict[str, bytes]) -> tuple[bytes, list[str]]:
    """The digest of a body: its outputs' hashes, and the nodes that none of them needs."""
    _connect(inner)
    made = {name for op in inner.ops for name in op.node.outputs}
    local = {*inner.inputs, *known, *made, ""}
    reads = [name for op in inner.ops for name in op.inputs] + inner.outputs
    outside = list(dict.fromkeys(name for name in reads if name not in local))
    values = {name: f"outside {i}".encode() for i, name in enumerate(outside)} | known

    def outer(name: str) -> bytes:
        return values.get(name, b"nothing")

    kinds(inner)
    inputs = [f"in {i}".encode() for i in range(len(inner.inputs))]
    shown = hashes(inner, inputs, outer, "up", order(inner))
    return _digest(*shown, *sorted(op.up for op in inner.ops)), outside


# --- edges and hashes


def _connect(dag: Dag) -> None:
    """Fill in where inputs come from. The first that makes a name makes it."""
    places: dict[str, Source] = {}
    for i, op in enumerate(dag.ops):
        for slot, name in enumerate(op.node.outputs):
            places.setdefault(name, ("op", i, slot))
    places |= {name: ("in", i, 0) for i, name in enumerate(dag.inputs)}
    places |= {weight.name: ("weight", i, 0) for i, weight in enumerate(dag.weights)}
    places.pop("", None)
    for i, op in enumerate(dag.ops):
        op.sources = [places.get(name, ABSENT) for name in op.inputs]
        for slot, (kind, index, out) in enumerate(op.sources):
            if kind == "op":
                dag.consumers.setdefault(index, []).append((i, out, slot))
    dag.results = [places.get(name, ABSENT) for name in dag.outputs]


def order(dag: Dag) -> list[int]:
    """The nodes, each behind those that it takes values from; nodes on cycles are left out."""
    waiting = [sum(kind == "op" for kind, _, _ in op.sources) for op in dag.ops]
    ready = [i for i, n in enumerate(waiting) if n == 0]
    done: list[int] = []
    while ready:
        i = ready.pop()
        done.append(i)
        for consumer, _, _ in dag.consumers.get(i, ()):
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                ready.append(consumer)
    return done


def hashes(
    dag: Dag, inputs: Sequence[bytes], weight: Callable[[str], bytes], slot: str, along: Sequence[int]
) -> list[bytes]:
    """Fill in `up`, or `content`, along the graph's order, and return what its outputs are.

    `inputs` stand for the graph's inputs, `weight(name)` for its weights.
    """

    def value(source: Source, name: str) -> bytes:
        kind, index, out = source
        if kind == "op":
            own: bytes = getattr(dag.ops[index], slot)
            return own + out.to_bytes(4, "little")
        return inputs[index] if kind == "in" else weight(name)

    for op in dag.ops:
        setattr(op, slot, b"cycle")
    for i in along:
        op = dag.ops[i]
        taken = [value(source, name) for source, name in zip(op.sources, op.inputs, strict=True)]
        setattr(op, slot, _digest(op.kind, *(sorted(taken) if op.commutes else taken)))
    return [value(source, name) for source, name in zip(dag.results, dag.outputs, strict=True)]


def kinds(dag: Dag) -> None:
    """Fill in `kind`: operator, attributes and number of outputs."""
    for op in dag.ops:
        attributes = (part for name in sorted(op.digests) for part in (name.encode(), op.digests[name]))
        op.kind = _digest(op.node.op.encode(), str(len(op.node.outputs)).encode(), *attributes)


def downward(dag: Dag, outputs: Sequence[bytes], along: Sequence[int]) -> None:
    """Fill in `down`: `outputs` stand for the graph's outputs, `along` is its order."""
    results: dict[int, list[bytes]] = {}
    for (kind, index, out), name in zip(dag.results, outputs, strict=True):
        if kind == "op":
            results.setdefault(index, []).append(name + out.to_bytes(4, "little"))
    for op in dag.ops:
        op.down = b"cycle"
    for i in reversed(along):
        op = dag.ops[i]
        uses = results.get(i, [])
        for consumer, out, slot in dag.consumers.get(i, ()):
            other = dag.ops[consumer]
            place = -1 if other.commutes else slot
            uses.append(other.down + out.to_bytes(4, "little") + place.to_bytes(4, "little", signed=True))
        op.down = _digest(op.kind, *sorted(uses))


def weight_content(data: bytes, dag: Dag) -> Callable[[str], bytes]:
    """What stands for a weight in `content`: its recorded digest, or that of its values if it is inline."""
    found: dict[str, bytes] = {}
    budget = INLINE_HASHED
    for weight in dag.weights:
        digest, readable = weight.sha256, weight.dtype in DTYPES and weight.dtype != "string"
        if not digest and not weight.shard and readable and weight.length <= budget:
            budget -= weight.length
            digest = hashlib.sha256(b"".join(chunks(data, weight))).hexdigest()
        found[weight.name] = f"{weight.dtype} {list(weight.shape)} {digest}".encode()
    return lambda name: found.get(name, b"nothing")


def own_content(dag: Dag, weight: Callable[[str], bytes]) -> None:
    """Fill in `own` for nodes that take weights."""
    for op in dag.ops:
        both = zip(op.sources, op.inputs, strict=True)
        taken = [weight(name) for (kind, _, _), name in both if kind == "weight"]
        op.own = _digest(op.kind, *taken) if taken else b""


def weight_kind(dag: Dag) -> Callable[[str], bytes]:
    """What stands for a weight in `up`: its dtype and shape."""
    found = {w.name: f"weight {w.dtype} {list(w.shape)}".encode() for w in dag.weights}
    return lambda name: found.get(name, b"nothing")


def too_large(data: bytes, limit: int = MAX_NODES) -> int:
    """How many nodes the main graph has, if that is more than `limit`; 0 otherwise. Raises Malformed."""
    count = 0
    for f in (g for g in protobuf.fields(data) if g.number == 7):
        for record in protobuf.inside(data, f):
            count += record.number == 1
    return count if count > limit else 0
