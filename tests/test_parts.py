"""How many texts and other parts one request may have, in every form that a request has."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from mserve.errors import MserveError, PayloadTooLarge, RequestError
from mserve.tensors import Signature, TensorSpec
from mserve.wire import json_values, oip_proto, tfs_examples, tfs_proto
from mserve.wire.messages import message
from mserve.wire.oip import Given, InferRequest
from mserve.wire.oip_known import Reader, split
from mserve.wire.protobuf import encode_bytes

LIMIT = 1000
SPEC = TensorSpec("x", "string", ("batch",))
SIGNATURE = Signature("predict", {"x": SPEC, "y": SPEC}, {"z": SPEC}, 0)
PREDICT = "tensorflow.serving.PredictRequest"
CLASSIFY = "tensorflow.serving.ClassificationRequest"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that a test reaches quickly; 2,000,000 is proved by the last test."""
    monkeypatch.setattr("mserve.wire.json_values.MAX_VALUES", LIMIT)
    monkeypatch.setattr("mserve.wire.parts.MAX_VALUES", LIMIT)


def raw(count: int) -> Mapping[str, Any]:
    half = count // 2
    given = [Given(name, "BYTES", (half,), raw=bytes(4 * half)) for name in ("x", "y")]
    return InferRequest(given).arrays(SIGNATURE)


def typed(count: int) -> object:
    """gRPC's typed texts, as they are on the wire: field 5 (contents) of an input, its field 8."""
    contents = encode_bytes(5, encode_bytes(8, b"") * count)
    body = encode_bytes(5, encode_bytes(1, b"x") + encode_bytes(2, b"BYTES") + contents)
    return oip_proto.request(oip_proto.decode("ModelInferRequest", body))


def predict(count: int) -> object:
    proto = message(PREDICT)()
    tensor = proto.inputs["x"]
    tensor.dtype = 7
    tensor.tensor_shape.dim.add(size=count)
    tensor.string_val.extend([b""] * count)
    return tfs_proto.to_arrays(tfs_proto.read(PREDICT, proto.SerializeToString()).inputs, 1 << 30)


def repeated(count: int) -> object:
    """One text that stands for all elements of two tensors."""
    proto = message(PREDICT)()
    for name in ("x", "y"):
        proto.inputs[name].dtype = 7
        proto.inputs[name].tensor_shape.dim.add(size=count // 2)
        proto.inputs[name].string_val.append(b"a")
    return tfs_proto.to_arrays(proto.inputs, 1 << 30)


def features(count: int) -> object:
    proto = message(CLASSIFY)()
    example = proto.input.example_list.examples.add()
    example.features.feature["x"].bytes_list.value.extend([b""] * (count - 2))
    return tfs_proto.examples_of(tfs_proto.read(CLASSIFY, proto.SerializeToString()).input)


def shared(count: int) -> object:
    """A text of the context, which stands in every example."""
    signature = Signature("classify", {"x": SPEC}, {"scores": SPEC}, 0)
    return tfs_examples.to_inputs([{}] * count, {"x": "a"}, signature, 1 << 30)


def empty_messages(count: int) -> object:
    return oip_proto.decode("ModelInferRequest", encode_bytes(5, b"") * count)


def json(count: int) -> None:
    json_values.check_values(b'{"instances": [' + b"," * (count - 3) + b"]}")


def objects(count: int) -> None:
    json_values.check_values(b'{"a":{}' * (count // 3) + b"}" * 2000)


FORMS: list[tuple[str, Callable[[int], object]]] = [
    ("raw BYTES of several inputs", raw),
    ("bytes_contents", typed),
    ("string_val", predict),
    ("one string_val for all elements", repeated),
    ("features of an Example", features),
    ("the context's features", shared),
    ("messages without anything", empty_messages),
    ("JSON", json),
    ("JSON objects, with a colon for each", objects),
]


@pytest.mark.parametrize(("form", "make"), FORMS, ids=[f[0] for f in FORMS])
def test_too_many_texts_are_refused(form: str, make: Callable[[int], object]) -> None:
    with pytest.raises(PayloadTooLarge, match="too many"):
        make(LIMIT + 4)
    make(LIMIT - 4)


def test_numbers_are_not_counted() -> None:
    proto = message("inference.ModelInferRequest")()
    port = proto.inputs.add(name="x", datatype="FP32", shape=[50_000])
    port.contents.fp32_contents.extend([1.0] * 50_000)
    proto.inputs.add(name="y", datatype="UINT8", shape=[50_000])
    asked = oip_proto.decode("ModelInferRequest", proto.SerializeToString())
    assert len(asked.inputs[0].contents.fp32_contents) == 50_000
    tensor = tfs_proto.from_array(np.ones((100, 100), np.int64))
    assert tfs_proto.read("tensorflow.TensorProto", tensor.SerializeToString()) == tensor


@pytest.mark.parametrize("record", [b"\x3a\x00", b"\x1a\x00", b"\x2a\x00"], ids=["raw", "id", "input"])
def test_a_crowd_of_records_is_not_walked_through(record: bytes) -> None:
    """The quick reader leaves it to the one that counts."""

    class Watched(bytes):
        seen = 0

        def __getitem__(self, at: Any) -> Any:
            Watched.seen += 1
            return super().__getitem__(at)

    assert split(Watched(record * 1_000_000)) is None
    assert 0 < Watched.seen < 50_000
    with pytest.raises(PayloadTooLarge):
        Reader().read(record.replace(b"\x1a", b"\x2a") * 1_000_000)


HOSTILE = [
    ("a group, behind which records could hide", b"\x9b\x06" + encode_bytes(5, b"") * 2000, RequestError),
    ("a record that ends behind the end", encode_bytes(5, b"")[:1] + b"\xff" * 3000, RequestError),
    ("an inner message that is none", encode_bytes(5, b"\x07" * 3000), RequestError),
    ("a number where a message belongs", b"\x28\x01" * 2000, PayloadTooLarge),
    ("fields that nobody knows", encode_bytes(99, b"") * 2000, None),
]


@pytest.mark.parametrize(("what", "body", "error"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_messages_that_lie(what: str, body: bytes, error: type[MserveError] | None) -> None:
    if error is None:
        oip_proto.decode("ModelInferRequest", body)
        return
    with pytest.raises(error):
        oip_proto.decode("ModelInferRequest", body)


def test_a_large_message_of_empty_texts_is_refused_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert json_values.MAX_VALUES == 2_000_000
    contents = encode_bytes(5, encode_bytes(8, b"") * 10_000_000)
    body = encode_bytes(5, encode_bytes(2, b"BYTES") + contents)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            oip_proto.decode("ModelInferRequest", body)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
