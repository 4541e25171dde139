"""`mserve inspect`: of foreign layouts, and what --graph and --weights list."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from foreign_writers import (
    HALF_PLUS_TWO,
    meta_graph,
    saved_model_pb,
    write_saved_model,
    write_session_bundle,
    write_v2,
)
from onnx import TensorProto, helper
from test_commands import run

import mserve


def rows(*arguments: object, code: int = 0) -> list[list[str]]:
    """The tab-separated rows that `mserve inspect` prints."""
    done = run("inspect", *arguments)
    assert done.returncode == code, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def document(*arguments: object, code: int = 0) -> dict[str, Any]:
    done = run("inspect", *arguments, "--json")
    assert done.returncode == code, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert (facts["schema"], facts["kind"]) == (1, "inspect")
    return facts


STATISTICS_OF_A = {"count": 1, "min": 0.5, "max": 0.5, "mean": 0.5, "nan": 0}


def test_a_saved_model(tmp_path: Path) -> None:
    path = write_saved_model(tmp_path / "m")
    facts = document(path, "--weights")
    assert facts["format"] == "savedmodel"
    assert facts["signatures"]["serving_default"] == {
        "method": "predict",
        "method_name": "tensorflow/serving/predict",
        "batch_axis": None,
        "inputs": {"x": {"tensor": "x:0", "dtype": "float32", "shape": ["?"], "kind": "dense", "parts": []}},
        "outputs": {
            "y": {"tensor": "y:0", "dtype": "float32", "shape": ["?", 1], "kind": "dense", "parts": []}
        },
        "defaults": [],
    }
    assert facts["assets"] == [{"name": "words.txt", "size": 4}]
    assert facts["variables"]["list"][0]["statistics"] == STATISTICS_OF_A
    assert facts["problems"] == []
    table = rows(path, "--weights")
    assert ["savedmodel", str(path)] in table
    assert ["operators", "4: Mul x2, Placeholder x1, VariableV2 x1"] in table
    assert ["serving_default (predict)", "output", "y", "float32", "[?, 1]", "y:0"] in table
    assert ["assets/words.txt", "4 B"] in table
    assert ["b", "float32", "[]", "4 B", "variables.data-00000-of-00001", "2", "2", "2", "0"] in table


def test_the_newest_version_of_a_foreign_base_path(tmp_path: Path) -> None:
    write_session_bundle(tmp_path / "base" / "00000001")
    newest = write_saved_model(tmp_path / "base" / "2")
    assert document(tmp_path / "base")["path"] == str(newest)


def test_several_meta_graphs(tmp_path: Path) -> None:
    from foreign_writers import PREDICT

    graphs = [meta_graph(tags=tags, signatures={"s": PREDICT}) for tags in (("train",), ("serve", "gpu"))]
    (tmp_path / "saved_model.pb").write_bytes(saved_model_pb(*graphs))
    assert [g["tags"] for g in document(tmp_path)["meta_graphs"]] == [["train"], ["serve", "gpu"]]
    assert {r[0] for r in rows(tmp_path)} >= {"[train] s (predict)", "[serve, gpu] s (predict)"}


def test_a_session_bundle(tmp_path: Path) -> None:
    path = write_session_bundle(tmp_path / "b")
    facts = document(path)
    assert facts["format"] == "sessionbundle"
    assert facts["signatures"]["serving_default"]["inputs"]["x"]["tensor"] == "x:0"
    assert facts["named_signatures"]["outputs"]["kind"] == "generic"
    table = rows(path, "--weights")
    assert ["init op", "group_deps"] in table
    assert ["asset hello.txt", "path in Const_1:0"] in table
    assert ["serving_default (predict)", "input", "x", "float32", "[?, 1]", "x:0"] in table
    assert ["a", "float32", "[]", "4 B", "export-00000-of-00002", "0.5", "0.5", "0.5", "0"] in table


@pytest.mark.parametrize(
    ("missing", "kept"),
    [
        ("export.meta", ["variables", "2, 2 parameters, 8 B in 2 file(s), checkpoint version 1"]),
        ("export-00001-of-00002", ["export-00001-of-00002", "missing"]),
    ],
)
def test_a_half_copied_session_bundle(tmp_path: Path, missing: str, kept: list[str]) -> None:
    """Exit 3 and what is missing on stderr; on stdout what there is, also as JSON."""
    path = write_session_bundle(tmp_path / "b")
    (path / missing).unlink()
    if missing == "export.meta":
        assert kept in rows(path, "--weights", code=3)
    else:
        assert kept in rows(path, code=3)
    assert document(path, code=3)["problems"][0]["where"] == str(path / missing)
    stderr = run("inspect", path).stderr
    assert f"where: {path / missing}" in stderr
    assert "next: " in stderr


def test_a_checkpoint(tmp_path: Path) -> None:
    prefix = write_v2(tmp_path / "model.ckpt-7", HALF_PLUS_TWO)
    assert document(tmp_path, "--weights")["variables"]["list"][0]["statistics"] == STATISTICS_OF_A
    prefix.with_name("model.ckpt-7.meta").write_bytes(meta_graph(tags=()))
    facts = document(prefix)
    assert (facts["format"], facts["variables"]["count"]) == ("checkpoint", 2)
    assert facts["meta_graphs"][0]["graph"]["nodes"] == 4


def test_graphs_of_tensorflow_are_not_listed(tmp_path: Path) -> None:
    done = run("inspect", write_saved_model(tmp_path / "m"), "--graph")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--graph lists the nodes of ONNX graphs" in done.stderr


# --- ONNX, in a bundle and bare


def everything() -> Any:
    """A graph with a subgraph, a function, attributes of every kind and a weight of every dtype."""
    then = helper.make_graph([helper.make_node("Identity", ["x"], ["t"])], "then", [], [])
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Abs", ["n"], ["e"])], "else", [], []
    )
    nodes = [
        helper.make_node("Cast", ["flag"], ["c"], name="to_bool", to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
        helper.make_node("Twice", ["y"], ["z"], domain="our"),
        helper.make_node("LpNormalization", ["z"], ["a"], axis=-1, p=2),
        helper.make_node("Pad", ["a", "", "w"], ["b"], mode="x" * 100),
        helper.make_node("Constant", [], ["k"], value=builders.weight("", np.zeros((2, 3), np.int64))),
        helper.make_node("Constant", [], ["l"], value_floats=[0.5] * 9),
        helper.make_node("Clip", ["a"], ["m"], alpha=0.25, names=["u", "v"]),
    ]
    twice = helper.make_function(
        "our",
        "Twice",
        ["x"],
        ["y"],
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 21)],
    )
    return builders.model(nodes, [("x", 1, ["N"]), ("flag", 1, [])], [("m", 1, ["N"])], functions=[twice])


LINES = """
to_bool = Cast(flag) to=bool -> c
If(c) -> y
    graph else_branch: else: 2 nodes
    graph then_branch: then: 1 nodes
our.Twice(y) -> z
LpNormalization(z) axis=-1 p=2 -> a
Pad(a, , w) mode='xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...' -> b
Constant() value=<int64 [2, 3]> -> k
Constant() value_floats=[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ... 9 values] -> l
Clip(a) alpha=0.25 names=['u', 'v'] -> m
function our.Twice: 1 nodes
"""


def test_the_nodes_of_an_onnx_file(tmp_path: Path) -> None:
    path = builders.save(everything(), tmp_path / "m.onnx")
    text = run("inspect", path, "--graph").stdout
    assert text.endswith(LINES[1:])
    facts = document(path, "--graph")
    assert facts["nodes"][1]["subgraphs"] == [
        {"name": "else_branch: else", "nodes": 2},
        {"name": "then_branch: then", "nodes": 1},
    ]
    assert facts["functions"] == [{"name": "our.Twice", "nodes": 1}]


def test_the_nodes_of_a_bundle(tmp_path: Path, mlp_file: Path) -> None:
    mserve.export(mlp_file, tmp_path / "base")
    text = run("inspect", tmp_path / "base", "--graph").stdout
    assert text.endswith("Gemm(x, w0, b0) -> h\nRelu(h) -> r\nGemm(r, w1, b1) -> y\n")
    facts = document(tmp_path / "base", "--graph")
    assert [n["op"] for n in facts["nodes"]] == ["Gemm", "Relu", "Gemm"]
    assert (facts["format"], facts["format_version"]) == ("mserve", 1)


@pytest.mark.parametrize("name", ["base", "base/00000001"])
def test_a_bundle_of_ours_loads_no_reader_of_other_layouts(tmp_path: Path, mlp_file: Path, name: str) -> None:
    """`inspect` of a bundle is to stay as fast as it was before there were any."""
    mserve.export(mlp_file, tmp_path / "base")
    code = (
        "import sys; from mserve.cli import build\n"
        "try: build()(args=['inspect', sys.argv[1]], prog_name='mserve')\n"
        "except SystemExit: print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.splitlines()[-1].split())
    assert {m for m in modules if m.startswith("mserve.foreign.")} == {
        "mserve.foreign.detect",
        "mserve.foreign.files",
    }
    assert not {"numpy", "onnx"} & modules


def test_the_same_statistics_from_a_file_and_from_a_bundle(tmp_path: Path, mlp_file: Path) -> None:
    """Inline in the file; in the bundle w0 and w1 lie in a shard, the biases in the graph."""
    mserve.export(mlp_file, tmp_path / "base")
    bare = {w["name"]: w for w in document(mlp_file, "--weights")["weights"]}
    ours = {w["name"]: w for w in document(tmp_path / "base", "--weights")["weights"]}
    w0 = builders.floats(784, 128) * 0.05
    assert bare["w0"]["statistics"]["min"] == float(w0.min())
    assert bare["w0"]["statistics"]["mean"] == pytest.approx(float(w0.mean(dtype=np.float64)))
    assert ours["w0"]["shard"] == "export-00000-of-00001"
    assert ours["b0"]["shard"] is None
    assert {n: w["statistics"] for n, w in ours.items()} == {n: w["statistics"] for n, w in bare.items()}


@pytest.mark.parametrize("elements", [3, 5000], ids=["inline", "in a shard"])
def test_weights_with_nan_and_infinity(tmp_path: Path, elements: int) -> None:
    values = np.ones(elements, np.float32)
    values[:2] = [np.nan, -np.inf]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    proto = builders.elementwise(node, weights=[builders.weight("w", values)])
    proto.graph.input[0].type.tensor_type.shape.dim[-1].dim_value = elements
    path = builders.save(proto, tmp_path / "m.onnx")
    (found,) = document(path, "--weights")["weights"]
    assert found["statistics"] == {"count": elements, "min": "-inf", "max": 1.0, "mean": "-inf", "nan": 1}
    assert rows(path, "--weights")[-1][5:] == ["-inf", "1", "-inf", "1"]


def test_weights_of_strings_and_of_typed_fields(tmp_path: Path) -> None:
    weights = [
        helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]),
        helper.make_tensor("h", TensorProto.FLOAT16, [2], [1.5, -2.0]),
        helper.make_tensor("i", TensorProto.INT64, [3], [-5, 0, 2**40]),
        helper.make_tensor("o", TensorProto.COMPLEX64, [1], [1j]),
    ]
    proto = builders.model([], [], [("s", TensorProto.STRING, [2])], weights)
    listed = document(builders.save(proto, tmp_path / "m.onnx"), "--weights")["weights"]
    found = {w["name"]: w["statistics"] for w in listed}
    assert found["s"] == {"count": 2}
    assert found["o"] is None
    assert found["h"] == {"count": 2, "min": -2.0, "max": 1.5, "mean": -0.25, "nan": 0}
    assert (found["i"]["min"], found["i"]["max"]) == (-5, 2**40)


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("model.tflite", b"\x1c\0\0\0TFL3....", "a TensorFlow Lite file"),
        ("model.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("empty", b"", "an empty file"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, data: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(data)
    done = run("inspect", tmp_path / name)
    assert (done.returncode, done.stdout) == (3, "")
    assert part in done.stderr
