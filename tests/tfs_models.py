"""Models for the tests of TensorFlow Serving's protocols: `flowers`, with every method, and `echo`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import builders
import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper

import mserve
from mserve.tensors import DTYPES

KINDS = (
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint32",
    "uint64",
    "bool",
    "string",
)
SHORT_KINDS = ("bfloat16", "float8e5m2")
NAMES = ("iris", "tulip", "rose")

SIGNATURES = """
[signatures.serving_default]
inputs = { a = {}, b = {} }
outputs = { value = {}, scores = {} }

[signatures.ranked]
method = "classify"
inputs = { a = {}, b = {} }
outputs = { classes = { tensor = "top_names" }, scores = { tensor = "top_scores" } }

[signatures.named]
method = "classify"
inputs = { a = {}, b = {} }
outputs = { scores = { labels = "names.txt" } }

[signatures.price]
method = "regress"
inputs = { a = {}, b = { default = [0.5, 1.5] } }
outputs = { outputs = { tensor = "value" } }

[signatures.words]
inputs = { w = {} }
outputs = { echo = {}, echo_bytes = { tensor = "echo" } }

[signatures.inverse]
inputs = { a = {} }
outputs = { inverse = {}, negative = {} }
"""


def flowers(factor: float = 1.0) -> ModelProto:
    """value = factor * (a + sum of b), [N, 1]; scores = value * [1, 3, 2]; the same ranked; 1/a; w itself."""
    make = helper.make_node
    nodes = [
        make("ReduceSum", ["b", "one"], ["sum"], keepdims=1),
        make("Unsqueeze", ["a", "one"], ["column"]),
        make("Add", ["column", "sum"], ["plain"]),
        make("Mul", ["plain", "factor"], ["value"]),
        make("Mul", ["value", "weights"], ["scores"]),
        make("TopK", ["scores", "three"], ["top_scores", "top"], axis=1),
        make("Gather", ["names", "top"], ["top_names"]),
        make("Reciprocal", ["a"], ["inverse"]),
        make("Neg", ["a"], ["negative"]),
        make("Identity", ["w"], ["echo"]),
    ]
    real = TensorProto.FLOAT
    return builders.model(
        nodes,
        [("a", real, ["N"]), ("b", real, ["N", 2]), ("w", TensorProto.STRING, ["N"])],
        [
            ("value", real, ["N", 1]),
            ("scores", real, ["N", 3]),
            ("top_scores", real, ["N", 3]),
            ("top_names", TensorProto.STRING, ["N", 3]),
            ("inverse", real, ["N"]),
            ("negative", real, ["N"]),
            ("echo", TensorProto.STRING, ["N"]),
        ],
        [
            builders.weight("one", np.array([1])),
            builders.weight("three", np.array([3])),
            builders.weight("factor", np.float32(factor)),
            builders.weight("weights", np.array([[1, 3, 2]], np.float32)),
            helper.make_tensor("names", TensorProto.STRING, [3], [n.encode() for n in NAMES]),
        ],
    )


def echo(kinds: Sequence[str] = KINDS) -> ModelProto:
    """An input `in_KIND` and an output `out_KIND`, which is the same, for each kind; shapes [N, M]."""
    types = {kind: DTYPES[kind].onnx for kind in kinds}
    return builders.model(
        [helper.make_node("Identity", [f"in_{kind}"], [f"out_{kind}"]) for kind in kinds],
        [(f"in_{kind}", number, ["N", "M"]) for kind, number in types.items()],
        [(f"out_{kind}", number, ["N", "M"]) for kind, number in types.items()],
    )


def export_flowers(base: Path, *, factor: float = 1.0, version: int = 1) -> None:
    """A version of `flowers` below a base path."""
    with tempfile.TemporaryDirectory() as folder:
        toml, names = Path(folder) / "signatures.toml", Path(folder) / "names.txt"
        toml.write_text(SIGNATURES)
        names.write_text("\n".join(NAMES) + "\n")
        mserve.export(flowers(factor), base, signatures=toml, assets=[names], version=version)


def expected_value(a: npt.ArrayLike, b: npt.ArrayLike, factor: float = 1.0) -> npt.NDArray[np.float32]:
    """What `value` is, [N]."""
    sums = np.asarray(a, np.float32) + np.asarray(b, np.float32).sum(axis=1)
    return (np.float32(factor) * sums).astype(np.float32)
