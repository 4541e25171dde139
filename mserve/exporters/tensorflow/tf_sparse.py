"""TensorFlow's operators on sparse rows, which lookups of embeddings are made of, as ONNX nodes.

The converter's own versions fail where a batch has no entries at all, or give NaN for a row
without any. These give what TensorFlow gives for every batch. Sums over the entries of a row
are additions into place by ScatterElements: ScatterND, which would do too, adds in several threads
at once in ONNX Runtime and loses additions to the same place. Quotients are of unsigned numbers by
at least one, so that no request can divide by 0 or -1.

Source: tensorflow/core/kernels of https://github.com/tensorflow/tensorflow
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .tf_nodes import Nodes

_INT64 = 7  # ONNX's number of the dtype
# How parts of a segment become one number, as ScatterElements calls it.
_REDUCTIONS = {"Sum": "add", "Mean": "add", "SqrtN": "add", "Prod": "mul", "Max": "max", "Min": "min"}


@dataclass(frozen=True, slots=True)
class _Segments:
    """An operator of this family: what it reduces by; whether rows are looked up first; whether their
    number is given; whether the segments may be in any order, and negative ones are left out."""

    kind: str
    looked_up: bool = False
    counted: bool = False
    unsorted: bool = False

    def start(self, dtype: Any) -> float | int:
        """What a segment without rows is; the extremes are those of a dtype of numpy's."""
        import numpy as np

        if self.kind not in ("Max", "Min"):
            return 1 if self.kind == "Prod" else 0
        limits: Any = np.finfo(dtype) if np.dtype(dtype).kind == "f" else np.iinfo(dtype)
        return (limits.min if self.kind == "Max" else limits.max).item()  # type: ignore[no-any-return]


def _family() -> dict[str, _Segments]:
    found = {}
    for kind in ("Sum", "Mean", "SqrtN"):
        found[f"SparseSegment{kind}"] = _Segments(kind, looked_up=True)
        found[f"SparseSegment{kind}WithNumSegments"] = _Segments(kind, looked_up=True, counted=True)
    for kind in ("Sum", "Prod", "Max", "Min"):
        found[f"Segment{kind}V2"] = _Segments(kind, counted=True)
        found[f"UnsortedSegment{kind}"] = _Segments(kind, counted=True, unsorted=True)
    for kind in ("Sum", "Prod", "Max", "Min", "Mean"):
        found[f"Segment{kind}"] = _Segments(kind)
    return found


def _segments(context: Any, node: Any, _: str, __: Any) -> None:
    """Rows [n, ...] of the same segment [n] reduced to one."""
    from tf2onnx import utils

    nodes, how, inputs = Nodes(context, node), _FAMILY[node.type], list(node.input)
    dtype = context.get_dtype(node.output[0])
    given = nodes.wide(inputs.pop()) if how.counted else ""
    segments, rows = nodes.wide(inputs.pop()), inputs[0]
    utils.make_sure(context.get_rank(segments) in (None, 1), "segments of more than one axis")
    if how.looked_up:
        rows = nodes.add("Gather", rows, inputs[1], axis=0)
    if given:
        count = nodes.add("Reshape", given, nodes.ints(1))
    else:
        count = nodes.add("Add", _last(nodes, segments), nodes.ints(1))
    places = count
    if how.unsorted:  # what is left out goes to a place of its own behind the others
        outside = nodes.add("Less", segments, nodes.ints(0))
        segments = nodes.add("Where", outside, count, segments)
        places = nodes.add("Add", count, nodes.ints(1))
    found = _reduced(nodes, how, rows, segments, (places, dtype))
    if how.unsorted:
        found = nodes.add("Slice", found, nodes.ints(0), count, nodes.ints(0))
    nodes.replace([found])


def _last(nodes: Nodes, segments: str) -> str:
    """The last segment; -1 where there is none."""
    return nodes.add("ReduceMax", nodes.add("Concat", nodes.ints(-1), segments, axis=0), nodes.ints(0))


def _reduced(nodes: Nodes, how: _Segments, rows: str, segments: str, kind: tuple[str, Any]) -> str:
    """All segments; `kind` is their number [1] and the dtype."""
    from tf2onnx import utils

    count, dtype = kind
    shape = nodes.add("Shape", rows)
    rest = nodes.add("Slice", shape, nodes.ints(1), nodes.ints(1 << 62))
    ones = nodes.filled(nodes.add("Shape", rest), 1, _INT64)
    column = nodes.add("Reshape", segments, nodes.add("Concat", nodes.add("Shape", segments), ones, axis=0))
    start = nodes.filled(
        nodes.add("Concat", count, rest, axis=0), how.start(utils.map_onnx_to_numpy_type(dtype)), dtype
    )
    spread = nodes.add("Expand", column, shape)
    found = nodes.add("ScatterElements", start, spread, rows, axis=0, reduction=_REDUCTIONS[how.kind])
    empty_is_zero = how.kind in ("Max", "Min") and not (how.unsorted or how.counted)
    if how.kind not in ("Mean", "SqrtN") and not empty_is_zero:
        return found
    each = nodes.filled(nodes.add("Shape", segments), 1, dtype)
    many = nodes.add(
        "ScatterElements", nodes.filled(count, 0, dtype), segments, each, axis=0, reduction="add"
    )
    many = nodes.add("Reshape", many, nodes.add("Concat", count, ones, axis=0))
    if empty_is_zero:
        none = nodes.add("Equal", many, nodes.filled(nodes.ints(1), 0, dtype))
        return nodes.add("Where", none, nodes.filled(nodes.ints(1), 0, dtype), found)
    many = nodes.add("Max", many, nodes.filled(nodes.ints(1), 1, dtype))
    return nodes.add("Div", found, nodes.add("Sqrt", many) if how.kind == "SqrtN" else many)


def _reshaped(context: Any, node: Any, _: str, __: Any) -> None:
    """SparseReshape: the same entries where they are in another shape, of which one size may be -1."""
    nodes = Nodes(context, node)
    indices, old, new = (nodes.wide(x) for x in node.input)
    zero, one = nodes.ints(0), nodes.ints(1)
    open_ = nodes.add("Less", new, zero)
    others = nodes.add("ReduceProd", nodes.add("Where", open_, one, new), zero)
    missing = _quotient(nodes, "Div", nodes.add("ReduceProd", old, zero), others)
    new = nodes.add("Where", open_, missing, new)
    steps = [_steps(nodes, context, x) for x in (old, new)]
    flat = nodes.add("ReduceSum", nodes.add("Mul", indices, steps[0]), one, keepdims=1)
    found = _quotient(nodes, "Mod", _quotient(nodes, "Div", flat, steps[1]), new)
    nodes.replace([found, new])


def _quotient(nodes: Nodes, op: str, dividend: str, divisor: str) -> str:
    """Of whole numbers from 0 on; a divisor of 0 counts as 1."""
    from onnx import TensorProto

    least = nodes.add("Max", divisor, nodes.ints(1))
    both = (nodes.cast(x, TensorProto.UINT64) for x in (dividend, least))
    return nodes.wide(nodes.add(op, *both))


def _steps(nodes: Nodes, context: Any, shape: str) -> str:
    """How far apart neighbours along each axis lie in a flat array."""
    zero, one = nodes.constant(0, "int64"), nodes.constant(1, "int64")
    rank = nodes.add("Squeeze", nodes.add("Shape", shape), nodes.ints(0))
    axes = nodes.add("Range", zero, rank, one)
    behind = nodes.add("Less", nodes.add("Unsqueeze", axes, nodes.ints(1)), axes)
    sizes = nodes.add("Where", behind, shape, one)
    return nodes.add("ReduceProd", sizes, nodes.ints(1), keepdims=0)


def _filled_rows(context: Any, node: Any, _: str, __: Any) -> None:
    """SparseFillEmptyRows: an entry with the default value for each row without any; entries by row."""
    from onnx import TensorProto
    from tf2onnx import utils

    nodes = Nodes(context, node)
    unused = not context.find_output_consumers(node.output[3])
    utils.make_sure(unused, "the reverse index map of SparseFillEmptyRows")
    indices, values, shape, default = node.input
    indices, zero, one = nodes.wide(indices), nodes.ints(0), nodes.ints(1)
    rows = nodes.add("Gather", indices, nodes.constant(0, "int64"), axis=1)
    count = nodes.add("Slice", nodes.wide(shape), zero, one)
    there = nodes.add(
        "ScatterElements",
        nodes.filled(count, 0, _INT64),
        rows,
        nodes.filled(nodes.add("Shape", rows), 1, _INT64),
        axis=0,
    )
    empty = nodes.add("Not", nodes.cast(there, TensorProto.BOOL))
    added = nodes.add("Transpose", nodes.add("NonZero", empty), perm=[1, 0])
    many = nodes.add("Slice", nodes.add("Shape", added), zero, one)
    width = nodes.add("Slice", nodes.add("Shape", indices), one, nodes.ints(2))
    zeros = nodes.add("Concat", many, nodes.add("Sub", width, one), axis=0)
    padded = nodes.add("Concat", added, nodes.filled(zeros, 0, _INT64), axis=1)
    indices = nodes.add("Concat", indices, padded, axis=0)
    values = nodes.add("Concat", values, nodes.add("Expand", default, many), axis=0)
    order = _order(context, nodes, nodes.add("Gather", indices, nodes.constant(0, "int64"), axis=1))
    nodes.replace([nodes.add("Gather", x, order, axis=0) for x in (indices, values)] + [empty])


def _order(context: Any, nodes: Nodes, rows: str) -> str:
    """Where the entries are that sort them by their row, those of a row as before."""
    made = context.make_node(
        "TopK", [rows, nodes.add("Shape", rows)], attr={"axis": 0, "largest": 0, "sorted": 1}, output_count=2
    )
    return str(made.output[1])


def _padded(context: Any, node: Any, _: str, __: Any) -> None:
    """RaggedTensorToTensor: ragged rows side by side, what is missing filled with the default."""
    from tf2onnx.onnx_opset.tensor import RaggedTensorToTensor

    shape, values, default, *partitions = node.input
    sizes = context.get_shape(shape)
    if node.get_attr_value("row_partition_types") != [b"ROW_SPLITS"] or (sizes is None or sizes[:1] == [-1]):
        RaggedTensorToTensor.version_11(context, node)
        return
    nodes = Nodes(context, node)
    splits, zero, one = nodes.wide(partitions[0]), nodes.ints(0), nodes.ints(1)
    starts = nodes.add("Slice", splits, zero, nodes.ints(-1))
    lengths = nodes.add("Sub", nodes.add("Slice", splits, one, nodes.ints(1 << 62)), starts)
    width = nodes.add("ReduceMax", nodes.add("Concat", lengths, zero, axis=0), zero)
    rows = nodes.add("Shape", lengths)
    if sizes:  # two sizes at least, of which -1 stands for what is needed
        asked = nodes.add("Slice", nodes.wide(shape), zero, nodes.ints(2))
        natural = nodes.add("Concat", rows, width, axis=0)
        asked = nodes.add("Where", nodes.add("Less", asked, zero), natural, asked)
        rows, width = (nodes.add("Slice", asked, nodes.ints(i), nodes.ints(i + 1)) for i in (0, 1))
    starts, lengths = (_of_size(nodes, x, rows) for x in (starts, lengths))
    steps = nodes.add(
        "Range", nodes.constant(0, "int64"), nodes.add("Squeeze", width, zero), nodes.constant(1, "int64")
    )
    inside = nodes.add("Less", steps, nodes.add("Unsqueeze", lengths, one))
    whole = nodes.add("Shape", values)
    entries = nodes.add("Slice", whole, zero, one)
    places = nodes.add("Where", inside, nodes.add("Add", nodes.add("Unsqueeze", starts, one), steps), entries)
    rest = nodes.add("Slice", whole, one, nodes.ints(1 << 62))
    last = nodes.add("Expand", default, nodes.add("Concat", one, rest, axis=0))
    nodes.replace([nodes.add("Gather", nodes.add("Concat", values, last, axis=0), places, axis=0)])


def _of_size(nodes: Nodes, vector: str, size: str) -> str:
    """A vector cut to a size, or with zeros behind it."""
    zeros = nodes.filled(size, 0, _INT64)
    return nodes.add("Slice", nodes.add("Concat", vector, zeros, axis=0), nodes.ints(0), size)


_FAMILY = _family()
HANDLERS: Mapping[str, Any] = {
    **dict.fromkeys(_FAMILY, _segments),
    "SparseReshape": _reshaped,
    "SparseFillEmptyRows": _filled_rows,
    "RaggedTensorToTensor": _padded,
}
