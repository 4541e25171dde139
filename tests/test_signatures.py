"""Several signatures over one graph, as a signatures file declares them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from server_tools import serving
from test_commands import run

import mserve
from mserve.errors import RequestError, UsageError
from mserve.format import open_bundle
from mserve.format.prune import Parts

WIDE = np.arange(6 * 2000, dtype=np.float32).reshape(6, 2000) % 7
DEEP = np.arange(3 * 2000, dtype=np.float32).reshape(3, 2000) % 5


def two_towers() -> onnx.ModelProto:
    """Two towers of one graph: scores from `user`, a value from `item` and `bias`, names by ArgMax."""
    inner = helper.make_graph(
        [helper.make_node("Add", ["v0", "bias"], ["inner_out"])],
        "inner",
        [],
        [helper.make_tensor_value_info("inner_out", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["user", "wide"], ["s0"]),
        helper.make_node("Softmax", ["s0"], ["scores:0"], axis=1),
        helper.make_node("ArgMax", ["scores:0"], ["best"], axis=1, keepdims=0),
        helper.make_node("MatMul", ["item", "deep"], ["v0"]),
        helper.make_node("If", ["yes"], ["v1"], then_branch=inner, else_branch=inner_copy(inner)),
        helper.make_node("ReduceSum", ["v1", "one"], ["value"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "two_towers",
        [
            helper.make_tensor_value_info("user", TensorProto.FLOAT, ["N", 6]),
            helper.make_tensor_value_info("item", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("bias", TensorProto.FLOAT, ["N", 1]),
        ],
        [
            helper.make_tensor_value_info("scores:0", TensorProto.FLOAT, ["N", 2000]),
            helper.make_tensor_value_info("best", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N"]),
        ],
        [
            numpy_helper.from_array(WIDE, "wide"),
            numpy_helper.from_array(DEEP, "deep"),
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def inner_copy(graph: onnx.GraphProto) -> onnx.GraphProto:
    copy = onnx.GraphProto()
    copy.CopyFrom(graph)
    copy.node[0].output[0] = copy.output[0].name = "inner_else"
    return copy


TOML = """
[signatures.serving_default]
inputs.user = { tensor = "user", doc = "six features", range = [0, 16] }
outputs.scores = { tensor = "scores:0", labels = "names.txt" }
outputs.best = { tensor = "best" }

[signatures.rank]
method = "regress"
inputs.item = { tensor = "item", shape = ["rows", 3] }
inputs.bias = { tensor = "bias", default = [0.5] }
outputs.outputs = { tensor = "value" }

[signatures.label]
method = "classify"
inputs.features = { tensor = "user" }
outputs.scores = { tensor = "scores:0" }
"""


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("towers")
    (root / "s.toml").write_text(TOML)
    (root / "names.txt").write_text("\n".join(f"name {i}" for i in range(2000)) + "\n")
    return mserve.export(
        two_towers(), root / "towers", signatures=root / "s.toml", assets=[root / "names.txt"]
    ).path


USER = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 6)
ITEM = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)


def test_each_signature_answers_from_its_part(towers: Path) -> None:
    model = mserve.load(towers)
    assert {n: (s.method, s.batch_axis) for n, s in model.signatures.items()} == {
        "serving_default": ("predict", 0),
        "rank": ("regress", 0),
        "label": ("classify", 0),
    }
    first = model.run({"user": USER})
    assert list(first) == ["scores", "best"]
    assert np.array_equal(model.run({"features": USER}, "label")["scores"], first["scores"])
    ranked = model.run({"item": ITEM, "bias": np.zeros((2, 1), np.float32)}, "rank")["outputs"]
    assert np.allclose(ranked, (ITEM @ DEEP).sum(1), rtol=1e-5)


def test_an_absent_input_takes_its_default(towers: Path) -> None:
    model = mserve.load(towers)
    absent = model.run({"item": ITEM}, "rank")["outputs"]
    given = model.run({"item": ITEM, "bias": np.full((2, 1), 0.5, np.float32)}, "rank")["outputs"]
    assert np.array_equal(absent, given)
    with pytest.raises(RequestError, match="missing 'item'"):
        model.run({"bias": np.zeros((2, 1), np.float32)}, "rank")


def test_signatures_with_equal_ancestors_share_a_session(towers: Path) -> None:
    model = mserve.load(towers)
    sessions = model._sessions
    assert sessions["rank"] is not sessions["label"]
    assert len({id(s) for s in sessions.values()}) <= 3


def test_a_part_computes_nothing_else(towers: Path) -> None:
    """Cut for the regression, the graph has neither the other tower's nodes nor its inputs."""
    parts = Parts(open_bundle(towers).meta)
    cut = onnx.ModelProto.FromString(parts.cut({"value"}))
    assert [n.op_type for n in cut.graph.node] == ["MatMul", "If", "ReduceSum"]
    assert [v.name for v in cut.graph.input] == ["item", "bias"]  # bias is taken by the subgraph only
    assert {t.name for t in cut.graph.initializer} == {"deep", "yes", "one"}
    assert parts.cut({"scores:0", "best", "value"}) == open_bundle(towers).meta


def test_inspect_tells_what_the_file_said(towers: Path) -> None:
    facts = json.loads(run("inspect", towers, "--json").stdout)["signatures"]
    user = facts["serving_default"]["inputs"]["user"]
    assert (user["doc"], user["range"]) == ("six features", [0, 16])
    assert facts["serving_default"]["outputs"]["scores"]["labels"] == "names.txt"
    assert facts["rank"]["inputs"]["bias"]["default"] == [0.5]
    assert facts["rank"]["inputs"]["item"]["shape"] == ["batch", 3]


def test_signatures_and_defaults_over_http(towers: Path, tmp_path: Path) -> None:
    with serving(towers.parent, tmp_path / "log") as server:
        body = {"signature_name": "rank", "instances": [{"item": row} for row in ITEM.tolist()]}
        rows = server.predict("towers", body).json()["predictions"]
        columns = server.predict("towers", {"signature_name": "rank", "inputs": {"item": ITEM.tolist()}})
        expected = mserve.load(towers).run({"item": ITEM}, "rank")["outputs"]
        assert np.array_equal(np.array(rows, np.float32), expected)
        assert np.array_equal(np.array(columns.json()["outputs"], np.float32), expected)
        mixed = {
            "signature_name": "rank",
            "instances": [{"item": ITEM[0].tolist()}, {"item": ITEM[1].tolist(), "bias": [0]}],
        }
        answer = server.predict("towers", mixed)
        assert answer.status == 400
        assert "instance 1 does not have the inputs of the first one" in answer.error


IN, OUT = 'inputs.user = { tensor = "user" }\n', 'outputs.best = { tensor = "best" }\n'
BAD: list[tuple[str, str, list[str]]] = [
    ("not TOML", "[signatures", ["cannot read the signatures file"]),
    ("no signatures", "", ["no signatures"]),
    ("a typing error in the table's name", "[signature.a]\n", ["unknown key", "signature", "signatures"]),
    ("a typing error in a key", "[signatures.a]\nmethd = 'predict'\n", ["methd", "did you mean 'method'"]),
    (
        "a typing error in a port",
        "[signatures.a]\ninputs.user = { tensr = 'user' }\n",
        ["tensr", "did you mean 'tensor'"],
    ),
    ("an unknown method", "[signatures.a]\nmethod = 'guess'\n", ["guess", "predict, classify, regress"]),
    ("an absent tensor", f"[signatures.a]\n{IN}outputs.y = {{ tensor = 'y' }}\n", ["no such tensor", "best"]),
    ("no outputs", f"[signatures.a]\n{IN}", ["a signature needs outputs"]),
    ("an input that is missing", f"[signatures.a]\n{OUT}", ["inputs are not those", "also user"]),
    (
        "an input that is not needed",
        f"[signatures.a]\n{IN}inputs.item = {{}}\n{OUT}",
        ["inputs are not those", "not item"],
    ),
    (
        "a dtype that contradicts",
        f"[signatures.a]\ninputs.user = {{ dtype = 'int8' }}\n{OUT}",
        ["not the graph's dtype", "float32"],
    ),
    (
        "a shape that contradicts",
        f"[signatures.a]\ninputs.user = {{ shape = ['N', 7] }}\n{OUT}",
        ["contradicts the graph", "[N, 6]"],
    ),
    ("a bad range", f"[signatures.a]\ninputs.user = {{ range = [2, 1] }}\n{OUT}", ["bad range"]),
    (
        "a bad default",
        f"[signatures.a]\ninputs.user = {{ default = [1, 2] }}\n{OUT}",
        ["bad default", "float32"],
    ),
    (
        "a default of the wrong kind",
        f"[signatures.a]\ninputs.user = {{ default = 'x' }}\n{OUT}",
        ["bad default"],
    ),
    (
        "an absent label file",
        f"[signatures.a]\n{IN}outputs.best = {{ labels = 'l.txt' }}\n",
        ["no such label file", "l.txt"],
    ),
    (
        "a label file that is too short",
        f"[signatures.a]\n{IN}outputs.s = {{ tensor = 'scores:0', labels = 'three.txt' }}\n",
        ["does not fit", "2000 lines", "3 lines"],
    ),
    (
        "regress with a wrong output",
        f"[signatures.a]\nmethod = 'regress'\n{IN}{OUT}",
        ["wrong outputs for regress", "best"],
    ),
    (
        "classes that are numbers",
        f"[signatures.a]\nmethod = 'classify'\n{IN}outputs.classes = {{ tensor = 'best' }}\n",
        ["wrong dtype for classify", "string"],
    ),
    ("a bad batch axis", f"[signatures.a]\nbatch_axis = 1\n{IN}{OUT}", ["bad batch_axis"]),
    (
        "a batch axis that is true",
        f"[signatures.a]\nbatch_axis = true\n{IN}{OUT}",
        ["bad batch_axis", "false"],
    ),
]


@pytest.mark.parametrize(("what", "toml", "parts"), BAD, ids=[b[0] for b in BAD])
def test_bad_signatures(tmp_path: Path, what: str, toml: str, parts: list[str]) -> None:
    (tmp_path / "s.toml").write_text(toml)
    (tmp_path / "three.txt").write_text("a\nb\nc\n")
    with pytest.raises(UsageError) as caught:
        mserve.export(
            two_towers(), tmp_path / "base", signatures=tmp_path / "s.toml", assets=[tmp_path / "three.txt"]
        )
    for part in parts:
        assert part in str(caught.value), (what, str(caught.value))
    assert not list((tmp_path / "base").glob("*"))


def test_a_file_says_that_requests_run_alone(tmp_path: Path) -> None:
    """The evidence is for joining them; whoever made the model knows better."""
    text = "[signatures.serving_default]\nbatch_axis = false\ninputs.user = {}\noutputs.best = {}\n"
    (tmp_path / "s.toml").write_text(text)
    result = mserve.export(two_towers(), tmp_path / "base", signatures=tmp_path / "s.toml")
    assert result.metagraph.signatures["serving_default"].batch_axis is None
    assert not any("independent" in note for note in result.notes)
    assert mserve.load(result.path).run({"user": USER})["best"].shape == (2,)


def test_a_range_keeps_made_up_indices_inside_a_table(tmp_path: Path) -> None:
    """Golden rows are drawn within it, here up to the last row of the table."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(10, 2), "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    text = "[signatures.serving_default]\ninputs.i = { range = [5, 9] }\noutputs.y = {}\n"
    (tmp_path / "s.toml").write_text(text)
    mserve.export(model, tmp_path / "base", signatures=tmp_path / "s.toml", golden=50)
    drawn: Any = mserve.load(tmp_path / "base").golden["serving_default"].inputs["i"]
    assert set(drawn.tolist()) == {5, 6, 7, 8, 9}
