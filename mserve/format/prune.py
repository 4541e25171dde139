"""The part of a graph that some outputs need, cut out of the stored bytes.

ONNX Runtime computes every output of a graph, fetched or not. So signatures whose
outputs have different ancestors get sessions of their own, each over its part of the
graph; the weights lie in the shards, which all of them share.

Records of the protobuf message are kept or left out whole; nothing is parsed into
objects and nothing is serialised again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..wire import protobuf

GRAPH = 7
NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO, ANNOTATION = 1, 5, 11, 12, 13, 14
ATTRIBUTE, ATTRIBUTE_TEXT, SUBGRAPH, SUBGRAPHS = 5, 4, 6, 11
NAME = {INITIALIZER: 8, INPUT: 1, OUTPUT: 1, VALUE_INFO: 1, ANNOTATION: 1}


@dataclass(slots=True)
class _Node:
    """A node's operator and tensors; `captured` is what its subgraphs take from outside."""

    operator: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    captured: set[str] = field(default_factory=set)


class Parts:
    """A stored ModelProto, ready to be cut. Raises protobuf.Malformed."""

    def __init__(self, model: bytes) -> None:
        self._model = model
        found = [f for f in protobuf.fields(model) if f.number == GRAPH]
        if len(found) != 1:
            raise protobuf.Malformed(f"{len(found)} graphs", 0)
        self._graph = found[0]
        self._records = list(protobuf.inside(model, self._graph))
        self._nodes = {r.record_start: _node(model, r) for r in self._records if r.number == NODE}
        self._producer = {name: at for at, node in self._nodes.items() for name in node.outputs}
        self.inputs = [self._name(r) for r in self._records if r.number == INPUT]

    def ancestors(self, outputs: Iterable[str]) -> tuple[frozenset[int], frozenset[str]]:
        """The nodes that outputs need (by position in the file), and the names these refer to."""
        names, nodes = set[str](), set[int]()
        pending = list(outputs)
        while pending:
            name = pending.pop()
            if name in names:
                continue
            names.add(name)
            at = self._producer.get(name)
            if at is not None and at not in nodes:
                nodes.add(at)
                node = self._nodes[at]
                pending += [*filter(None, node.inputs), *node.captured]
        for at in nodes:
            names.update(self._nodes[at].outputs)
        return frozenset(nodes), frozenset(names)

    def read(self) -> set[str]:
        """Every name that a node, a subgraph or an output of the graph reads."""
        names = {self._name(r) for r in self._records if r.number == OUTPUT}
        for node in self._nodes.values():
            names.update(node.inputs, node.captured)
        return names

    def tables(self) -> set[str]:
        """Weights that nothing but Gather reads: a run touches a few of their rows and no more."""
        gathered, otherwise = set[str](), set[str]()
        for node in self._nodes.values():
            table = node.inputs[:1] if node.operator == "Gather" else []
            gathered.update(table)
            otherwise.update(node.inputs[len(table) :], node.captured)
        weights = {self._name(r) for r in self._records if r.number == INITIALIZER}
        return (weights & gathered) - otherwise

    def accumulates(self) -> bool:
        """Whether a node adds (or multiplies) into places by ScatterND."""
        nodes = (r for r in self._records if r.number == NODE)
        return any(self._nodes[r.record_start].operator == "ScatterND" and self._reduces(r) for r in nodes)

    def _reduces(self, node: protobuf.Field) -> bool:
        """Whether a node's attribute `reduction` says more than "none"."""
        for attribute in (f for f in protobuf.inside(self._model, node) if f.number == ATTRIBUTE):
            if _strings(self._model, attribute, 1) == ["reduction"]:
                return _strings(self._model, attribute, ATTRIBUTE_TEXT) != ["none"]
        return False

    def cut(self, outputs: Collection[str]) -> bytes:
        """A ModelProto that computes `outputs` and nothing else; the stored one if that is all of it."""
        nodes, names = self.ancestors(outputs)
        kept = [r for r in self._records if self._is_kept(r, nodes, names, outputs)]
        if len(kept) == len(self._records):
            return self._model
        return self._with_graph(b"".join(self._model[r.record_start : r.end] for r in kept))

    def exposing(self, tensors: Sequence[str], *, shapes: bool = False) -> bytes:
        """A ModelProto whose outputs are these tensors, made anywhere in the main graph; or their shapes,
        in which case each is called as `shape_of` says.
        """
        nodes, names = self.ancestors(tensors)
        kept = [r for r in self._records if self._is_kept(r, nodes, names, () if shapes else tensors)]
        known = {self._name(r) for r in kept if r.number == OUTPUT}
        added = b""
        for name in tensors:
            if shapes:
                parts = ((1, name), (2, shape_of(name)), (4, "Shape"))
                node = b"".join(protobuf.encode_bytes(number, text.encode()) for number, text in parts)
                added += protobuf.encode_bytes(NODE, node)
            if name not in known:
                shown = shape_of(name) if shapes else name
                added += protobuf.encode_bytes(OUTPUT, protobuf.encode_bytes(1, shown.encode()))
        return self._with_graph(b"".join(self._model[r.record_start : r.end] for r in kept) + added)

    def _with_graph(self, graph: bytes) -> bytes:
        before, after = self._model[: self._graph.record_start], self._model[self._graph.end :]
        return before + protobuf.encode_bytes(GRAPH, graph) + after

    def _is_kept(
        self, record: protobuf.Field, nodes: Collection[int], names: Collection[str], outputs: Collection[str]
    ) -> bool:
        if record.number == NODE:
            return record.record_start in nodes
        if record.number == OUTPUT:
            return self._name(record) in outputs
        return record.number not in NAME or self._name(record) in names

    def _name(self, record: protobuf.Field) -> str:
        return _strings(self._model, record, NAME[record.number])[-1]


def shape_of(tensor: str) -> str:
    """What the shape of a tensor is called among the outputs of `Parts.exposing`."""
    return f"mserve.shape:{tensor}"


def _strings(model: bytes, record: protobuf.Field, number: int) -> list[str]:
    return [protobuf.text(model, f) for f in protobuf.inside(model, record) if f.number == number] or [""]


def _node(model: bytes, record: protobuf.Field) -> _Node:
    node = _Node()
    for f in protobuf.inside(model, record):
        if f.number == 1:
            node.inputs.append(protobuf.text(model, f))
        elif f.number == 2:
            node.outputs.append(protobuf.text(model, f))
        elif f.number == 4:
            node.operator = protobuf.text(model, f)
        elif f.number == ATTRIBUTE:
            node.captured.update(_captured(model, f))
    return node


def _captured(model: bytes, attribute: protobuf.Field) -> Iterator[str]:
    """Every name that the subgraphs of an attribute refer to; names are unique, so none is meant twice."""
    graphs = [f for f in protobuf.inside(model, attribute) if f.number in (SUBGRAPH, SUBGRAPHS)]
    while graphs:
        for f in protobuf.inside(model, graphs.pop()):
            if f.number == OUTPUT:
                yield from _strings(model, f, 1)
            elif f.number == NODE:
                for part in protobuf.inside(model, f):
                    if part.number == 1:
                        yield protobuf.text(model, part)
                    elif part.number == ATTRIBUTE:
                        inner = protobuf.inside(model, part)
                        graphs += [g for g in inner if g.number in (SUBGRAPH, SUBGRAPHS)]
