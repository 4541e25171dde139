"""Comparing arrays: tolerances and where two answers differ."""

from __future__ import annotations

from dataclasses import dataclass

from .tensors import Array

# Two runs of one float32 model on different CPUs, or in different batches, differ by a
# few units in the last place after each reduction; real mistakes are far larger.
RTOL = 1e-3
ATOL = 1e-5


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two arrays are apart. `where` is the index of the worst element, () if none."""

    equal: bool
    worst: float
    where: tuple[int, ...]
    reason: str


def compare(expected: Array, actual: Array, rtol: float = RTOL, atol: float = ATOL) -> Difference:
    """Compare two arrays elementwise: |actual - expected| <= atol + rtol * |expected|.

    NaN equals NaN. Integers, booleans and strings must be equal. `worst` is the largest
    absolute difference among floats, and the number of differing elements otherwise.
    """
    import numpy as np

    if expected.shape != actual.shape:
        return Difference(False, float("inf"), (), f"shape {list(actual.shape)}, not {list(expected.shape)}")
    if expected.dtype.kind != actual.dtype.kind and "O" not in (expected.dtype.kind, actual.dtype.kind):
        return Difference(False, float("inf"), (), f"dtype {actual.dtype}, not {expected.dtype}")
    if expected.size == 0:
        return Difference(True, 0.0, (), "")
    if expected.dtype.kind != "f" and expected.dtype.name not in ("bfloat16",):
        wrong = np.asarray(expected != actual)
        first = tuple(int(i) for i in np.argwhere(wrong)[0]) if wrong.any() else ()
        if not wrong.any():
            return Difference(True, 0.0, (), "")
        reason = f"{int(wrong.sum())} of {wrong.size} elements differ, first at {list(first)}"
        return Difference(False, float(wrong.sum()), first, reason)
    with np.errstate(invalid="ignore"):
        a, b = expected.astype(np.float64), actual.astype(np.float64)
        gap = np.asarray(np.abs(a - b))  # for scalars, numpy gives a number and not an array
        gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
        gap[np.isnan(gap)] = np.inf
        over = gap > atol + rtol * np.where(np.isfinite(a), np.abs(a), 0.0)
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(gap)), gap.shape))
    worst = float(gap[at])
    if not over.any():
        return Difference(True, worst, at, "")
    reason = f"{int(over.sum())} of {over.size} elements differ, worst {worst:.3g} at {list(at)}"
    return Difference(False, worst, at, reason)


def show_bytes(count: int) -> str:
    """A number of bytes for people: `3.1 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
