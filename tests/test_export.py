"""Export: what a model becomes, what is settled by running it, and what is refused."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from builders import FLOAT, elementwise, floats, model, weight
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from writers import Writers

import mserve
from mserve.errors import EnvironmentProblem, InputError, MserveError, UnsafePath, UsageError
from mserve.exporters.signatures import aliases
from mserve.format import open_bundle
from mserve.format.golden import unpack
from mserve.format.hazards import across_rows

node = helper.make_node


def same_answers(source: ModelProto | Path, version: Path, feeds: dict[str, builders.Array]) -> None:
    for expected, actual in zip(
        builders.plain(source, feeds), mserve.load(version).run(feeds).values(), strict=True
    ):
        assert np.array_equal(expected, actual)


# --- sources and versions ---------------------------------------------------------------------


def test_a_path_and_an_object_give_the_same_content(mlp: ModelProto, mlp_file: Path, base: Path) -> None:
    first, second = mserve.export(mlp_file, base), mserve.export(mlp, base)
    assert first.metagraph.content == second.metagraph.content
    assert first.metagraph.provenance["source"] == {
        "kind": "onnx",
        "file": "mlp.onnx",
        "sha256": hashlib.sha256(mlp_file.read_bytes()).hexdigest(),
    }
    assert second.metagraph.provenance["source"] == {"kind": "onnx"}
    same_answers(mlp_file, first.path, {"x": floats(2, 784)})


def test_the_model_that_is_given_is_not_changed(mlp: ModelProto, base: Path) -> None:
    before = mlp.SerializeToString()
    mserve.export(mlp, base)
    assert mlp.SerializeToString() == before


@pytest.mark.parametrize(
    ("existing", "asked", "written"),
    [
        ([], "auto", "00000001"),
        ([1, 7], "auto", "00000008"),
        ([], 0, "00000000"),
        ([9], 3, "00000003"),
        ([], "42", "00000042"),
        ([], 2**63 - 1, "9223372036854775807"),
        ([123456789], "auto", "123456790"),
    ],
)
def test_version_numbers(
    existing: list[int], asked: int | str, written: str, mlp_file: Path, base: Path
) -> None:
    for number in existing:
        (base / f"{number:08d}").mkdir(parents=True)
    result = mserve.export(mlp_file, base, version=asked, golden=0)
    assert (result.path.name, result.version) == (written, int(written))


def test_a_version_may_be_the_time(mlp_file: Path, base: Path) -> None:
    before = int(time.time())
    assert before <= mserve.export(mlp_file, base, version="time").version <= int(time.time())


@pytest.mark.parametrize("bad", ["latest", "", "-1", -1, "1.5", 1.5, True, None, "٣", 2**63])
def test_bad_versions(bad: Any, mlp_file: Path, base: Path) -> None:
    with pytest.raises(UsageError, match="bad version"):
        mserve.export(mlp_file, base, version=bad)
    assert not base.exists()


@pytest.mark.parametrize("name", ["5", "00000005", "0005"])
def test_a_version_is_never_overwritten(name: str, mlp_file: Path, base: Path) -> None:
    (base / name).mkdir(parents=True)
    with pytest.raises(UsageError, match="version 5 exists already") as caught:
        mserve.export(mlp_file, base, version=5)
    assert str(base / name) in str(caught.value)
    assert [p.name for p in base.iterdir()] == [name]


def test_there_is_no_version_after_the_last(mlp_file: Path, base: Path) -> None:
    (base / str(2**63 - 1)).mkdir(parents=True)
    with pytest.raises(UsageError, match="no number is left"):
        mserve.export(mlp_file, base)


@pytest.mark.parametrize(
    ("where", "error", "what"),
    [
        ("file", UsageError, "the base path is not a directory"),
        ("file/below", EnvironmentProblem, "cannot write"),
        ("file/far/below", EnvironmentProblem, "cannot write"),
    ],
)
def test_base_paths_that_cannot_be(
    where: str, error: type[MserveError], what: str, mlp_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=what) as caught:
        mserve.export(mlp_file, tmp_path / where)
    assert str(tmp_path / where) in str(caught.value)
    assert (tmp_path / "file").read_text() == ""


def test_a_disk_that_refuses_writing_is_an_environment_problem(mlp_file: Path) -> None:
    proc = Path("/proc")
    if not (proc / "self").exists():
        pytest.skip("no file system that refuses everyone")
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        mserve.export(mlp_file, proc / "mserve-base")


# --- bad sources ------------------------------------------------------------------------------

Make = Callable[[Path], object]


def proto_of(change: Callable[[ModelProto], object]) -> Make:
    def make(path: Path) -> object:
        proto = builders.mlp()
        change(proto)
        return builders.save(proto, path)

    return make


def pointing(shape: tuple[int, ...] = (784, 128), **entries: object) -> Make:
    """A model whose w0 lies in data.bin (a whole one is there), with the given entries."""

    def change(proto: ModelProto) -> None:
        builders.point(proto, "w0", **({"location": "data.bin"} | entries))
        proto.graph.initializer[0].dims[:] = shape

    return proto_of(change)


def part(fraction: float) -> Make:
    def make(path: Path) -> object:
        data = builders.mlp().SerializeToString()
        return path.write_bytes(data[: int(len(data) * fraction)])

    return make


def w0(proto: ModelProto) -> TensorProto:
    return proto.graph.initializer[0]


BAD_SOURCES: list[tuple[str, Make, str]] = [
    ("a missing file", lambda p: None, "No such file"),
    ("a directory", lambda p: p.mkdir(), "the directory is no known source"),
    ("an empty file", lambda p: p.write_bytes(b""), "not an ONNX file (where: {p}; expected: an "
     "ONNX ModelProto; found: an empty file)"),
    ("text", lambda p: p.write_text("hello, world\n" * 9), "not an ONNX file"),
    ("JSON", lambda p: p.write_text('{"a": 1}'), "not an ONNX file"),
    ("a zip archive", lambda p: p.write_bytes(b"PK\x03\x04" + bytes(99)), "a zip archive (PyTorch, Keras"),
    ("an HDF5 file", lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file (Keras?)"),
    ("a pickle", lambda p: p.write_bytes(b"\x80\x04\x95" + bytes(99)), "a pickle"),
    ("another message", lambda p: p.write_bytes(b"\x0a\x03abc"), "without graph and opset"),
    ("a graph without an opset", lambda p: p.write_bytes(b"\x08\x0a\x3a\x00"), "without graph and opset"),
    ("half of a model", part(0.5), "the ONNX file is truncated"),
    ("nearly all of a model", part(0.999), "the ONNX file is truncated"),
    ("a graph that is no message", lambda p: p.write_bytes(b"\x3a\x01\xff\x42\x02\x10\x15"), "not an ONNX"),
    ("an unknown operator", proto_of(lambda m: setattr(m.graph.node[0], "op_type", "Nope")), "not valid"),
    ("a tensor of no origin", proto_of(lambda m: m.graph.node[0].input.__setitem__(0, "q")), "not valid"),
    ("no opset for a domain", proto_of(lambda m: setattr(m.graph.node[0], "domain", "x.y")), "not valid"),
    ("two weights of one name", proto_of(lambda m: m.graph.initializer.append(w0(m))), "one name"),
    ("a complex weight", proto_of(lambda m: setattr(w0(m), "data_type", 15)), "complex128"),
    ("a weight of an unknown type", proto_of(lambda m: setattr(w0(m), "data_type", 999)), "type 999"),
    ("a weight with a negative size", proto_of(lambda m: w0(m).dims.append(-1)), "negative size"),
    ("a weight with too many sizes", proto_of(lambda m: w0(m).dims.extend([1] * 31)), "33"),
    ("a weight with too few bytes", proto_of(lambda m: setattr(w0(m), "raw_data", b"abcd")),
     "the wrong number of bytes"),
    ("a weight without any bytes", proto_of(lambda m: w0(m).ClearField("raw_data")), "malformed"),
    ("an input without a type", proto_of(lambda m: m.graph.input[0].ClearField("type")), "w"),
    ("external data that is missing", pointing(location="none.bin"), "external data is missing"),
    ("missing external data of 8 GiB", pointing((1 << 16, 1 << 15), location="none.bin"), "8589934592"),
    ("external data of 8 GiB in a small file", pointing((1 << 16, 1 << 15)), "8589934592 bytes at byte 0"),
    ("external data that is short", pointing(offset=4096), "external data is short"),
    ("an offset behind the end", pointing(offset=1 << 40), "external data is short"),
    ("a negative offset", pointing(offset=-4), "external data is short"),
    ("another length than the shape's", pointing(length=4), "external data is short or has the wrong length"),
    ("an offset that is text", pointing(offset="x"), "external data is malformed"),
    ("external data above the directory", pointing(location="../data.bin"), "outside the model's directory"),
    ("external data above, later", pointing(location="a/../../data.bin"), "outside the model's directory"),
    ("an absolute path", pointing(location="/etc/hostname"), "outside the model's directory"),
    ("external data without a place", pointing(location=""), "outside the model's directory"),
    ("external data that is a directory", pointing(location="folder"), "external data is missing"),
    ("external strings", proto_of(lambda m: [builders.point(m, "b0", location="data.bin"), setattr(
        m.graph.initializer[1], "data_type", 8)]), "not"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("why", "make", "said"), BAD_SOURCES, ids=[w.replace(" ", "-") for w, *_ in BAD_SOURCES]
)
def test_bad_sources(why: str, make: Make, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    (tmp_path / "data.bin").write_bytes(bytes(784 * 128 * 4))
    (tmp_path / "folder").mkdir()
    make(path)
    with pytest.raises(InputError) as caught:
        mserve.export(path, tmp_path / "base")
    assert caught.value.exit_code == 3
    assert said.format(p=path) in str(caught.value), why
    assert str(path) in str(caught.value)
    assert not (tmp_path / "base").exists(), "a bad source leaves no base path behind"


def test_external_data_needs_a_path(tmp_path: Path) -> None:
    proto = builders.mlp()
    builders.point(proto, "w0", location="data.bin")
    with pytest.raises(InputError, match="export from the path"):
        mserve.export(proto, tmp_path / "base")


def test_a_model_that_the_runtime_refuses_leaves_nothing(base: Path) -> None:
    proto = elementwise(node("Identity", ["x"], ["y"], domain="com.example"))
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(InputError, match=r"does not accept the model.*com\.example"):
        mserve.export(proto, base)
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("kind", ["sequence", "optional"])
def test_inputs_that_are_no_tensors(kind: str, base: Path) -> None:
    proto = elementwise(node("Relu", ["x"], ["y"]))
    tensor_type = helper.make_tensor_type_proto(FLOAT, [1])
    made = getattr(helper, f"make_{kind}_type_proto")(tensor_type)
    proto.graph.input.append(helper.make_value_info("s", made))
    with pytest.raises(InputError, match="cannot be served") as caught:
        mserve.export(proto, base)
    assert kind in caught.value.found


def test_outputs_that_are_no_tensors_are_left_out(base: Path) -> None:
    proto = elementwise(node("Relu", ["x"], ["y"]), node("SequenceConstruct", ["x"], ["s"]))
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    proto.graph.output.append(helper.make_value_info("s", sequence))
    signature = mserve.export(proto, base).metagraph.signatures["serving_default"]
    assert list(signature.outputs) == ["y"]
    del proto.graph.output[0]
    with pytest.raises(InputError, match="no output of the graph is a tensor"):
        mserve.export(proto, base)


# --- how a model is taken apart ---------------------------------------------------------------


def shards_of(version: Path) -> dict[str, str]:
    """Each weight's shard, "" for those inside the graph."""
    return {w.name: w.shard for w in open_bundle(version).graph.weights}


def test_initializers_that_are_listed_as_inputs_are_no_inputs(mlp: ModelProto, base: Path) -> None:
    old = ModelProto.FromString(mlp.SerializeToString())
    old.ir_version = 3  # where every initializer had to be listed
    for tensor in old.graph.initializer:
        old.graph.input.append(helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    old.opset_import[0].version = 9
    result = mserve.export(old, base)
    assert list(result.metagraph.signatures["serving_default"].inputs) == ["x"]
    assert open_bundle(result.path).graph.ir_version == 4
    same_answers(mlp, result.path, {"x": floats(2, 784)})


def test_large_constants_go_to_the_shards_and_small_ones_stay(base: Path) -> None:
    big, small = floats(4, 400), floats(4, seed=1)
    proto = model(
        [
            node("Constant", [], ["big"], value=weight("", big)),
            node("Constant", [], ["small"], value=weight("", small)),
            node("Add", ["x", "small"], ["a"]),
            node("MatMul", ["a", "big"], ["y"]),
            node("Identity", ["big"], ["copy"]),
        ],
        [("x", FLOAT, ["N", 4])],
        [("y", FLOAT, ["N", 400]), ("copy", FLOAT, [4, 400])],
    )
    version = mserve.export(proto, base).path
    assert shards_of(version) == {"big": "export-00000-of-00001"}
    assert open_bundle(version).graph.operators["Constant"] == 1
    same_answers(proto, version, {"x": floats(3, 4)})


def test_a_large_constant_may_be_an_output(base: Path) -> None:
    proto = model([node("Constant", [], ["y"], value=weight("", floats(3000)))], [], [("y", FLOAT, [3000])])
    version = mserve.export(proto, base).path
    assert shards_of(version) == {"y": "export-00000-of-00001"}
    same_answers(proto, version, {})


def if_model(tensor: TensorProto) -> ModelProto:
    """y = x + (a constant of the branch that the sum of x chooses)."""

    def branch(name: str, op: str) -> onnx.GraphProto:
        out = [helper.make_tensor_value_info(f"{name}_y", FLOAT, None)]
        return helper.make_graph([node(op, ["x", "inner"], [f"{name}_y"])], name, [], out, [tensor])

    return model(
        [
            node("ReduceSum", ["x"], ["sum"], keepdims=0),
            node("Greater", ["sum", "zero"], ["positive"]),
            node("If", ["positive"], ["y"], then_branch=branch("t", "Add"), else_branch=branch("e", "Sub")),
        ],
        [("x", FLOAT, [2000])],
        [("y", FLOAT, [2000])],
        [weight("zero", np.float32(0))],
    )


def function_model(tensor: TensorProto) -> ModelProto:
    shift = helper.make_function(
        "local",
        "Shift",
        ["a"],
        ["b"],
        [node("Constant", [], ["inner"], value=tensor), node("Add", ["a", "inner"], ["b"])],
        [helper.make_opsetid("", 21)],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    call = node("Shift", ["x"], ["y"], domain="local")
    return model(
        [call], [("x", FLOAT, [2000])], [("y", FLOAT, [2000])], functions=[shift], opset_imports=opsets
    )


@pytest.mark.parametrize("build", [if_model, function_model])
@pytest.mark.parametrize("outside", [False, True], ids=["inline", "external"])
def test_constants_of_inner_graphs_stay_inside(
    build: Callable[[TensorProto], ModelProto], outside: bool, tmp_path: Path
) -> None:
    values = floats(2000)
    inside = build(weight("inner", values))
    source = builders.save(inside, tmp_path / "m.onnx")
    if outside:
        (tmp_path / "inner.bin").write_bytes(values.tobytes())
        tensor = TensorProto(name="inner", data_type=FLOAT, dims=[2000], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="inner.bin")
        builders.save(build(tensor), source)
    version = mserve.export(source, tmp_path / "base").path
    assert "inner" not in shards_of(version)
    for sign in (1, -1):
        same_answers(inside, version, {"x": sign * np.abs(floats(2000, seed=3))})


@pytest.mark.parametrize("together", [True, False], ids=["one file", "a file each"])
def test_sources_with_external_data(together: bool, mlp: ModelProto, base: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"location": "all.bin"} if together else {}
    source = builders.external(mlp, tmp_path / "m.onnx", all_tensors_to_one_file=together, **options)
    files = {p.name for p in tmp_path.iterdir()}
    assert files == ({"m.onnx", "all.bin"} if together else {"m.onnx", "w0", "w1"})
    first, second = mserve.export(source, base), mserve.export(mlp, base)
    assert first.metagraph.content == second.metagraph.content
    same_answers(mlp, first.path, {"x": floats(2, 784)})


def test_an_empty_external_weight_may_lie_in_an_empty_file(tmp_path: Path) -> None:
    proto = elementwise(node("Concat", ["x", "none"], ["y"], axis=0), weights=[weight("none", floats(0, 4))])
    builders.point(proto, "none", location="none.bin")
    (tmp_path / "none.bin").write_bytes(b"")
    version = mserve.export(builders.save(proto, tmp_path / "m.onnx"), tmp_path / "base").path
    assert mserve.load(version).run({"x": floats(2, 4)})["y"].shape == (2, 4)


def test_each_tensor_lies_where_the_plan_puts_it(mlp: ModelProto, base: Path) -> None:
    one, two = mserve.export(mlp, base).path, mserve.export(mlp, base, shard_bytes=100_000).path
    assert shards_of(one) == dict.fromkeys(("w0", "w1"), "export-00000-of-00001") | dict.fromkeys(
        ("b0", "b1"), ""
    )
    assert shards_of(two) == {
        "b0": "",
        "b1": "",
        "w0": "export-00000-of-00002",
        "w1": "export-00001-of-00002",
    }
    same_answers(one / "export.meta", two, {"x": floats(2, 784)})


# --- signatures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["x"], ["x"]),
        (["serving_default_x:0"], ["x"]),
        (["Call:0"], ["Call"]),
        (["Call:1", "Call:2"], ["Call_1", "Call_2"]),
        (["a/b/c"], ["a_b_c"]),
        (["a b", "a/b"], ["a b", "a/b"]),
        (["x:0", "x"], ["x_0", "x"]),
        (["é"], ["é"]),
        (["serving_default_"], ["serving_default_"]),
        (["input.1", "input-2"], ["input.1", "input-2"]),
        ([], []),
    ],
)
def test_aliases(names: list[str], expected: list[str]) -> None:
    assert aliases(names) == expected


@given(st.lists(st.text("ab:/_0 1", min_size=1, max_size=4), unique=True, max_size=5))
def test_aliases_are_all_different(names: list[str]) -> None:
    assert len(set(aliases(names))) == len(names)


def reduce(op: str) -> list[onnx.NodeProto]:
    return [node(op, ["x", "axes"], ["r"], keepdims=1)]


AXIS = weight("axes", np.array([0], np.int64))
ROWS = [node("Shape", ["x"], ["s"], start=0, end=1), node("Cast", ["s"], ["n"], to=FLOAT)]
CUMSUM = [node("CumSum", ["x", "zero"], ["y"])]
TIME = [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("Relu", ["t"], ["y"])]
QUANTIZED = [
    node("DynamicQuantizeLinear", ["x"], ["q", "scale", "at"]),
    node("DequantizeLinear", ["q", "scale", "at"], ["y"]),
]


def scaled_by(reduction: str, comparison: str, threshold: float) -> list[onnx.NodeProto]:
    """y = x / 255 where all of x together is on one side of a threshold, else x."""
    return [
        node(reduction, ["x"], ["r"], keepdims=0),
        node("Constant", [], ["t"], value_float=float(threshold)),
        node(comparison, ["r", "t"], ["c"]),
        node("Constant", [], ["by"], value_float=255.0),
        node("Constant", [], ["same"], value_float=1.0),
        node("Where", ["c", "by", "same"], ["d"]),
        node("Div", ["x", "d"], ["y"]),
    ]


BATCH_CASES: list[tuple[str, list[onnx.NodeProto], int | None, str]] = [
    ("rows that are independent", [node("Relu", ["x"], ["y"])], 0, ""),
    ("a mean over the row", [node("ReduceMean", ["x", "one"], ["m"]), node("Sub", ["x", "m"], ["y"])], 0, ""),
    (
        "a mean over the batch",
        [*reduce("ReduceMean"), node("Sub", ["x", "r"], ["y"])],
        None,
        "not independent",
    ),
    (
        "a maximum over the batch",
        [*reduce("ReduceMax"), node("Sub", ["x", "r"], ["y"])],
        None,
        "not independent",
    ),
    ("a factor of the batch size", [*ROWS, node("Mul", ["x", "n"], ["y"])], None, "not independent"),
    ("a causal sum over the batch", CUMSUM, None, "not independent"),
    ("a softmax over the batch", [node("Softmax", ["x"], ["y"], axis=0)], None, "not independent"),
    (
        "rows in reverse",
        [node("ReverseSequence", ["x", "three"], ["y"], batch_axis=1, time_axis=0)],
        None,
        "",
    ),
    ("another number of rows", [node("Concat", ["x", "x"], ["y"], axis=0)], None, "not independent"),
    ("a transposition", TIME, None, "not independent"),
    ("255 where any row is larger than 1", scaled_by("ReduceMax", "Greater", 1), None, "not independent"),
    (
        "255 where any row is larger than 1000",
        scaled_by("ReduceMax", "Greater", 1000),
        None,
        "not independent",
    ),
    ("255 where a row is below -100", scaled_by("ReduceMin", "Less", -100), None, "not independent"),
    ("255 where all are tiny", scaled_by("ReduceMax", "Less", 0.01), None, "not independent"),
    ("255 where the mean is large", scaled_by("ReduceMean", "Greater", 50), None, "not independent"),
    ("one step of quantization for all rows", QUANTIZED, None, "not independent"),
]


@pytest.mark.parametrize(("why", "nodes", "axis", "note"), BATCH_CASES, ids=[c[0] for c in BATCH_CASES])
def test_the_batch_axis_is_settled_by_running(
    why: str, nodes: list[onnx.NodeProto], axis: int | None, note: str, base: Path
) -> None:
    constants = [
        AXIS,
        weight("zero", np.int64(0)),
        weight("one", np.array([1], np.int64)),
        weight("three", np.full(32, 3, np.int64)),
    ]
    proto = model(nodes, [("x", FLOAT, ["N", "M"])], [("y", FLOAT, ["N", "M"])], constants)
    result = mserve.export(proto, base)
    signature = result.metagraph.signatures["serving_default"]
    assert signature.batch_axis == axis, why
    assert signature.inputs["x"].shape == (("batch", "M") if axis == 0 else ("N", "M"))
    assert note in " ".join(result.notes)
    assert bool(result.notes) is (axis is None)


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [
        (["N", 4], 0, ("batch", 4)),
        ([None, 4], 0, ("batch", 4)),
        ([1, 4], None, (1, 4)),
        ([None, None], 0, ("batch", "?")),
        (["steps", "batch"], 0, ("batch_0", "batch")),
        (["N", "N"], 0, ("batch", "N")),
    ],
)
def test_shapes_and_the_batch_axis(
    shape: list[int | str] | None, axis: int | None, expected: Any, base: Path
) -> None:
    proto = model([node("Relu", ["x"], ["y"])], [("x", FLOAT, shape)], [("y", FLOAT, shape)])
    signature = mserve.export(proto, base).metagraph.signatures["serving_default"]
    assert signature.batch_axis == axis
    assert signature.inputs["x"].shape == signature.outputs["y"].shape == expected


def test_rows_are_not_joined_where_the_model_does_not_run_on_made_up_inputs(base: Path) -> None:
    nodes = [node("Concat", ["x", "seven"], ["c"], axis=1), node("Reshape", ["c", "shape"], ["y"])]
    constants = [weight("seven", floats(7, 1)), weight("shape", np.array([7, 50], np.int64))]
    proto = model(nodes, [("x", FLOAT, ["N", "M"])], [("y", FLOAT, ["N", "K"])], constants)
    result = mserve.export(proto, base)
    assert result.metagraph.signatures["serving_default"].batch_axis is None
    assert "did not run on made-up inputs" in " ".join(result.notes)
    assert result.metagraph.golden is None
    again = mserve.export(proto, base, golden={"x": floats(7, 49)})
    assert again.metagraph.golden is not None


def test_bytes_of_images_and_declared_ranges_are_tried_to_their_ends(tmp_path: Path) -> None:
    """Whole numbers may be indices: only bytes, and what a range allows, are tried beyond 0 and 1."""
    nodes = scaled_by("ReduceMax", "Greater", 100)
    for at, kind, axis in ((0, TensorProto.UINT8, None), (1, TensorProto.INT64, 0)):
        inner = [node("Cast", ["raw"], ["x"], to=FLOAT), *nodes]
        proto = model(inner, [("raw", kind, ["N", "M"])], [("y", FLOAT, ["N", "M"])])
        result = mserve.export(proto, tmp_path / f"base{at}")
        assert result.metagraph.signatures["serving_default"].batch_axis == axis
    text = "[signatures.serving_default]\ninputs.raw = { range = [0, 255] }\noutputs.y = {}\n"
    (tmp_path / "s.toml").write_text(text)
    result = mserve.export(proto, tmp_path / "declared", signatures=tmp_path / "s.toml")
    assert result.metagraph.signatures["serving_default"].batch_axis is None


def test_a_trial_that_the_model_refuses_is_no_evidence(base: Path) -> None:
    """An index above the table's end, made of a float."""
    nodes = [node("Cast", ["x"], ["i"], to=TensorProto.INT64), node("Gather", ["table", "i"], ["y"])]
    proto = model(nodes, [("x", FLOAT, ["N"])], [("y", FLOAT, ["N", 4])], [weight("table", floats(9, 4))])
    assert mserve.export(proto, base).metagraph.signatures["serving_default"].batch_axis == 0


def test_a_graph_that_reads_across_rows_is_pointed_out(base: Path) -> None:
    """No trial reaches a threshold of 1e9; a note says where to look."""
    proto = model(scaled_by("ReduceMax", "Greater", 1e9), [("x", FLOAT, ["N", 4])], [("y", FLOAT, ["N", 4])])
    result = mserve.export(proto, base)
    assert result.metagraph.signatures["serving_default"].batch_axis == 0
    (note,) = result.notes
    assert "ReduceMax 'r'" in note
    assert "batch_axis = false" in note


ACROSS: list[tuple[str, list[onnx.NodeProto], list[str]]] = [
    ("a softmax of each row", [node("Softmax", ["x"], ["y"], axis=1)], []),
    ("a softmax over rows, counted from the end", [node("Softmax", ["x"], ["y"], axis=-2)], ["Softmax 'y'"]),
    ("a mean of each row", [node("ReduceMean", ["x", "one"], ["y"])], []),
    ("a mean over rows", [node("ReduceMean", ["x", "axes"], ["y"])], ["ReduceMean 'y'"]),
    (
        "a mean over rows that became columns",
        [node("Transpose", ["x"], ["t"], perm=[1, 0]), node("ReduceMean", ["t", "one"], ["y"])],
        ["ReduceMean 'y'"],
    ),
    ("the largest size", [node("Shape", ["x"], ["s"]), node("ReduceMax", ["s"], ["y"])], []),
    ("a sum of a weight", [node("ReduceSum", ["one"], ["s"]), node("Identity", ["x"], ["y"])], []),
    ("a sum over nothing", [node("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1)], []),
    ("a running sum", [node("CumSum", ["x", "zero"], ["y"])], ["CumSum 'y'"]),
    ("axes that a request chooses", [node("ReduceSum", ["x", "k"], ["y"])], []),
    ("places of what is not zero", [node("NonZero", ["x"], ["y"])], ["NonZero 'y'"]),
]


@pytest.mark.parametrize(("why", "nodes", "expected"), ACROSS, ids=[a[0] for a in ACROSS])
def test_operators_that_read_across_rows(why: str, nodes: list[onnx.NodeProto], expected: list[str]) -> None:
    constants = [AXIS, weight("zero", np.int64(0)), weight("one", np.array([1], np.int64))]
    inputs = [("x", FLOAT, ["N", 4]), ("k", TensorProto.INT64, ["K"])]
    assert across_rows(model(nodes, inputs, [("y", FLOAT, None)], constants), ["x"]) == expected, why


def test_scalar_outputs_are_served(base: Path) -> None:
    proto = model([node("ReduceSum", ["x"], ["y"], keepdims=0)], [("x", FLOAT, ["N"])], [("y", FLOAT, [])])
    version = mserve.export(proto, base).path
    assert mserve.load(version).run({"x": np.ones(5, np.float32)})["y"] == 5


def test_signatures_from_a_file(mlp: ModelProto, base: Path, tmp_path: Path) -> None:
    toml = tmp_path / "s.toml"
    toml.write_text(
        '[signatures.label]\nmethod = "classify"\n'
        'inputs.image = { tensor = "x" }\noutputs.scores = { tensor = "y" }\n'
    )
    for given_as in (toml, str(toml)):
        signatures = mserve.export(mlp, base, signatures=given_as).metagraph.signatures
        assert list(signatures) == ["label"]
        assert (signatures["label"].method, signatures["label"].batch_axis) == ("classify", 0)
        assert list(signatures["label"].inputs) == ["image"]


# --- golden samples, assets, provenance -------------------------------------------------------


def golden_of(version: Path) -> tuple[builders.Array, builders.Array]:
    bundle = open_bundle(version)
    assert bundle.metagraph.golden is not None
    sample = unpack(bundle.file(bundle.metagraph.golden), bundle.metagraph.signatures)["serving_default"]
    return sample.inputs["x"], sample.outputs["y"]


def test_golden_samples_as_a_number_a_file_and_arrays(mlp: ModelProto, base: Path, tmp_path: Path) -> None:
    given_x, npz = floats(5, 784, seed=9), tmp_path / "golden.npz"
    np.savez(npz, x=given_x)
    expected = builders.plain(mlp, {"x": given_x})[0]
    for golden in (npz, str(npz), {"x": given_x}):
        x, y = golden_of(mserve.export(mlp, base, golden=golden).path)
        assert np.array_equal(x, given_x)
        assert np.array_equal(y, expected)
    assert golden_of(mserve.export(mlp, base, golden=4).path)[0].shape == (4, 784)
    assert golden_of(mserve.export(mlp, base).path)[0].shape == (1, 784)
    assert mserve.export(mlp, base, golden=0).metagraph.golden is None


def bad_golden_files(directory: Path) -> dict[str, Any]:
    np.save(directory / "one.npy", floats(1, 784))
    np.savez(directory / "objects.npz", x=np.array([{}], object))
    (directory / "text.npz").write_text("hello")
    return {name: directory / name for name in ("one.npy", "objects.npz", "text.npz", "missing.npz")}


def test_bad_golden_inputs(mlp: ModelProto, base: Path, tmp_path: Path) -> None:
    bad = bad_golden_files(tmp_path) | {
        "name": {"q": floats(1, 784)},
        "shape": {"x": floats(1, 783)},
        "dtype": {"x": floats(1, 784).astype(np.float64)},
        "list": {"x": [[1, 2]]},
    }
    for why, golden in bad.items():
        with pytest.raises(InputError) as caught:
            mserve.export(mlp, base, golden=golden)
        assert str(golden if isinstance(golden, Path) else "serving_default") in str(caught.value), why
    assert list(base.iterdir()) == []


def test_text_that_is_bytes_is_recorded_as_text(base: Path) -> None:
    given_words = np.array(["a", "é", "zz"], object)
    for words in (given_words, given_words.astype(str), np.array([w.encode() for w in given_words])):
        version = mserve.export(builders.strings(), base, golden={"word": words}).path
        bundle = open_bundle(version)
        assert bundle.metagraph.golden
        sample = unpack(bundle.file(bundle.metagraph.golden), bundle.metagraph.signatures)["serving_default"]
        assert list(sample.inputs["word"]) == list(sample.outputs["echo"]) == ["a", "é", "zz"]
        assert list(sample.outputs["value"]) == [1.0, 3.0, -1.0]


@pytest.mark.parametrize(("word", "what"), [(b"\xff", "not UTF-8"), ("a\0", "ends in NUL"), (7, "int")])
def test_text_that_cannot_be_recorded(word: object, what: str, base: Path) -> None:
    with pytest.raises(InputError, match=what):
        mserve.export(builders.strings(), base, golden={"word": np.array([word], object)})
    assert list(base.iterdir()) == []


def test_a_model_of_random_operators_records_no_golden_samples(base: Path) -> None:
    noise = node("RandomNormalLike", ["x"], ["n"])
    result = mserve.export(elementwise(noise, node("Add", ["x", "n"], ["y"])), base)
    assert result.metagraph.golden is None
    assert "two runs of the same inputs differ" in " ".join(result.notes)


def test_assets(mlp: ModelProto, base: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("zero\n")
    (tmp_path / "empty").write_text("")
    words, empty = str(tmp_path / "words.txt"), tmp_path / "empty"
    result = mserve.export(mlp, base, assets=[words, f"{words}=labels/de.txt", empty])
    assert [r.name for r in result.metagraph.assets] == [
        "assets/empty",
        "assets/labels/de.txt",
        "assets/words.txt",
    ]
    assert (result.path / "assets/labels/de.txt").read_text() == "zero\n"
    open_bundle(result.path)


@pytest.mark.parametrize(
    ("assets", "what"),
    [
        (["none.txt"], "an asset is not a file"),
        (["folder"], "an asset is not a file"),
        (["a.txt", "a.txt"], "the name is taken"),
        (["a.txt", "folder/a.txt"], "the name is taken"),
        (["a.txt=mserve/golden.npz"], "the name is reserved"),
        (["a.txt=mserve"], "the name is reserved"),
        (["a.txt=../up.txt"], "leads out of the bundle"),
        (["a.txt=x/../../../up.txt"], "leads out of the bundle"),
        (["a.txt=a\\b"], "leads out of the bundle"),
        (["a.txt=x", "a.txt=x/y"], "the name is taken"),
    ],
)
def test_bad_assets(
    assets: list[str], what: str, mlp_file: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "folder/a.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=what):
        mserve.export(mlp_file, base, assets=assets)
    assert not base.exists()


def test_name_and_provenance(mlp_file: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    plain = mserve.export(mlp_file, base).metagraph
    assert plain.name == ""
    assert sorted(plain.provenance) == ["creator", "source", "versions"]
    assert plain.provenance["creator"] == f"mserve {mserve.__version__}"
    assert plain.provenance["versions"]["onnx"] == onnx.__version__
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    full = mserve.export(mlp_file, base, name="ctr é", meta={"run": "7"}).metagraph
    assert full.name == "ctr é"
    assert full.provenance["created"] == "1970-01-02T00:00:00Z"
    assert full.provenance["meta"] == {"run": "7"}
    assert open_bundle(base).metagraph == full


def test_two_processes_that_export_at_once_get_two_versions(
    writers: Writers, mlp_file: Path, base: Path
) -> None:
    children = [writers.start(mlp_file, base) for _ in range(4)]
    assert sorted(writers.wait(child).version for child in children) == [1, 2, 3, 4]
    assert sorted(p.name for p in base.iterdir()) == [f"{n:08d}" for n in range(1, 5)]
    assert len({open_bundle(p).metagraph.identity for p in base.iterdir()}) == 1


def test_two_processes_that_want_one_version_do_not_both_get_it(
    writers: Writers, mlp_file: Path, base: Path
) -> None:
    ended = [writers.wait(c) for c in [writers.start(mlp_file, base, version=5) for _ in range(3)]]
    assert sorted((e.version, e.error) for e in ended) == [(0, "UsageError"), (0, "UsageError"), (5, "")]
    assert [p.name for p in base.iterdir()] == ["00000005"]


def test_bundle_errors_are_not_raised_for_what_the_user_asks(mlp_file: Path, base: Path) -> None:
    """UnsafePath speaks of a bundle that somebody else wrote."""
    with pytest.raises(UsageError) as caught:
        mserve.export(mlp_file, base, assets=[f"{mlp_file}=../x"])
    assert not isinstance(caught.value, UnsafePath)
    assert caught.value.exit_code == 2
