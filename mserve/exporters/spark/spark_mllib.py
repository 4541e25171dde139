"""Linear models of MLlib, Spark's older library: weights, an intercept and a threshold.

Its metadata has no parameters, but the number of features and of classes. Logistic regression
of several classes keeps a row of weights for each class but the first, whose raw number
is zero; with an intercept each row is one longer.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import InputError
from ..documents import Doc
from .spark_columns import Table, linear
from .spark_files import Stage, vector
from .spark_predictors import MAX_CLASSES, MAX_FEATURES, Answer, _finite

PACKAGE = "org.apache.spark.mllib"
FEATURES = "features"


def _margin(table: Table, stage: Stage) -> tuple[str, Doc]:
    """The raw number [batch, 1], and the row that the threshold stands in."""
    import numpy as np

    row = stage.row()
    weights = vector(row / "weights")
    given = table.vector(FEATURES, len(weights), stage.where)
    bias = np.array([_finite(row / "intercept")])
    return linear(table.graph, given, weights[:, None], bias, stage.where), row


def logistic(table: Table, stage: Stage) -> Answer:
    import numpy as np

    facts, graph = Doc(stage.facts, stage.where), table.graph
    classes = (facts / "numClasses").integer(2, MAX_CLASSES)
    if classes > 2:
        return _several(table, stage, (facts / "numFeatures").integer(1, MAX_FEATURES), classes)
    margin, row = _margin(table, stage)
    both = graph.add(
        "Concat", graph.add("Sigmoid", graph.add("Neg", margin)), graph.add("Sigmoid", margin), axis=1
    )
    if row.value.get("threshold") is None:
        return Answer(2, "", both, graph.add("ArgMax", both, axis=1, keepdims=0))
    bound = _finite(row / "threshold")
    logit = np.inf if bound >= 1 else -np.inf if bound <= 0 else np.log(bound / (1 - bound))
    return Answer(2, "", both, _above(table, margin, float(logit)))


def _several(table: Table, stage: Stage, features: int, classes: int) -> Answer:
    import numpy as np

    values, graph = vector(stage.row() / "weights"), table.graph
    width, odd = divmod(len(values), classes - 1)
    if odd or width not in (features, features + 1):
        raise InputError("weights do not match", where=stage.where, expected=features, found=len(values))
    rows = values.reshape(classes - 1, width)
    bias = rows[:, -1] if width > features else np.zeros(classes - 1)
    rows, bias = np.pad(rows[:, :features], ((1, 0), (0, 0))), np.pad(bias, (1, 0))
    given = table.vector(FEATURES, features, stage.where)
    raw = linear(graph, given, rows.T, bias, stage.where)
    found = graph.add("Softmax", raw, axis=1)
    return Answer(classes, raw, found, graph.add("ArgMax", raw, axis=1, keepdims=0))


def _above(table: Table, margin: str, bound: float) -> str:
    import numpy as np

    graph = table.graph
    above = graph.cast(graph.add("Greater", margin, graph.scalar(bound)), "int64")
    return graph.add("Squeeze", above, graph.weight(np.array([1])))


def support_vectors(table: Table, stage: Stage) -> Answer:
    margin, row = _margin(table, stage)
    if row.value.get("threshold") is None:
        return Answer(score=margin)
    return Answer(score=margin, label=_above(table, margin, _finite(row / "threshold")))


def regression(table: Table, stage: Stage) -> Answer:
    return Answer(score=_margin(table, stage)[0])


MODELS: dict[str, Callable[[Table, Stage], Answer]] = {
    "LogisticRegressionModel": logistic,
    "SVMModel": support_vectors,
    **dict.fromkeys(("LinearRegressionModel", "RidgeRegressionModel", "LassoModel"), regression),
}
