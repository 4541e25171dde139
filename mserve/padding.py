"""Padding of an input whose rows differ in length, so that rows of different lengths can share a batch."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

BUCKETS_MAX = 64
SIZE_MAX = 2**31 - 1
Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Pad:
    """How an input is lengthened: along `axis`, with `value`, to the next size of `buckets`.

    What is longer than the last bucket keeps its length.
    """

    axis: int = 1
    value: Value = 0
    buckets: tuple[int, ...] = ()

    def size(self, length: int) -> int:
        """The length that rows of some length are given."""
        at = bisect_left(self.buckets, length)
        return self.buckets[at] if at < len(self.buckets) else length

    def to_json(self) -> dict[str, Any]:
        return {"axis": self.axis, "value": self.value, "buckets": list(self.buckets)}

    @classmethod
    def from_json(cls, value: Any) -> Pad:
        """Read what `to_json` wrote, or a person did. Raises ValueError saying what was expected."""
        if not isinstance(value, dict):
            raise ValueError("a table such as { axis = 1, value = 0, buckets = [16, 64] }")
        axis, fill, buckets = value.get("axis", 1), value.get("value", 0), value.get("buckets", [])
        if type(axis) is not int or axis < 1:
            raise ValueError("an axis >= 1: rows are padded, not their number")
        if not isinstance(fill, Value):
            raise ValueError("a single value")
        if not isinstance(buckets, list) or not rising(buckets) or len(buckets) > BUCKETS_MAX:
            raise ValueError(f"buckets: at most {BUCKETS_MAX} sizes, each larger than the one before")
        return cls(axis, fill, tuple(buckets))


def rising(sizes: list[Any]) -> bool:
    """Whether a list holds sizes of at least 1, each larger than the one before."""
    if not all(type(n) is int and 0 < n <= SIZE_MAX for n in sizes):
        return False
    return all(a < b for a, b in pairwise(sizes))
