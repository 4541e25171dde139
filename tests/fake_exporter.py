"""A third party's source for tests: installed beside the package by its entry points alone.

A file of kind `fake` begins with `FAKE ` and says how its conversion is to behave; one of
kind `fake-code` begins with `CODE ` and is Python, run when it is opened, as a pickle would be.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mserve.exporters.kinds import Converted, ConvertOptions, Kind, Seen
from mserve.tensors import Signature, TensorSpec

ENTRY_POINTS = """\
[mserve.exporters]
fake = fake_exporter:KIND
fake-code = fake_exporter:CODE
fake-missing = fake_exporter:MISSING
taken = fake_exporter:TAKEN
no-kind = fake_exporter:ENTRY_POINTS
broken = fake_exporter_that_is_not_there:KIND
"""


def install(directory: Path) -> None:
    """Make this module a distribution in a directory that stands in PYTHONPATH."""
    directory.mkdir()
    (directory / "fake_exporter.py").write_text(Path(__file__).read_text())
    facts = directory / "fake_exporter-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-exporter\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(ENTRY_POINTS)


def twice(batch: int | str = "N", op: str = "Add") -> onnx.ModelProto:
    """y = x + x, for two columns."""
    nodes = [helper.make_node(op, ["x", "x"], ["y"])]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch, 2]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


SIGNATURE = Signature(
    "predict",
    {"x": TensorSpec("x", "float32", ("batch", 2))},
    {"doubled": TensorSpec("y", "float32", ("batch", 2))},
    0,
)


def reference(name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"doubled": inputs["x"].astype(np.float64) * 2}


def unlike(name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"doubled": inputs["x"] * 2 + 1e-4}


def summed() -> onnx.ModelProto:
    """y = x + the sum over all rows: a row's answer depends on the others."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=1),
        helper.make_node("Add", ["x", "s"], ["y"]),
    ]
    model = twice()
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def reach() -> str:
    """Whether a packet can leave this process: UDP needs a route and no answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError as error:
            return f"no network: {error.strerror}"
    return "network"


def convert(source: str, options: ConvertOptions) -> Converted:
    mode = Path(source).read_bytes().split()[1].decode()
    converted = Converted(
        twice(),
        {"serving_default": SIGNATURE},
        reference=reference,
        compared_with="fake 1.0",
        versions={"fake": "1.0"},
        assets={"words.txt": b"zero\none\n"},
    )
    if mode == "crash":
        ctypes.string_at(0)
    if mode == "exit":
        os._exit(7)
    if mode == "raise":
        raise RuntimeError("the framework is unhappy")
    if mode == "hungry":
        return Converted(twice(), notes=(str(len(bytearray(1 << 46))),))
    if mode == "sleep":
        time.sleep(600)
    if mode == "reach":
        converted.notes = (reach(), f"home {Path.home()}", f"secret {os.environ.get('SECRET')}")
    if mode == "unlike":
        converted.reference = unlike
    if mode == "alone":
        converted.reference = None
    if mode == "frozen":
        converted.model = twice(batch=1)
    if mode == "summed":
        converted.model, converted.reference = summed(), None
    if mode == "unknown":
        converted.model = twice(op="ParseExampleV2")
        converted.model.graph.node.append(helper.make_node("StringSplitV2", ["y"], ["z"], domain=""))
        converted.model.graph.node.append(helper.make_node("Odd", ["y"], ["w"], domain="acme"))
        converted.model.opset_import.append(helper.make_opsetid("acme", 1))
    if mode == "labels":
        outputs = {"doubled": replace(SIGNATURE.outputs["doubled"], labels="words.txt")}
        converted.signatures = {"serving_default": replace(SIGNATURE, outputs=outputs)}
    if mode == "derived":
        converted.signatures = converted.reference = None
    if mode == "link":  # a result that points out of its directory
        path = Path(options.work) / "model.onnx"
        path.symlink_to("/etc/passwd")
        converted.assets = {"../../escaped": b"x"}
    if mode == "task":
        converted.notes = (f"task {options.task}",)
    return converted


def run_code(source: str, options: ConvertOptions) -> Converted:
    exec(Path(source).read_text().partition("\n")[2], {})
    return Converted(twice(), {"serving_default": SIGNATURE})


def begins(word: bytes) -> Any:
    def matches(seen: Seen) -> bool:
        return seen.head.startswith(word)

    return matches


KIND = Kind("fake", "a fake model", begins(b"FAKE "), convert, options=("task",))
CODE = Kind(
    "fake-code",
    "a model that is code",
    begins(b"CODE "),
    run_code,
    runs_code="every line of the file, as Python",
)
MISSING = Kind(
    "fake-missing",
    "a model of a framework that is not here",
    begins(b"MISSING "),
    convert,
    extra="acme-frame",
    modules=("acme_frame", "json"),
)
TAKEN = Kind("onnx", "another ONNX", begins(b"ONNX "), convert)
