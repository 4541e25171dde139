"""Bodies of the Open Inference Protocol: every rule of the codec, without a server."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from builders import Array
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from oip_tools import IN_JSON, VALUES

from mserve.errors import MserveError, RequestError
from mserve.tensors import DTYPES, Signature, TensorSpec
from mserve.wire import oip_json
from mserve.wire.oip import DATATYPES, InferRequest, Output, classify, from_raw, to_raw

Json = dict[str, Any]
Shape = tuple[int | str, ...]


def signature(
    datatype: str, shape: tuple[int | str, ...] | None = None, axis: int | None = None
) -> Signature:
    spec = TensorSpec("x", DATATYPES[datatype], shape)
    return Signature("predict", {"x": spec}, {"y": spec}, axis)


Made = tuple[bytes, bytes | None]


def body(inputs: list[Json], tail: bytes = b"", **rest: Any) -> Made:
    """A request and the value of its header."""
    text = json.dumps({"inputs": inputs, **rest}).encode()
    return text + tail, str(len(text)).encode()


def port(data: Any = None, shape: list[Any] | None = None, datatype: str = "FP32", **parameters: Any) -> Json:
    made: Json = {"name": "x", "shape": [2] if shape is None else shape, "datatype": datatype}
    return (
        made | ({} if data is None else {"data": data}) | ({"parameters": parameters} if parameters else {})
    )


def read(made: Made, datatype: str = "FP32") -> Array:
    return oip_json.parse(*made).arrays(signature(datatype))["x"]


@pytest.mark.parametrize("datatype", VALUES)
def test_binary_values_come_and_go_unchanged(datatype: str) -> None:
    array = VALUES[datatype]
    raw = to_raw(array)
    made = body([port(None, [2, 3], datatype, binary_data_size=len(raw))], raw)
    found = read(made, datatype)
    assert found.shape == (2, 3)
    assert to_raw(found) == raw
    text, header = oip_json.encode({"model_name": "m"}, [Output("y", found, binary=True)])
    assert header is not None
    assert text[header:] == raw
    assert json.loads(text[:header])["outputs"] == [
        {"name": "y", "datatype": datatype, "shape": [2, 3], "parameters": {"binary_data_size": len(raw)}}
    ]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("datatype", IN_JSON)
def test_json_values_come_nested_or_flat_and_go_flat(datatype: str, nested: bool) -> None:
    array = VALUES[datatype]
    data = array.tolist() if nested else array.ravel().tolist()
    found = read(body([port(data, [2, 3], datatype)]), datatype)
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()
    text, header = oip_json.encode({}, [Output("y", found)])
    assert header is None
    answered = json.loads(text)["outputs"][0]["data"]
    assert np.array(answered, array.dtype).tolist() == array.ravel().tolist()


NUMBERS = [d for d in DATATYPES if d not in ("BYTES", "BF16")]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_array_survives_the_way_there_and_back(data: st.DataObject) -> None:
    datatype = data.draw(st.sampled_from(NUMBERS))
    kind = DTYPES[DATATYPES[datatype]].to_numpy()
    shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    array = data.draw(arrays.arrays(kind, shapes))
    raw = to_raw(array)
    shape = list(array.shape)
    found = read(body([port(None, shape, datatype, binary_data_size=len(raw))], raw), datatype)
    assert (found.shape, found.dtype, to_raw(found)) == (array.shape, array.dtype, raw)
    if datatype != "FP16" and (array.dtype.kind != "f" or np.isfinite(array).all()):
        text, _ = oip_json.encode({}, [Output("x", array)])
        again = read(_as_request(text), datatype)
        assert (again.shape, again.dtype, to_raw(again)) == (array.shape, array.dtype, raw)


def _as_request(answer: bytes) -> Made:
    text = answer.replace(b'"outputs"', b'"inputs"', 1)
    return text, str(len(text)).encode()


@given(st.lists(st.text(max_size=20), max_size=8))
def test_any_text_survives(words: list[str]) -> None:
    raw = b"".join(len(w.encode()).to_bytes(4, "little") + w.encode() for w in words)
    found = from_raw(raw, "string", [len(words)], "x")
    assert found.tolist() == words
    assert to_raw(found) == raw


BINARY_DATA = {"binary_data_size": 8}
GOOD = port([1, 2])

REFUSED: list[tuple[str, Any, Any, bytes, list[str]]] = [
    # why, inputs, other members, tail, parts of the message
    ("no inputs", None, {}, b"", ["no list of inputs"]),
    ("an input that is no object", [1], {}, b"", ["no list of inputs"]),
    ("no name", [{**GOOD, "name": ""}], {}, b"", ["no name"]),
    ("no shape", [{"name": "x", "datatype": "FP32", "data": []}], {}, b"", ["'x'", "shape"]),
    ("a negative size", [port([1, 2], [-1])], {}, b"", ["'x'", "bad shape", "-1"]),
    ("a size that is a boolean", [port([1], [True])], {}, b"", ["bad shape"]),
    ("a size that is no integer", [port([1], [1.0])], {}, b"", ["bad shape"]),
    ("sizes whose product overflows", [port([], [2**40, 2**40])], {}, b"", ["too large a shape"]),
    ("more elements than there are", [port([1], [2**62])], {}, b"", ["'x'", "does not fit", "1 elements"]),
    ("65 dimensions", [port([1], [1] * 65)], {}, b"", ["too large a shape"]),
    ("an empty shape beyond all memory", [port([], [0, 2**62])], {}, b"", ["shape"]),
    ("an unknown datatype", [port([1, 2], datatype="FP8")], {}, b"", ["unknown datatype", "FP8", "FP32"]),
    ("another datatype", [port([1, 2], datatype="INT32")], {}, b"", ["'x'", "FP32", "INT32"]),
    ("too few elements", [port([1])], {}, b"", ["'x'", "2 elements", "1 elements"]),
    ("another nesting than the shape", [port([[1, 2]], [2, 1])], {}, b"", ["[2, 1]", "[1, 2]"]),
    ("mixed depth", [port([1, [2]])], {}, b"", ["wrong kind", "a list"]),
    ("mixed depth the other way", [port([[1], 2])], {}, b"", ["ragged"]),
    ("101 levels", [port(json.loads("[" * 101 + "1" + "]" * 101), [1])], {}, b"", ["nested too deeply"]),
    ("null", [port([None, 1])], {}, b"", ["wrong kind", "null"]),
    ("no data", [port()], {}, b"", ["exactly one", "'data'", "'binary_data_size'", "none"]),
    ("two sources", [port([1, 2], **BINARY_DATA)], {}, b"12345678", ["exactly one", "data and binary"]),
    ("shared memory", [port(None, shared_memory_region="r")], {}, b"", ["shared memory"]),
    ("a size that is text", [port(None, binary_data_size="8")], {}, b"", ["binary_data_size"]),
    ("a negative tensor", [port(None, binary_data_size=-1)], {}, b"", ["binary_data_size"]),
    ("a tail too short", [port(None, **BINARY_DATA)], {}, b"1234", ["'x'", "expecting 4 additional bytes"]),
    ("a tail too long", [port(None, **BINARY_DATA)], {}, b"123456789", ["additional input data"]),
    (
        "bytes that are not the shape's",
        [port(None, [3], **BINARY_DATA)],
        {},
        b"12345678",
        ["12 for FP32"],
    ),
    ("an input twice", [GOOD, GOOD], {}, b"", ["'x' stands twice"]),
    ("an output twice", [GOOD], {"outputs": [{"name": "y"}] * 2}, b"", ["'y' stands twice"]),
    ("an output without a name", [GOOD], {"outputs": [{}]}, b"", ["output", "no name"]),
    ("outputs that are no list", [GOOD], {"outputs": {}}, b"", ["no list of outputs"]),
    ("an id that is a number", [GOOD], {"id": 1}, b"", ["id is not a string"]),
    ("a reserved parameter", [GOOD], {"parameters": {"triton_x": 1}}, b"", ["'triton_x'", "reserved"]),
    ("parameters that are a list", [GOOD], {"parameters": []}, b"", ["no object"]),
    ("a parameter that is a list", [GOOD], {"parameters": {"a": [1]}}, b"", ["'a'", "a list"]),
    ("a flag that is a number", [GOOD], {"parameters": {"binary_data_output": 1}}, b"", ["true or false"]),
    (
        "a classification below 0",
        [GOOD],
        {"outputs": [{"name": "y", "parameters": {"classification": -1}}]},
        b"",
        ["classification"],
    ),
    (
        "an output in shared memory",
        [GOOD],
        {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
        b"",
        ["shared memory"],
    ),
    ("a timeout below 0", [GOOD], {"parameters": {"timeout": -1}}, b"", ["timeout", "microseconds"]),
    ("a signature that is a number", [GOOD], {"parameters": {"signature_name": 1}}, b"", ["signature_name"]),
    ("an unknown output", [GOOD], {"outputs": [{"name": "z"}]}, b"", ["no output 'z'", "y"]),
    ("an input too many", [GOOD, {**GOOD, "name": "w"}], {}, b"", ["unknown 'w'"]),
    ("an input missing", [], {}, b"", ["missing 'x'"]),
]


def everything(made: Made, spec: Signature) -> None:
    """All that is read of a request."""
    request = oip_json.parse(*made)
    _ = request.timeout_ns, request.signature
    request.wanted(spec)
    request.arrays(spec)


@pytest.mark.parametrize(
    ("inputs", "rest", "tail", "parts"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_is_refused(inputs: Any, rest: Json, tail: bytes, parts: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        everything(body(inputs, tail, **rest), signature("FP32"))
    assert [part for part in parts if part not in str(caught.value)] == []


BAD_VALUES = [
    ("BOOL", [1, 0], "wrong kind"),
    ("UINT8", [300, 1], "0 to 255"),
    ("UINT8", [-1, 1], "0 to 255"),
    ("INT8", [128, 1], "-128 to 127"),
    ("INT32", [1.5, 1], "wrong kind"),
    ("INT32", [True, 1], "wrong kind"),
    ("UINT64", [2**64, 1], "wrong kind"),
    ("FP32", ["1", 1], "wrong kind"),
    ("FP16", [1, 2], "binary data"),
    ("BF16", [1, 2], "binary data"),
    ("BYTES", [1, 2], "wrong kind"),
]


@pytest.mark.parametrize(("datatype", "data", "part"), BAD_VALUES)
def test_values_that_no_element_holds(datatype: str, data: list[Any], part: str) -> None:
    with pytest.raises(RequestError, match="'x'") as caught:
        read(body([port(data, datatype=datatype)]), datatype)
    assert part in str(caught.value)


BAD_RAW = [
    ("BOOL", b"\x02\x00", "neither 0 nor 1"),
    ("BYTES", b"\x01\0\0\0a", "2 lengths"),
    ("BYTES", b"\x01\0\0\0a\x02\0\0\0b", "inside element 1"),
    ("BYTES", b"\xff\xff\xff\xff\0\0\0\0", "inside element 0"),
    ("BYTES", b"\x02\0\0\0abc\0\0", "inside element 1"),
    ("BYTES", b"\0\0\0\0\0\0\0\0c", "behind its last"),
    ("BYTES", b"\x02\0\0\0\xff\xfe\0\0\0\0", "not UTF-8"),
]


@pytest.mark.parametrize(("datatype", "raw", "part"), BAD_RAW)
def test_raw_bytes_that_are_no_tensor(datatype: str, raw: bytes, part: str) -> None:
    with pytest.raises(RequestError, match="'x'") as caught:
        read(body([port(None, datatype=datatype, binary_data_size=len(raw))], raw), datatype)
    assert part in str(caught.value)


@pytest.mark.parametrize("header", [b"-1", b"a", b"", b"999999", b"1.0", b"9" * 30])
def test_header_lengths_out_of_range(header: bytes) -> None:
    with pytest.raises(RequestError, match="inference header size should be in range"):
        oip_json.parse(b"{}", header)


@pytest.mark.parametrize(
    ("text", "part"),
    [(b"", "not valid JSON"), (b"[]", "a list"), (b"{", "byte"), (b'{"a":NaN}', "not valid JSON")],
)
def test_bodies_that_are_no_request(text: bytes, part: str) -> None:
    with pytest.raises(RequestError, match=part):
        oip_json.parse(text)


def test_a_scalar_and_an_empty_tensor() -> None:
    assert read(body([port([5], [])])).shape == ()
    assert read(body([port(5, [])])).tolist() == 5
    assert read(body([port([], [0, 3])])).shape == (0, 3)
    assert read(body([port(None, [0, 3], binary_data_size=0)])).shape == (0, 3)
    text, header = oip_json.encode({}, [Output("y", np.empty((0, 3), np.float32), binary=True)])
    assert header is None  # nothing follows the JSON
    assert json.loads(text)["outputs"][0]["parameters"] == {"binary_data_size": 0}


@pytest.mark.parametrize(
    ("default", "own", "expected"),
    [(None, None, False), (True, None, True), (True, False, False), (False, True, True), (None, True, True)],
)
def test_an_outputs_own_word_counts_more_than_the_requests(
    default: bool | None, own: bool | None, expected: bool
) -> None:
    rest: Json = {} if default is None else {"parameters": {"binary_data_output": default}}
    output: Json = {"name": "y"} | ({} if own is None else {"parameters": {"binary_data": own}})
    request = oip_json.parse(*body([GOOD], outputs=[output], **rest))
    assert request.wanted(signature("FP32"))[0].binary is expected


def test_unknown_members_and_parameters_are_ignored() -> None:
    made = {**GOOD, "shape_hint": {}, "parameters": {"mine": 1.5}}
    assert read(body([made], model_name="m", parameters={"p": 1.5, "q": "s"})).tolist() == [1, 2]


RAW_BODIES: list[tuple[str, Shape, int | None, bytes, Any]] = [
    ("FP32", ("N", 2), 0, np.float32([1, 2]).tobytes(), (1, 2)),
    ("FP32", ("N", "M"), 0, np.float32([1, 2, 3]).tobytes(), (1, 3)),
    ("FP32", (2, "M"), None, np.float32([1, 2, 3, 4]).tobytes(), (2, 2)),
    ("BYTES", ("N",), 0, b"hello", (1,)),
    ("BYTES", (), None, b"hello", ()),
    ("FP32", (), None, b"1234", ()),
    ("FP32", ("N", "M"), None, b"1234", "at most one variable size"),
    ("FP32", ("N", 2), 0, b"1234", "8 for FP32 [1, 2]"),
    ("FP32", (0, "M"), None, b"1234", "0 for FP32"),
]


@pytest.mark.parametrize(("datatype", "shape", "axis", "raw", "expected"), RAW_BODIES)
def test_a_body_that_is_one_raw_tensor(
    datatype: str, shape: Shape, axis: int | None, raw: bytes, expected: Any
) -> None:
    request = oip_json.parse(raw, b"0")
    spec = signature(datatype, shape, axis)
    if isinstance(expected, tuple):
        assert request.arrays(spec)["x"].shape == expected
        assert [w.binary for w in request.wanted(spec)] == [True]
    else:
        with pytest.raises(RequestError) as caught:
            request.arrays(spec)
        assert expected in str(caught.value)


def test_a_raw_body_needs_a_model_with_one_input() -> None:
    spec = TensorSpec("a", "float32", ("N",))
    with pytest.raises(RequestError, match="one input"):
        InferRequest(body=b"").arrays(Signature("predict", {"a": spec, "b": spec}, {"y": spec}, 0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_has_no_nan_and_no_infinity(value: float) -> None:
    output = Output("y", np.array([1, value], np.float32))
    with pytest.raises(RequestError, match=r"'y'.*NaN or Infinity.*binary_data"):
        oip_json.encode({}, [output])
    output.binary = True
    assert oip_json.encode({}, [output])[0].endswith(np.array([1, value], "<f4").tobytes())


@pytest.mark.parametrize("array", [VALUES["FP16"], VALUES["BF16"], np.array([b"\xff"], object)])
def test_what_json_does_not_carry_has_to_be_asked_for_as_binary(array: Array) -> None:
    with pytest.raises(RequestError, match=r"'y'.*binary_data"):
        oip_json.encode({}, [Output("y", array)])
    assert oip_json.encode({}, [Output("y", array, binary=True)])[0].endswith(to_raw(array))


def test_bytes_of_a_lookup_table_are_framed_like_text() -> None:
    array = np.array(["é", "é".encode()], object)
    assert to_raw(array) == b"\x02\0\0\0\xc3\xa9" * 2
    assert json.loads(oip_json.encode({}, [Output("y", array)])[0])["outputs"][0]["data"] == ["é", "é"]


def test_an_output_whose_dtype_has_no_name() -> None:
    import ml_dtypes

    with pytest.raises(RequestError, match="'y' is float8e4m3fn"):
        oip_json.encode({}, [Output("y", np.ones(1, ml_dtypes.float8_e4m3fn))])


@given(
    arrays.arrays(
        st.sampled_from([np.int8, np.uint64, np.float32, np.float16]),
        arrays.array_shapes(min_dims=2, max_dims=3, max_side=5),
        elements=st.integers(0, 3),
    ),
    st.integers(1, 30),
)
def test_classification_is_the_stable_top_k_of_numpy(array: Array, k: int) -> None:
    found = classify(array, k, [], rows=True)
    flat = array.reshape(len(array), -1)
    assert found.shape == (len(array), min(k, flat.shape[1]))
    for row, texts in zip(flat, found, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))[:k]
        assert [int(t.split(":")[1]) for t in texts] == order
        assert [float(t.split(":")[0]) for t in texts] == [float(row[i]) for i in order]


def test_classification_of_a_whole_and_its_words() -> None:
    array = np.array([0.25, np.nan, 7.0], np.float32)
    assert classify(array, 2, ["a"], rows=False).tolist() == ["7.000000:2", "0.250000:0:a"]
    for other in (np.array([True]), np.array(["a"], object)):
        with pytest.raises(RequestError, match="numbers"):
            classify(other, 1, [], rows=False)


SPEC = Signature(
    "predict",
    {"x": TensorSpec("x", "float32", ("N",)), "s": TensorSpec("s", "string", None)},
    {"y": TensorSpec("y", "float32", ("N",))},
)
VALID = body(
    [
        port(None, **BINARY_DATA),
        {"name": "s", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}},
    ],
    b"12345678" + b"\x01\0\0\0a",
    outputs=[{"name": "y", "parameters": {"classification": 2}}],
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_spoiled_request_is_refused_or_read_and_nothing_else(data: st.DataObject) -> None:
    text = bytearray(VALID[0])
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3)) or b"9"
    header = data.draw(st.sampled_from([VALID[1], None, b"0", b"40"]))
    with suppress(MserveError):
        everything((bytes(text), header), SPEC)


def test_the_request_that_was_spoiled_is_valid() -> None:
    everything(VALID, SPEC)
