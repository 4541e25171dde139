"""Predict bodies in JSON: to arrays and back."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mserve.errors import RequestError
from mserve.tensors import DTYPES, Signature, TensorSpec
from mserve.wire import tfs_json


def signature(**dtypes: str) -> Signature:
    ports = {alias: TensorSpec(alias, dtype, None) for alias, dtype in dtypes.items()}
    return Signature("predict", ports, {"y": TensorSpec("y", "float32", None)}, 0)


def read(body: bytes | dict[str, Any], spec: Signature) -> tuple[dict[str, Any], bool]:
    return tfs_json.inputs_of(
        tfs_json.parse(body if isinstance(body, bytes) else json.dumps(body).encode()), spec
    )


GOOD = [
    ("rows of one input", "float32", {"instances": [[1, 2], [3, 4]]}, [[1, 2], [3, 4]]),
    ("scalars as rows", "float32", {"instances": [1, 2.5]}, [1, 2.5]),
    ("rows as objects", "float32", {"instances": [{"x": [1]}, {"x": [2]}]}, [[1], [2]]),
    ("a column", "int64", {"inputs": [[1, 2]]}, [[1, 2]]),
    ("a named column", "int64", {"inputs": {"x": [[1, 2]]}}, [[1, 2]]),
    ("a scalar column", "float64", {"inputs": 7}, 7),
    ("no rows", "float32", {"instances": []}, []),
    ("integers for floats", "float16", {"inputs": [1, 2]}, [1, 2]),
    ("the ends of int64", "int64", {"inputs": [2**63 - 1, -(2**63)]}, [2**63 - 1, -(2**63)]),
    ("the ends of uint64", "uint64", {"inputs": [2**64 - 1, 0]}, [2**64 - 1, 0]),
    ("booleans", "bool", {"inputs": [True, False]}, [True, False]),
    ("strings", "string", {"instances": ["a", "ü", ""]}, ["a", "ü", ""]),
    ("base64 strings", "string", {"instances": [{"b64": b64encode("ü".encode()).decode()}]}, ["ü"]),
    ("base64 in a named row", "string", {"instances": [{"x": {"b64": "YQ=="}}]}, ["a"]),
    ("unknown keys beside them", "float32", {"instances": [1], "extra": {"a": 1}}, [1]),
    ("too large for float32 becomes infinity", "float32", {"inputs": [1e300]}, [math.inf]),
]


@pytest.mark.parametrize(("what", "dtype", "body", "expected"), GOOD, ids=[g[0] for g in GOOD])
def test_good(what: str, dtype: str, body: dict[str, Any], expected: Any) -> None:
    arrays, rows = read(body, signature(x=dtype))
    assert arrays["x"].dtype == DTYPES[dtype].to_numpy()
    assert arrays["x"].tolist() == expected
    assert rows == ("instances" in body)


def test_bare_nan_and_infinity_are_read() -> None:
    arrays, _ = read(b'{"inputs": [NaN, Infinity, -Infinity]}', signature(x="float32"))
    assert np.array_equal(arrays["x"], np.array([np.nan, np.inf, -np.inf], np.float32), equal_nan=True)


BAD = [
    (
        "a number for int8 that does not fit",
        {"x": "int8"},
        {"inputs": [300]},
        "out of range.*-128 to 127.*300",
    ),
    ("a negative number for uint8", {"x": "uint8"}, {"inputs": [-1]}, "out of range.*0 to 255.*-1"),
    ("a fraction for an integer", {"x": "int32"}, {"inputs": [1.0]}, "wrong kind.*int32.*1.0"),
    ("a boolean for an integer", {"x": "int32"}, {"inputs": [True]}, "wrong kind.*true"),
    ("a number for a boolean", {"x": "bool"}, {"inputs": [1]}, "wrong kind.*bool"),
    ("a number for a string", {"x": "string"}, {"inputs": ["a", 1]}, "wrong kind.*string"),
    ("base64 that is none", {"x": "string"}, {"inputs": {"x": [{"b64": "%"}]}}, "b64"),
    ("base64 of bytes that are no text", {"x": "string"}, {"inputs": [{"b64": "/w=="}]}, "b64.*UTF-8"),
    ("a list among scalars", {"x": "float32"}, {"inputs": [1, [2]]}, "wrong kind.*a list"),
    ("a scalar among lists", {"x": "float32"}, {"inputs": [[1], 2]}, "ragged"),
    ("lists of two lengths", {"x": "float32"}, {"inputs": [[1], [2, 3]]}, "ragged.*level 1"),
    (
        "a bare value for two inputs",
        {"x": "float32", "z": "float32"},
        {"instances": [1]},
        "not an object.*x, z",
    ),
    (
        "a bare column for two inputs",
        {"x": "float32", "z": "float32"},
        {"inputs": [1]},
        "not an object.*x, z",
    ),
    (
        "a missing input in the second row",
        {"x": "int32", "z": "int32"},
        {"instances": [{"x": 1, "z": 1}, {"x": 1}]},
        "instance 1.*missing 'z'",
    ),
    ("a list after an object", {"x": "float32"}, {"instances": [{"x": 1}, 2]}, "instance 1 is not an object"),
    ("a number beyond float64", {"x": "float32"}, {"inputs": [10**400]}, "not valid JSON|no float holds"),
]


@pytest.mark.parametrize(("what", "dtypes", "body", "message"), BAD, ids=[b[0] for b in BAD])
def test_bad(what: str, dtypes: dict[str, str], body: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read(body, signature(**dtypes))


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(body: bytes) -> None:
    with suppress(RequestError):
        read(body, signature(x="float32"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "z", "b64"]), inner, max_size=2)
    ),
    max_leaves=12,
)


@given(
    JSON,
    st.sampled_from(["instances", "inputs"]),
    st.sampled_from(["float32", "int8", "uint64", "bool", "string"]),
)
@settings(max_examples=500)
def test_any_json_is_an_array_or_a_request_error(value: Any, key: str, dtype: str) -> None:
    with suppress(RequestError):
        arrays, _ = read(json.dumps({key: value}).encode(), signature(x=dtype))
        assert arrays["x"].dtype == DTYPES[dtype].to_numpy()


ARRAYS = st.sampled_from(["float32", "float64", "int8", "int64", "uint64", "bool"]).flatmap(
    lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
)


@given(ARRAYS, st.booleans())
def test_what_is_written_is_read_again(array: Any, rows: bool) -> None:
    """Bit for bit, NaN and Infinity included."""
    body = tfs_json.encode_inputs({"x": array}, rows=rows)
    arrays, came_in_rows = read(body, signature(x=array.dtype.name))
    assert came_in_rows == rows
    assert np.array_equal(arrays["x"], array, equal_nan=array.dtype.kind == "f")


ENCODED = [
    ("one output in rows", {"y": np.array([[1.5], [2]], np.float32)}, True, {"predictions": [[1.5], [2.0]]}),
    (
        "two outputs in rows",
        {"y": np.array([1.5], np.float32), "n": np.array([7])},
        True,
        {"predictions": [{"y": 1.5, "n": 7}]},
    ),
    ("one output in columns", {"y": np.array([1.5], np.float32)}, False, {"outputs": [1.5]}),
    (
        "two outputs in columns",
        {"y": np.array(1.5), "n": np.array([7, 8])},
        False,
        {"outputs": {"y": 1.5, "n": [7, 8]}},
    ),
    ("text", {"y": np.array(["a", "ü"], object)}, True, {"predictions": ["a", "ü"]}),
    (
        "text beside numbers",
        {"y": np.array(["a"], object), "n": np.array([True])},
        True,
        {"predictions": [{"y": "a", "n": True}]},
    ),
    ("half floats", {"y": np.array([0.5], np.float16)}, True, {"predictions": [0.5]}),
    (
        "an array that is not contiguous",
        {"y": np.arange(4.0).reshape(2, 2).T},
        True,
        {"predictions": [[0, 2], [1, 3]]},
    ),
    ("no rows", {"y": np.empty((0, 3), np.float32)}, True, {"predictions": []}),
]


@pytest.mark.parametrize(("what", "outputs", "rows", "expected"), ENCODED, ids=[e[0] for e in ENCODED])
def test_encode(what: str, outputs: dict[str, Any], rows: bool, expected: Any) -> None:
    assert json.loads(tfs_json.encode(outputs, rows=rows)) == expected


def test_float32_keeps_its_short_form_beside_nan() -> None:
    body = tfs_json.encode({"y": np.array([0.1, np.nan, np.inf], np.float32)}, rows=True)
    assert body == b'{"predictions": [0.1, NaN, Infinity]}'


def test_outputs_without_common_rows_need_the_column_form() -> None:
    with pytest.raises(RequestError, match=r"cannot be given in rows.*\[2\].*\[3\].*column form"):
        tfs_json.encode({"a": np.zeros(2), "b": np.zeros(3)}, rows=True)
