"""What the readers of LIBLINEAR, LIBSVM and libFM share: text of a head and numbers, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import InputError
from ...tensors import Array, TensorSpec
from .. import answers
from ..answers import Answers
from ..build import Graph
from ..kinds import ConvertOptions

MAX_FEATURES = 1 << 27
MAX_CLASSES = 1 << 16
PIECE_LINES = 1 << 16


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
    if size is not None:
        _check_size(len(values), size, where)
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        raise InputError("a weight is not a number", where=f"{where}: number {at}", found=values[at])
    return values


def numbers_of_lines(lines: Sequence[bytes], size: int, where: str) -> Array:
    """The numbers that stand on lines, float64 [size]; words of a few lines at a time. Raises InputError."""
    import numpy as np

    parts = [np.empty(0)]
    for start in range(0, len(lines), PIECE_LINES):
        words = b" ".join(lines[start : start + PIECE_LINES]).split()
        parts.append(numbers(words, None, f"{where} from line {start + 1}" if start else where))
    found = np.concatenate(parts)
    _check_size(len(found), size, where)
    return found


def _check_size(found: int, size: int, where: str) -> None:
    if found != size:
        what = "the model is truncated" if found < size else "the model has too many numbers"
        raise InputError(what, where=where, expected=f"{size} numbers", found=found)


def integers(text: str, size: int, where: str) -> list[int]:
    """Whole numbers on one line. Raises InputError."""
    words = text.split()
    if len(words) != size or not all(w.lstrip("+-").isdecimal() and len(w) < 19 for w in words):
        expected = f"{size} whole numbers"
        raise InputError("the model's head is malformed", where=where, expected=expected, found=text[:80])
    return [int(word) for word in words]


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
