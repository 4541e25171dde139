"""Prometheus's text format (0.0.4), written line by line.

A page of many series has thousands of lines that differ in little: what is the same for a
family or for a series is written once and put together, which costs a tenth of
objects for samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def labels(pairs: Iterable[tuple[str, str]]) -> str:
    """Labels as a sample has them, without the braces, in the order of their names."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in sorted(pairs))


class Family:
    """A metric with the lines of all its series. A counter's `name` ends in `_total`.

    `bounds` are a histogram's upper bounds, without infinity; its labels sort behind `le`.
    """

    def __init__(self, name: str, kind: str, help: str, bounds: Sequence[float] = ()) -> None:
        self._name = name
        self._head = f"# HELP {name} {help}\n# TYPE {name} {kind}\n"
        self._lines: list[str] = []
        ends = [*map(str, map(float, bounds)), "+Inf"]
        self._buckets = [f'{name}_bucket{{le="{end}",' for end in ends]

    def add(self, labels: str, value: float) -> None:
        """The value of one series."""
        named = f"{{{labels}}}" if labels else ""
        self._lines.append(f"{self._name}{named} {float(value)!r}\n")

    def add_histogram(self, labels: str, counts: Sequence[int], total: float) -> None:
        """One series: counts by bucket, the last of what is above all bounds, and the sum of the values."""
        running, tail = list(accumulate(counts)), f"{labels}}} "
        rows = zip(self._buckets, running, strict=True)
        self._lines += [f"{bucket}{tail}{count}.0\n" for bucket, count in rows]
        self._lines.append(f"{self._name}_count{{{labels}}} {running[-1]}.0\n")
        self._lines.append(f"{self._name}_sum{{{labels}}} {float(total)!r}\n")

    def text(self) -> str:
        """All of it; nothing where there is no series."""
        return "".join((self._head, *self._lines)) if self._lines else ""
