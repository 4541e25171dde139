"""`validate` finds what it promises to find, and nothing in good bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import builders
import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mserve
from mserve.checks import CODES, Finding, validate
from mserve.format import open_bundle


def found(path: Path, *, full: bool = False) -> list[Finding]:
    return validate(open_bundle(path), full=full)


def model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """x [N, 4] -> y [N, 4] through `nodes`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


# Declared by hand to have independent rows, which export would not have believed.
BATCHED = "[signatures.serving_default]\nbatch_axis = 0\ninputs.x = {}\noutputs.y = {}\n"
X = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)


def declared(tmp_path: Path, source: onnx.ModelProto, golden: np.ndarray = X) -> Path:
    (tmp_path / "s.toml").write_text(BATCHED)
    return mserve.export(source, tmp_path / "m", signatures=tmp_path / "s.toml", golden={"x": golden}).path


node = helper.make_node
CASES: list[tuple[str, onnx.ModelProto, list[tuple[str, str]]]] = [
    ("an independent model", model([node("Relu", ["x"], ["y"])]), []),
    (
        "rows normalised over the batch",
        model([node("ReduceMean", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["y"])]),
        [("batch-neighbours", "serving_default.y"), ("batch-size", "serving_default.y")],
    ),
    (
        "rows summed from the first to the last",
        model([node("CumSum", ["x", "zero"], ["y"])], {"zero": np.array(0, np.int64)}),
        [("batch-neighbours", "serving_default.y"), ("batch-size", "serving_default.y")],
    ),
    (
        "rows that are multiplied by their number",
        model(
            [
                node("Shape", ["x"], ["s"], end=1),
                node("Cast", ["s"], ["n"], to=TensorProto.FLOAT),
                node("Mul", ["x", "n"], ["y"]),
            ]
        ),
        [("batch-size", "serving_default.y")],
    ),
    (
        "rows that are divided by 255 where one is larger than 1000",
        model(
            [
                node("ReduceMax", ["x"], ["m"], keepdims=0),
                node("Greater", ["m", "high"], ["c"]),
                node("Where", ["c", "byte", "one"], ["d"]),
                node("Div", ["x", "d"], ["y"]),
            ],
            {
                name: np.array(value, np.float32)
                for name, value in (("high", 1000), ("byte", 255), ("one", 1))
            },
        ),
        [("batch-neighbours", "serving_default.y")],
    ),
    (
        "a weight that nothing reads",
        model([node("Relu", ["x"], ["y"])], {"idle": np.zeros((64, 64), np.float32)}),
        [("unused-weight", "idle")],
    ),
    (
        "answers that are no numbers",
        model(
            [
                node("Sqrt", ["neg"], ["y"]),
            ],
            None,
        ),
        [],
    ),
]
CASES[-1][1].graph.node.insert(0, node("Neg", ["x"], ["neg"]))
CASES[-1] = (CASES[-1][0], CASES[-1][1], [("not-a-number", "serving_default.y")])


@pytest.mark.parametrize(("what", "source", "expected"), CASES, ids=[c[0] for c in CASES])
def test_full(tmp_path: Path, what: str, source: onnx.ModelProto, expected: list[tuple[str, str]]) -> None:
    path = declared(tmp_path, source)
    assert [(f.code, f.where) for f in found(path, full=True)] == expected, what
    assert found(path) == []


def test_an_output_that_is_not_what_was_declared(tmp_path: Path) -> None:
    """The graph says [N, 4] of what is [N, 2]; ONNX Runtime only warns."""
    source = model(
        [node("Slice", ["x", "from", "to", "axis"], ["y"])],
        {k: np.array([v], np.int64) for k, v in (("from", 0), ("to", 2), ("axis", 1))},
    )
    path = declared(tmp_path, source)
    codes = {f.code: f.text for f in found(path, full=True)}
    assert codes["output-shape"] == "declared float32 [batch, 4], returned float32 [3, 2]"
    assert "shape-inference" in codes


def test_a_bundle_without_golden_samples_says_so(tmp_path: Path) -> None:
    path = mserve.export(builders.mlp(), tmp_path / "m", golden=0).path
    assert [(f.code, f.severity) for f in found(path)] == [("golden-absent", "warning")]


def rewrite(path: Path, change: Callable[[h5py.File], None]) -> None:
    path.chmod(0o644)
    with h5py.File(path, "r+") as file:
        change(file)


def with_external_link(file: h5py.File) -> None:
    del file["w0"]
    file["w0"] = h5py.ExternalLink("/etc/passwd", "x")


def with_soft_link(file: h5py.File) -> None:
    del file["w0"]
    file["w0"] = h5py.SoftLink("/w1")


def with_virtual(file: h5py.File) -> None:
    shape = file["w0"].shape
    del file["w0"]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("elsewhere", "x", shape)
    file.create_virtual_dataset("w0", layout)


def with_filter(file: h5py.File) -> None:
    values = file["w0"][()]
    del file["w0"]
    file.create_dataset("w0", data=values, compression="gzip")


def with_external_storage(file: h5py.File) -> None:
    del file["w0"]
    file.create_dataset("w0", (784, 128), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def with_a_group(file: h5py.File) -> None:
    del file["w0"]
    file.create_group("w0")


def without_it(file: h5py.File) -> None:
    del file["w0"]


CHANGES = [with_external_link, with_soft_link, with_virtual, with_filter, with_external_storage]


@pytest.mark.parametrize("change", [*CHANGES, with_a_group, without_it])
def test_a_shard_that_h5py_would_read_from_elsewhere(
    tmp_path: Path, change: Callable[[h5py.File], None]
) -> None:
    """ONNX Runtime would compute with one thing, and whoever opens the shard see another."""
    path = mserve.export(builders.mlp(), tmp_path / "m").path
    shard = path / "export-00000-of-00001"
    size = shard.stat().st_size
    rewrite(shard, change)
    with shard.open("r+b") as file:
        file.truncate(max(size, 0))
    findings = {(f.code, f.where) for f in validate(open_bundle(path))}
    assert ("file-digest", "export-00000-of-00001") in findings
    assert {w for c, w in findings if c == "shard-layout"} & {"w0", "export-00000-of-00001"}


def divided(op: str, kind: int, divisor: list[int] | None, **attributes: int) -> onnx.ModelProto:
    """y = x divided by k: an input, or a constant."""
    ports = [("x", kind, ["N"]), *([] if divisor else [("k", kind, ["N"])])]
    stored = [numpy_helper.from_array(np.array(divisor, np.int64), "k")] if divisor else []
    return builders.model([node(op, ["x", "k"], ["y"], **attributes)], ports, [("y", kind, ["N"])], stored)


def inner_division() -> onnx.ModelProto:
    """The same in a branch, whose types only inference knows."""

    def branch(op: str, name: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info(name, TensorProto.INT64, None)
        return helper.make_graph([node(op, ["twice", "x"], [name])], op, [], [value])

    return builders.model(
        [
            node("Add", ["x", "x"], ["twice"]),
            node("ReduceSum", ["x"], ["sum"], keepdims=0),
            node("Cast", ["sum"], ["c"], to=TensorProto.BOOL),
            node("If", ["c"], ["y"], then_branch=branch("Div", "a"), else_branch=branch("Add", "b")),
        ],
        [("x", TensorProto.INT64, ["N"])],
        [("y", TensorProto.INT64, ["N"])],
    )


def halves() -> onnx.ModelProto:
    """A size divided by a size, as exporters write it: no request chooses a negative one."""
    return builders.model(
        [node("Shape", ["x"], ["s"]), node("Div", ["s", "s"], ["y"])],
        [("x", TensorProto.FLOAT, ["N"])],
        [("y", TensorProto.INT64, [1])],
    )


INT64 = TensorProto.INT64
DIVISIONS: list[tuple[str, onnx.ModelProto, list[str]]] = [
    ("by an input", divided("Div", INT64, None), ["Div 'y'"]),
    ("the rest, by an input", divided("Mod", TensorProto.INT32, None), ["Mod 'y'"]),
    ("the rest as C has it for floats", divided("Mod", INT64, None, fmod=1), []),
    ("by a constant", divided("Div", INT64, [7]), []),
    ("by a constant of -1", divided("Div", INT64, [2, -1]), ["Div 'y'"]),
    ("floats", divided("Div", TensorProto.FLOAT, None), []),
    ("bytes, which are computed as wider numbers", divided("Div", TensorProto.INT8, None), []),
    ("in a branch", inner_division(), ["Div 'a'"]),
    ("sizes", halves(), []),
]


@pytest.mark.parametrize(("what", "source", "nodes"), DIVISIONS, ids=[d[0] for d in DIVISIONS])
def test_divisions_that_can_end_the_process(
    tmp_path: Path, what: str, source: onnx.ModelProto, nodes: list[str]
) -> None:
    result = mserve.export(source, tmp_path / "m", golden=0)
    warned = [f.where for f in found(result.path) if f.code == "integer-division"]
    assert warned == nodes, what
    assert [note.split(":")[0] for note in result.notes if "divided by -1" in note] == nodes


def test_every_code_is_documented(root: Path) -> None:
    text = (root / "README.md").read_text()
    for code, (severity, meaning) in CODES.items():
        assert f"| `{code}` | {severity} | {meaning} |" in text
