"""What is served while it is attacked: dtypes, methods, text, an index, a scalar, sparse rows, a table."""

from __future__ import annotations

from pathlib import Path

import builders
import numpy as np
import sparse_models
from onnx import ModelProto, TensorProto, helper
from tfs_models import echo, export_flowers

import mserve

KINDS = ("float16", "float32", "int8", "uint64", "bool", "string")


def pick() -> ModelProto:
    """The rows of a table of ten, by index: an index out of range is the model's own error."""
    node = helper.make_node("Gather", ["rows", "index"], ["row"])
    rows = builders.weight("rows", np.arange(20, dtype=np.float32).reshape(10, 2))
    return builders.model(
        [node], [("index", TensorProto.INT64, ["N"])], [("row", TensorProto.FLOAT, ["N", 2])], [rows]
    )


def publish(models: Path) -> Path:
    """A directory of base paths: `echo`, `flowers`, `pick`, `scalar`, `sparse` and `words`, a table."""
    mserve.export(echo(KINDS), models / "echo")
    export_flowers(models / "flowers")
    mserve.export(pick(), models / "pick")
    node = helper.make_node("Identity", ["x"], ["y"])
    ports = [(name, TensorProto.FLOAT, []) for name in ("x", "y")]
    mserve.export(builders.model([node], ports[:1], ports[1:]), models / "scalar")
    sparse_models.mixed(models / "sparse", builders.floats(50, 1))
    table = {
        "key": np.array(["a", "b", "é"], object),
        "number": np.arange(3),
        "text": np.array(["x", "", "z"], object),
    }
    mserve.export(table, models / "words")
    return models
