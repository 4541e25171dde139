"""Constants that live inside: bodies of Loop and Scan, sparse initializers; and tensors that overlap."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import mserve
from mserve.checks import validate
from mserve.errors import BundleIncomplete
from mserve.format import open_bundle
from mserve.format.metagraph import METADATA_PROPS, read_prop, seal
from mserve.runtime.weights import map_file
from mserve.wire import protobuf

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
LARGE = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
info, node, array = helper.make_tensor_value_info, helper.make_node, numpy_helper.from_array
X = np.linspace(0, 1, 128, dtype=np.float32).reshape(2, 64)


def model(nodes: list[onnx.NodeProto], weights: list[TensorProto]) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [info("x", FLOAT, ["N", 64])], [info("y", FLOAT, None)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def loop() -> onnx.ModelProto:
    """Three times x @ W, where W belongs to the body and V to the main graph, which the body reads too."""
    body = helper.make_graph(
        [
            node("MatMul", ["state", "W"], ["m"]),
            node("MatMul", ["m", "V"], ["next"]),
            node("Identity", ["go"], ["again"]),
        ],
        "body",
        [info("i", INT64, []), info("go", BOOL, []), info("state", FLOAT, None)],
        [info("again", BOOL, []), info("next", FLOAT, None)],
        [array(LARGE / 8, "W")],
    )
    weights = [array(LARGE.T / 8, "V"), array(np.array(3), "times"), array(np.array(True), "yes")]
    return model([node("Loop", ["times", "yes", "x"], ["y"], body=body)], weights)


def scan() -> onnx.ModelProto:
    """x @ W row by row, with W in the body."""
    body = helper.make_graph(
        [
            node("Unsqueeze", ["row", "zero"], ["r"]),
            node("MatMul", ["r", "W"], ["m"]),
            node("Squeeze", ["m", "zero"], ["out"]),
        ],
        "body",
        [info("row", FLOAT, [64])],
        [info("out", FLOAT, [64])],
        [array(LARGE, "W"), array(np.array([0]), "zero")],
    )
    return model([node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)], [])


def sparse() -> onnx.ModelProto:
    """A sparse initializer of the main graph."""
    made = model([node("MatMul", ["x", "S"], ["y"])], [])
    values = array(np.arange(1, 4, dtype=np.float32), "S")
    indices = array(np.array([0, 65, 130]), "S_indices")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [64, 64]))
    return made


@pytest.mark.parametrize("make", [loop, scan, sparse])
@pytest.mark.parametrize("external", [False, True])
def test_inner_constants_stay_and_answer_alike(tmp_path: Path, make: object, external: bool) -> None:
    """Also where the source keeps all its tensors, those of the bodies among them, in another file."""
    source = make()  # type: ignore[operator]
    onnx.save(source, tmp_path / "plain.onnx")
    if external:
        onnx.save(source, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=1024)
    path = mserve.export(tmp_path / ("m.onnx" if external else "plain.onnx"), tmp_path / "base").path
    assert [f.code for f in validate(open_bundle(path))] == []
    expected = ort.InferenceSession(tmp_path / "plain.onnx").run(None, {"x": X})[0]
    assert np.array_equal(mserve.load(path).run({"x": X})["y"], expected)
    assert np.array_equal(ort.InferenceSession(path / "export.meta").run(None, {"x": X})[0], expected)


def resealed(meta: bytes) -> bytes:
    own = ("mserve.content", "mserve.sha256")
    return seal(
        b"".join(
            meta[f.record_start : f.end]
            for f in protobuf.fields(meta)
            if f.number != METADATA_PROPS or read_prop(meta, f)[0] not in own
        )
    )


def test_tensors_that_overlap_are_found(tmp_path: Path) -> None:
    """One weight is pointed into another; everything else, digests included, is right."""
    path = mserve.export(builders.mlp(), tmp_path / "m").path
    bundle = open_bundle(path)
    first, second = sorted((w for w in bundle.graph.weights if w.shard), key=lambda w: w.offset)[:2]
    moved = onnx.ModelProto.FromString(bundle.meta)
    tensor = next(t for t in moved.graph.initializer if t.name == second.name)
    next(e for e in tensor.external_data if e.key == "offset").value = str(first.offset + 64)
    meta = path / "export.meta"
    meta.chmod(0o644)
    meta.write_bytes(resealed(moved.SerializeToString()))
    codes = {(f.code, f.where) for f in validate(open_bundle(path))}
    assert ("tensor-overlap", second.name) in codes
    assert ("shard-layout", second.name) in codes


def test_an_inner_constant_that_points_to_a_file_is_found(tmp_path: Path) -> None:
    """Export never writes one; such a file would have no digest."""
    path = mserve.export(scan(), tmp_path / "m").path
    changed = onnx.ModelProto.FromString(open_bundle(path).meta)
    tensor = next(t for a in changed.graph.node[0].attribute for t in a.g.initializer if t.name == "W")
    (path / "loose.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "loose.bin"), ("offset", "0"), ("length", str(LARGE.nbytes))):
        tensor.external_data.add(key=key, value=value)
    meta = path / "export.meta"
    meta.chmod(0o644)
    meta.write_bytes(resealed(changed.SerializeToString()))
    assert ("inner-external", "W") in {(f.code, f.where) for f in validate(open_bundle(path))}


@pytest.mark.parametrize("private", [False, True])
def test_a_shard_that_shrinks_between_check_and_load(tmp_path: Path, private: bool) -> None:
    path = mserve.export(builders.mlp(), tmp_path / "m").path / "export-00000-of-00001"
    size = path.stat().st_size
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(BundleIncomplete, match="changed while it was opened"):
        map_file(path, size, private=private)
