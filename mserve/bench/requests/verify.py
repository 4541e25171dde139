"""Whether answers are right: every answer's outputs against those that are expected.

Expected are a bundle's golden outputs, or, for a server whose bundle is not at hand, what
each request was answered alone, before the load. Compared is as `validate` does it,
within the tolerances of `mserve.numerics`, since batches of other sizes round otherwise.
An answer with the bytes of one that was right is right, and is not read again: the
connections remember those (`client.Seen`, `Http2Client.learn`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import MserveError
from ...numerics import compare
from ...tensors import Array, dtype_of
from .codecs import CODECS, readable

Outputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks the answers of a protocol; `expected` by number of request, None where nothing is known."""

    protocol: str
    expected: Sequence[Outputs | None]

    def __call__(self, number: int, body: bytes, header: bytes | None) -> str:
        """What is wrong with an answer to the request of that number; "" if nothing is."""
        expected = self.expected[number]
        if expected is None:
            return ""
        try:
            found = CODECS[self.protocol].decode(body, header)
        except MserveError as error:
            return readable(error)
        return difference(expected, found)


def difference(expected: Outputs, found: Outputs) -> str:
    """How outputs differ: the output, its worst element, expected and found; "" if they do not."""
    if "" in found and len(expected) == 1:  # JSON of one output leaves its name out
        found = {next(iter(expected)): found[""]}
    for name, array in expected.items():
        if name not in found:
            return f"output {name!r} is missing: the answer has {', '.join(map(repr, found)) or 'none'}"
        actual = _as(found[name], array)
        if (dtype_of(actual) == "string") != (dtype_of(array) == "string"):
            return f"output {name!r}: {dtype_of(actual)}, not {dtype_of(array)}"
        gap = compare(array, actual)
        if not gap.equal:
            return f"output {name!r}: {gap.reason}{_element(array, actual, gap.where)}"
    return ""


def _element(expected: Array, found: Array, where: tuple[int, ...]) -> str:
    if expected.shape != found.shape or len(where) != expected.ndim or not expected.size:
        return ""
    return f": expected {expected[where]!s:.60}, found {found[where]!s:.60}"


def _as(found: Array, expected: Array) -> Array:
    """Numbers that came as JSON, whose type it does not tell, as the type that is expected."""
    numbers = "iufV"
    if found.dtype == expected.dtype or found.dtype.kind not in numbers or expected.dtype.kind not in numbers:
        return found
    import numpy as np

    with np.errstate(all="ignore"):
        cast: Array = found.astype(expected.dtype)
    # What the type does not hold stays as it is, and is told apart.
    return cast if expected.dtype.kind != "i" or np.array_equal(cast, found) else found
