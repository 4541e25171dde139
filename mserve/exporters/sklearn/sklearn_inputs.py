"""What goes into a scikit-learn estimator: its columns, told from what it has learned, and rows to try.

An estimator that begins with a ColumnTransformer has an input for each column, of
numbers or of text; one that begins with a text vectorizer has one input `text`; any other has one
matrix, `features`. Which columns are text follows from what was fitted: vectorizers, and encoders
and imputers that have learned texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError, UsageError
from ...tensors import Array, Signature, TensorSpec, plain_text
from .. import answers, ports
from ..kinds import ConvertOptions

TEXT = "text"
# Rows of text have these besides the words that the model knows: what ASCII tokens would tear apart.
ODD_WORDS = ("naïve", "café", "CAFÉ", "日本語", "x", "don't", "Ünïcode_9")
# Numbers far from any threshold, and ordinary ones.
MARGIN = 0.1


@dataclass(slots=True)
class Column:
    """An input column: its name, float32, int64 or string, and what it may hold in a trial."""

    name: str
    dtype: str = "float32"
    values: list[Any] = field(default_factory=list)
    low: float = -3.0
    high: float = 3.0
    words: bool = False


@dataclass(slots=True)
class Inputs:
    """The inputs of an estimator. `matrix`: one input holds all columns; else there is one for each."""

    columns: list[Column]
    matrix: bool
    names: list[str]

    def specs(self) -> tuple[dict[str, TensorSpec], dict[str, bytes]]:
        """The inputs of the signature, and a file of the features' names."""
        if self.matrix:
            return answers.features(len(self.columns), self.names)
        return {c.name: TensorSpec(c.name, c.dtype, ("batch", 1)) for c in self.columns}, {}

    def draw(self, rows: int) -> dict[str, Array]:
        """Rows within what the model has learned, the same for the same number."""
        import numpy as np

        rng = np.random.default_rng(rows)
        made = [_draw(column, rows, rng) for column in self.columns]
        if self.matrix:
            return {answers.FEATURES: np.stack(made, 1).astype(np.float32)}
        return {c.name: x.reshape(rows, 1) for c, x in zip(self.columns, made, strict=True)}

    def feed(self, inputs: Mapping[str, Array]) -> Any:
        """The arrays of a request as the estimator takes them."""
        import numpy as np

        if self.matrix:
            return inputs[answers.FEATURES].astype(np.float64)
        if len(self.columns) == 1 and self.columns[0].words and not self.names:
            return inputs[self.columns[0].name].ravel()
        plain = {
            c.name: inputs[c.name]
            .ravel()
            .astype(np.float64 if c.dtype == "float32" else inputs[c.name].dtype)
            for c in self.columns
        }
        if self.names:
            import pandas

            return pandas.DataFrame(plain)
        table = np.empty((len(next(iter(plain.values()))), len(plain)), object)
        for index, values in enumerate(plain.values()):
            table[:, index] = values
        return table

    def arrays(self, example: Any) -> dict[str, Array]:
        """Example rows by input: from a mapping of these, a data frame, or a matrix. Raises UsageError."""
        import numpy as np

        if isinstance(example, Mapping) or (not self.matrix and hasattr(example, "columns")):
            return {str(name): self._array(str(name), np.asarray(example[name])) for name in example}
        array = plain_text(np.asarray(example))
        if self.matrix:
            return {answers.FEATURES: array.astype(np.float32)}
        if array.ndim == 1 and len(self.columns) == 1:
            array = array.reshape(-1, 1)
        if array.ndim != 2 or array.shape[1] != len(self.columns):
            expected = f"{len(self.columns)} columns"
            raise UsageError(
                "the example does not fit", expected=expected, found=f"shape {list(array.shape)}"
            )
        return {c.name: self._array(c.name, array[:, i]) for i, c in enumerate(self.columns)}

    def _array(self, name: str, array: Array) -> Array:
        import numpy as np

        column = next((c for c in self.columns if c.name == name), None)
        if self.matrix or column is None:
            return array.astype(np.float32)
        given = array.reshape(-1, 1)
        return plain_text(given.astype(object)) if column.dtype == "string" else given.astype(column.dtype)


def _draw(column: Column, rows: int, rng: Any) -> Array:
    import numpy as np

    if column.words:
        pool = [*column.values, *ODD_WORDS]
        texts = [" ".join(rng.choice(pool, rng.integers(1, 9))) for _ in range(rows)]
        return np.array(texts, dtype=object)
    if column.values:
        found = np.empty(rows, object)
        found[:] = [column.values[i] for i in rng.integers(0, len(column.values), rows)]
        return found if column.dtype == "string" else found.astype(column.dtype)
    return np.asarray(rng.uniform(column.low, column.high, rows)).astype(np.float32)


def inputs_of(estimator: Any, options: ConvertOptions) -> Inputs:
    """The inputs of a fitted estimator. Raises InputError when it does not say how many it has."""
    names = [str(name) for name in getattr(estimator, "feature_names_in_", [])]
    first = _first(estimator)
    if _is_text(first) and not hasattr(first, "n_features_in_"):
        column = Column(TEXT, "string", sorted(getattr(first, "vocabulary_", {}))[:2000], words=True)
        return Inputs([column], False, [])
    count = getattr(estimator, "n_features_in_", None)
    if count is None:
        raise InputError(
            "the estimator does not say how many features it takes",
            found=type(estimator).__name__,
            hint="fit it first",
        )
    columns = [Column(names[i] if names else f"x{i}") for i in range(count)]
    _learn(first, columns)
    _learn_thresholds(estimator, columns)
    _settle(columns, options)
    matrix = all(c.dtype == "float32" for c in columns) and not _splits(first, names)
    return Inputs(columns, matrix, names)


def _first(estimator: Any) -> Any:
    """The first step that does something."""
    while hasattr(estimator, "steps"):
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        estimator = steps[0]
    return estimator


def _splits(first: Any, names: Sequence[str]) -> bool:
    """Whether columns are told apart by name, which the converter can only do among inputs."""
    return hasattr(first, "transformers_") and bool(names)


def _is_text(step: Any) -> bool:
    return hasattr(step, "build_analyzer")


def _places(chosen: Any, columns: Sequence[Column]) -> list[int]:
    """The numbers of the columns that a part of a ColumnTransformer takes."""
    import numpy as np

    names = [c.name for c in columns]
    if isinstance(chosen, str):
        return [names.index(chosen)]
    if isinstance(chosen, slice):
        if isinstance(chosen.start, str) or isinstance(chosen.stop, str):
            start = names.index(chosen.start) if isinstance(chosen.start, str) else 0
            stop = names.index(chosen.stop) + 1 if isinstance(chosen.stop, str) else len(names)
            return list(range(start, stop))
        return list(range(len(names)))[chosen]
    listed: list[Any] = [chosen] if np.isscalar(chosen) else list(chosen)
    if listed and all(isinstance(x, bool | np.bool_) for x in listed):
        return [i for i, taken in enumerate(listed) if taken]
    return [names.index(x) if isinstance(x, str) else x % len(names) for x in listed]


def _learn(step: Any, columns: Sequence[Column]) -> None:
    """Note what a fitted step knows of the columns that it is given."""
    if hasattr(step, "transformers_"):
        for _, part, chosen in step.transformers_:
            if part not in ("drop", "passthrough", None):
                _learn(_first(part), [columns[i] for i in _places(chosen, columns)])
        return
    if _is_text(step) and len(columns) == 1:
        columns[0].dtype, columns[0].words = "string", True
        columns[0].values = sorted(getattr(step, "vocabulary_", {}))[:2000]
        return
    for column, known in zip(columns, getattr(step, "categories_", ()), strict=False):
        _learn_categories(column, known)
    for column, filler in zip(columns, getattr(step, "statistics_", ()), strict=False):
        if isinstance(filler, str):
            column.dtype, column.values = "string", [filler]
    if hasattr(step, "theta_") and hasattr(step, "var_"):  # naive Bayes: about each class's mean
        for column, means in zip(columns, step.theta_.T.tolist(), strict=False):
            column.low, column.high = min(means), max(means)
    middles, scales = getattr(step, "mean_", None), getattr(step, "scale_", None)
    if middles is not None and scales is not None:
        for column, middle, scale in zip(columns, middles.tolist(), scales.tolist(), strict=False):
            column.low, column.high = middle - 3 * scale, middle + 3 * scale


def _learn_categories(column: Column, known: Array) -> None:
    """The categories of an encoder; texts of one may stand beside None or NaN, which are no texts."""
    values = [x for x in known.tolist() if isinstance(x, str)]
    if values:
        column.dtype, column.values = "string", values
    elif known.dtype.kind in "iu":
        column.dtype, column.values = "int64", known.tolist()
    elif known.dtype.kind == "f":
        column.values = [x for x in known.tolist() if x == x]


def _trees(estimator: Any) -> Iterator[Any]:
    """The trees of an estimator, and of those in it."""
    if hasattr(estimator, "tree_"):
        yield estimator.tree_
    for name in ("estimators_", "estimator_", "best_estimator_"):
        held = getattr(estimator, name, ())
        for one in held.ravel() if hasattr(held, "ravel") else held if isinstance(held, list) else [held]:
            if hasattr(one, "get_params"):
                yield from _trees(one)


def _learn_thresholds(estimator: Any, columns: Sequence[Column]) -> None:
    """Numbers to try lie about the thresholds of the trees that see the columns themselves."""
    import numpy as np

    found: dict[int, list[float]] = {}
    for tree in _trees(estimator):
        for feature, threshold in zip(tree.feature.tolist(), tree.threshold.tolist(), strict=True):
            if feature >= 0:
                found.setdefault(feature, []).append(threshold)
    for groups in getattr(estimator, "_predictors", ()):
        for predictor in groups:
            nodes = predictor.nodes
            for node in nodes[(nodes["is_leaf"] == 0) & (nodes["is_categorical"] == 0)]:
                found.setdefault(int(node["feature_idx"]), []).append(float(node["num_threshold"]))
    for feature, thresholds in found.items():
        if feature < len(columns) and not columns[feature].values:
            low, high = float(np.min(thresholds)), float(np.max(thresholds))
            margin = MARGIN * (high - low) + MARGIN * max(abs(low), abs(high), 1e-3)
            columns[feature].low, columns[feature].high = low - margin, high + margin


def _settle(columns: Sequence[Column], options: ConvertOptions) -> None:
    """Dtypes that `--input NAME:DTYPE[...]` gives. Raises UsageError."""
    by_name = {column.name: column for column in columns}
    for port in ports.parse_inputs(options.input):
        if port.name not in by_name or port.dtype not in ("float32", "int64", "string"):
            raise UsageError(
                "--input names no column of the model, or a dtype that columns do not have",
                expected=f"{', '.join(by_name)}; float32, int64 or string",
                found=port,
            )
        column = by_name[port.name]
        if column.dtype != port.dtype:
            column.dtype = port.dtype
            column.values = list("abc") if port.dtype == "string" else []


def signature_of(inputs: Inputs, outputs: Mapping[str, TensorSpec]) -> tuple[Signature, dict[str, bytes]]:
    """The signature of an estimator with independent rows, and its files."""
    specs, assets = inputs.specs()
    return Signature("predict", specs, dict(outputs), 0), assets
