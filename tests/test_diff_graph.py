"""Graphs matched by what their nodes do: names and order do not count, everything else is shown."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import mutations
import numpy as np
import pytest
from builders import FLOAT, elementwise, endless, floats, mlp, model, save, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper

from mserve.compare import dag, graph, signature
from mserve.compare.change import Level
from mserve.compare.graph import Compared
from mserve.compare.model import open_model
from mserve.errors import MserveError


def compared(old: ModelProto, new: ModelProto, directory: Path) -> Compared:
    one = open_model(save(old, directory / "old.onnx"))
    two = open_model(save(new, directory / "new.onnx"))
    return graph.compare(one, two, signature.compare(one, two)[1])


def level(old: ModelProto, new: ModelProto, directory: Path) -> Level:
    return compared(old, new, directory).level


def node(op: str, inputs: str, outputs: str, **rest: object) -> NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **rest)


def row(*nodes: NodeProto, weights: Sequence[TensorProto] = ()) -> ModelProto:
    return elementwise(*nodes, weights=weights)


W = weight("w", floats(4, seed=1))
V = weight("v", floats(4, seed=2))
TWO = row(node("Mul", "x w", "a"), node("Add", "a v", "y"), weights=[W, V])
EQUAL = [
    (
        "operands of an addition in another order",
        TWO,
        row(node("Mul", "w x", "a"), node("Add", "v a", "y"), weights=[V, W]),
    ),
    (
        "an attribute that says what is done anyway",
        row(node("LeakyRelu", "x", "y")),
        row(node("LeakyRelu", "x", "y", alpha=0.01)),
    ),
    (
        "a weight stored as a constant",
        row(node("Mul", "x w", "y"), weights=[W]),
        row(node("Constant", "", "w", value=W), node("Mul", "x w", "y")),
    ),
    ("a loop whose body has other names", endless(), mutations.names_changed(endless())),
    ("documentation and producer", TWO, mutations.reexported(TWO)),
]


@pytest.mark.parametrize(("why", "old", "new"), EQUAL, ids=[e[0] for e in EQUAL])
def test_graphs_that_are_equal(tmp_path: Path, why: str, old: ModelProto, new: ModelProto) -> None:
    assert level(old, new, tmp_path).changes == (), why


def longer_loop() -> ModelProto:
    """The loop of `endless` with another operator in its body."""
    copy = mutations.copied(endless())
    body = next(a.g for n in copy.graph.node for a in n.attribute if a.name == "body")
    body.node[1].op_type = "Neg"
    return copy


CHANGED = [
    (
        "an attribute",
        row(node("LeakyRelu", "x", "y")),
        row(node("LeakyRelu", "x", "y", alpha=0.2)),
        ["attribute"],
        "alpha: (absent) -> 0.2",
    ),
    (
        "operands of a subtraction in another order",
        row(node("Sub", "x w", "y"), weights=[W]),
        row(node("Sub", "w x", "y"), weights=[W]),
        ["rewired", "rewired"],
        "input 0 was 'x', is 'w'",
    ),
    (
        "a node inserted",
        row(node("Relu", "x", "y")),
        row(node("Relu", "x", "a"), node("Abs", "a", "y")),
        ["subgraph"],
        "Abs inserted",
    ),
    (
        "a node removed",
        row(node("Relu", "x", "a"), node("Abs", "a", "y")),
        row(node("Relu", "x", "y")),
        ["subgraph"],
        "Abs removed",
    ),
    (
        "an operator replaced",
        row(node("Neg", "x", "a"), node("Relu", "a", "b"), node("Abs", "b", "y")),
        row(node("Neg", "x", "a"), node("Sigmoid", "a", "b"), node("Abs", "b", "y")),
        ["subgraph"],
        "Relu replaced by Sigmoid",
    ),
    ("another body of a loop", endless(), longer_loop(), ["attribute"], "body: other values"),
]


@pytest.mark.parametrize(("why", "old", "new", "rules", "text"), CHANGED, ids=[c[0] for c in CHANGED])
def test_what_changed_in_a_graph(
    tmp_path: Path, why: str, old: ModelProto, new: ModelProto, rules: list[str], text: str
) -> None:
    found = level(old, new, tmp_path).changes
    assert [c.rule for c in found] == rules, why
    texts = [c.text for c in found]
    assert text in texts or (text.startswith("body") and "body" in texts[0]), texts


def test_a_patch_shows_both_sides_and_where(tmp_path: Path) -> None:
    old = row(node("Neg", "x", "a", name="first"), node("Relu", "a", "b"), node("Abs", "b", "y", name="last"))
    nodes = [
        node("Neg", "x", "a"),
        node("Clip", "a lo hi", "c"),
        node("Tanh", "c", "b"),
        node("Abs", "b", "y"),
    ]
    new = row(*nodes, weights=[weight("lo", np.float32(0)), weight("hi", np.float32(6))])
    (change,) = level(old, new, tmp_path).changes
    assert change.facts["patch"] == [
        "@@ after Neg 'first', before Abs 'last' @@",
        "- Relu(a) -> b",
        "+ Clip(a, lo, hi) -> c",
        "+ Tanh(c) -> b",
    ]


def test_two_places_are_two_patches(tmp_path: Path) -> None:
    inner = [node("Neg", "x", "a"), node("Abs", "a", "b"), node("Exp", "b", "y")]
    first, last = (
        [node("Neg", "x", "p"), node("Relu", "p", "a")],
        [node("Tanh", "b", "q"), node("Exp", "q", "y")],
    )
    new = row(*first, inner[1], *last)
    assert [c.text for c in level(row(*inner), new, tmp_path).changes] == ["Relu inserted", "Tanh inserted"]


def test_domains_and_opsets(tmp_path: Path) -> None:
    versions = [helper.make_opsetid("", 20), helper.make_opsetid("ours", 3)]
    ports = ([("x", FLOAT, ["N", 4])], [("y", FLOAT, ["N", 4])])
    old = row(node("Relu", "x", "y"))
    new = model([node("Special", "x", "y", domain="ours")], *ports, opset_imports=versions)
    found = {c.rule: c for c in level(old, new, tmp_path).changes}
    assert set(found) == {"opset", "domain-added", "subgraph"}
    assert (found["opset"].old, found["opset"].new) == ("21", "20")
    assert found["domain-added"].text == "ours.Special x1"


def test_functions(tmp_path: Path) -> None:
    def with_function(op: str, names: str = "ab") -> ModelProto:
        a, b = names
        body = helper.make_function(
            "ours", "F", [a], [b], [helper.make_node(op, [a], [b])], [helper.make_opsetid("", 21)]
        )
        ports = ([("x", FLOAT, ["N", 4])], [("y", FLOAT, ["N", 4])])
        versions = [helper.make_opsetid("", 21), helper.make_opsetid("ours", 1)]
        return model([node("F", "x", "y", domain="ours")], *ports, opset_imports=versions, functions=[body])

    assert level(with_function("Relu"), with_function("Relu", "cd"), tmp_path).changes == ()
    (change,) = level(with_function("Relu"), with_function("Abs"), tmp_path).changes
    assert (change.rule, change.where) == ("function", "ours.F")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30))
def test_any_graph_is_equal_to_itself_under_other_names_and_orders(
    tmp_path_factory: pytest.TempPathFactory, seed: int, size: int
) -> None:
    rng = random.Random(seed)
    names, nodes = ["x", "w", "v"], []
    for i in range(size):
        op = rng.choice(["Add", "Sub", "Mul", "Relu", "Neg", "Max", "Concat"])
        taken = [rng.choice(names) for _ in range(1 if op in ("Relu", "Neg") else 2)]
        rest = {"axis": 0} if op == "Concat" else {}
        nodes.append(helper.make_node(op, taken, [f"n{i}"], **rest))
        names.append(f"n{i}")
    nodes.append(helper.make_node("Identity", [names[-1]], ["y"]))
    original = model(nodes, [("x", FLOAT, None)], [("y", FLOAT, None)], [W, V])
    changed = mutations.order_changed(mutations.names_changed(original))
    found = compared(original, changed, tmp_path_factory.mktemp("g"))
    assert found.level.changes == ()
    assert len(found.weights) in (0, 1, 2)
    same = {a: b for a, b in found.weights.items() if found.old[a].digest() == found.new[b].digest()}
    assert same == found.weights  # twins in shape are told apart by their values


# --- hostile graphs: an answer, or one error, in bounded time


def chain(length: int, op: str = "Relu") -> ModelProto:
    nodes = [helper.make_node(op, [f"n{i}" if i else "x"], [f"n{i + 1}"]) for i in range(length)]
    nodes.append(helper.make_node("Identity", [f"n{length}"], ["y"]))
    return model(nodes, [("x", FLOAT, [1])], [("y", FLOAT, [1])])


def fan(width: int) -> ModelProto:
    """Equal twins that all take one value, joined by one node."""
    nodes = [helper.make_node("Relu", ["x"], [f"n{i}"]) for i in range(width)]
    nodes.append(helper.make_node("Sum", [f"n{i}" for i in range(width)], ["y"]))
    return model(nodes, [("x", FLOAT, [1])], [("y", FLOAT, [1])])


def cycle() -> ModelProto:
    return row(node("Add", "x b", "a"), node("Relu", "a", "b"), node("Neg", "b", "y"))


def doubled() -> ModelProto:
    return row(node("Relu", "x", "a"), node("Abs", "x", "a"), node("Neg", "a", "y"))


def nested(depth: int) -> ModelProto:
    """Branches inside branches."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["o"])],
        "g",
        [],
        [helper.make_tensor_value_info("o", FLOAT, None)],
    )
    for _ in range(depth):
        branch = helper.make_node("If", ["c"], ["o"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([branch], "g", [], [helper.make_tensor_value_info("o", FLOAT, None)])
    return row(node("Cast", "x", "c", to=TensorProto.BOOL), *inner.node, node("Identity", "o", "y"))


HOSTILE: list[tuple[str, Callable[[], ModelProto], Callable[[], ModelProto]]] = [
    ("a long chain, one node longer", lambda: chain(5_000), lambda: chain(5_001)),
    ("a long chain of another operator", lambda: chain(5_000), lambda: chain(5_000, "Abs")),
    ("many twins, one more", lambda: fan(2_000), lambda: fan(2_001)),
    ("a cycle against none", cycle, lambda: TWO),
    ("a cycle against itself", cycle, lambda: mutations.names_changed(cycle())),
    ("a name that two nodes make", doubled, lambda: TWO),
    ("deep nesting", lambda: nested(9), lambda: nested(8)),
    ("a node that takes what nobody makes", lambda: row(node("Add", "x gone", "y")), lambda: TWO),
    ("no nodes", row, lambda: TWO),
]


@pytest.mark.parametrize(("why", "old", "new"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_hostile_graphs_are_compared(
    tmp_path: Path, why: str, old: Callable[[], ModelProto], new: Callable[[], ModelProto]
) -> None:
    for one, two in ((old(), new()), (new(), old())):
        found = level(one, two, tmp_path)
        assert len(found.changes) < 1000, why
        assert (found.changes == ()) == (why == "a cycle against itself"), why


def test_too_many_nodes_are_counted_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dag, "MAX_NODES", 10)
    monkeypatch.setattr(dag.too_large, "__defaults__", (10,))
    found = level(chain(20), chain(20, "Abs"), tmp_path)
    assert [c.rule for c in found.changes] == ["graph-too-large"]
    assert found.verdict == "unknown"
    assert found.changes[0].facts["only in new"] == {"Abs": 20}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_bytes_that_are_no_graph_give_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("h")
    raw = bytearray(TWO.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (directory / "bad.onnx").write_bytes(bytes(raw))
    code = 0
    try:
        one, two = open_model(save(TWO, directory / "old.onnx")), open_model(directory / "bad.onnx")
        graph.compare(one, two, signature.compare(one, two)[1])
    except MserveError as error:
        code = error.exit_code
    assert code in (0, 3)


def test_weights_are_paired_by_place(tmp_path: Path) -> None:
    found = compared(mlp(), mutations.names_changed(mlp(seed=9)), tmp_path)
    shapes = {a: (found.old[a].shape, found.new[b].shape) for a, b in found.weights.items()}
    assert set(shapes) == {"w0", "b0", "w1", "b1"}
    assert all(one == two for one, two in shapes.values())
