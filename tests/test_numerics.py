"""Comparing arrays, elementwise."""

from __future__ import annotations

import builders
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from mserve.numerics import Difference, Tally, compare, from_stored, tally
from mserve.tensors import DTYPES

NAN, INF = float("nan"), float("inf")
SIGNALLING = np.array([0x7FA00000], np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("expected", "actual", "equal", "why"),
    [
        ([1.0, 2.0], [1.0, 2.0], True, "the same"),
        ([1.0, 2.0], [1.0, 2.001], True, "within the relative tolerance"),
        ([1.0, 2.0], [1.0, 2.1], False, "outside of it"),
        ([0.0], [1e-6], True, "within the absolute tolerance"),
        ([NAN], [NAN], True, "NaN equals NaN"),
        ([NAN], [0.0], False, "and nothing else"),
        ([0.0], [NAN], False, "either way"),
        ([INF], [INF], True, "infinity equals itself"),
        ([INF], [-INF], False, "and not its opposite"),
        ([INF], [1e30], False, "nor a large number"),
        (1.0, 1.0, True, "scalars"),
        (1.0, 2.0, False, "scalars that differ"),
        (np.int64(3), np.int64(3), True, "integer scalars"),
        (np.int64(3), np.int64(4), False, "integer scalars that differ"),
        (np.zeros((0, 3)), np.zeros((0, 3)), True, "nothing equals nothing"),
        (np.zeros((0, 3)), np.zeros((3, 0)), False, "of the same shape"),
        ([1], [1.0], False, "an integer is not a float"),
        (np.array(["a"], object), np.array(["a"], object), True, "text"),
        (np.array(["a"], object), np.array(["b"], object), False, "text that differs"),
        (np.array([True]), np.array([False]), False, "booleans"),
        (SIGNALLING, SIGNALLING, True, "a signalling NaN, without a warning"),
        (np.ones(2, ml_dtypes.bfloat16), np.ones(2, ml_dtypes.bfloat16), True, "a short float"),
    ],
)
def test_compare(expected: object, actual: object, equal: bool, why: str) -> None:
    found = compare(np.asarray(expected), np.asarray(actual))
    assert found.equal is equal, why
    assert bool(found.reason) is not equal


@pytest.mark.parametrize(
    ("expected", "actual", "difference"),
    [
        (
            [1.0, 2.0, 3.0],
            [1.0, 5.0, 4.0],
            Difference(False, 3.0, (1,), "2 of 3 elements differ, worst 3 at [1]"),
        ),
        (
            [[1, 2], [3, 4]],
            [[1, 2], [0, 0]],
            Difference(False, 2.0, (1, 0), "2 of 4 elements differ, first at [1, 0]"),
        ),
        (1.0, 3.0, Difference(False, 2.0, (), "1 of 1 elements differ, worst 2 at []")),
        ([1.0], [[1.0]], Difference(False, INF, (), "shape [1, 1], not [1]")),
        ([1.0], [1], Difference(False, INF, (), "dtype int64, not float64")),
    ],
)
def test_a_difference_says_where(expected: object, actual: object, difference: Difference) -> None:
    assert compare(np.asarray(expected), np.asarray(actual)) == difference


@pytest.mark.parametrize(
    ("pieces", "expected", "why"),
    [
        ([], Tally(), "nothing"),
        ([[]], Tally(), "an empty piece"),
        ([[1.0, 2.0], [6.0]], Tally(3, 0, 3.0, 1.0, 6.0), "two pieces"),
        ([[NAN, 1.0], [NAN]], Tally(3, 2, 1.0, 1.0, 1.0), "NaNs are counted and left out"),
        ([[NAN]], Tally(1, 1), "only NaNs have no range"),
        ([[INF, 1.0]], Tally(2, 0, INF, 1.0, INF), "infinity is a value"),
        ([[2**63 - 1, 2**53 + 1]], Tally(2, 0, 2.0**62 + 2.0**52, 2**53 + 1, 2**63 - 1), "exact integers"),
        ([[True, False], [True, True]], Tally(4, 0, 0.75, 0, 1), "booleans are 0 and 1"),
    ],
)
def test_tally(pieces: list[list[float]], expected: Tally, why: str) -> None:
    found = Tally()
    for piece in pieces:
        found.add(np.array(piece))
    assert found == expected, why
    assert not isinstance(found.minimum, bool)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), st.integers(1, 7))
def test_a_tally_does_not_depend_on_the_pieces(values: list[float], size: int) -> None:
    array = np.array(values, np.float32)
    pieces = [array[at : at + size].tobytes() for at in range(0, len(array), size)]
    found = tally("float32", len(array), pieces)
    assert (found.count, found.minimum, found.maximum) == (len(values), array.min(), array.max())
    assert found.mean == pytest.approx(array.mean(dtype=np.float64), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "string"])
def test_stored_bytes_of_every_dtype(dtype: str) -> None:
    """The values are those that onnx itself reads."""
    raw = builders.raw_bytes(dtype, 33)
    tensor = TensorProto(data_type=DTYPES[dtype].onnx, dims=[33], raw_data=raw)
    expected = numpy_helper.to_array(tensor).astype(np.float64)
    assert np.array_equal(from_stored(dtype, raw)[:33].astype(np.float64), expected)
    found = tally(dtype, 33, [raw])
    assert (found.count, found.nan) == (33, 0)
    assert (found.minimum, found.maximum) == (expected.min(), expected.max())


def test_short_floats_have_their_nans_counted() -> None:
    for dtype, nan in (("bfloat16", b"\xc0\x7f"), ("float8e4m3fn", b"\x7f"), ("float8e5m2fnuz", b"\x80")):
        assert tally(dtype, 1, [nan]).nan == 1


def test_a_tally_needs_the_memory_of_a_piece() -> None:
    import tracemalloc

    piece = builders.floats(1 << 18).tobytes()
    tracemalloc.start()
    found = tally("float32", 200 << 18, (piece for _ in range(200)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.count == 200 << 18
    assert peak < 8 * len(piece)
