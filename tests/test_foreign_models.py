"""SavedModels, SessionBundles and ONNX files as facts, and what a path is."""

from __future__ import annotations

import os
from pathlib import Path

import builders
import numpy as np
import pytest
from foreign_writers import (
    FLOAT,
    HALF_PLUS_TWO,
    INT64,
    PREDICT,
    STRING,
    any_list,
    classification,
    entry,
    generic,
    manifest,
    message,
    meta_graph,
    node_list,
    regression,
    saved_model_pb,
    shape,
    signature,
    tensor_info,
    v1_table,
    write_saved_model,
    write_session_bundle,
    write_v2,
)
from onnx import TensorProto, helper

import mserve
from mserve.errors import BundleIncomplete, InputError, MserveError, NotAFile, UnsafePath
from mserve.foreign import onnx_file
from mserve.foreign.detect import detect
from mserve.foreign.meta_graph import AssetFileDef, SignatureDef, TensorInfo
from mserve.foreign.onnx_file import open_onnx
from mserve.foreign.saved_model import SavedModel, open_saved_model
from mserve.foreign.session_bundle import open_session_bundle


def opened(path: Path, *meta_graphs: bytes, schema: int = 1) -> SavedModel:
    path.mkdir(exist_ok=True)
    (path / "saved_model.pb").write_bytes(saved_model_pb(*meta_graphs, schema=schema))
    return open_saved_model(path)


def test_a_saved_model(tmp_path: Path) -> None:
    model = open_saved_model(write_saved_model(tmp_path / "m"))
    (graph,) = model.meta_graphs
    assert (graph.tags, graph.tensorflow_version, graph.graph.producer) == (("serve",), "1.15.0", 26)
    assert graph.graph.operators == {"Mul": 2, "Placeholder": 1, "VariableV2": 1}
    assert (graph.graph.functions, graph.graph.function_operators) == (1, {"AddV2": 1})
    assert graph.signatures == {
        "serving_default": SignatureDef(
            "tensorflow/serving/predict",
            {"x": TensorInfo("x:0", "float32", ("?",))},
            {"y": TensorInfo("y:0", "float32", ("?", 1))},
        )
    }
    assert graph.assets == (AssetFileDef("words.txt", "Const:0"),)
    assert (model.assets, model.extra, model.problems) == ({"words.txt": 4}, {}, ())
    assert model.checkpoint is not None
    assert [v.name for v in model.checkpoint.variables] == ["a", "b"]


SPARSE = message((2, FLOAT), (3, shape(-1, 5)), (4, message((1, "v:0"), (2, "i:0"), (3, "s:0"))))
RAGGED = message((5, message((1, b"type"), (2, tensor_info("f:0")), (2, tensor_info("r:0")))))


@pytest.mark.parametrize(
    ("info", "expected", "why"),
    [
        (tensor_info("x:0", INT64, ()), TensorInfo("x:0", "int64", ()), "a scalar"),
        (
            tensor_info("x:0", 101, None),
            TensorInfo("x:0", "float32", None),
            "a reference, its shape not said",
        ),
        (message((1, "x:0"), (2, 20)), TensorInfo("x:0", "tf:resource", None), "a type that is not ours"),
        (message((1, "x"), (3, message((3, 1)))), TensorInfo("x", "?", None), "an unknown rank"),
        (SPARSE, TensorInfo("", "float32", ("?", 5), "sparse", ("v:0", "i:0", "s:0")), "sparse"),
        (RAGGED, TensorInfo("", "?", None, "composite", ("f:0", "r:0")), "ragged"),
        (b"", TensorInfo("", "?", None), "nothing"),
    ],
)
def test_tensors_of_signatures(tmp_path: Path, info: bytes, expected: TensorInfo, why: str) -> None:
    graph = meta_graph(signatures={"s": signature("", {"x": info}, {})})
    assert opened(tmp_path, graph).meta_graphs[0].signatures["s"].inputs["x"] == expected, why


def test_meta_graphs_are_told_apart_by_tags(tmp_path: Path) -> None:
    graphs = [meta_graph(tags=("serve",)), meta_graph(tags=("serve", "gpu")), meta_graph(tags=())]
    model = opened(tmp_path, *graphs)
    assert [g.tags for g in model.meta_graphs] == [("serve",), ("serve", "gpu"), ()]
    assert model.checkpoint is None
    assert model.problems == ()


def test_inputs_with_defaults_are_named(tmp_path: Path) -> None:
    graph = meta_graph(signatures={"s": PREDICT + message((4, entry("x", b"")))})
    assert opened(tmp_path, graph).meta_graphs[0].signatures["s"].defaults == ("x",)


INIT = signature("", {}, {"__saved_model_init_op": tensor_info("NoOp")})


@pytest.mark.parametrize(
    ("parts", "init_op", "why"),
    [
        ({}, "", "none"),
        ({"collections": {"legacy_init_op": node_list("group_deps")}}, "group_deps", "TensorFlow 1.0"),
        ({"collections": {"saved_model_main_op": node_list("init")}}, "init", "TensorFlow 1.5"),
        ({"signatures": {"__saved_model_init_op": INIT}}, "NoOp", "TensorFlow 2"),
    ],
)
def test_the_init_op(tmp_path: Path, parts: dict[str, object], init_op: str, why: str) -> None:
    (graph,) = opened(tmp_path, meta_graph(**parts)).meta_graphs
    assert (graph.init_op, graph.signatures) == (init_op, {}), why


def test_assets_stood_in_a_collection_once(tmp_path: Path) -> None:
    listed = any_list("tensorflow.AssetFileDef", message((1, tensor_info("Const:0", STRING)), (2, "a.txt")))
    model = opened(tmp_path, meta_graph(collections={"saved_model_assets": listed}))
    assert model.meta_graphs[0].assets == (AssetFileDef("a.txt", "Const:0"),)
    assert model.problems[0].where.endswith("assets/a.txt")


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "", "a\0b", "c:a", "a\\..\\b", "a//b"])
def test_an_asset_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafePath):
        opened(tmp_path, meta_graph(assets={name: "Const:0"}))


def test_a_half_copied_saved_model_lists_what_is_there(tmp_path: Path) -> None:
    path = write_saved_model(tmp_path / "m")
    (path / "saved_model.pb").unlink()
    (path / "variables" / "variables.data-00000-of-00001").unlink()
    model = open_saved_model(path)
    assert [p.where.rpartition("/")[2] for p in model.problems] == [
        "saved_model.pb",
        "variables.data-00000-of-00001",
    ]
    assert (model.meta_graphs, model.assets) == ((), {"words.txt": 4})
    (path / "variables" / "variables.index").unlink()
    assert detect(path).format == ""
    (path / "saved_model.pb").write_bytes(saved_model_pb(meta_graph()))
    assert open_saved_model(path).problems == ()  # an empty variables/ is a model without variables
    (path / "variables" / "variables.data-00000-of-00001").write_bytes(b"1234")
    assert "the checkpoint is missing" in open_saved_model(path).problems[0].what


@pytest.mark.parametrize(
    ("data", "part", "why"),
    [
        (b"", "0 meta graphs in 0 bytes", "an empty file"),
        (saved_model_pb(), "0 meta graphs", "no meta graph"),
        (saved_model_pb(meta_graph(), schema=2), "schema version 2", "another schema"),
        (saved_model_pb(meta_graph())[:-1], "at byte", "cut short"),
        (saved_model_pb(b"\xff\xff"), "inside a varint", "a meta graph of nonsense"),
        (message((1, 1), (2, 3)), "not a message", "a number for a meta graph"),
    ],
)
def test_bad_saved_models(tmp_path: Path, data: bytes, part: str, why: str) -> None:
    (tmp_path / "saved_model.pb").write_bytes(data)
    with pytest.raises(InputError) as caught:
        open_saved_model(tmp_path)
    assert part in str(caught.value), why


def test_text_form_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pbtxt").write_text("saved_model_schema_version: 1\n")
    with pytest.raises(InputError, match="text form") as caught:
        open_saved_model(tmp_path)
    assert "binary" in caught.value.hint


# --- SessionBundle

X = {"x": TensorInfo("x:0", "float32", ("?", 1))}
Y = {"y": TensorInfo("y:0", "?", None)}


@pytest.mark.parametrize("version", [1, 2])
def test_a_session_bundle(tmp_path: Path, version: int) -> None:
    bundle = open_session_bundle(write_session_bundle(tmp_path / "b", version=version))
    graph = bundle.meta_graph
    assert graph is not None
    assert graph.graph.operators == {"Placeholder": 1}, "serving_graph counts, not graph_def"
    assert graph.signatures == {"serving_default": SignatureDef("tensorflow/serving/predict", X, Y)}
    assert (graph.init_op, graph.assets) == ("group_deps", (AssetFileDef("hello.txt", "Const_1:0"),))
    assert (bundle.assets, bundle.problems) == ({"hello.txt": 6}, ())
    assert bundle.checkpoint is not None
    assert (bundle.checkpoint.version, len(bundle.checkpoint.variables)) == (version, 2)


INPUT, OUTPUT = {"inputs": X["x"]}, {"outputs": Y["y"]}
CLASSES = {"classes": TensorInfo("c:0", "?", None), "scores": TensorInfo("s:0", "?", None)}


@pytest.mark.parametrize(
    ("signatures", "expected", "why"),
    [
        (manifest(regression("x:0", "y:0")), ("regress", INPUT, OUTPUT), "a default regression"),
        (
            manifest(classification("x:0", "c:0", "s:0")),
            ("classify", INPUT, CLASSES),
            "a default classification",
        ),
        (
            manifest(classification("x:0", "c:0", "")),
            ("classify", INPUT, {"classes": CLASSES["classes"]}),
            "without scores",
        ),
        (
            manifest(inputs=generic(x="x:0"), outputs=generic(y="y:0"), other=regression("x:0", "y:0")),
            ("predict", X, Y),
            "the pair among others",
        ),
        (
            manifest(regression("x:0", "y:0"), inputs=generic(x="x:0"), outputs=generic(y="y:0")),
            ("regress", INPUT, OUTPUT),
            "the default before the pair",
        ),
        (manifest(generic(x="x:0")), None, "a generic default"),
        (manifest(inputs=generic(x="x:0")), None, "half a pair"),
        (
            manifest(inputs=generic(x="x:0"), outputs=regression("x:0", "y:0")),
            None,
            "a pair that is not generic",
        ),
        (manifest(other=generic(x="x:0")), None, "other names"),
        (any_list("tensorflow.serving.Signatures"), None, "no signatures"),
    ],
)
def test_up_conversion(tmp_path: Path, signatures: bytes, expected: tuple[str, ...] | None, why: str) -> None:
    bundle = open_session_bundle(write_session_bundle(tmp_path / "b", signatures))
    assert bundle.meta_graph is not None
    found = bundle.meta_graph.signatures
    if expected is None:
        assert found == {}, why
    else:
        method, *sides = expected
        assert found == {"serving_default": SignatureDef(f"tensorflow/serving/{method}", *sides)}, why


def test_original_signatures_stay_as_they_are_named(tmp_path: Path) -> None:
    signatures = manifest(regression("x:0", "y:0"), other=generic(a="x:0"))
    named = open_session_bundle(write_session_bundle(tmp_path / "b", signatures)).named
    assert {name: (one.kind, list(one.tensors)) for name, one in named.items()} == {
        "": ("regression", ["input", "output"]),
        "other": ("generic", ["a"]),
    }


@pytest.mark.parametrize("name", ["export.meta", "export-00001-of-00002", "assets/hello.txt"])
def test_a_half_copied_session_bundle_lists_what_is_there(tmp_path: Path, name: str) -> None:
    path = write_session_bundle(tmp_path / "b")
    (path / name).unlink()
    assert detect(path).format == "sessionbundle"
    bundle = open_session_bundle(path)
    assert [p.where for p in bundle.problems] == [str(path / name)]
    assert bundle.checkpoint is not None
    assert bundle.checkpoint.variables[0].name == "a"


def test_two_values_where_one_may_stand_are_refused(tmp_path: Path) -> None:
    twice = any_list("tensorflow.serving.Signatures", b"", b"")
    path = write_session_bundle(tmp_path / "b", twice)
    with pytest.raises(InputError, match="more than one value"):
        open_session_bundle(path)


# --- ONNX


def test_an_onnx_file(tmp_path: Path) -> None:
    proto = builders.mlp()
    proto.graph.input.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, [784, 128]))
    model = open_onnx(builders.save(proto, tmp_path / "m.bin"))
    assert [str(s) for s in model.inputs] == ["float32 [N, 784]"]
    assert [str(s) for s in model.outputs] == ["float32 [N, 10]"]
    assert model.graph.operators == {"Gemm": 2, "Relu": 1}
    weights = {w.name: b"".join(onnx_file.chunks(model, w)) for w in model.graph.weights}
    assert weights["b1"] == builders.floats(10, seed=3).tobytes()


def test_onnx_ports_of_every_kind(tmp_path: Path) -> None:
    text = helper.make_tensor_value_info("s", TensorProto.STRING, None)
    sequence = helper.make_tensor_sequence_value_info("q", TensorProto.FLOAT, None)
    odd = helper.make_tensor_value_info("o", TensorProto.COMPLEX64, [None, "n", 3])
    node = helper.make_node("Identity", ["s"], ["t"])
    graph = helper.make_graph([node], "g", [text, sequence, odd], [])
    model = open_onnx(builders.save(helper.make_model(graph), tmp_path / "m.onnx"))
    assert [(s.name, s.dtype, s.shape) for s in model.inputs] == [
        ("s", "string", None),
        ("q", "sequence", None),
        ("o", "onnx:14", ("?", "n", 3)),
    ]


def test_onnx_with_its_weights_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    builders.external(builders.mlp(), path, location="m.data")
    model = open_onnx(path)
    assert model.problems == ()
    w0 = next(w for w in model.graph.weights if w.name == "w0")
    assert np.frombuffer(b"".join(onnx_file.chunks(model, w0)), "f4").size == 784 * 128
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:-1])
    assert "too short" in open_onnx(path).problems[0].what
    (tmp_path / "m.data").unlink()
    assert open_onnx(path).problems[0].found == "nothing"


@pytest.mark.parametrize("location", ["../w", "/etc/passwd", "a/../../b"])
def test_onnx_weights_outside_are_refused(tmp_path: Path, location: str) -> None:
    proto = builders.mlp()
    builders.point(proto, "w0", location=location, offset=0, length=784 * 128 * 4)
    with pytest.raises(UnsafePath):
        open_onnx(builders.save(proto, tmp_path / "m.onnx"))


def test_a_truncated_onnx_file_is_still_known_as_one(tmp_path: Path) -> None:
    path = builders.save(builders.mlp(), tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:1000])
    assert detect(path).format == "onnx"
    with pytest.raises(InputError, match="corrupt or truncated"):
        open_onnx(path)


# --- what a path is


def test_detect_by_content(tmp_path: Path, mlp_file: Path) -> None:
    bundle = mserve.export(mlp_file, tmp_path / "base").path
    write_session_bundle(tmp_path / "b1")
    write_session_bundle(tmp_path / "b2", version=2)
    write_saved_model(tmp_path / "m")
    write_v2(tmp_path / "ckpts" / "model.ckpt-7", HALF_PLUS_TWO)
    write_v2(tmp_path / "ckpts" / "model.ckpt-9", HALF_PLUS_TWO)
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "old").write_bytes(v1_table(HALF_PLUS_TWO))
    (tmp_path / "named" / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/old"\n')
    odd = tmp_path / "picture.png"
    odd.write_bytes(mlp_file.read_bytes())
    rows = [
        (bundle, "mserve", bundle),
        (odd, "onnx", odd),
        (bundle / "export.meta", "onnx", bundle / "export.meta"),
        (tmp_path / "m", "savedmodel", tmp_path / "m"),
        (tmp_path / "m/saved_model.pb", "savedmodel", tmp_path / "m"),
        (tmp_path / "b1", "sessionbundle", tmp_path / "b1"),
        (tmp_path / "b1/export.meta", "sessionbundle", tmp_path / "b1"),
        (tmp_path / "b2", "sessionbundle", tmp_path / "b2"),
        (tmp_path / "ckpts", "checkpoint", tmp_path / "ckpts/model.ckpt-9"),
        (tmp_path / "ckpts/model.ckpt-7", "checkpoint", tmp_path / "ckpts/model.ckpt-7"),
        (tmp_path / "ckpts/model.ckpt-7.index", "checkpoint", tmp_path / "ckpts/model.ckpt-7"),
        (
            tmp_path / "ckpts/model.ckpt-7.data-00000-of-00001",
            "checkpoint",
            tmp_path / "ckpts/model.ckpt-7",
        ),
        (tmp_path / "b1/export", "checkpoint", tmp_path / "b1/export"),
        (tmp_path / "b1/export-00001-of-00002", "checkpoint", tmp_path / "b1/export"),
        (tmp_path / "named", "checkpoint", tmp_path / "named/old"),
        (tmp_path, "", tmp_path),
        (tmp_path / "nothing", "", tmp_path / "nothing"),
    ]
    assert [(path, (d := detect(path)).format, d.path) for path, _, _ in rows] == rows


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"\x1c\0\0\0TFL3 and more", "a TensorFlow Lite file"),
        (b"\x89HDF\r\n\x1a\n....", "an HDF5 file (Keras?)"),
        (b"PK\x03\x04....", "a zip archive (Keras, PyTorch or npz?)"),
        (b"\x80\x04\x95", "a pickle"),
        (b"hello world", "68 65 6c 6c 6f 20 77 6f"),
        (b"\x08\x07\x12\x07pytorch", "08 07 12 07"),
        (saved_model_pb(meta_graph()), "08 01 12"),
    ],
)
def test_files_that_are_none_of_these(tmp_path: Path, data: bytes, found: str) -> None:
    (tmp_path / "f").write_bytes(data)
    detected = detect(tmp_path / "f")
    assert detected.format == ""
    assert found in detected.found


def test_what_is_no_regular_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert detect(tmp_path / "fifo").format == ""
    for name, opening in (("saved_model.pb", open_saved_model), ("export.meta", open_session_bundle)):
        directory = tmp_path / name.replace(".", "-")
        directory.mkdir()
        os.mkfifo(directory / name)
        detect(directory)
        with pytest.raises(NotAFile):
            opening(directory)
    with pytest.raises(BundleIncomplete):
        open_onnx(tmp_path / "absent")
    with pytest.raises(MserveError):
        open_onnx(tmp_path)
