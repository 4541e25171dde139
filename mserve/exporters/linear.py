"""What the readers of LIBLINEAR, LIBSVM and libFM share: text of a head and numbers, and dense inputs.

Weights become the graph's only here, so that a reader says what it computes and not how
its inputs arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import InputError
from ..tensors import Array, TensorSpec
from . import answers
from .answers import Answers
from .build import Graph
from .kinds import ConvertOptions

MAX_FEATURES = 1 << 27
MAX_CLASSES = 1 << 16


def head(lines: Sequence[bytes], last: bytes, path: Path) -> dict[str, str]:
    """The `key value...` lines before the line `last`. Raises InputError when that is not there."""
    found: dict[str, str] = {}
    for line in lines:
        if line.strip() == last:
            return found
        key, _, value = line.decode(errors="replace").strip().partition(" ")
        found[key] = value.strip()
    raise InputError(
        "the model is truncated", where=path, expected=f"the line {last.decode()!r}", found="the end"
    )


def count(found: dict[str, str], key: str, bounds: tuple[int, int], path: Path) -> int:
    """A whole number of the head, within bounds. Raises InputError."""
    text = found.get(key, "")
    number = int(text) if text.lstrip("-").isdecimal() and len(text) < 12 else None
    if number is None or not bounds[0] <= number <= bounds[1]:
        expected = f"a whole number from {bounds[0]} to {bounds[1]}"
        raise InputError(
            "the model's head is malformed", where=f"{path}: {key}", expected=expected, found=text[:40]
        )
    return number


def numbers(words: Sequence[bytes] | Sequence[str], size: int | None, where: str) -> Array:
    """Finite numbers, float64 [size]. Raises InputError."""
    import numpy as np

    try:
        values = np.array([float(word) for word in words], np.float64)
    except ValueError as error:
        raise InputError("a number is malformed", where=where, found=str(error)[:100]) from error
    if size is not None and len(values) != size:
        what = "the model is truncated" if len(values) < size else "the model has too many numbers"
        raise InputError(what, where=where, expected=f"{size} numbers", found=len(values))
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        raise InputError("a weight is not a number", where=f"{where}: number {at}", found=values[at])
    return values


def integers(text: str, size: int, where: str) -> list[int]:
    """Whole numbers on one line. Raises InputError."""
    words = text.split()
    if len(words) != size or not all(w.lstrip("+-").isdecimal() and len(w) < 19 for w in words):
        expected = f"{size} whole numbers"
        raise InputError("the model's head is malformed", where=where, expected=expected, found=text[:80])
    return [int(word) for word in words]


def draw(features: int) -> Callable[[int], Array]:
    """What makes a number of input rows, half of their values zero as in sparse rows."""
    import numpy as np

    def rows(count: int) -> Array:
        rng = np.random.default_rng(count)
        made = rng.standard_normal((count, features))
        return np.where(rng.random(made.shape) < 0.5, made, 0.0).astype(np.float32)

    return rows


def labelled(
    graph: Graph, picked: str, labels: Sequence[int], options: ConvertOptions, probabilities: str = ""
) -> Answers:
    """`label`, the class at a position [batch]; and `probabilities`, whose columns are in that order.

    Names of the columns are those of `--labels`, or the labels themselves.
    """
    import numpy as np

    graph.add("Gather", graph.weight(np.array(labels, np.int64), "labels"), picked, name="label")
    outputs = {"label": TensorSpec("label", "int64", ("batch",))}
    assets = answers.given_labels(options, len(labels))
    if probabilities:
        graph.cast(probabilities, "float32", name="probabilities")
        assets = assets or {answers.LABELS_FILE: answers.lines([str(label) for label in labels])}
        shape = ("batch", len(labels))
        outputs = {
            "probabilities": TensorSpec("probabilities", "float32", shape, labels=answers.LABELS_FILE)
        } | outputs
    return Answers(outputs, assets)
