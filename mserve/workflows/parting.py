"""Whether two subjects answer alike, output by output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compare import signature as signatures
from ..compare.answers import beyond
from ..compare.signature import Pair
from ..errors import RequestError, UsageError
from ..tensors import Array, dtype_of, show_shape
from .subject import Named, Subject, open_subject

PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far values may be apart: `atol` and `rtol` of the largest magnitude in their row."""

    rtol: float
    atol: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Two tensors held side by side. `values` are the worst element's, `at` where it stands; `odd` says
    which side has NaN or infinity where the other has none."""

    name: str
    equal: bool
    worst: float
    at: tuple[int, ...]
    reason: str
    values: tuple[object, object] | None
    dtype: str
    shape: tuple[int, ...]
    odd: str = ""

    def to_json(self) -> dict[str, Any]:
        """Numbers that JSON has no word for as text."""
        values = None if self.values is None else [_plain(v) for v in self.values]
        return {
            "name": self.name, "equal": self.equal, "worst": _plain(self.worst), "at": list(self.at),
            "reason": self.reason, "values": values, "dtype": self.dtype, "shape": list(self.shape),
            "not_finite": self.odd,
        }  # fmt: skip

    def sentence(self) -> str:
        """For people."""
        if self.equal:
            return f"equal, worst {self.worst:.3g}" if self.worst else "equal"
        values = "" if self.values is None else f": {self.values[0]} and {self.values[1]}"
        return f"{self.reason}{values}{f'; {self.odd}' if self.odd else ''}"


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | bool) else str(value)


def judge(name: str, one: Array, two: Array, tolerance: Tolerance) -> Verdict:
    """Compare two arrays; those of other shapes or dtypes are not equal."""
    dtype, shape = dtype_of(one), one.shape
    if dtype != dtype_of(two) or shape != two.shape:
        reason = f"{dtype} {show_shape(shape)} and {dtype_of(two)} {show_shape(two.shape)}"
        return Verdict(name, False, math.inf, (), reason, None, dtype, shape)
    found = beyond(one, two, tolerance.rtol, tolerance.atol)
    values = None
    if not found.equal and len(found.where) == one.ndim:
        values = (_item(one[found.where]), _item(two[found.where]))
    return Verdict(
        name, found.equal, found.worst, found.where, found.reason, values, dtype, shape, _odd(one, two)
    )


def _item(value: Any) -> object:
    plain = value.item() if hasattr(value, "item") else value
    return plain if isinstance(plain, int | float | bool) else str(plain)[:60]


def _odd(one: Array, two: Array) -> str:
    """Which side alone has values that are no finite numbers."""
    import numpy as np

    if one.dtype.kind != "f" or np.isfinite(one).all() == np.isfinite(two).all():
        return ""
    side, array = ("the second", two) if np.isfinite(one).all() else ("the first", one)
    kind = "NaN" if np.isnan(array).any() else "infinity"
    first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    return f"only {side} has {kind}, first at {list(first)}"


def open_other(text: str, subject: Subject) -> Subject:
    """What a subject is compared with: `plain`, a device, or the path of another model.

    The other model runs on the subject's device. Raises as `open_subject`.
    """
    if text == PLAIN:
        return Subject(subject.model, subject.device, plain=True)
    if text == "cpu" or (text.startswith("cuda:") and not Path(text).exists()):
        return Subject(subject.model, text)
    return open_subject(Path(text), subject.device)


def pairs_of(one: Subject, two: Subject) -> list[Pair]:
    """The signatures that belong together, and their ports."""
    if one.model is two.model:
        return [
            Pair(n, n, {a: a for a in s.inputs}, {a: a for a in s.outputs})
            for n, s in one.model.signatures.items()
        ]
    return signatures.compare(one.model, two.model)[1]


def pair_of(pairs: list[Pair], name: str, two: Subject) -> Pair:
    """The counterpart of a signature. Raises UsageError where there is none, or nothing to compare."""
    pair = next((p for p in pairs if p.old == name), None)
    if pair is None or not pair.outputs:
        what = "signature" if pair is None else "output"
        raise UsageError(
            f"the other model has no such {what}",
            where=two.model.path,
            expected=name,
            found=", ".join(two.model.signatures),
        )
    return pair


def renamed(inputs: Named, pair: Pair) -> dict[str, Array]:
    """Inputs by the other model's names."""
    return {pair.inputs.get(alias, alias): x for alias, x in inputs.items()}


def compared(
    sides: tuple[Subject, Subject], pair: Pair, inputs: Named, tolerance: Tolerance
) -> list[Verdict]:
    """A verdict for each output that both have. Raises RequestError naming the side that refuses."""
    answers = []
    for side, name, given in zip(sides, (pair.old, pair.new), (inputs, renamed(inputs, pair)), strict=True):
        try:
            answers.append(side.run(given, name))
        except RequestError as error:
            error.where = error.where or side.label
            raise
    ours, theirs = answers
    return [judge(a, ours[a], theirs[b], tolerance) for a, b in pair.outputs.items()]
