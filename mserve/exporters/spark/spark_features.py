"""Spark's feature stages: what each makes of the columns of a table.

Spark counts in doubles; here numbers are float32, and bounds are rounded so that every float32
falls on the same side as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import InputError
from ...tensors import Array
from ..build import ML
from ..documents import Doc
from .spark_columns import Block, Number, Table, Text, Vector, concatenated, dense, linear, vector_of
from .spark_files import Stage, matrix, vector
from .spark_numbers import MAX_LABELS, binarizer, bucketizer, column, imputer, lost, pairs, vector_indexer


def string_indexer(table: Table, stage: Stage) -> None:
    """Texts become their places in a list; an unknown one is put behind the last, or has no answer."""
    import numpy as np

    row = stage.row()
    lists = (row / "labelsArray").items() if "labelsArray" in row else [row / "labels"]
    columns = pairs(stage)
    if len(lists) != len(columns):
        raise InputError("labels do not match", where=stage.where, expected=len(columns), found=len(lists))
    for (given, made), doc in zip(columns, lists, strict=True):
        labels = [one.text() for one in doc.items()]
        if len(labels) > MAX_LABELS:
            raise InputError("too many labels", where=stage.where, expected=MAX_LABELS, found=len(labels))
        graph, tensor = table.graph, table.text(given, stage.where)
        table.texts.setdefault(given, tuple(labels[:64]))
        index = graph.add(
            "LabelEncoder",
            tensor,
            domain=ML,
            keys_strings=labels or [""],
            values_int64s=np.arange(max(1, len(labels))).tolist(),
            default_int64=len(labels),
        )
        if lost(stage):
            table.invalid.append(graph.add("Equal", index, graph.scalar(len(labels), "int64")))
        table.columns[made] = Number(graph.cast(index, "float32"), tuple(labels))


def index_to_string(table: Table, stage: Stage) -> None:
    """Places become the texts of a list."""
    import numpy as np

    given, made = stage.text("inputCol"), stage.text("outputCol")
    column = table.number(given, stage.where)
    labels = stage.texts("labels") or list(column.labels)
    if not labels:
        raise InputError("labels are not stored", where=stage.where, expected="the parameter labels")
    index = table.graph.cast(column.tensor, "int64")
    text = table.graph.add(
        "LabelEncoder",
        index,
        domain=ML,
        keys_int64s=np.arange(len(labels)).tolist(),
        values_strings=labels,
        default_string="",
    )
    table.columns[made] = Text(text)


def one_hot_encoder(table: Table, stage: Stage) -> None:
    """A place becomes a vector of zeros and a one; of the last place, zeros only, unless it is kept."""
    columns = pairs(stage)
    sizes = (stage.row() / "categorySizes").integers(len(columns)).tolist()
    keep, drop = not lost(stage), stage.flag("dropLast", default=True)
    for (given, made), categories in zip(columns, sizes, strict=True):
        length = categories + keep - drop
        if not 0 < length <= MAX_LABELS:
            raise InputError("a bad number of categories", where=stage.where, found=categories)
        graph = table.graph
        index = graph.cast(table.number(given, stage.where).tensor, "int64")
        low = graph.add("Less", index, graph.scalar(0, "int64"))
        outside = graph.add("Or", low, graph.add("GreaterOrEqual", index, graph.scalar(categories, "int64")))
        if not keep:
            table.invalid.append(outside)
        # Behind the vector's end stands nothing: there goes the last place if it is dropped.
        index = graph.add("Where", outside, graph.scalar(min(categories, length), "int64"), index)
        index = graph.add("Min", index, graph.scalar(length, "int64"))
        table.columns[made] = vector_of([Block(column(graph, index), length, bag=True)])


def vector_assembler(table: Table, stage: Stage) -> None:
    parts = []
    for name in stage.texts("inputCols"):
        part = table.part(name, stage.where)
        if isinstance(part, Number):
            if lost(stage):
                table.invalid.append(table.graph.add("IsNaN", part.tensor))
            part = vector_of([Block(column(table.graph, part.tensor), 1)])
        parts.append(part)
    if not parts:
        raise InputError("nothing is assembled", where=stage.where, expected="inputCols")
    table.columns[stage.text("outputCol")] = concatenated(parts)


def _scaled(table: Table, stage: Stage, scale: Array, shift: Array) -> None:
    given = table.vector(stage.text("inputCol"), len(scale), stage.where)
    table.columns[stage.text("outputCol")] = given.scaled(scale, shift, stage.where)


def min_max_scaler(table: Table, stage: Stage) -> None:
    """To a range; an entry that never varied goes to its middle, whatever it is."""
    import numpy as np

    row = stage.row()
    low, high = vector(row / "originalMin"), vector(row / "originalMax")
    if low.shape != high.shape:
        raise InputError("bounds do not match", where=stage.where, expected=len(low), found=len(high))
    least, most = stage.number("min", 0.0), stage.number("max", 1.0)
    span = high - low
    scale = np.where(span != 0, (most - least) / np.where(span == 0, 1, span), 0.0)
    shift = np.where(span != 0, least - low * scale, 0.5 * (most + least))
    _scaled(table, stage, scale, shift)


def standard_scaler(table: Table, stage: Stage) -> None:
    import numpy as np

    row = stage.row()
    deviation, mean = vector(row / "std"), vector(row / "mean")
    ones = np.ones_like(deviation)
    inverse = np.where(deviation == 0, 0.0, 1 / np.where(deviation == 0, 1, deviation))
    scale = inverse if stage.flag("withStd", default=True) else ones
    shift = -mean * scale if stage.flag("withMean") else np.zeros_like(scale)
    _scaled(table, stage, scale, shift)


def robust_scaler(table: Table, stage: Stage) -> None:
    import numpy as np

    row = stage.row()
    span, median = vector(row / "range"), vector(row / "median")
    inverse = np.where(span == 0, 0.0, 1 / np.where(span == 0, 1, span))
    scale = inverse if stage.flag("withScaling", default=True) else np.ones_like(span)
    shift = -median * scale if stage.flag("withCentering") else np.zeros_like(scale)
    _scaled(table, stage, scale, shift)


def max_abs_scaler(table: Table, stage: Stage) -> None:
    import numpy as np

    most = vector(stage.row() / "maxAbs")
    _scaled(table, stage, 1 / np.where(most == 0, 1, most), np.zeros_like(most))


def inverse_frequency(table: Table, stage: Stage) -> None:
    """IDF: counts of words times how rare each is."""
    import numpy as np

    weights = vector(stage.row() / "idf")
    _scaled(table, stage, weights, np.zeros_like(weights))


def elementwise_product(table: Table, stage: Stage) -> None:
    import numpy as np

    value = stage.param("scalingVec").value
    doc = Doc(value, f"{stage.where}.scalingVec")
    weights = vector(doc) if isinstance(value, dict) else doc.floats()
    _scaled(table, stage, weights, np.zeros_like(weights))


def normalizer(table: Table, stage: Stage) -> None:
    """Divided by the length, in the sense of p; a vector of zeros stays one."""
    import numpy as np

    given, power = table.vector(stage.text("inputCol"), 0, stage.where), stage.number("p", 2.0)
    if power < 1:
        raise InputError("a bad power", where=stage.where, expected="1 or more", found=power)
    graph, row = table.graph, dense(table.graph, given)
    axis = graph.weight(np.array([1]))
    size = graph.add("Abs", row)
    if np.isinf(power):
        norm = graph.add("ReduceMax", size, axis)
    else:
        total = graph.add("ReduceSum", graph.add("Pow", size, graph.scalar(power)), axis)
        norm = graph.add("Pow", total, graph.scalar(1 / power))
    zero = graph.add("Equal", norm, graph.scalar(0.0))
    found = graph.add("Div", row, graph.add("Where", zero, graph.scalar(1.0), norm))
    table.columns[stage.text("outputCol")] = vector_of([Block(found, given.size)])


def principal_components(table: Table, stage: Stage) -> None:
    import numpy as np

    components = matrix(stage.row() / "pc")
    given = table.vector(stage.text("inputCol"), len(components), stage.where)
    found = linear(table.graph, given, components, np.zeros(components.shape[1]), stage.where)
    table.columns[stage.text("outputCol")] = vector_of([Block(found, components.shape[1])])


def _picked(table: Table, stage: Stage, given: Vector, places: Any) -> None:
    import numpy as np

    index = np.asarray(places, np.int64)
    if not len(index) or not 0 <= index.min() <= index.max() < given.size:
        raise InputError("an index is out of range", where=stage.where, expected=f"below {given.size}")
    row = dense(table.graph, given)
    found = table.graph.add("Gather", row, table.graph.weight(index), axis=1)
    table.columns[stage.text("outputCol")] = vector_of([Block(found, len(index))])


def selector(table: Table, stage: Stage) -> None:
    """Entries that a selector has chosen, in their old order."""
    row = stage.row()
    places = sorted((row / "selectedFeatures").integers().tolist())
    name = stage.text("inputCol") if "inputCol" in stage.params else stage.text("featuresCol")
    _picked(table, stage, table.vector(name, 0, stage.where), places)


def vector_slicer(table: Table, stage: Stage) -> None:
    if stage.texts("names"):
        raise InputError("entries are chosen by name", where=stage.where, expected="indices only")
    given = table.vector(stage.text("inputCol"), 0, stage.where)
    _picked(table, stage, given, stage.param("indices").integers())


FEATURES: dict[str, Callable[[Table, Stage], None]] = {
    "StringIndexerModel": string_indexer,
    "IndexToString": index_to_string,
    "OneHotEncoderModel": one_hot_encoder,
    "VectorAssembler": vector_assembler,
    "MinMaxScalerModel": min_max_scaler,
    "StandardScalerModel": standard_scaler,
    "RobustScalerModel": robust_scaler,
    "MaxAbsScalerModel": max_abs_scaler,
    "IDFModel": inverse_frequency,
    "ElementwiseProduct": elementwise_product,
    "Normalizer": normalizer,
    "PCAModel": principal_components,
    "VectorSlicer": vector_slicer,
    "VectorIndexerModel": vector_indexer,
    **dict.fromkeys(
        ("ChiSqSelectorModel", "UnivariateFeatureSelectorModel", "VarianceThresholdSelectorModel"), selector
    ),
    "ImputerModel": imputer,
    "Binarizer": binarizer,
    "Bucketizer": bucketizer,
}
