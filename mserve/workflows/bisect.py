"""Bisect: the first node, in topological order, from which on two subjects part.

The nodes that both graphs have are matched by structure, or are the same where the graph is. Between any
two nodes lies a cut: the tensors that were computed before it and are used after it. If all of them
agree, whatever went wrong before was made good, and the cause lies behind; so the first node to blame is
the first that parts behind the last cut that agrees. Tensors that no input reaches count as weights.

    in blocks   the shapes of all tensors are asked for first (no tensor is kept for that); they tell how
                many tensors fit into memory. If all do, one run of each side decides. If not, halves over
                the cuts between blocks find the block, which is then looked at whole.
                Halves end at some cut that agrees before one that does not, which is the last such
                place wherever nothing that parts is made good again.
    by halves   over single cuts, about log2(nodes) runs of each side: where one side is without
                optimisations, because a tensor that is looked at is one that no operator is fused over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ..compare.dag import Dag, Op
from ..compare.graph import matched
from ..compare.matching import Match
from ..compare.signature import Pair
from ..errors import ExecutionFailed, ModelRefused
from ..tensors import show_shape
from .parting import Tolerance, Verdict, judge, pairs_of, renamed
from .subject import Named, Subject

MEMORY_BYTES = 1 << 30
ELEMENT_BYTES = 8  # no dtype is wider, and text is rare


@dataclass(frozen=True, slots=True)
class Step:
    """A node of the first graph, and its tensors that have a counterpart: (its name, the other's name)."""

    op: Op
    tensors: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The node to blame: its verdict, and what is known of its inputs. `runs` counts runs of each side."""

    op: Op
    verdict: Verdict
    inputs: tuple[str, ...]
    number: int
    nodes: int
    runs: int

    def to_json(self) -> dict[str, Any]:
        return {
            "node": self.op.node.name, "operator": self.op.node.op, "tensor": self.verdict.name,
            "number": self.number, "nodes": self.nodes, "inputs": list(self.inputs),
            "verdict": self.verdict.to_json(), "runs": self.runs,
        }  # fmt: skip


def bisect(
    sides: tuple[Subject, Subject], pair: Pair, inputs: Named, tolerance: Tolerance, limit: int = MEMORY_BYTES
) -> Found | None:
    """The first node where two subjects part by more than the tolerance, for inputs of a signature.

    None where they agree as soon as tensors inside are looked at. `limit` is how many bytes of tensors
    are held at a time. Raises UsageError for what has no graph or too large a one, and as `run`.
    """
    found = matched(sides[0].model, sides[1].model, pairs_of(*sides))
    search = _Search(sides, pair, inputs, tolerance, _Line(found, sides, pair))
    if sides[0].plain == sides[1].plain and (blocks := search.blocks(limit)):
        return search.in_blocks(blocks)
    return search.by_halves()


class _Line:
    """The nodes in a row, and the cuts between them. Cut k lies behind step k; -1 before all of them."""

    def __init__(self, found: Match, sides: tuple[Subject, Subject], pair: Pair) -> None:
        dag, ours, theirs = found.old, *(s.model.signatures for s in sides)
        outputs = {ours[pair.old].outputs[a].name: theirs[pair.new].outputs[b].name
                   for a, b in pair.outputs.items()}  # fmt: skip
        needed = _ancestors(dag, outputs)
        reached = _reached(dag)
        names = dict(outputs)
        for i, j in found.forth.items():
            for a, b in zip(dag.ops[i].node.outputs, found.new.ops[j].node.outputs, strict=False):
                if a and b:
                    names.setdefault(a, b)
        theirs_alone = {
            t for j, op in enumerate(found.new.ops) if j not in found.back for t in op.node.outputs if t
        }
        for i, op in enumerate(dag.ops):
            if i not in found.forth:  # another operator in its place makes a tensor of the same name
                for tensor in theirs_alone.intersection(op.node.outputs):
                    names.setdefault(tensor, tensor)
        self.dag = dag
        self.steps = [
            Step(op, tuple((t, names[t]) for t in op.node.outputs if t in names))
            for i, op in enumerate(dag.ops)
            if i in needed
        ]
        self._born: dict[str, int] = {}
        self._dies: dict[str, int] = {}
        for k, step in enumerate(self.steps):
            for tensor in step.op.node.outputs:
                if tensor and tensor in reached:
                    self._born.setdefault(tensor, k)
            for tensor in step.op.inputs:
                self._dies[tensor] = k
        self._dies |= dict.fromkeys(outputs, len(self.steps))
        self.names = names

    def live(self, k: int) -> list[str]:
        """The tensors that cross a cut."""
        return [t for t, born in self._born.items() if born <= k < self._dies.get(t, -1)]

    def uncrossed(self, bad: Callable[[str], bool]) -> list[int]:
        """The cuts that no tensor of some kind crosses, in order."""
        change = [0] * (len(self.steps) + 1)
        for tensor, born in self._born.items():
            dies = self._dies.get(tensor, -1)
            if dies > born and bad(tensor):
                change[born] += 1
                change[dies] -= 1
        return [k for k, crossing in enumerate(accumulate(change[:-1])) if crossing == 0]

    def cuts(self) -> list[int]:
        """The cuts that can be judged: whatever crosses them has a counterpart."""
        return self.uncrossed(lambda tensor: tensor not in self.names)


def _ancestors(dag: Dag, outputs: Iterable[str]) -> set[int]:
    """The nodes that some outputs need."""
    makers = {t: i for i, op in enumerate(dag.ops) for t in op.node.outputs}
    pending = [makers[t] for t in outputs if t in makers]
    seen = set(pending)
    while pending:
        for kind, maker, _ in dag.ops[pending.pop()].sources:
            if kind == "op" and maker not in seen:
                seen.add(maker)
                pending.append(maker)
    return seen


def _reached(dag: Dag) -> set[str]:
    """The tensors that depend on an input of the graph."""
    pending = [i for i, op in enumerate(dag.ops) if any(kind == "in" for kind, _, _ in op.sources)]
    seen = set(pending)
    while pending:
        for consumer, _, _ in dag.consumers.get(pending.pop(), ()):
            if consumer not in seen:
                seen.add(consumer)
                pending.append(consumer)
    return {t for i in seen for t in dag.ops[i].node.outputs}


@dataclass(slots=True)
class _Search:
    """What was seen so far: verdicts by tensor. `blind` are those that are no tensors, such as sequences;
    `parted` is what parts at the first cut known to do so."""

    sides: tuple[Subject, Subject]
    pair: Pair
    inputs: Named
    tolerance: Tolerance
    line: _Line
    runs: int = 0
    seen: dict[str, Verdict] = field(default_factory=dict)
    parted: dict[str, Verdict] = field(default_factory=dict)
    blind: set[str] = field(default_factory=set)

    def look(self, tensors: Sequence[str], *, again: bool = True) -> None:
        """Run both sides and hold the named tensors side by side."""
        asked = list(dict.fromkeys(t for t in tensors if again or t not in self.seen))
        if not asked:
            return
        self.runs += 1
        one = self.sides[0].observe(self.inputs, self.pair.old, asked)
        theirs = list(dict.fromkeys(self.line.names[t] for t in asked))
        two = self.sides[1].observe(renamed(self.inputs, self.pair), self.pair.new, theirs)
        for tensor in asked:
            ours, other = one.get(tensor), two.get(self.line.names[tensor])
            self.seen.pop(tensor, None)
            if ours is None or other is None:
                self.blind.add(tensor)
            else:
                self.seen[tensor] = judge(tensor, ours, other, self.tolerance)

    def _apart(self, tensor: str) -> bool:
        """Whether a tensor was not seen, or is not equal."""
        return tensor not in self.seen or not self.seen[tensor].equal

    def blocks(self, limit: int) -> list[int]:
        """The last steps of blocks whose tensors take about `limit` bytes; [] where that is not known."""
        tensors = [t for step in self.line.steps for t, _ in step.tensors]
        try:
            shapes = self.sides[0].shapes(self.inputs, self.pair.old, list(dict.fromkeys(tensors)))
        except (ModelRefused, ExecutionFailed):  # values that have no shape, such as sequences
            return []
        ends, used = list[int](), 0
        for k, step in enumerate(self.line.steps):
            size = sum(_bytes(shapes[t]) for t, _ in step.tensors)
            if used and used + size > limit:
                ends.append(k - 1)
                used = 0
            used += size
        return [*ends, len(self.line.steps) - 1]

    def in_blocks(self, ends: Sequence[int]) -> Found | None:
        """Halves over the blocks, then all tensors of one."""
        cuts = set(self.line.cuts())
        low, _ = self.halves([k for k in ends[:-1] if k in cuts])
        start = low + 1
        for end in (k for k in ends if k > low):
            self.look(self._tensors(start, end), again=False)
            good = max((k for k in self.line.uncrossed(self._apart) if start <= k <= end), default=start - 1)
            if found := self._first(good + 1, end, self.seen):
                return found
            start = end + 1
        return None

    def by_halves(self) -> Found | None:
        """Halves over single cuts; what parts between the last that agrees and the next is to blame."""
        low, high = self.halves(self.line.cuts())
        if high is None:
            return None
        parted = self.parted
        if high - low > 1:  # nodes without a counterpart lie between
            self.look(self._tensors(low + 1, high))
            parted = self.parted | {t: v for t, v in self.seen.items() if not v.equal}
        return self._first(low + 1, high, parted) or self._first(0, high, self.parted)

    def halves(self, cuts: Sequence[int]) -> tuple[int, int | None]:
        """The last cut known to agree, -1 being the inputs, and the next that does not, None without one.

        What parts at the latter is kept in `parted`.
        """
        cuts = list(cuts)
        low, high = -1, len(cuts)
        while high - low > 1:
            middle = (low + high) // 2
            live = self.line.live(cuts[middle])
            if not self.blind.intersection(live):
                self.look(live)
            if self.blind.intersection(live):  # it cannot be judged
                del cuts[middle]
                high -= 1
            elif not any(map(self._apart, live)):
                low = middle
            else:
                high = middle
                self.parted = {t: self.seen[t] for t in live if t in self.seen and not self.seen[t].equal}
        return (cuts[low] if low >= 0 else -1), (cuts[high] if high < len(cuts) else None)

    def _tensors(self, start: int, end: int) -> list[str]:
        return [t for step in self.line.steps[start : end + 1] for t, _ in step.tensors]

    def _first(self, start: int, end: int, among: Mapping[str, Verdict]) -> Found | None:
        """The first of some steps of which a tensor parts."""
        for k in range(start, end + 1):
            for tensor, _ in self.line.steps[k].tensors:
                if (verdict := among.get(tensor)) and not verdict.equal:
                    return self._found(k, verdict)
        return None

    def _found(self, k: int, verdict: Verdict) -> Found:
        op = self.line.steps[k].op
        inputs = tuple(self._described(op, slot) for slot in range(len(op.inputs)) if op.inputs[slot])
        return Found(op, verdict, inputs, k + 1, len(self.line.steps), self.runs)

    def _described(self, op: Op, slot: int) -> str:
        """An input of a node: what it is, and whether both sides have the same."""
        name, (kind, index, _) = op.inputs[slot], op.sources[slot]
        if kind == "in":
            return f"{name}: an input of the model"
        if kind == "weight":
            weight = self.line.dag.weights[index]
            return f"{name}: a weight, {weight.dtype} {show_shape(weight.shape)}"
        verdict = self.seen.get(name)
        if verdict is None:
            return f"{name}: not looked at"
        return f"{name}: {verdict.dtype} {show_shape(verdict.shape)}, {verdict.sentence()}"


def _bytes(shape: Sequence[int]) -> int:
    count = ELEMENT_BYTES
    for size in shape:
        count *= size
    return count
