"""Spark's models: what each answers for a vector of features.

A classifier has a raw number for each class, probabilities made of them, and the class whose
raw number, or whose probability over its threshold, is largest. Of two classes, the second
wins where its probability is above `threshold`; here its raw number is compared with the
logit of that, which does not round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from ...errors import InputError
from ...tensors import Array
from ..build import Graph
from ..documents import Doc
from ..legacy.networks import finite
from . import spark_trees
from .spark_columns import Table, dense, linear
from .spark_files import Stage, matrix, read_stage, vector

MAX_CLASSES = 1 << 16
MAX_FEATURES = 1 << 24
LINKS = {"identity": "", "log": "Exp", "logit": "Sigmoid", "inverse": "Reciprocal"}
CANONICAL = {"gaussian": "identity", "poisson": "log", "binomial": "logit", "gamma": "inverse"}


@dataclass(frozen=True, slots=True)
class Answer:
    """Tensors: `raw` and `probabilities` [batch, classes], `label` int64 [batch], `score` [batch, 1]."""

    classes: int = 0
    raw: str = ""
    probabilities: str = ""
    label: str = ""
    score: str = ""


def _features(stage: Stage) -> str:
    return stage.text("featuresCol", "features")


def _row(table: Table, stage: Stage, size: int) -> str:
    return dense(table.graph, table.vector(_features(stage), size, stage.where))


def _product(table: Table, stage: Stage, weights: Array, bias: Array) -> str:
    given = table.vector(_features(stage), len(weights), stage.where)
    return linear(table.graph, given, weights, bias, stage.where)


def _axis(graph: Graph, axis: int = 1) -> str:
    import numpy as np

    return graph.weight(np.array([axis]))


def _finite(doc: Doc) -> float:
    value = float(Doc([doc.value], doc.where).floats(1)[0])
    if not math.isfinite(value):
        raise InputError("a weight is not a number", where=doc.where, found=value)
    return value


def _two(table: Table, stage: Stage, margin: str, power: float = 1.0) -> Answer:
    """Of two classes, from the second's raw number [batch, 1]; its probability is the sigmoid of `power`
    times it.
    """
    graph = table.graph
    raw = graph.add("Concat", graph.add("Neg", margin), margin, axis=1)
    turned = graph.add("Mul", margin, graph.scalar(power)) if power != 1 else margin
    chance = graph.add("Sigmoid", turned)
    both = graph.add("Concat", graph.add("Sigmoid", graph.add("Neg", turned)), chance, axis=1)
    bound = _threshold(stage)
    logit = math.inf if bound >= 1 else -math.inf if bound <= 0 else math.log(bound / (1 - bound)) / power
    above = graph.add("Greater", margin, graph.scalar(logit))
    label = graph.add("Squeeze", graph.cast(above, "int64"), _axis(graph))
    return Answer(2, raw, both, label)


def _threshold(stage: Stage) -> float:
    """The probability that the second of two classes must pass."""
    both = stage.params.get("thresholds")
    if both:
        first, second = Doc(both, f"{stage.where}.thresholds").floats(2).tolist()
        if not min(first, second) >= 0:
            raise InputError("a threshold that is not positive", where=stage.where, found=[first, second])
        return 1 / (1 + first / second) if second > 0 else 1.0
    return stage.number("threshold", 0.5)


def _many(table: Table, stage: Stage, raw: str, probabilities: str, classes: int) -> Answer:
    """Of several classes: the largest, each divided by its threshold if there are some."""

    graph, compared = table.graph, probabilities or raw
    if stage.params.get("thresholds"):
        where = f"{stage.where}.thresholds"
        bounds = finite(Doc(stage.params["thresholds"], where).floats(classes), where)
        if (bounds <= 0).any() or not probabilities:
            raise InputError("a threshold that is not positive", where=stage.where, found=bounds.tolist())
        compared = graph.add("Div", probabilities, graph.weight(bounds))
    return Answer(classes, raw, probabilities, graph.add("ArgMax", compared, axis=1, keepdims=0))


def logistic_regression(table: Table, stage: Stage) -> Answer:
    import numpy as np

    row = stage.row()
    if "coefficientMatrix" not in row:  # before 2.1
        weights = vector(row / "coefficients")[None]
        bias = np.array([_finite(row / "intercept")])
    else:
        weights, bias = matrix(row / "coefficientMatrix"), vector(row / "interceptVector")
    if len(weights) != len(bias) or not len(weights):
        raise InputError("intercepts do not match", where=stage.where, expected=len(weights), found=len(bias))
    raw = _product(table, stage, weights.T, bias)
    if len(weights) == 1:
        return _two(table, stage, raw)
    return _many(table, stage, raw, table.graph.add("Softmax", raw, axis=1), len(weights))


def support_vectors(table: Table, stage: Stage) -> Answer:
    import numpy as np

    row = stage.row()
    margin = _product(
        table, stage, vector(row / "coefficients")[:, None], np.array([_finite(row / "intercept")])
    )
    graph = table.graph
    raw = graph.add("Concat", graph.add("Neg", margin), margin, axis=1)
    above = graph.add("Greater", margin, graph.scalar(stage.number("threshold", 0.0)))
    label = graph.add("Squeeze", graph.cast(above, "int64"), _axis(graph))
    return Answer(2, raw, "", label, margin)


def tree_classifier(table: Table, stage: Stage) -> Answer:
    """One tree, or a forest: shares of classes, added up."""
    size = _number_of_features(stage)
    row = _row(table, stage, size)
    raw, classes = spark_trees.class_counts(stage, table.graph, row, size)
    total = table.graph.add("ReduceSum", raw, _axis(table.graph))
    return _many(table, stage, raw, table.graph.add("Div", raw, total), classes)


def _number_of_features(stage: Stage) -> int:
    return Doc(stage.facts, stage.where).__truediv__("numFeatures").integer(1, MAX_FEATURES)


def _sum(table: Table, stage: Stage, weights: Array | None) -> str:
    size = _number_of_features(stage)
    return spark_trees.weighted(stage, table.graph, _row(table, stage, size), size, weights)


def boosted_classifier(table: Table, stage: Stage) -> Answer:
    return _two(table, stage, _sum(table, stage, spark_trees.tree_weights(stage)), 2.0)


def boosted_regressor(table: Table, stage: Stage) -> Answer:
    return Answer(score=_sum(table, stage, spark_trees.tree_weights(stage)))


def tree_regressor(table: Table, stage: Stage) -> Answer:
    return Answer(score=_sum(table, stage, None))


def perceptron(table: Table, stage: Stage) -> Answer:
    """Layers of sigmoids, and a softmax at the end; all weights in one vector."""
    row = stage.row()
    sizes = (stage.param("layers") if "layers" in stage.params else row / "layers").integers().tolist()
    weights = vector(row / "weights")
    needed = sum((a + 1) * b for a, b in pairwise(sizes))
    if len(sizes) < 2 or min(sizes) < 1 or len(weights) != needed:
        raise InputError("weights do not match", where=stage.where, expected=needed, found=len(weights))
    graph, at = table.graph, 0
    found = _row(table, stage, sizes[0])
    for number, (taken, given) in enumerate(pairwise(sizes), 2):
        block, at = weights[at : at + taken * given].reshape(taken, given), at + taken * given
        bias, at = weights[at : at + given], at + given
        names = [graph.weight(finite(part, stage.where)) for part in (block, bias)]
        found = graph.add("Gemm", found, *names)
        if number < len(sizes):
            found = graph.add("Sigmoid", found)
    return _many(table, stage, found, graph.add("Softmax", found, axis=1), sizes[-1])


def naive_bayes(table: Table, stage: Stage) -> Answer:
    import numpy as np

    row, kind = stage.row(), stage.text("modelType", "multinomial")
    pi, theta = vector(row / "pi"), matrix(row / "theta")
    classes = len(theta)
    if kind == "multinomial":
        raw = _product(table, stage, theta.T, pi)
    elif kind == "complement":
        raw = _product(table, stage, theta.T, pi if classes == 1 else np.zeros(classes))
    elif kind == "bernoulli":
        if (theta >= 0).any():
            raise InputError("a logarithm of a probability above one", where=stage.where)
        without = np.log1p(-np.exp(theta))
        raw = _product(table, stage, (theta - without).T, pi + without.sum(1))
    elif kind == "gaussian":
        raw = _gaussian(table, stage, pi, (theta, matrix(row / "sigma")))
    else:
        raise InputError("a kind that is not known", where=f"{stage.where}.modelType", found=kind[:40])
    return _many(table, stage, raw, table.graph.add("Softmax", raw, axis=1), classes)


def _gaussian(table: Table, stage: Stage, pi: Array, moments: tuple[Array, Array]) -> str:
    """The prior, minus half of the squared distances and the logarithms of the variances."""
    import numpy as np

    mean, variance = moments
    if mean.shape != variance.shape or not (variance > 0).all():
        raise InputError("a variance is not positive", where=stage.where)
    graph, row = table.graph, _row(table, stage, mean.shape[1])
    wide = graph.add("Unsqueeze", graph.cast(row, "float64"), _axis(graph))
    gap = graph.add("Sub", wide, graph.weight(mean))
    squares = graph.add("Div", graph.add("Mul", gap, gap), graph.weight(variance))
    half = graph.add(
        "Mul", graph.add("ReduceSum", squares, _axis(graph, 2), keepdims=0), graph.scalar(-0.5, "float64")
    )
    constant = graph.weight(pi - 0.5 * np.log(variance).sum(1))
    return graph.cast(graph.add("Add", half, constant), "float32")


def linear_regression(table: Table, stage: Stage) -> Answer:
    import numpy as np

    row = stage.row()
    weights, bias = vector(row / "coefficients")[:, None], np.array([_finite(row / "intercept")])
    return Answer(score=_product(table, stage, weights, bias))


def generalized_regression(table: Table, stage: Stage) -> Answer:
    """A linear model through the inverse of a link."""
    family = stage.text("family", "gaussian").lower()
    link = stage.text("link", CANONICAL.get(family, "")).lower()
    if link not in LINKS or stage.params.get("offsetCol") or family not in CANONICAL:
        raise InputError(
            "a family or link that cannot be converted",
            where=stage.where,
            expected=f"links {', '.join(LINKS)}; no offset",
            found=f"family {family[:20]}, link {link[:20]}",
        )
    score = linear_regression(table, stage).score
    return Answer(score=table.graph.add(LINKS[link], score) if LINKS[link] else score)


def k_means(table: Table, stage: Stage) -> Answer:
    """The number of the nearest centre."""
    import numpy as np

    rows = [Doc(row, stage.where) for row in stage.rows()]
    centres = {(row / "clusterIdx").integer(0, MAX_CLASSES): vector(row / "clusterCenter") for row in rows}
    if sorted(centres) != list(range(len(rows))) or len({len(one) for one in centres.values()}) != 1:
        raise InputError("centres are missing", where=stage.where, expected="numbers from 0 on, of one size")
    points = np.stack([centres[index] for index in range(len(rows))])
    measure = stage.text("distanceMeasure", "euclidean")
    if measure not in ("euclidean", "cosine"):
        raise InputError("a distance that is not known", where=stage.where, found=measure[:40])
    if measure == "cosine":
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-300)
        near = _product(table, stage, points.T, np.zeros(len(points)))
    else:  # |x - c|^2 without |x|^2, which is the same for all
        near = _product(table, stage, 2 * points.T, -(points**2).sum(1))
    return Answer(label=table.graph.add("ArgMax", near, axis=1, keepdims=0))


def _factorised(table: Table, stage: Stage) -> str:
    """Bias, weights, and half of (x V)^2 - x^2 V^2 summed over the factors."""
    import numpy as np

    row, graph = stage.row(), table.graph
    weights, factors = vector(row / "linear")[:, None], matrix(row / "factors")
    if len(factors) != len(weights):
        raise InputError("factors do not match", where=stage.where, expected=len(weights), found=len(factors))
    straight = _product(table, stage, weights, np.array([_finite(row / "intercept")]))
    given = _row(table, stage, len(weights))
    narrow = finite(factors, stage.where)
    crossed = graph.add("MatMul", given, graph.weight(narrow))
    alone = graph.add("MatMul", graph.add("Mul", given, given), graph.weight(narrow**2))
    gap = graph.add("Sub", graph.add("Mul", crossed, crossed), alone)
    half = graph.add("Mul", graph.add("ReduceSum", gap, _axis(graph)), graph.scalar(0.5))
    return graph.add("Add", straight, half)


def factorisation_classifier(table: Table, stage: Stage) -> Answer:
    return _two(table, stage, _factorised(table, stage))


def factorisation_regressor(table: Table, stage: Stage) -> Answer:
    return Answer(score=_factorised(table, stage))


def one_against_rest(table: Table, stage: Stage) -> Answer:
    """A model of two classes for each class; the largest second raw number wins."""
    count = Doc(stage.facts, stage.where)
    classes = (
        (Doc(stage.params, stage.where) / "numClasses").integer(1, 1000)
        if "numClasses" in stage.params
        else (count / "numClasses").integer(1, 1000)
    )
    margins = []
    for index in range(classes):
        inner = read_stage(stage.path / f"model_{index}")
        if inner.name not in PREDICTORS or inner.name == stage.name:
            raise InputError("a model that cannot be converted", where=inner.where, found=inner.name[:60])
        found = PREDICTORS[inner.name](table, inner)
        if found.classes != 2:
            raise InputError("a model of other than two classes", where=inner.where, found=found.classes)
        ones = _axis(table.graph)
        margins.append(table.graph.add("Gather", found.raw, ones, axis=1))
    return _many(table, stage, table.graph.add("Concat", *margins, axis=1), "", classes)


PREDICTORS: dict[str, Callable[[Table, Stage], Answer]] = {
    "LogisticRegressionModel": logistic_regression,
    "LinearSVCModel": support_vectors,
    "DecisionTreeClassificationModel": tree_classifier,
    "RandomForestClassificationModel": tree_classifier,
    "GBTClassificationModel": boosted_classifier,
    "MultilayerPerceptronClassificationModel": perceptron,
    "NaiveBayesModel": naive_bayes,
    "FMClassificationModel": factorisation_classifier,
    "OneVsRestModel": one_against_rest,
    "LinearRegressionModel": linear_regression,
    "GeneralizedLinearRegressionModel": generalized_regression,
    "DecisionTreeRegressionModel": tree_regressor,
    "RandomForestRegressionModel": tree_regressor,
    "GBTRegressionModel": boosted_regressor,
    "FMRegressionModel": factorisation_regressor,
    "KMeansModel": k_means,
}
