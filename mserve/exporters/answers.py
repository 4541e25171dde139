"""What a model answers, named as a person would: `probabilities` and `label`, or `score`.

Every function takes a graph and the name of a float32 tensor in it, and returns the outputs
of the signature. Columns of probabilities are classes; where their names are known, they are
an asset, one a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UsageError
from ..files import read_text
from ..tensors import TensorSpec
from .build import Graph
from .kinds import ConvertOptions

FEATURES, LABELS_FILE, FEATURES_FILE = "features", "labels.txt", "features.txt"


@dataclass(frozen=True, slots=True)
class Answers:
    """Outputs by alias, and the files that go with them."""

    outputs: Mapping[str, TensorSpec]
    assets: Mapping[str, bytes] = field(default_factory=dict)


def features(count: int, names: Sequence[str] = ()) -> tuple[dict[str, TensorSpec], dict[str, bytes]]:
    """The input of all features in their order, and a file of their names where there are any."""
    doc = f"columns in the order of {FEATURES_FILE}" if names else ""
    assets = {FEATURES_FILE: lines(names)} if names else {}
    return {FEATURES: TensorSpec(FEATURES, "float32", ("batch", count), doc)}, assets


def lines(names: Sequence[str]) -> bytes:
    """Names as a file, one a line; what would break a line does not."""
    return "".join(f"{' '.join(name.splitlines())}\n" for name in names).encode(errors="replace")


def scores(graph: Graph, values: str, columns: int) -> Answers:
    """`score`: [batch] for one column of values [batch, 1], else [batch, columns]."""
    if columns > 1:
        graph.add("Identity", values, name="score")
        return Answers({"score": TensorSpec("score", "float32", ("batch", columns))})
    import numpy as np

    graph.add("Squeeze", values, graph.weight(np.array([1])), name="score")
    return Answers({"score": TensorSpec("score", "float32", ("batch",))})


def binary(graph: Graph, positive: str, options: ConvertOptions) -> Answers:
    """From the probabilities of class 1, [batch, 1]; an even chance is class 0."""
    other = graph.add("Sub", graph.scalar(1.0), positive)
    return classes(graph, graph.add("Concat", other, positive, axis=1), 2, options)


def classes(graph: Graph, probabilities: str, count: int, options: ConvertOptions) -> Answers:
    """From probabilities [batch, count]; `label` is the number of the most probable class."""
    graph.add("Identity", probabilities, name="probabilities")
    graph.add("ArgMax", "probabilities", name="label", axis=1, keepdims=0)
    assets = given_labels(options, count)
    outputs = {
        "probabilities": TensorSpec(
            "probabilities", "float32", ("batch", count), labels=LABELS_FILE if assets else ""
        ),
        "label": TensorSpec("label", "int64", ("batch",)),
    }
    return Answers(outputs, assets)


def given_labels(options: ConvertOptions, count: int) -> dict[str, bytes]:
    """The file of `--labels`, which must name every class. Raises UsageError."""
    if options.labels is None:
        return {}
    names = read_text(Path(options.labels)).splitlines()
    if len(names) != count:
        raise UsageError(
            "the label file does not fit",
            where=options.labels,
            expected=f"{count} lines, one for each class",
            found=f"{len(names)} lines",
        )
    return {LABELS_FILE: lines(names)}
