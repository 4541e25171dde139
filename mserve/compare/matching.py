"""Which node of one graph is which of the other.

First come the nodes whose hashes agree upwards and downwards; then those that agree in one direction
and have no double; then matches spread along the edges, from a node to the makers of its inputs and to
its consumers, wherever the operator is the same. What is still unmatched and has doubles is matched by
content, by name and by order, and the only nodes of an operator with each other. Each node is matched
once and each edge looked at a bounded number of times, so the work grows with the size of the graphs and
not with their product.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .dag import Dag, Op


@dataclass(slots=True)
class Match:
    """Nodes of NEW by nodes of OLD, the other way round, and weights and inputs likewise, by name."""

    old: Dag
    new: Dag
    forth: dict[int, int] = field(default_factory=dict)
    back: dict[int, int] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    inputs: dict[int, int] = field(default_factory=dict)


def match(old: Dag, new: Dag, inputs: dict[int, int]) -> Match:
    """Match two graphs whose hashes are filled in; `inputs` are the graphs' inputs that belong together."""
    found = Match(old, new, inputs=inputs)
    pending: deque[tuple[int, int]] = deque()
    _by(found, pending, lambda op: (op.up, op.down, op.content, op.node.name))
    _by(found, pending, lambda op: (op.up, op.down, op.content))
    _by(found, pending, lambda op: (op.up, op.down, op.node.name))
    _by(found, pending, lambda op: (op.up, op.down))
    for key in (_content, _up, _own, _down):
        _by(found, pending, key, unique=True)
    _spread(found, pending)
    for key in (_content, _own, _named, _up, _down):
        _by(found, pending, key)
        _spread(found, pending)
    _by(found, pending, _operator, unique=True)
    _spread(found, pending)
    _pair_weights(found)
    return found


def _content(op: Op) -> Any:
    return op.content


def _up(op: Op) -> Any:
    return op.up


def _down(op: Op) -> Any:
    return op.down


def _own(op: Op) -> Any:
    return op.own or None


def _named(op: Op) -> Any:
    """Operator and name; for nodes that have none, that of what they make."""
    name = op.node.name or (op.node.outputs[0] if op.node.outputs else "")
    return (op.node.op, name) if name else None


def _operator(op: Op) -> Any:
    return op.node.op


def _by(
    found: Match, pending: deque[tuple[int, int]], key: Callable[[Op], Any], *, unique: bool = False
) -> None:
    """Match what has the same key, in order; with `unique` only where there is one on either side."""
    groups: dict[Any, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, (dag, matched) in enumerate(((found.old, found.forth), (found.new, found.back))):
        for i, op in enumerate(dag.ops):
            if i not in matched and (value := key(op)) is not None:
                groups[value][side].append(i)
    for ours, theirs in groups.values():
        if not unique or len(ours) == len(theirs) == 1:
            for i, j in zip(ours, theirs, strict=False):
                _join(found, pending, i, j)


def _join(found: Match, pending: deque[tuple[int, int]], i: int, j: int) -> None:
    if i not in found.forth and j not in found.back and found.old.ops[i].node.op == found.new.ops[j].node.op:
        found.forth[i], found.back[j] = j, i
        pending.append((i, j))


def _spread(found: Match, pending: deque[tuple[int, int]]) -> None:
    """Match along the edges of what was matched."""
    while pending:
        i, j = pending.popleft()
        one, two = found.old.ops[i], found.new.ops[j]
        for ours, theirs in zip(one.sources, two.sources, strict=False):
            if ours[0] == theirs[0] == "op" and ours[2] == theirs[2]:
                _join(found, pending, ours[1], theirs[1])
        uses = [_uses(found.old, i, found.forth), _uses(found.new, j, found.back)]
        for place, consumers in uses[0].items():
            others = uses[1].get(place, [])
            if len(consumers) == len(others):
                for a, b in zip(consumers, others, strict=True):
                    _join(found, pending, a, b)


def _uses(dag: Dag, i: int, matched: Iterable[int]) -> dict[tuple[str, int, int], list[int]]:
    """Consumers of a node that are not matched yet, by operator and the slots of the edge."""
    found: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for consumer, out, slot in dag.consumers.get(i, ()):
        if consumer not in matched:
            found[dag.ops[consumer].node.op, out, slot].append(consumer)
    return found


def slots(found: Match, i: int, j: int) -> list[tuple[int, int]]:
    """The inputs of two matched nodes that belong together: in order, or by what they are."""
    one, two = found.old.ops[i], found.new.ops[j]
    count = min(len(one.sources), len(two.sources))
    if not one.commutes:
        return [(slot, slot) for slot in range(count)]
    free = list(range(len(two.sources)))
    pairs = []
    for slot, source in enumerate(one.sources):
        kind, index, out = source
        wanted = ("op", found.forth[index], out) if kind == "op" and index in found.forth else None
        other = next((k for k in free if wanted and two.sources[k] == wanted), None)
        if other is None:
            other = next((k for k in free if two.sources[k][0] == kind and kind != "op"), None)
        if other is not None:
            free.remove(other)
            pairs.append((slot, other))
    left = [slot for slot in range(len(one.sources)) if slot not in {a for a, _ in pairs}]
    return pairs + list(zip(left, free, strict=False))


def _pair_weights(found: Match) -> None:
    """Weights that stand in the same place of matched nodes; the first place counts."""
    taken: set[str] = set()
    for i, j in sorted(found.forth.items()):
        one, two = found.old.ops[i], found.new.ops[j]
        for a, b in slots(found, i, j):
            if one.sources[a][0] == two.sources[b][0] == "weight":
                ours, theirs = one.inputs[a], two.inputs[b]
                if ours not in found.weights and theirs not in taken:
                    found.weights[ours] = theirs
                    taken.add(theirs)
