"""Real models, against facts that TensorFlow itself found in them (`golden/tensorflow_facts.json`)."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mserve.foreign.checkpoint import Checkpoint, open_checkpoint
from mserve.foreign.detect import detect
from mserve.foreign.meta_graph import MetaGraphDef, TensorInfo
from mserve.foreign.saved_model import open_saved_model
from mserve.foreign.session_bundle import open_session_bundle
from mserve.foreign.values import chunks, strings
from mserve.tensors import show_shape

FACTS: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "tensorflow_facts.json").read_text())
Find = Callable[[str], Path]


def opened(path: Path) -> tuple[MetaGraphDef | None, Checkpoint | None]:
    found = detect(path)
    if found.format == "savedmodel":
        model = open_saved_model(path)
        return model.meta_graphs[0], model.checkpoint
    if found.format == "sessionbundle":
        bundle = open_session_bundle(path)
        return bundle.meta_graph, bundle.checkpoint
    return None, open_checkpoint(found.path)


def summary(checkpoint: Checkpoint | None) -> dict[str, object] | None:
    """Names, dtypes, shapes and every byte of the values, in one digest."""
    if checkpoint is None:
        return None
    digest, parameters = hashlib.sha256(), 0
    for v in checkpoint.variables:
        pieces = strings(checkpoint, v) if v.dtype == "string" else chunks(checkpoint, v)
        values = hashlib.sha256(b"".join(pieces)).hexdigest()
        digest.update(f"{v.name} {v.dtype} {list(v.shape)} {values}\n".encode())
        if v.dtype != "string":
            count = 1
            for size in v.shape:
                count *= size
            parameters += count
    return {
        "variables": len(checkpoint.variables),
        "parameters": parameters,
        "digest": digest.hexdigest(),
    }


def port(info: TensorInfo) -> str:
    return f"{info.name} {info.dtype} {show_shape(info.shape)}"


@pytest.mark.parametrize("name", FACTS)
def test_the_facts_are_those_of_tensorflow(real_data: Find, name: str) -> None:
    expected = FACTS[name]
    path = real_data(name)
    assert detect(path).format == expected["format"]
    meta_graph, checkpoint = opened(path)
    assert summary(checkpoint) == expected["checkpoint"]
    if meta_graph is None:
        return
    graph = meta_graph.graph
    assert list(meta_graph.tags) == expected["tags"]
    assert meta_graph.tensorflow_version == expected["tensorflow"]
    assert (graph.operators.total(), graph.functions) == (expected["nodes"], expected["functions"])
    if "signatures" in expected:
        assert {
            key: [
                s.method_name,
                {alias: port(info) for alias, info in s.inputs.items()},
                {alias: port(info) for alias, info in s.outputs.items()},
            ]
            for key, s in meta_graph.signatures.items()
        } == expected["signatures"]


HALF_PLUS_TWO = [
    ("13_tf1_and_keras/half_plus_two_sessionbundle/00000123", "a", "b", 1),
    ("14_tfserving_testdata/head/session_bundle_testdata/half_plus_two/00000123", "a", "b", 1),
    ("14_tfserving_testdata/history/half_plus_two_v1_unsharded/00000123", "Variable", "Variable_1", 1),
    ("14_tfserving_testdata/v0.5.1/servables_testdata/half_plus_two/00000123", "Variable", "Variable_1", 2),
    ("14_tfserving_testdata/v1.0.0/servables_testdata/half_plus_two/00000123", "Variable", "Variable_1", 2),
    ("14_tfserving_testdata/head/servables_testdata/bad_half_plus_two/00000123", "Variable", "Variable_1", 1),
]


@pytest.mark.parametrize(("name", "a", "b", "version"), HALF_PLUS_TWO)
def test_half_plus_two(real_data: Find, name: str, a: str, b: str, version: int) -> None:
    """y = 0.5 x + 2, as it was exported in 2016, in each form of checkpoint."""
    bundle = open_session_bundle(real_data(name))
    checkpoint = bundle.checkpoint
    assert checkpoint is not None
    assert checkpoint.version == version
    found = {v.name: struct.unpack("<f", b"".join(chunks(checkpoint, v))) for v in checkpoint.variables}
    assert found == {a: (0.5,), b: (2.0,)}


@pytest.mark.parametrize(
    ("name", "signatures"),
    [
        (HALF_PLUS_TWO[0][0], {"serving_default": ("regress", ["inputs"], ["outputs"])}),
        (HALF_PLUS_TWO[2][0], {"serving_default": ("predict", ["x"], ["y"])}),
        (HALF_PLUS_TWO[3][0], {"serving_default": ("predict", ["x"], ["y"])}),
        (HALF_PLUS_TWO[5][0], {}),
    ],
)
def test_signatures_of_2016(real_data: Find, name: str, signatures: dict[str, Any]) -> None:
    meta_graph = open_session_bundle(real_data(name)).meta_graph
    assert meta_graph is not None
    assert {
        key: (s.method_name.rpartition("/")[2], list(s.inputs), list(s.outputs))
        for key, s in meta_graph.signatures.items()
    } == signatures


def test_the_half_copied_model_is_listed_and_refused(real_data: Find) -> None:
    path = real_data("14_tfserving_testdata/head/servables_testdata/tf_text_regression/01")
    model = open_saved_model(path)
    assert [p.where for p in model.problems] == [str(path / "saved_model.pb")]
    assert model.checkpoint is not None
    assert [v.name for v in model.checkpoint.variables] == ["_CHECKPOINTABLE_OBJECT_GRAPH"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (
            "14_tfserving_testdata/head/servables_testdata/saved_model_half_plus_two_tflite/00000123/model.tflite",
            "a TensorFlow Lite file",
        ),
        ("13_tf1_and_keras/emotion_model.hdf5", "an HDF5 file (Keras?)"),
    ],
)
def test_other_formats_are_named(real_data: Find, name: str, found: str) -> None:
    assert detect(real_data(name)).found == found
