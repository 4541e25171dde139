"""Where two models part: the first node to blame, whatever it is called and however much fits into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mutations
import numpy as np
import pytest
from builders import FLOAT, elementwise, floats, model, save, weight
from onnx import ModelProto, helper, numpy_helper

import mserve
from mserve.compare.model import open_model
from mserve.errors import UsageError
from mserve.workflows import bisect as bisecting
from mserve.workflows.bisect import Found, bisect
from mserve.workflows.parting import Tolerance, compared, open_other, pair_of, pairs_of
from mserve.workflows.subject import Subject, open_subject

TOLERANCE = Tolerance(1e-3, 1e-5)
EXACT = Tolerance(0.0, 0.0)


def chain(length: int = 40, seed: int = 0) -> ModelProto:
    """x, then Gemm and Tanh in turns, with a shortcut from the first Tanh to the last Add."""
    weights, nodes, last = [], [], "x"
    for i in range(length):
        weights.append(weight(f"w{i}", floats(16, 16, seed=seed + i) * 0.3))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"], name=f"dense {i}"))
        nodes.append(helper.make_node("Tanh", [f"m{i}"], [f"t{i}"], name=f"tanh {i}"))
        last = f"t{i}"
    nodes.append(helper.make_node("Add", [last, "t0"], ["y"], name="shortcut"))
    return model(nodes, [("x", FLOAT, ["N", 16])], [("y", FLOAT, ["N", 16])], weights)


def with_weight(proto: ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> ModelProto:
    copy = mutations.copied(proto)
    constants = [(n.output[0], n.attribute[0].t) for n in copy.graph.node if n.op_type == "Constant"]
    tensor = dict([*constants, *((t.name, t) for t in copy.graph.initializer)])[name]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))
    return copy


def sides(one: ModelProto, two: ModelProto, tmp_path: Path) -> tuple[Subject, Subject]:
    return (
        open_subject(save(one, tmp_path / "one.onnx")),
        open_subject(save(two, tmp_path / "two.onnx")),
    )


def found_by(
    both: tuple[Subject, Subject], inputs: dict[str, np.ndarray], limit: int = 1 << 30
) -> Found | None:
    return bisect(both, pair_of(pairs_of(*both), "serving_default", both[1]), inputs, TOLERANCE, limit)


X = {"x": floats(3, 16, seed=99)}


@pytest.mark.parametrize(
    "limit", [1 << 30, 4096, 1], ids=["one block", "some blocks", "a block for each node"]
)
@pytest.mark.parametrize("at", [0, 1, 17, 39])
def test_a_changed_weight_is_found_whatever_fits_into_memory(tmp_path: Path, at: int, limit: int) -> None:
    one = chain()
    two = mutations.names_changed(with_weight(one, f"w{at}", lambda w: w + 0.5))
    found = found_by(sides(one, two, tmp_path), X, limit=limit)
    assert found is not None
    assert (found.op.node.name, found.op.node.op, found.verdict.name) == (f"dense {at}", "MatMul", f"m{at}")
    assert (found.number, found.nodes) == (2 * at + 1, 81)
    assert f"w{at}: a weight, float32 [16, 16]" in found.inputs
    assert found.runs <= (1 if limit == 1 << 30 else 10)


def test_halves_take_about_as_many_runs_as_the_number_of_nodes_has_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the shapes cannot be told beforehand, each run looks at one cut."""
    both = sides(chain(), with_weight(chain(), "w23", lambda w: -w), tmp_path)
    monkeypatch.setattr(bisecting._Search, "blocks", lambda *_: [])
    found = found_by(both, X)
    assert found is not None
    assert found.op.node.name == "dense 23"
    assert found.runs <= 7


def test_what_is_made_good_later_is_not_to_blame(tmp_path: Path) -> None:
    """A node's values differ and the next node undoes it; the cause stands further behind."""
    nodes = [
        helper.make_node("Mul", ["x", "a"], ["scaled"], name="scale"),
        helper.make_node("Div", ["scaled", "a"], ["back"], name="unscale"),
        helper.make_node("Sigmoid", ["back"], ["s"], name="squash"),
        helper.make_node("Add", ["s", "c"], ["y"], name="shift"),
    ]
    weights = [weight("a", np.float32([2])), weight("c", np.float32([1]))]
    one = elementwise(*nodes, weights=weights)
    two = with_weight(with_weight(one, "a", lambda a: a * 3), "c", lambda c: c + 1)
    for limit in (1 << 30, 1):
        found = found_by(sides(one, two, tmp_path), {"x": floats(2, 4)}, limit=limit)
        assert found is not None
        assert found.op.node.name == "shift"
    assert found.inputs[0].startswith("s: float32 [2, 4], equal")


@pytest.mark.parametrize("limit", [1 << 30, 1], ids=["one block", "a block a node"])
def test_a_node_that_only_one_side_has_is_named_by_what_it_changes(tmp_path: Path, limit: int) -> None:
    two = chain(10)
    at = next(i for i, n in enumerate(two.graph.node) if n.name == "tanh 4")
    two.graph.node[at].input[0] = "negated"
    two.graph.node.insert(at, helper.make_node("Neg", ["m4"], ["negated"]))
    found = found_by(sides(chain(10), two, tmp_path), X, limit)
    assert found is not None
    assert found.op.node.name == "tanh 4"
    assert found.inputs[0].startswith("m4: float32 [3, 16], equal")


def test_another_operator_that_makes_the_same_tensor_is_found(tmp_path: Path) -> None:
    def with_operator(name: str) -> ModelProto:
        middle = helper.make_node(name, ["a"], ["b"])
        return elementwise(
            helper.make_node("Exp", ["x"], ["a"]), middle, helper.make_node("Neg", ["b"], ["y"])
        )

    found = found_by(sides(with_operator("Sin"), with_operator("Cos"), tmp_path), {"x": floats(2, 4)})
    assert found is not None
    assert (found.op.node.op, found.verdict.name) == ("Sin", "b")


def test_the_first_value_that_is_no_number_is_said(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"]),
        helper.make_node("Log", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    one = elementwise(*nodes, weights=[weight("c", np.float32([1]))])
    two = elementwise(helper.make_node("Log", ["x"], ["b"]), helper.make_node("Relu", ["b"], ["y"]))
    found = found_by(sides(one, two, tmp_path), {"x": np.float32([[1, 2, 3, 4], [1, -0.5, 1, 1]])})
    assert found is not None
    assert found.op.node.op == "Log"
    assert found.verdict.at == (1, 1)
    assert found.verdict.odd == "only the second has NaN, first at [1, 1]"
    assert found.to_json()["verdict"]["values"][1] == "nan"


@pytest.mark.parametrize(
    "change",
    [
        mutations.reexported,
        mutations.names_changed,
        mutations.order_changed,
        mutations.one_ulp,
        mutations.another_opset,
    ],
    ids=lambda m: m.__name__,
)
def test_a_model_that_answers_alike_has_no_node_to_blame(
    tmp_path: Path, change: Callable[[ModelProto], ModelProto]
) -> None:
    both = sides(chain(6), change(chain(6)), tmp_path)
    pair = pair_of(pairs_of(*both), "serving_default", both[1])
    assert all(v.equal for v in compared(both, pair, X, TOLERANCE))
    assert found_by(both, X) is None


def test_tensors_that_no_input_reaches_count_as_weights(tmp_path: Path) -> None:
    """A constant that is computed at the start and used at the end does not hide the cuts between."""
    early = helper.make_node("Neg", ["c"], ["n"], name="early")
    steps = [helper.make_node("Tanh", [f"t{i}"], [f"t{i + 1}"], name=f"step {i}") for i in range(1, 9)]
    first = helper.make_node("Tanh", ["x"], ["t1"])
    last = helper.make_node("Add", ["t9", "n"], ["y"], name="last")
    one = elementwise(early, first, *steps, last, weights=[weight("c", np.float32([1]))])
    two = with_weight(one, "c", lambda c: c + 1)
    found = found_by(sides(one, two, tmp_path), {"x": floats(2, 4)})
    assert found is not None
    assert found.op.node.name in ("early", "last")


def test_sequences_inside_a_graph_leave_the_search_to_halves(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Exp", ["x"], ["e"]),
        helper.make_node("SplitToSequence", ["e"], ["parts"], axis=1),
        helper.make_node("ConcatFromSequence", ["parts"], ["z"], axis=1),
        helper.make_node("Mul", ["z", "c"], ["y"], name="scale"),
    ]
    one = elementwise(*nodes, weights=[weight("c", np.float32([2]))])
    found = found_by(sides(one, with_weight(one, "c", lambda c: c * 2), tmp_path), {"x": floats(2, 4)})
    assert found is not None
    assert found.op.node.name == "scale"


def test_a_plain_graph_is_bisected_with_its_optimisations_left_alone(
    tmp_path: Path, real_data: Callable[[str], Path]
) -> None:
    """Rounding differs where operators are fused; the exact comparison names a node and both values."""
    subject = open_subject(real_data("04_ppocr/ch_ppocr_mobile_v2.0_cls_infer.onnx"))
    inputs = {"x": floats(1, 3, 48, 192)}
    both = (subject, open_other("plain", subject))
    pair = pair_of(pairs_of(*both), "serving_default", both[1])
    assert all(v.equal for v in compared(both, pair, inputs, TOLERANCE))
    assert bisect(both, pair, inputs, TOLERANCE) is None
    if not all(v.equal for v in compared(both, pair, inputs, EXACT)):
        found = bisect(both, pair, inputs, EXACT)
        assert found is not None
        assert found.verdict.values is not None
        assert found.runs <= 10


def test_a_real_network_with_one_layer_changed(tmp_path: Path, real_data: Callable[[str], Path]) -> None:
    source = real_data("04_ppocr/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    proto = ModelProto.FromString(source.read_bytes())
    convolutions = [n for n in proto.graph.node if n.op_type == "Conv"]
    chosen = convolutions[20]
    two = mutations.names_changed(with_weight(proto, chosen.input[1], lambda w: w * 1.5))
    both = (open_subject(source), open_subject(save(two, tmp_path / "two.onnx")))
    found = found_by(both, {"x": floats(1, 3, 48, 192)})
    assert found is not None
    assert found.verdict.name == chosen.output[0]
    assert found.runs == 1


def test_a_table_has_no_node(tmp_path: Path, root: Path) -> None:
    base = tmp_path / "prices"
    mserve.export(root / "samples/prices/prices.csv", base, kind="table", key="sku")
    subject = open_subject(base)
    with pytest.raises(UsageError, match="no graph"):
        open_other("plain", subject)
    with pytest.raises(UsageError, match="no tensors inside"):
        subject.observe({"sku": np.array(["C-3003"], object)}, "serving_default", ["title"])
    subject.close()


def test_a_subject_is_what_was_opened(tmp_path: Path) -> None:
    path = save(chain(2), tmp_path / "m.onnx")
    subject = Subject(open_model(path))
    assert subject.shapes(X, "serving_default", ["m0", "y"]) == {"m0": (3, 16), "y": (3, 16)}
    assert list(subject.observe(X, "serving_default", ["t0", "y"])) == ["t0", "y"]
    assert np.array_equal(
        subject.run(X, "serving_default")["y"], subject.observe(X, "serving_default", ["y"])["y"]
    )
