"""The graph level: what of the computation changed, whatever its parts are called.

Two graphs are equal when their outputs' hashes are (see `dag`): names, order and where a constant is
stored do not count, nor does an attribute that says what the operator does anyway. Otherwise nodes are
matched (see `matching`), and what is left over is shown in connected pieces, each as a patch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import InputError, UsageError
from ..wire import protobuf
from . import dag as dags
from .change import GRAPH, Change, Level
from .dag import Dag, Op, Source
from .matching import Match, match, slots
from .model import Model, Tensor, constant
from .signature import Pair

MAX_PATCH_LINES = 60
MAX_PATCHES = 100
SHOWN_TEXT = 200
Tensors = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Compared:
    """The level, the weights that stand in the same place (OLD's name to NEW's), and both sides' weights,
    the values of Constant nodes among them: another exporter stores them as weights."""

    level: Level
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    weights: Mapping[str, str] = field(default_factory=dict)


def compare(old: Model, new: Model, pairs: list[Pair]) -> Compared:
    """Compare two ONNX graphs. Raises InputError at bytes that make no sense."""
    if old.data is None or new.data is None:
        foreign = old if old.data is None else new
        skipped = Level(GRAPH, skipped=f"a {foreign.kind} has no ONNX graph")
        return Compared(skipped, old.tensors, new.tensors)
    try:
        for side in (old, new):
            assert side.data is not None
            if count := dags.too_large(side.data):
                return Compared(_counted(old, new, count), old.tensors, new.tensors)
        one, two = dags.read_dag(old.data), dags.read_dag(new.data)
        return _compared(old, new, (one, two), pairs)
    except protobuf.Malformed as error:
        where = f"{old.path} or {new.path}"
        raise InputError("a graph is not a protobuf message", where=where, found=error) from error


def _compared(old: Model, new: Model, both: tuple[Dag, Dag], pairs: list[Pair]) -> Compared:
    one, two = both
    found, outs = _matched(old, new, both, pairs)
    tensors = (_with_constants(old, one), _with_constants(new, two))
    changes = [*_opsets(one, two), *_functions(one, two)]
    if _shape(one) != _shape(two):
        changes += [*_attributes(found), *_rewired(found, outs, tensors), *_patches(found)]
    counts = (
        f"{len(one.ops)} -> {len(two.ops)} nodes" if len(one.ops) != len(two.ops) else f"{len(one.ops)} nodes"
    )
    matched = "" if len(found.forth) == len(one.ops) else f", {len(found.forth)} of them matched"
    return Compared(Level(GRAPH, tuple(changes), counts + matched), *tensors, found.weights)


def matched(old: Model, new: Model, pairs: list[Pair]) -> Match:
    """Which node of one ONNX graph is which of the other. Raises UsageError, InputError."""
    try:
        for side in (old, new):
            if side.data is None or dags.too_large(side.data):
                found = f"a {side.kind}" if side.data is None else f"more than {dags.MAX_NODES} nodes"
                raise UsageError("the graph cannot be matched", where=side.path, found=found)
        assert old.data is not None
        assert new.data is not None
        return _matched(old, new, (dags.read_dag(old.data), dags.read_dag(new.data)), pairs)[0]
    except protobuf.Malformed as error:
        where = f"{old.path} or {new.path}"
        raise InputError("a graph is not a protobuf message", where=where, found=error) from error


def _matched(
    old: Model, new: Model, both: tuple[Dag, Dag], pairs: list[Pair]
) -> tuple[Match, dict[int, int]]:
    """The nodes that belong together, and the graphs' outputs that do."""
    assert old.data is not None
    assert new.data is not None
    one, two = both
    ins = _ports(one.inputs, two.inputs, old, new, pairs, inputs=True)
    outs = _ports(one.outputs, two.outputs, old, new, pairs, inputs=False)
    _fill(both, (old.data, new.data), ins, outs)
    if _shape(one) != _shape(two):
        dropped = [_drop_defaults(dag) for dag in both]
        if any(dropped):
            _fill(both, (old.data, new.data), ins, outs)
    return match(one, two, ins), outs


def _with_constants(model: Model, dag: Dag) -> dict[str, Tensor]:
    assert model.data is not None
    constants = {w.name: constant(model.data, w, model.path) for w in dag.weights if w.name in dag.constants}
    return {**model.tensors, **constants}


def _ports(
    ours: list[str], theirs: list[str], old: Model, new: Model, pairs: list[Pair], *, inputs: bool
) -> dict[int, int]:
    """Inputs, or outputs, that belong together: as the signatures say, by name, and then in order."""
    names: dict[str, str] = {}
    for pair in pairs:
        a, b = old.signatures[pair.old], new.signatures[pair.new]
        for x, y in (pair.inputs if inputs else pair.outputs).items():
            sides = (a.inputs[x], b.inputs[y]) if inputs else (a.outputs[x], b.outputs[y])
            names.setdefault(sides[0].name, sides[1].name)
    place = {name: i for i, name in enumerate(theirs)}
    found: dict[int, int] = {}
    for i, name in enumerate(ours):
        other = place.get(names.get(name, name))
        if other is not None and other not in found.values():
            found[i] = other
    left = [i for i in range(len(ours)) if i not in found]
    taken = set(found.values())
    free = [j for j in range(len(theirs)) if j not in taken]
    return found | dict(zip(left, free, strict=False))


def _fill(
    both: tuple[Dag, Dag], data: tuple[bytes, bytes], ins: dict[int, int], outs: dict[int, int]
) -> None:
    """All hashes of both graphs; ports that belong together have one name."""
    back = ({i: i for i in range(len(both[0].inputs))}, {j: i for i, j in ins.items()})
    ends = ({i: i for i in range(len(both[0].outputs))}, {j: i for i, j in outs.items()})
    for dag, bytes_, inputs, outputs in zip(both, data, back, ends, strict=True):
        first = [f"in {inputs.get(i, f'new {i}')}".encode() for i in range(len(dag.inputs))]
        last = [f"out {outputs.get(i, f'new {i}')}".encode() for i in range(len(dag.outputs))]
        along = dags.order(dag)
        dags.kinds(dag)
        dags.hashes(dag, first, dags.weight_kind(dag), "up", along)
        content = dags.weight_content(bytes_, dag)
        dags.hashes(dag, first, content, "content", along)
        dags.own_content(dag, content)
        dags.downward(dag, last, along)


def _shape(dag: Dag) -> Counter[tuple[bytes, bytes]]:
    """What two equal graphs have in common: the nodes by what they are computed from and for."""
    return Counter((op.up, op.down) for op in dag.ops)


def _drop_defaults(dag: Dag) -> int:
    """Forget attributes that have the value which the operator's definition gives them anyway; how many."""
    from onnx import defs

    before = sum(len(op.digests) for op in dag.ops)
    known: dict[str, dict[str, bytes]] = {}
    for op in dag.ops:
        domain, _, name = op.node.op.rpartition(".")
        if op.node.op not in known:
            try:
                schema = defs.get_schema(name, dag.opsets.get(domain or "ai.onnx", 1), domain)
                known[op.node.op] = {
                    a.name: _default(a.default_value.SerializeToString())
                    for a in schema.attributes.values()
                    if a.default_value.type
                }
            except defs.SchemaError:  # an operator of somebody else's
                known[op.node.op] = {}
        usual = known[op.node.op]
        op.digests = {a: digest for a, digest in op.digests.items() if usual.get(a) != digest}
    return before - sum(len(op.digests) for op in dag.ops)


def _default(data: bytes) -> bytes:
    wrapped = protobuf.encode_bytes(5, data)
    return dags.attribute(wrapped, next(iter(protobuf.fields(wrapped))))[1]


def _counted(old: Model, new: Model, count: int) -> Level:
    from ..wire.model_proto import read_model

    assert old.data is not None
    assert new.data is not None
    a, b = read_model(old.data).operators, read_model(new.data).operators
    text = f"{count} nodes, more than {dags.MAX_NODES}: not matched"
    facts = {"only in old": dict(a - b), "only in new": dict(b - a)}
    return Level(GRAPH, (Change("graph-too-large", "graph", text, facts=facts),), text)


# --- versions and functions


def _opsets(one: Dag, two: Dag) -> Iterator[Change]:
    for domain in sorted({*one.opsets, *two.opsets}):
        was, now = one.opsets.get(domain), two.opsets.get(domain)
        used = [any(op.node.op.rpartition(".")[0] == domain for op in dag.ops) for dag in (one, two)]
        if was is not None and now is not None:
            if was != now:
                yield Change("opset", domain, f"version {was} -> {now}", str(was), str(now))
        elif was is None and used[1]:
            yield Change("domain-added", domain, _operators(two, domain), "", str(now))
        elif now is None and used[0]:
            yield Change("domain-removed", domain, _operators(one, domain), str(was), "")


def _operators(dag: Dag, domain: str) -> str:
    counts = Counter(op.node.op for op in dag.ops if op.node.op.rpartition(".")[0] == domain)
    return ", ".join(f"{name} x{count}" for name, count in counts.most_common(8))


def _functions(one: Dag, two: Dag) -> Iterator[Change]:
    for name in sorted({*one.functions, *two.functions}):
        was, now = one.functions.get(name), two.functions.get(name)
        if was != now:
            what = "changed" if was and now else "added" if now else "removed"
            yield Change("function", name, f"the function was {what}")


# --- matched nodes


def _called(op: Op) -> str:
    """A node as people find it: operator and name, or what it makes."""
    name = op.node.name or (op.node.outputs[0] if op.node.outputs else "")
    return f"{op.node.op} {name[:SHOWN_TEXT]!r}"


def _attributes(found: Match) -> Iterator[Change]:
    for i, j in sorted(found.forth.items()):
        one, two = found.old.ops[i], found.new.ops[j]
        if one.digests == two.digests:
            continue
        for name in sorted({*one.digests, *two.digests}):
            if one.digests.get(name) != two.digests.get(name):
                was, now = _attribute(one, name), _attribute(two, name)
                text = f"{name}: {was} -> {now}" if was != now else f"{name}: other values"
                yield Change("attribute", _called(two), text, was, now)


def _attribute(op: Op, name: str) -> str:
    if name not in op.digests:
        return "(absent)"
    graphs = [g.nodes for g in op.node.subgraphs if g.name.startswith(f"{name}: ")]
    return f"a graph of {sum(graphs)} nodes" if graphs else op.node.attributes.get(name, "")[:SHOWN_TEXT]


def _rewired(found: Match, outs: dict[int, int], tensors: Tensors) -> Iterator[Change]:
    """Matched nodes, and outputs of the graph, that take another tensor than they did."""
    for i, j in sorted(found.forth.items()):
        one, two = found.old.ops[i], found.new.ops[j]
        for a, b in slots(found, i, j):
            names = (one.inputs[a], two.inputs[b])
            if _moved(found, (one.sources[a], two.sources[b]), names, tensors):
                text = f"input {b} was {one.inputs[a]!r}, is {two.inputs[b]!r}"
                yield Change("rewired", _called(two), text, one.inputs[a], two.inputs[b])
    for i, j in outs.items():
        names = (found.old.outputs[i], found.new.outputs[j])
        if _moved(found, (found.old.results[i], found.new.results[j]), names, tensors):
            yield Change("rewired", f"output {names[1]}", "is computed elsewhere", *names)


def _moved(found: Match, sources: tuple[Source, Source], names: tuple[str, str], tensors: Tensors) -> bool:
    """Whether two sources are not the same one; a node without counterpart is the patches' affair.

    Two weights with the same values are the same: optimisers store one where there were several.
    """
    was, now = sources
    if (was[0] == "op" and was[1] not in found.forth) or (now[0] == "op" and now[1] not in found.back):
        return False
    if was[0] != now[0]:
        return True
    if was[0] == "op":
        return (found.forth[was[1]], was[2]) != now[1:]
    if was[0] == "weight":
        if found.weights.get(names[0]) == names[1]:
            return False
        a, b = tensors[0].get(names[0]), tensors[1].get(names[1])
        same = a is not None and b is not None and (a.dtype, a.shape) == (b.dtype, b.shape)
        return not (same and a is not None and b is not None and a.digest() == b.digest())
    return was[0] == "in" and found.inputs.get(was[1]) != now[1]


# --- nodes without counterpart


def _patches(found: Match) -> Iterator[Change]:
    """A change for each connected piece of nodes that have no counterpart."""
    for number, (removed, added) in enumerate(_pieces(found)):
        if number == MAX_PATCHES:
            text = f"more than {MAX_PATCHES} pieces differ; the others are not shown"
            yield Change("subgraph", "graph", text)
            return
        before, after = _anchors(found, removed, added)
        lines = [f"- {_line(found.old.ops[i])}" for i in removed] + [
            f"+ {_line(found.new.ops[j])}" for j in added
        ]
        more = len(lines) - MAX_PATCH_LINES
        shown = lines[:MAX_PATCH_LINES] + ([f"... {more} more lines"] if more > 0 else [])
        place = f"@@ after {before or 'the inputs'}, before {after or 'the outputs'} @@"
        was, now = (_count(dag, ops) for dag, ops in ((found.old, removed), (found.new, added)))
        text = f"{was} replaced by {now}" if was and now else f"{was} removed" if was else f"{now} inserted"
        where = f"after {before or 'the inputs'}"
        yield Change("subgraph", where, text, was, now, {"patch": [place, *shown]})


def _count(dag: Dag, ops: list[int]) -> str:
    counts = Counter(dag.ops[i].node.op for i in ops)
    shown = ", ".join(f"{n} {op}" if n > 1 else op for op, n in counts.most_common(6))
    return shown + (f" and {len(counts) - 6} other kinds" if len(counts) > 6 else "")


def _line(op: Op) -> str:
    attributes = "".join(f" {key}={value}" for key, value in op.node.attributes.items())
    text = f"{op.node.op}({', '.join(op.node.inputs)}){attributes} -> {', '.join(op.node.outputs)}"
    return text if len(text) <= SHOWN_TEXT else text[: SHOWN_TEXT - 3] + "..."


def _pieces(found: Match) -> list[tuple[list[int], list[int]]]:
    """Unmatched nodes of both graphs that hang together, directly or by a matched node beside them."""
    parents: dict[tuple[object, ...], tuple[object, ...]] = {}

    def root(key: tuple[object, ...]) -> tuple[object, ...]:
        while parents.setdefault(key, key) != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for side, (dag, matched) in enumerate(((found.old, found.forth), (found.new, found.back))):
        edge: tuple[tuple[object, ...], tuple[object, ...]]
        for i, op in enumerate(dag.ops):
            for slot, (kind, maker, out) in enumerate(op.sources):
                if kind != "op" or (i in matched and maker in matched):
                    continue
                if i not in matched and maker not in matched:
                    edge = ((side, i), (side, maker))
                elif i in matched:
                    edge = ((side, maker), ("into", i if side == 0 else matched[i], slot))
                else:
                    edge = ((side, i), ("from", maker if side == 0 else matched[maker], out))
                parents[root(edge[0])] = root(edge[1])
    groups: dict[tuple[object, ...], tuple[list[int], list[int]]] = {}
    for side, (dag, matched) in enumerate(((found.old, found.forth), (found.new, found.back))):
        for i in range(len(dag.ops)):
            if i not in matched:
                groups.setdefault(root((side, i)), ([], []))[side].append(i)
    return list(groups.values())


def _anchors(found: Match, removed: list[int], added: list[int]) -> tuple[str, str]:
    """The matched nodes beside a piece, as OLD calls them, or NEW where nothing was removed."""
    dag, piece = (found.old, removed) if removed else (found.new, added)
    inside = set(piece)
    before = [s[1] for i in piece for s in dag.ops[i].sources if s[0] == "op" and s[1] not in inside]
    after = [c for i in piece for c, _, _ in dag.consumers.get(i, ()) if c not in inside]
    return (_called(dag.ops[before[0]]) if before else "", _called(dag.ops[after[0]]) if after else "")
