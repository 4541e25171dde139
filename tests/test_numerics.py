"""Comparing arrays, elementwise."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mserve.numerics import Difference, compare

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
