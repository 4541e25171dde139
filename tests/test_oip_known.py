"""Requests of gRPC that came before: read by their bytes, they mean what protobuf says they mean."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.errors import MserveError
from mserve.wire import oip_known, oip_proto
from mserve.wire.messages import message
from mserve.wire.oip import Output
from mserve.wire.oip_known import Reader, split

NAMES = st.sampled_from(["", "a", "b", "é", "x" * 200])
PORT = st.fixed_dictionaries(
    {
        "name": NAMES,
        "datatype": st.sampled_from(["FP32", "INT8", "BYTES", "?"]),
        "shape": st.lists(st.integers(0, 300), max_size=3),
    }
)
ASKED = st.fixed_dictionaries(
    {
        "model_name": NAMES,
        "model_version": st.sampled_from(["", "1", "stable"]),
        "id": NAMES,
        "inputs": st.lists(PORT, max_size=3),
        "outputs": st.lists(st.fixed_dictionaries({"name": NAMES}), max_size=2),
        "raw_input_contents": st.lists(st.binary(max_size=200), max_size=3),
    }
)


def plainly(body: bytes) -> Any:
    """What protobuf makes of a request, or None."""
    try:
        asked = oip_proto.decode("ModelInferRequest", body)
        return asked.model_name, asked.model_version, asked.id, oip_proto.request(asked)
    except MserveError:
        return None


def quickly(reader: Reader, body: bytes) -> Any:
    try:
        asked = reader.read(body)
    except MserveError:
        return None
    return asked.known.model, asked.known.version, asked.id, asked.message()


@given(st.lists(ASKED, min_size=1, max_size=4), st.randoms())
@settings(max_examples=400, deadline=None)
def test_known_or_not_a_request_means_the_same(requests: list[Any], rng: random.Random) -> None:
    """Each is read twice, then with another id and other tensors, then with a byte changed."""
    reader = Reader()
    for request in requests:
        made = message("inference.ModelInferRequest")(**request)
        body = made.SerializeToString()
        made.id = "another"
        for at, raw in enumerate(made.raw_input_contents):
            made.raw_input_contents[at] = raw[::-1] + b"!"
        bent = bytearray(body)
        if bent:
            bent[rng.randrange(len(bent))] = rng.randrange(256)
        for data in (
            body,
            body,
            made.SerializeToString(),
            bytes(bent),
            body[: len(body) // 2],
            body + bytes(bent),
        ):
            assert quickly(reader, data) == plainly(data)


@given(st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise(body: bytes) -> None:
    assert quickly(Reader(), body) == plainly(body)
    split(body)


def request(**more: Any) -> bytes:
    made = message("inference.ModelInferRequest")(model_name="m", raw_input_contents=[bytes(8)], **more)
    made.inputs.add(name="x", datatype="FP32", shape=[2])
    return bytes(made.SerializeToString())


def test_only_the_first_is_read_by_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, seen = Reader(), []
    real = oip_proto.decode
    monkeypatch.setattr(oip_proto, "decode", lambda *a: seen.append(a) or real(*a))
    for number in range(50):
        asked = reader.read(request(id=f"call {number}"))
        assert (asked.id, asked.message().inputs[0].raw) == (f"call {number}", bytes(8))
    assert len(seen) == 1


def test_a_tensor_that_is_not_the_last_thing_is_not_taken_for_it() -> None:
    """A message may end in an id that ends like its tensor; the next one may end in another id."""
    reader = Reader()
    bare = message("inference.ModelInferRequest")(model_name="m")
    bare.inputs.add(name="x", datatype="INT8", shape=[1])
    for identity in ("1", "2", "12", "1"):
        for raw in (b"1", b"2", b""):
            ahead = message("inference.ModelInferRequest")(raw_input_contents=[raw]).SerializeToString()
            behind = message("inference.ModelInferRequest")(id=identity).SerializeToString()
            for body in (
                bare.SerializeToString() + ahead + behind,
                bare.SerializeToString() + behind + ahead,
            ):
                assert quickly(reader, body) == quickly(reader, body) == plainly(body)


def test_little_is_known() -> None:
    reader = Reader()
    for number in range(5 * oip_known.KNOWN_MAX):
        reader.read(request(model_version=str(number)))
    assert len(reader._known) <= oip_known.KNOWN_MAX
    long = request(model_version="v" * (oip_known.KEY_BYTES_MAX + 1))
    assert reader.read(long).key == b""
    for number in range(5 * oip_known.KNOWN_MAX):
        reader.read(request(id=str(number) * (number + 1)))
        reader.read(request(id="long" * 1000 + str(number)))
    assert max(len(reader._starts), len(reader._begins)) <= oip_known.KNOWN_MAX
    assert max(map(len, reader._starts)) <= oip_known.KEY_BYTES_MAX


def test_an_answer_is_what_protobuf_reads() -> None:
    """Fields may come in any order; ours is head, id, tensors."""
    outputs = [Output("y", np.arange(6, dtype=np.float32).reshape(2, 3)), Output("z", np.zeros(0, np.int8))]
    for identity in ("", "é7"):
        head = oip_proto.head("m", "3", outputs)
        data = oip_proto.response(head, identity, [o.array.tobytes() for o in outputs])
        answer = message("inference.ModelInferResponse").FromString(data)
        assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", identity)
        assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
            ("y", "FP32", [2, 3]),
            ("z", "INT8", [0]),
        ]
        assert list(answer.raw_output_contents) == [o.array.tobytes() for o in outputs]
