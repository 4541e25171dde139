"""Comparing arrays within tolerances, and what can be said of values that arrive in pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import UsageError
from .tensors import DTYPES, SHORT_TYPES, Array

# Two runs of one float32 model on different CPUs, or in different batches, differ by a
# few units in the last place after each reduction; real mistakes are far larger.
RTOL = 1e-3
ATOL = 1e-5
GROSS = 0.05
GROSS_FLOATS = 0.01
GROSS_OTHERS = 0.5

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two arrays are apart. `where` is the index of the worst element, () if none."""

    equal: bool
    worst: float
    where: tuple[int, ...]
    reason: str


def compare(expected: Array, actual: Array, rtol: float = RTOL, atol: float | Array = ATOL) -> Difference:
    """Compare two arrays elementwise: |actual - expected| <= atol + rtol * |expected|.

    `atol` may be an array that broadcasts to theirs. NaN equals NaN. Integers, booleans and strings
    must be equal. `worst` is the largest absolute difference among floats, and the number of
    differing elements otherwise.
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


def gross_difference(expected: Array, actual: Array) -> str:
    """Why two arrays cannot be one computation on two machines; "" if they can.

    Another machine rounds otherwise, and a model may magnify that: numbers differ when they
    are further apart than GROSS of the largest magnitude, and arrays when GROSS_FLOATS of
    the floats do, or GROSS_OTHERS of the whole numbers, booleans or texts.
    """
    import numpy as np

    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        found = f"{actual.dtype} {list(actual.shape)}"
        return f"{found}, not {expected.dtype} {list(expected.shape)}"
    if expected.size == 0:
        return ""
    floats = expected.dtype.kind == "f" or expected.dtype.name in SHORT_TYPES
    if not floats and expected.dtype.kind not in "iu":
        wrong = np.asarray(expected != actual)
    else:
        a, b = expected.astype(np.float64), actual.astype(np.float64)
        scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
        with np.errstate(invalid="ignore"):
            near = np.abs(a - b) <= max(ATOL, GROSS * scale)
        wrong = ~(near | (a == b) | (np.isnan(a) & np.isnan(b)))
    if np.count_nonzero(wrong) <= (GROSS_FLOATS if floats else GROSS_OTHERS) * wrong.size:
        return ""
    return f"{np.count_nonzero(wrong)} of {wrong.size} elements differ"


def show_bytes(count: int) -> str:
    """A number of bytes for people: `3.1 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def parse_size(text: str) -> int:
    """Bytes from text such as 512MiB, 1GB or 4096. Raises UsageError."""
    number = text.rstrip("iIbBkKmMgG")
    unit = text[len(number) :].upper().removesuffix("B")
    digits = number.isascii() and number.isdigit() and len(number) <= 15
    if unit not in _UNITS or not digits or int(number) == 0:
        raise UsageError("bad size", expected="a number with KB, MB, GB, KiB, MiB or GiB", found=text[:40])
    return int(number) * _UNITS[unit]


@dataclass(slots=True)
class Tally:
    """Count, range, mean and NaNs of numbers that arrive in pieces; memory is that of one piece.

    `mean`, `minimum` and `maximum` are over the values that are not NaN; None while there
    are none. The range of integers is exact.
    """

    count: int = 0
    nan: int = 0
    mean: float | None = None
    minimum: float | int | None = None
    maximum: float | int | None = None

    def add(self, values: Array) -> None:
        """Take one more piece, of numbers or booleans in any shape."""
        import numpy as np

        self.count += values.size
        if values.dtype.kind not in "biu":
            with np.errstate(invalid="ignore"):  # a NaN that signals stays NaN
                values = values.astype(np.float64, copy=False)
            numbers = values[~np.isnan(values)]
            self.nan += values.size - numbers.size
            values = numbers
        if values.size == 0:
            return
        low, high = (+x.item() for x in (values.min(), values.max()))  # + makes numbers of booleans
        seen = self.count - self.nan
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(values.mean(dtype=np.float64))
            self.mean = mean if self.mean is None else self.mean + (mean - self.mean) * (values.size / seen)
        self.minimum = low if self.minimum is None else min(self.minimum, low)
        self.maximum = high if self.maximum is None else max(self.maximum, high)


def tally(dtype: str, elements: int, chunks: Iterable[bytes | memoryview]) -> Tally:
    """Count, range, mean and NaNs of the `elements` values in a tensor's stored bytes.

    `dtype` is a key of DTYPES other than string; every chunk holds whole values, little-endian,
    4-bit ones two to a byte.
    """
    result = Tally()
    for chunk in chunks:
        result.add(from_stored(dtype, chunk)[: elements - result.count])
    return result


def from_stored(dtype: str, data: bytes | memoryview) -> Array:
    """The values of stored bytes, in one dimension; see `tally`."""
    import numpy as np

    kind = DTYPES[dtype]
    if kind.bits >= 8:
        return np.frombuffer(data, kind.to_numpy().newbyteorder("<"))
    pairs = np.frombuffer(data, np.uint8)
    halves = np.stack([pairs & 0x0F, pairs >> 4], axis=1).ravel().astype(np.int8)
    return np.where(halves > 7, halves - 16, halves) if dtype == "int4" else halves
