"""Spark's stages that turn numbers into other numbers, and what all feature stages share.

Spark counts in doubles; here numbers are float32, and bounds are rounded so that every float32
falls on the same side as before.
"""

from __future__ import annotations

from ...errors import InputError
from ...tensors import Array
from ..build import Graph
from ..documents import Doc
from ..legacy import networks
from .spark_columns import Block, Number, Table, dense, vector_of
from .spark_files import Stage

ERROR, SKIP, KEEP = "error", "skip", "keep"
MAX_LABELS = 1 << 24


def round_down(values: Array) -> Array:
    """The largest float32 that is not above each double."""
    import numpy as np

    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return np.where(narrow > values, np.nextafter(narrow, np.float32(-np.inf)), narrow)


def pairs(stage: Stage) -> list[tuple[str, str]]:
    given, made = stage.columns("inputCol", "inputCols"), stage.columns("outputCol", "outputCols")
    if len(given) != len(made):
        raise InputError("columns do not match", where=stage.where, expected=len(given), found=len(made))
    return list(zip(given, made, strict=True))


def lost(stage: Stage) -> bool:
    """Whether Spark raises an error for what is not valid, or leaves the row out."""
    chosen = stage.text("handleInvalid", ERROR)
    if chosen not in (ERROR, SKIP, KEEP):
        raise InputError("a way to handle what is invalid", where=stage.where, found=chosen[:40])
    return chosen != KEEP


def column(graph: Graph, tensor: str) -> str:
    import numpy as np

    return graph.add("Unsqueeze", tensor, graph.weight(np.array([1])))


def imputer(table: Table, stage: Stage) -> None:
    """What is missing becomes the number that was learned for its column."""
    columns, row = pairs(stage), stage.row()
    missing = stage.params.get("missingValue", "NaN")
    for given, made in columns:
        graph, tensor = table.graph, table.number(given, stage.where).tensor
        place = f"{stage.where}.{given}"
        value = networks.parameter(float(Doc([(row / given).value], place).floats(1)[0]), place)
        gone = graph.add("IsNaN", tensor)
        if isinstance(missing, int | float) and missing == missing:
            networks.parameter(missing, stage.where)
            gone = graph.add("Or", gone, graph.add("Equal", tensor, graph.scalar(missing)))
        table.columns[made] = Number(graph.add("Where", gone, graph.scalar(value), tensor))


def binarizer(table: Table, stage: Stage) -> None:
    import numpy as np

    columns, bounds = pairs(stage), stage.params.get("thresholds")
    if bounds:
        bounds = Doc(bounds, f"{stage.where}.thresholds").floats(len(columns))
    else:
        bounds = [stage.number("threshold", 0.0)] * len(columns)
    for (given, made), bound in zip(columns, round_down(np.array(bounds)).tolist(), strict=True):
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
    for (given, made), doc in zip(pairs(stage), lists, strict=True):
        splits = _splits(doc)
        table.columns[made] = Number(_bucket(table, stage, given, splits))


def _splits(doc: Doc) -> Array:
    """Bounds, rising; JSON has no infinities, so that they stand as text."""
    import numpy as np

    known = {
        f"{sign}{word}": np.inf * factor
        for sign, factor in (("", 1), ("-", -1))
        for word in ("Inf", "Infinity")
    }
    values = [
        known.get(one.value, one.value) if isinstance(one.value, str) else one.value for one in doc.items()
    ]
    found = Doc(values, doc.where).floats()
    if len(found) < 3 or not (np.diff(found) > 0).all():
        raise InputError(
            "bad splits", where=doc.where, expected="three at least, rising", found=str(values)[:60]
        )
    return found


def _bucket(table: Table, stage: Stage, given: str, splits: Array) -> str:
    import numpy as np

    graph, tensor = table.graph, table.number(given, stage.where).tensor
    # x >= s for a float32 x is x > the float32 below s.
    bounds = np.nextafter(-round_down(-splits), np.float32(-np.inf)).astype(np.float32)
    over = graph.cast(graph.add("Greater", column(graph, tensor), graph.weight(bounds[1:-1])), "float32")
    found = graph.add("ReduceSum", over, graph.weight(np.array([1])), keepdims=0)
    nan = graph.add("IsNaN", tensor)
    if np.isfinite(splits[0]):
        below = graph.add("LessOrEqual", tensor, graph.scalar(float(bounds[0])))
        table.invalid.append(below)
    if np.isfinite(splits[-1]):
        last = float(round_down(splits[-1:])[0])
        table.invalid.append(graph.add("Greater", tensor, graph.scalar(last)))
    if lost(stage):
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
        if lost(stage):
            any_known = graph.add(
                "ReduceMax", graph.cast(known, "float32"), graph.weight(np.array([1])), keepdims=0
            )
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
