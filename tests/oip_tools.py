"""Models of every datatype of the Open Inference Protocol, and what its clients send and see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import ml_dtypes
import numpy as np
from builders import FLOAT, Array
from onnx import ModelProto, TensorProto, helper

import mserve
from mserve.wire.oip import to_raw

WORDS = ["", "a", "é", "日本", "nul\0inside", "x" * 70_000]
# Two rows of each datatype, with its extreme values.
VALUES: dict[str, Array] = {
    "BOOL": np.array([[True, False, True], [False, False, True]]),
    **{
        f"{kind.upper()}{bits}": np.array(
            [[np.iinfo(f"{kind}{bits}").min, 1, 2], [3, 4, np.iinfo(f"{kind}{bits}").max]], f"{kind}{bits}"
        )
        for kind in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
    "FP16": np.array([[0.5, -1, 65504], [2, 3, 4]], np.float16),
    "BF16": np.array([[0.5, -1, 3e38], [2, 3, 4]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.1, -1e-38, 3e38], [2, 3, 4]], np.float32),
    "FP64": np.array([[0.1, -1e-300, 1e300], [2, 3, 4]], np.float64),
    "BYTES": np.array(WORDS, object).reshape(2, 3),
}
IN_JSON = [name for name in VALUES if name not in ("FP16", "BF16")]
# What ONNX calls otherwise.
ELEMENTS = {"BYTES": "STRING", "FP32": "FLOAT", "FP64": "DOUBLE", "FP16": "FLOAT16", "BF16": "BFLOAT16"}
LABELS = ["ant", "bee", "cat", "dog"]


def identity(element: int, shape: list[int | str]) -> ModelProto:
    """x to y, unchanged."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return builders.model([node], [("x", element, shape)], [("y", element, shape)])


def pair() -> ModelProto:
    """a and b of [N, 2] to their sum, difference and the logarithm of the sum."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Sub", ["a", "b"], ["difference"]),
        helper.make_node("Log", ["sum"], ["log"]),
    ]
    ports = [("a", FLOAT, ["N", 2]), ("b", FLOAT, ["N", 2])]
    return builders.model(nodes, ports, [(n, FLOAT, ["N", 2]) for n in ("sum", "difference", "log")])


def publish(root: Path) -> Path:
    """A directory of base paths: one model for each datatype, and a few of other kinds."""
    models = root / "models"
    for name, array in VALUES.items():
        element = {
            "BYTES": "STRING",
            "FP32": "FLOAT",
            "FP64": "DOUBLE",
            "FP16": "FLOAT16",
            "BF16": "BFLOAT16",
        }
        number = getattr(TensorProto, element.get(name, name))
        mserve.export(identity(number, ["N", array.shape[1]]), models / name)
    mserve.export(identity(FLOAT, []), models / "scalar")
    mserve.export(identity(FLOAT, [2, "M"]), models / "wide")
    mserve.export(pair(), models / "pair")
    asset = root / "labels.txt"
    asset.write_text("\n".join(LABELS) + "\n")
    toml = root / "signatures.toml"
    toml.write_text(
        '[signatures.serving_default]\nmethod = "predict"\ninputs.x = { tensor = "x" }\n'
        'outputs.y = { tensor = "y", labels = "labels.txt" }\n'
        '[signatures.other]\nmethod = "predict"\ninputs.in = { tensor = "x" }\n'
        'outputs.out = { tensor = "y" }\n'
    )
    mserve.export(identity(FLOAT, ["N", 4]), models / "animals", signatures=toml, assets=[asset])
    return models


def sent(array: Array, datatype: str) -> Array:
    """An array as tritonclient takes it: text as bytes."""
    if datatype == "BYTES":
        return np.array([w.encode() for w in array.ravel()], object).reshape(array.shape)
    return array


def port(client: Any, name: str, array: Array, datatype: str, **how: Any) -> Any:
    """An input of a tritonclient module for REST or gRPC."""
    tensor = client.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(sent(array, datatype), **how)
    return tensor


def same(answer: Array, array: Array, datatype: str) -> bool:
    """Whether a client's array is what was sent."""
    if datatype == "BYTES":
        texts = [w if isinstance(w, bytes) else w.encode() for w in answer.ravel()]
        return answer.shape == array.shape and texts == [w.encode() for w in array.ravel()]
    return answer.dtype == array.dtype and answer.shape == array.shape and to_raw(answer) == to_raw(array)
