"""Numbers in JSON: the quick way gives what the long way gives, or leaves it to that."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.errors import RequestError
from mserve.tensors import TensorSpec
from mserve.wire.json_values import to_array, without_booleans

NUMBERS = [
    *("float16", "float32", "float64", "bfloat16"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"),
]
numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-300, 300),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 255, 256, -129, 2**53 + 1, 2**63, 2**64 - 1, 65519.9, 65520, 3.5e38, 1e-46]),
)
odd = st.sampled_from([None, "1", "", {}, {"b64": "YQ=="}, True, False, []])


@st.composite
def nested(draw: st.DrawFn) -> Any:
    """Numbers in lists of one shape, in which a few places may be spoiled."""
    shape = draw(st.lists(st.integers(0, 3), max_size=4))

    def fill(sizes: list[int]) -> Any:
        if draw(st.integers(0, 40)) == 0:
            return draw(st.one_of(odd, st.lists(numbers, max_size=3)))
        return [fill(sizes[1:]) for _ in range(sizes[0])] if sizes else draw(numbers)

    return fill(shape)


@settings(max_examples=600, deadline=None)
@given(value=nested(), dtype=st.sampled_from(NUMBERS))
def test_the_quick_way_and_the_long_way_agree(value: Any, dtype: str) -> None:
    spec = TensorSpec("x", dtype, None)
    try:
        body = orjson.dumps(value)
    except TypeError:  # an integer that JSON's writer does not take
        booleans = "True" in repr(value) or "False" in repr(value)
    else:
        booleans = not without_booleans(body)
    assert outcome(value, spec, booleans) == outcome(value, spec, True)


def outcome(value: Any, spec: TensorSpec, booleans: bool) -> Any:
    """An array in full, or what is said of its value."""
    try:
        array = to_array(value, spec, "x", booleans=booleans)
    except RequestError as error:
        return str(error)
    return array.dtype, array.shape, array.tobytes()


BODIES = {
    b'{"instances": [[1.5, 2]]}': True,
    b'{"inputs": [1], "signature_name": "f"}': True,
    b'{"instances": [true]}': False,
    b'{"instances": [false]}': False,
    b'{"instances": ["untrue"]}': False,
}


@pytest.mark.parametrize(("body", "none"), BODIES.items())
def test_whether_a_body_may_hold_booleans(body: bytes, none: bool) -> None:
    assert without_booleans(body) is none
    assert without_booleans(memoryview(body)) is none


@pytest.mark.parametrize("value", [[True], [[1.0], [False]], [1, True]])
def test_a_boolean_is_no_number(value: Any) -> None:
    with pytest.raises(RequestError, match="wrong kind"):
        to_array(value, TensorSpec("x", "float32", None), "x", booleans=True)


def test_a_number_that_no_short_float_holds_becomes_infinite_either_way() -> None:
    for booleans in (True, False):
        array = to_array([1e39, -1e39, 1.0], TensorSpec("x", "float32", None), "x", booleans=booleans)
        np.testing.assert_array_equal(array, np.array([np.inf, -np.inf, 1], np.float32))
