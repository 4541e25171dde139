"""Small ONNX models, and bundles that were changed after they were written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mserve.format.metagraph import seal
from mserve.tensors import DTYPES

FLOAT, STRING = TensorProto.FLOAT, TensorProto.STRING
Array = npt.NDArray[Any]
Port = tuple[str, int, Sequence[int | str] | None]


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    weights: Sequence[TensorProto] = (),
    **rest: Any,
) -> ModelProto:
    """A model of the given nodes; a port is (name, ONNX element type, shape)."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(*p) for p in inputs],
        [helper.make_tensor_value_info(*p) for p in outputs],
        list(weights),
    )
    rest.setdefault("opset_imports", [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)])
    return helper.make_model(graph, ir_version=10, **rest)


def weight(name: str, array: Array) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def floats(*shape: int, seed: int = 0) -> Array:
    """Normal float32 values, always the same."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def mlp(batch: str | int = "N", seed: int = 0, hidden: int = 128, inputs: int = 784) -> ModelProto:
    """A 784-128-10 classifier; w0 and w1 are large enough to lie in a shard, the biases are not."""
    weights = [
        weight("w0", floats(inputs, hidden, seed=seed) * 0.05),
        weight("b0", floats(hidden, seed=seed + 1)),
        weight("w1", floats(hidden, 10, seed=seed + 2) * 0.1),
        weight("b1", floats(10, seed=seed + 3)),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["y"]),
    ]
    return model(nodes, [("x", FLOAT, [batch, inputs])], [("y", FLOAT, [batch, 10])], weights)


def strings() -> ModelProto:
    """Text in; a number and the text itself out."""
    encode = helper.make_node(
        "LabelEncoder",
        ["word"],
        ["value"],
        domain="ai.onnx.ml",
        keys_strings=["a", "b", "é"],
        values_floats=[1.0, 2.0, 3.0],
        default_float=-1.0,
    )
    return model(
        [encode, helper.make_node("Identity", ["word"], ["echo"])],
        [("word", STRING, ["N"])],
        [("value", FLOAT, ["N"]), ("echo", STRING, ["N"])],
    )


def elementwise(*nodes: NodeProto, weights: Sequence[TensorProto] = (), width: int | str = 4) -> ModelProto:
    """x [N, width] to y of the same shape, through the given nodes."""
    return model(nodes, [("x", FLOAT, ["N", width])], [("y", FLOAT, ["N", width])], weights)


def holder(dtype: str, shape: Sequence[int], raw: bytes, *, field: str = "raw_data") -> ModelProto:
    """A model without inputs that holds one weight `w` and casts it to float32."""
    tensor = TensorProto(name="w", data_type=DTYPES[dtype].onnx, dims=shape)
    if field == "raw_data":
        tensor.raw_data = raw
    else:
        getattr(tensor, field).extend(np.frombuffer(raw, _FIELD_VIEW[dtype]).tolist())
    cast = helper.make_node("Cast", ["w"], ["y"], to=FLOAT)
    return model([cast], [], [("y", FLOAT, shape)], [tensor], opset_imports=[helper.make_opsetid("", 23)])


# How the elements of a tensor stand in its typed field, where ONNX allows one.
_FIELD_VIEW = {
    "float32": "<f4",
    "float64": "<f8",
    "int8": "<i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
    "uint64": "<u8",
    "bool": "<u1",
    "float16": "<u2",
    "bfloat16": "<u2",
    "float8e4m3fn": "<u1",
    "float8e4m3fnuz": "<u1",
    "float8e5m2": "<u1",
    "float8e5m2fnuz": "<u1",
    "int4": "<u1",
    "uint4": "<u1",
}


def raw_bytes(dtype: str, elements: int) -> bytes:
    """Stored bytes of `elements` values of a dtype: every finite bit pattern, no padding bits set."""
    rng = np.random.default_rng(elements)
    if dtype in ("float16", "float32", "float64"):
        return rng.standard_normal(elements).astype(dtype).tobytes()
    if dtype == "bfloat16":
        return (rng.standard_normal(elements).astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    if dtype == "bool":
        return rng.integers(0, 2, elements, dtype=np.uint8).tobytes()
    if dtype.startswith("float8"):  # magnitudes up to 0x77 are finite in all four kinds
        return rng.choice(np.r_[0:0x78, 0x81:0xF8], elements).astype(np.uint8).tobytes()
    packed = rng.integers(0, 256, DTYPES[dtype].byte_size(elements), dtype=np.uint8)
    if DTYPES[dtype].bits == 4 and elements % 2:
        packed[-1] &= 0x0F
    return packed.tobytes()


def save(proto: ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def external(proto: ModelProto, path: Path, **options: Any) -> Path:
    """Save a model with its large weights in other files."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    onnx.save_model(copy, path, save_as_external_data=True, size_threshold=1024, **options)
    return path


def point(proto: ModelProto, name: str, **entries: object) -> None:
    """Make an initializer refer to external data with the given entries."""
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def plain(proto: ModelProto | Path, feeds: dict[str, Array]) -> list[Array]:
    """What ONNX Runtime alone answers."""
    import onnxruntime as ort

    source = proto.SerializeToString() if isinstance(proto, ModelProto) else str(proto)
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def reseal(version: Path, edit: Callable[[ModelProto], object]) -> Path:
    """Change a version's `export.meta` and close it with proper digests again."""
    path = version / "export.meta"
    proto = ModelProto.FromString(path.read_bytes())
    for key in ("mserve.content", "mserve.sha256"):
        drop_prop(proto, key)
    edit(proto)
    return overwrite(path, seal(proto.SerializeToString()))


def overwrite(path: Path, data: bytes) -> Path:
    path.chmod(0o644)
    path.write_bytes(data)
    return path


def drop_prop(proto: ModelProto, key: str) -> None:
    kept = [p for p in proto.metadata_props if p.key != key]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)


def props(proto: ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in proto.metadata_props}


def set_prop(proto: ModelProto, key: str, text: str) -> None:
    """Replace one metadata entry by the given text, or add it."""
    drop_prop(proto, key)
    proto.metadata_props.add(key=key, value=text)


def set_json(proto: ModelProto, key: str, change: Callable[[Any], Any]) -> None:
    """Replace the JSON of one metadata entry by what `change` returns for it."""
    set_prop(proto, key, json.dumps(change(json.loads(props(proto)[key]))))


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by relative name."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def constant(value: float) -> ModelProto:
    """y = x * 0 + value, a row for each row of x."""
    nodes = [helper.make_node("Mul", ["x", "zero"], ["z"]), helper.make_node("Add", ["z", "value"], ["y"])]
    weights = [weight("zero", np.zeros(1, np.float32)), weight("value", np.full(1, value, np.float32))]
    return model(nodes, [("x", FLOAT, ["N", 1])], [("y", FLOAT, ["N", 1])], weights)


def words(*texts: str) -> Array:
    """Text as requests carry it: an object array of str, which keeps a NUL at the end."""
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array


def endless() -> ModelProto:
    """y = x, after as many empty turns of a loop as x says."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.INT64, [1]),
        ],
    )
    nodes = [
        helper.make_node("Squeeze", ["x"], ["turns"]),
        helper.make_node("Loop", ["turns", "true", "x"], ["y"], body=body),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.INT64, [1]) for n in ("x", "y")]
    weights = [numpy_helper.from_array(np.array(True), "true")]
    graph = helper.make_graph(nodes, "endless", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
