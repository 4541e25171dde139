"""LIBLINEAR models: a text of a head, then one row of weights for each feature.

A row has one weight for each class, or a single one where two classes share a decision:
above zero is the *first* label. A last row of weights belongs to a constant input, `bias`,
where that is not negative. Logistic regression alone knows probabilities: the sigmoid of
the decisions, and with more than two classes divided by their sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...errors import InputError
from ...files import read_input
from ...tensors import Array
from .. import answers
from ..answers import Answers
from ..build import Graph, predicts
from ..feature_rows import DenseRows, FeatureRows, SparseRows, chosen
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import text as linear

LOGISTIC = ("L2R_LR", "L1R_LR", "L2R_LR_DUAL")
MARGIN = (
    "L2R_L2LOSS_SVC_DUAL", "L2R_L2LOSS_SVC", "L2R_L1LOSS_SVC_DUAL", "MCSVM_CS", "L1R_L2LOSS_SVC"
)  # fmt: skip
REGRESSION = ("L2R_L2LOSS_SVR", "L2R_L2LOSS_SVR_DUAL", "L2R_L1LOSS_SVR_DUAL")
ONE_CLASS = "ONECLASS_SVM"
SOLVERS = (*LOGISTIC, *MARGIN, *REGRESSION, ONE_CLASS)


def convert(source: str, options: ConvertOptions) -> Converted:
    """The model as ONNX. Raises InputError for what is malformed."""
    path = Path(source)
    lines = read_input(path).splitlines()
    head = linear.head(lines, b"w", path)
    solver = head.get("solver_type", "")
    if solver not in SOLVERS:
        known = ", ".join(SOLVERS)
        raise InputError("a solver that is not known here", where=path, expected=known, found=solver[:40])
    features = linear.count(head, "nr_feature", (0, linear.MAX_FEATURES), path)
    weights, bias = _weights(head, lines[len(head) + 1 :], features, path)
    graph, rows = Graph(), _rows(features, options)
    scores = rows.dots(graph, weights, bias)  # in float64: classes which nearly tie win as they did
    found = _answers(graph, scores, head, options, path)
    signature = predicts(rows.ports(), found.outputs)
    converted = Converted(
        graph.model(signature),
        {"serving_default": signature},
        assets=found.assets,
        draw=lambda _, count: rows.draw(count),
        rows=64,
    )
    _compare(converted, rows, path, solver)
    return converted


def _rows(features: int, options: ConvertOptions) -> FeatureRows:
    """Ids of files count from 1, as LIBLINEAR insists; it passes over those that a model has no weights for.

    Values of sparse rows are float64: text gets the very decision that LIBLINEAR makes of it.
    """
    if chosen(features, options):
        return SparseRows(features, first=1, beyond=True, dtype="float64")
    return DenseRows(features, first=1)


def _weights(head: dict[str, str], lines: list[bytes], features: int, path: Path) -> tuple[Array, Array]:
    """float64 [features, columns], and what is added to each column."""
    import numpy as np

    solver = head["solver_type"]
    classes = linear.count(head, "nr_class", (1, linear.MAX_CLASSES), path)
    single = solver in REGRESSION or solver == ONE_CLASS or (classes == 2 and solver != "MCSVM_CS")
    columns = 1 if single else classes
    bias = float(linear.numbers([head.get("bias", "")], 1, f"{path}: bias")[0])
    rows = features + (bias >= 0)
    values = linear.numbers_of_lines(lines, rows * columns, f"{path}: w").reshape(rows, columns)
    constant = values[-1] * bias if bias >= 0 else np.zeros(columns)
    if solver == ONE_CLASS:
        constant = constant - linear.numbers([head.get("rho", "")], 1, f"{path}: rho")
    return values[:features], constant


def _answers(graph: Graph, scores: str, head: dict[str, str], options: ConvertOptions, path: Path) -> Answers:
    import numpy as np

    solver = head["solver_type"]
    narrow = graph.cast(scores, "float32")
    if solver in REGRESSION:
        return answers.scores(graph, narrow, 1)
    classes = linear.count(head, "nr_class", (1, linear.MAX_CLASSES), path)
    labels = (
        [1, -1] if solver == ONE_CLASS else linear.integers(head.get("label", ""), classes, f"{path}: label")
    )
    columns = 1 if len(labels) == 2 and solver != "MCSVM_CS" else len(labels)
    probabilities = ""
    if len(labels) == 2:  # of two decisions, too, LIBLINEAR looks at the first alone
        first = scores if columns == 1 else graph.add("Gather", scores, graph.weight(np.array([0])), axis=1)
        below = graph.add("LessOrEqual", first, graph.scalar(0.0, "float64"))
        picked = graph.add("Squeeze", graph.cast(below, "int64"), _axis(graph))
    else:
        picked = graph.add("ArgMax", scores, axis=1, keepdims=0)
    if solver in LOGISTIC:
        chances = _sigmoid(graph, scores)
        if columns == 1:
            rest = graph.add("Sub", graph.scalar(1.0, "float64"), chances)
            probabilities = graph.add("Concat", chances, rest, axis=1)
        else:
            probabilities = graph.add("Div", chances, graph.add("ReduceSum", chances, _axis(graph)))
    found = linear.labelled(graph, picked, labels, options, probabilities)
    decided = answers.scores(graph, narrow, columns)
    return Answers({**found.outputs, **decided.outputs}, found.assets)


def _sigmoid(graph: Graph, scores: str) -> str:
    """Exact far below zero, too, where ONNX Runtime's Sigmoid is 0 and shares of several would be 0 / 0."""
    one = graph.scalar(1.0, "float64")
    return graph.add("Div", one, graph.add("Add", one, graph.add("Exp", graph.add("Neg", scores))))


def _axis(graph: Graph) -> str:
    import numpy as np

    return graph.weight(np.array([1]))


def _compare(converted: Converted, drawn: FeatureRows, path: Path, solver: str) -> None:
    """Have the conversion compared with LIBLINEAR itself where it is installed."""
    try:
        from liblinear import liblinearutil
    except ImportError:
        return
    model = liblinearutil.load_model(str(path))

    def reference(name: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        rows = drawn.entries(inputs)
        labels, _, decided = liblinearutil.predict([], rows, model, "-q")
        scores = np.array(decided)
        if solver in REGRESSION:
            return {"score": scores[:, 0]}
        found = {"label": np.array(labels)}
        if solver != "MCSVM_CS" or scores.shape[1] > 1:  # of two its face tells one
            found["score"] = scores[:, 0] if scores.shape[1] == 1 else scores
        if solver in LOGISTIC:
            found["probabilities"] = np.array(liblinearutil.predict([], rows, model, "-b 1 -q")[2])
        return found

    converted.reference, converted.compared_with = reference, "liblinear"


def _matches(seen: Seen) -> bool:
    return seen.head.startswith(b"solver_type ")


KIND = Kind(
    name="liblinear",
    what="a LIBLINEAR model",
    matches=_matches,
    convert=convert,
    extra="liblinear",
    compares="liblinear",
    options=("labels", "sparse"),
)
