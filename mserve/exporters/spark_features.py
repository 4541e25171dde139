"""Spark's feature stages: what each makes of the columns of a table.

Spark counts in doubles; here numbers are float32, and bounds are rounded so that every float32
falls on the same side as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import InputError
from ..tensors import Array
from .build import ML, Graph
from .documents import Doc
from .spark_columns import (
    Block,
    Number,
    Table,
    Text,
    Vector,
    concatenated,
    dense,
    linear,
    vector_of,
)
from .spark_files import Stage, matrix, vector

ERROR, SKIP, KEEP = "error", "skip", "keep"
MAX_LABELS = 1 << 24


def round_down(values: Array) -> Array:
    """The largest float32 that is not above each double."""
    import numpy as np

    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return np.where(narrow > values, np.nextafter(narrow, np.float32(-np.inf)), narrow)


def _pairs(stage: Stage) -> list[tuple[str, str]]:
    given, made = stage.columns("inputCol", "inputCols"), stage.columns("outputCol", "outputCols")
    if len(given) != len(made):
        raise InputError("columns do not match", where=stage.where, expected=len(given), found=len(made))
    return list(zip(given, made, strict=True))


def _lost(stage: Stage) -> bool:
    """Whether Spark raises an error for what is not valid, or leaves the row out."""
    chosen = stage.text("handleInvalid", ERROR)
    if chosen not in (ERROR, SKIP, KEEP):
        raise InputError("a way to handle what is invalid", where=stage.where, found=chosen[:40])
    return chosen != KEEP


def string_indexer(table: Table, stage: Stage) -> None:
    """Texts become their places in a list; an unknown one is put behind the last, or has no answer."""
    import numpy as np

    row = stage.row()
    lists = (row / "labelsArray").items() if "labelsArray" in row else [row / "labels"]
    pairs = _pairs(stage)
    if len(lists) != len(pairs):
        raise InputError("labels do not match", where=stage.where, expected=len(pairs), found=len(lists))
    for (given, made), doc in zip(pairs, lists, strict=True):
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
        if _lost(stage):
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
    pairs = _pairs(stage)
    sizes = (stage.row() / "categorySizes").integers(len(pairs)).tolist()
    keep, drop = not _lost(stage), stage.flag("dropLast", default=True)
    for (given, made), categories in zip(pairs, sizes, strict=True):
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
        table.columns[made] = vector_of([Block(_column(graph, index), length, bag=True)])


def _column(graph: Graph, tensor: str) -> str:
    import numpy as np

    return graph.add("Unsqueeze", tensor, graph.weight(np.array([1])))


def vector_assembler(table: Table, stage: Stage) -> None:
    parts = []
    for name in stage.texts("inputCols"):
        part = table.part(name, stage.where)
        if isinstance(part, Number):
            if _lost(stage):
                table.invalid.append(table.graph.add("IsNaN", part.tensor))
            part = vector_of([Block(_column(table.graph, part.tensor), 1)])
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


def imputer(table: Table, stage: Stage) -> None:
    """What is missing becomes the number that was learned for its column."""
    pairs, row = _pairs(stage), stage.row()
    missing = stage.params.get("missingValue", "NaN")
    for given, made in pairs:
        graph, tensor = table.graph, table.number(given, stage.where).tensor
        value = float(Doc([(row / given).value], stage.where).floats(1)[0])
        gone = graph.add("IsNaN", tensor)
        if isinstance(missing, int | float) and missing == missing:
            gone = graph.add("Or", gone, graph.add("Equal", tensor, graph.scalar(missing)))
        table.columns[made] = Number(graph.add("Where", gone, graph.scalar(value), tensor))


def binarizer(table: Table, stage: Stage) -> None:
    import numpy as np

    for position, (given, made) in enumerate(_pairs(stage)):
        bounds = stage.params.get("thresholds")
        bound = Doc(bounds, stage.where).floats()[position] if bounds else stage.number("threshold", 0.0)
        bound = float(round_down(np.array([bound]))[0])
        graph, part = table.graph, table.part(given, stage.where)
        tensor = part.tensor if isinstance(part, Number) else dense(graph, part)
        found = graph.cast(graph.add("Greater", tensor, graph.scalar(bound)), "float32")
        if isinstance(part, Number):
            table.columns[made] = Number(found)
        else:
            table.columns[made] = vector_of([Block(found, part.size)])


def bucketizer(table: Table, stage: Stage) -> None:
    """The number of the bucket: lower bounds belong to it, and the last bound too; NaN gets one of its own,
    or has no answer.
    """
    several = stage.params.get("splitsArray")
    lists = Doc(several, stage.where).items() if several else [stage.param("splits")]
    for (given, made), doc in zip(_pairs(stage), lists, strict=True):
        splits = _splits(doc)
        table.columns[made] = Number(_bucket(table, stage, given, splits))


def _splits(doc: Doc) -> Array:
    """Bounds, rising; JSON has no infinities, so that they stand as text."""
    import numpy as np

    known = {f"{sign}{word}": np.inf * factor for sign, factor in (("", 1), ("-", -1)) for word in ("Inf", "Infinity")}
    values = [known.get(one.value, one.value) if isinstance(one.value, str) else one.value for one in doc.items()]
    found = Doc(values, doc.where).floats()
    if len(found) < 3 or not (np.diff(found) > 0).all():
        raise InputError("bad splits", where=doc.where, expected="three at least, rising", found=str(values)[:60])
    return found


def _bucket(table: Table, stage: Stage, given: str, splits: Array) -> str:
    import numpy as np

    graph, tensor = table.graph, table.number(given, stage.where).tensor
    # x >= s for a float32 x is x > the float32 below s.
    bounds = np.nextafter(-round_down(-splits), np.float32(-np.inf)).astype(np.float32)
    over = graph.cast(graph.add("Greater", _column(graph, tensor), graph.weight(bounds[1:-1])), "float32")
    found = graph.add("ReduceSum", over, graph.weight(np.array([1])), keepdims=0)
    nan = graph.add("IsNaN", tensor)
    if np.isfinite(splits[0]):
        below = graph.add("LessOrEqual", tensor, graph.scalar(float(bounds[0])))
        table.invalid.append(below)
    if np.isfinite(splits[-1]):
        last = float(round_down(splits[-1:])[0])
        table.invalid.append(graph.add("Greater", tensor, graph.scalar(last)))
    if _lost(stage):
        table.invalid.append(nan)
        return found
    return graph.add("Where", nan, graph.scalar(float(len(splits) - 1)), found)


def vector_indexer(table: Table, stage: Stage) -> None:
    """Entries with few values become their places in a list of these; the others stay."""
    import numpy as np

    row = stage.row() if (stage.path / "data").is_dir() else Doc({}, stage.where)
    size = (row / "numFeatures").integer(1, MAX_LABELS)
    maps = _category_maps(row / "categoryMaps", size)
    graph, given = table.graph, table.vector(stage.text("inputCol"), size, stage.where)
    tensor = dense(graph, given)
    for feature, places in maps.items():
        column = graph.add("Gather", tensor, graph.weight(np.array([feature])), axis=1)
        known = graph.add("Equal", column, graph.weight(np.array([*places], np.float32)[None]))
        if _lost(stage):
            any_known = graph.add("ReduceMax", graph.cast(known, "float32"), graph.weight(np.array([1])), keepdims=0)
            table.invalid.append(graph.add("Equal", any_known, graph.scalar(0.0)))
        # Places from 1, so that 0 is none: that goes behind the last.
        values = np.array([*places.values()], np.float32)[:, None] - len(places)
        place = graph.add("MatMul", graph.cast(known, "float32"), graph.weight(values))
        place = graph.add("Add", place, graph.scalar(float(len(places))))
        mask = np.arange(size)[None] == feature
        tensor = graph.add("Where", graph.weight(mask), place, tensor)
    table.columns[stage.text("outputCol")] = vector_of([Block(tensor, size)])


def _category_maps(doc: Doc, size: int) -> dict[int, dict[float, int]]:
    """For each feature, values and their places: parquet gives maps as lists of pairs."""
    found: dict[int, dict[float, int]] = {}
    pairs = [item.value for item in doc.items()]
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError("a map is malformed", where=doc.where, expected="pairs")
        feature = Doc(pair[0], doc.where).integer(0, size - 1)
        places = {}
        for inner in Doc(pair[1], doc.where).items():
            if not isinstance(inner.value, tuple) or len(inner.value) != 2:
                raise InputError("a map is malformed", where=doc.where, expected="pairs")
            value, place = inner.value
            places[float(Doc([value], doc.where).floats(1)[0])] = Doc(place, doc.where).integer(0, MAX_LABELS)
        if places:
            found[feature] = places
    return found


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
