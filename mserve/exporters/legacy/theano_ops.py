"""Theano's operators as ONNX nodes.

Numbers are float32, but for shapes, positions and classes, which are int64; a comparison gives
0 or 1 as a float32. An operator on a GPU has the name of the one on the processor with "Gpu"
before it, and means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError
from ...tensors import Array
from ..build import Graph
from ..pickles import MAX_AXES, Made, shown
from . import networks

UNARY = {
    "Neg": "Neg", "Abs": "Abs", "Exp": "Exp", "Log": "Log", "Sqrt": "Sqrt", "Tanh": "Tanh",
    "Inv": "Reciprocal",
    "ScalarSigmoid": "Sigmoid", "Sigmoid": "Sigmoid", "ScalarSoftplus": "Softplus", "Softplus": "Softplus",
    "Sin": "Sin", "Cos": "Cos", "Erf": "Erf", "Sgn": "Sign",
}  # fmt: skip
MANY = {"Add": "Add", "Mul": "Mul", "Maximum": "Max", "ScalarMaximum": "Max", "Minimum": "Min",
        "ScalarMinimum": "Min"}  # fmt: skip
TWO = {"Sub": "Sub", "TrueDiv": "Div", "Pow": "Pow"}
COMPARED = {"GT": "Greater", "LT": "Less", "GE": "GreaterOrEqual", "LE": "LessOrEqual", "EQ": "Equal"}
SAME = (
    "HostFromGpu FromHost ViewOp DeepCopyOp Rebroadcast OutputGuard Contiguous ScalarFromTensor "
    "TensorFromScalar SpecifyShape Print"
).split()
REDUCED = {"Add": "ReduceSum", "Mul": "ReduceProd", "Maximum": "ReduceMax", "Minimum": "ReduceMin"}
REDUCTIONS = {"Sum": "ReduceSum", "Prod": "ReduceProd", "Max": "ReduceMax", "Min": "ReduceMin"}
MAX_DEPTH = 64


@dataclass(slots=True)
class Value:
    """A tensor with its rank, whether it is whole numbers, and its numbers where they are known."""

    tensor: str
    rank: int
    whole: bool = False
    known: Array | None = None


@dataclass(slots=True)
class Ops:
    """The graph in the making, and what is needed to word an error."""

    graph: Graph
    where: str
    values: dict[int, Value] = field(default_factory=dict)

    def constant(self, numbers: Array) -> Value:
        import numpy as np

        if numbers.dtype.kind in "iub" and numbers.ndim < 2:
            narrow: Array = numbers.astype(np.int64)
            return Value(self.graph.weight(narrow), numbers.ndim, True, narrow)
        narrow = networks.finite(numbers, self.where)
        return Value(self.graph.weight(narrow), numbers.ndim, False, narrow)

    def real(self, value: Value) -> str:
        """The tensor as float32."""
        return self.graph.cast(value.tensor, "float32") if value.whole else value.tensor

    def fail(self, what: str, expected: object = "", found: object = "") -> InputError:
        text = found[:100] if isinstance(found, str) else shown(found)
        return InputError(what, where=self.where, expected=expected, found=text)


def name_of(op: Any) -> str:
    """An operator's class without what only says where it runs."""
    kind = op.kind if isinstance(op, Made) else type(op).__name__
    return kind[3:] if kind.startswith("Gpu") and len(kind) > 3 else kind


def apply(ops: Ops, op: Made, given: Sequence[Value], index: int) -> Value:
    """One output of an operator. Raises InputError, also for inputs that no such operator has."""
    try:
        return OPERATORS[name_of(op)](ops, op, list(given), index)
    except (IndexError, ValueError, TypeError, KeyError) as error:
        found = f"{name_of(op)} of {len(given)} inputs: {error}"
        raise ops.fail("an operator is malformed", found=found) from error


def unknown(op: Any) -> list[str]:
    """The names of what in an operator cannot be converted."""
    name = name_of(op)
    if name not in OPERATORS:
        return [name]
    if name != "Elemwise":
        return []
    scalar = op.fields.get("scalar_op")
    kind = scalar.kind if isinstance(scalar, Made) else shown(scalar)
    return [] if kind in SCALARS else [f"Elemwise of {kind}"]


def _elementwise(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    scalar = op.fields["scalar_op"]
    return _scalar(ops, scalar, given, 0)


def _scalar(ops: Ops, scalar: Made, given: list[Value], depth: int) -> Value:
    if depth > MAX_DEPTH or scalar.kind not in SCALARS:
        raise ops.fail("an elementwise operator that cannot be converted", found=scalar.kind)
    if not given:
        raise ops.fail("an operator without inputs", found=scalar.kind)
    graph, kind, rank = ops.graph, scalar.kind, max(value.rank for value in given)
    whole = all(value.whole for value in given)
    if kind == "Cast":
        return _cast(ops, scalar, given[0])
    if kind in ("Identity", "Second"):
        last = given[-1]
        if kind == "Second":  # the second, in the shape of the first
            shape = graph.add("Shape", given[0].tensor)
            return Value(graph.add("Expand", last.tensor, shape), rank, last.whole)
        return last
    if kind in MANY:
        tensors = [value.tensor if whole else ops.real(value) for value in given]
        found = tensors[0]
        for tensor in tensors[1:]:
            found = graph.add(MANY[kind], found, tensor)
        return Value(found, rank, whole)
    tensors = [ops.real(value) for value in given]
    if kind in UNARY and len(given) == 1:
        return Value(graph.add(UNARY[kind], *tensors), rank)
    if kind in TWO and len(given) == 2:
        return Value(graph.add(TWO[kind], *tensors), rank)
    if kind in COMPARED and len(given) == 2:
        return Value(graph.cast(graph.add(COMPARED[kind], *tensors), "float32"), rank)
    return _special(ops, kind, tensors, rank)


def _special(ops: Ops, kind: str, tensors: list[str], rank: int) -> Value:
    graph = ops.graph
    if kind == "NEQ" and len(tensors) == 2:
        return Value(graph.cast(graph.add("Not", graph.add("Equal", *tensors)), "float32"), rank)
    if kind == "Sqr" and len(tensors) == 1:
        return Value(graph.add("Mul", tensors[0], tensors[0]), rank)
    if kind == "Log1p" and len(tensors) == 1:
        return Value(graph.add("Log", graph.add("Add", tensors[0], graph.scalar(1.0))), rank)
    if kind == "Switch" and len(tensors) == 3:
        return Value(graph.add("Where", graph.cast(tensors[0], "bool"), *tensors[1:]), rank)
    if kind == "Clip" and len(tensors) == 3:
        return Value(graph.add("Min", graph.add("Max", tensors[0], tensors[1]), tensors[2]), rank)
    raise ops.fail("an elementwise operator with other inputs than it takes", found=f"{kind}, {len(tensors)}")


def _cast(ops: Ops, scalar: Made, given: Value) -> Value:
    kind = scalar.fields.get("o_type")
    dtype = kind.fields.get("dtype", "") if isinstance(kind, Made) else ""
    if str(dtype).startswith("float"):
        return Value(ops.real(given), given.rank)
    whole = given.tensor if given.whole else ops.graph.cast(given.tensor, "int64")
    return Value(whole, given.rank, True)


SCALARS = {
    *UNARY,
    *MANY,
    *TWO,
    *COMPARED,
    "NEQ",
    "Sqr",
    "Log1p",
    "Switch",
    "Clip",
    "Cast",
    "Identity",
    "Second",
}


def _dot(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    first, second = given[0], given[1]
    if not {first.rank, second.rank} <= {1, 2}:
        raise ops.fail("a product of more than matrices", found=f"ranks {first.rank} and {second.rank}")
    found = ops.graph.add("MatMul", ops.real(first), ops.real(second))
    rank = first.rank + second.rank - 2
    if name_of(op) == "Dot22Scalar":
        found = ops.graph.add("Mul", found, ops.real(given[2]))
    return Value(found, rank)


def _gemm(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    """z, a, x, y, b: b z + a x y; of Gemv the same with a vector for y."""
    graph = ops.graph
    z, a, x, y, b = (ops.real(value) for value in given)
    product = graph.add("Mul", graph.add("MatMul", x, y), a)
    return Value(graph.add("Add", graph.add("Mul", z, b), product), given[0].rank)


def _dim_shuffle(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    """Axes in another order; "x" is a new one of size 1, and those that are not named go."""
    import numpy as np

    order, value, graph = op.fields.get("new_order"), given[0], ops.graph
    if not isinstance(order, tuple | list) or len(order) > 32:
        raise ops.fail("an order of axes is missing", found=order)
    kept = [axis for axis in order if axis != "x"]
    axes = range(value.rank)
    if not all(isinstance(axis, int) and axis in axes for axis in kept) or len(set(kept)) != len(kept):
        raise ops.fail("a bad order of axes", expected=f"of {value.rank}", found=order)
    tensor = value.tensor
    if gone := [axis for axis in axes if axis not in kept]:
        tensor = graph.add("Squeeze", tensor, graph.weight(np.array(gone, np.int64)))
    left = sorted(kept)
    if kept != left:
        tensor = graph.add("Transpose", tensor, perm=[left.index(axis) for axis in kept])
    if new := [place for place, axis in enumerate(order) if axis == "x"]:
        tensor = graph.add("Unsqueeze", tensor, graph.weight(np.array(new, np.int64)))
    return Value(tensor, len(order), value.whole)


def _softmax(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    graph, tensor = ops.graph, ops.real(given[0])
    if name_of(op) == "SoftmaxWithBias":
        tensor = graph.add("Add", tensor, ops.real(given[1]))
    kind = "LogSoftmax" if name_of(op) == "LogSoftmax" else "Softmax"
    return Value(graph.add(kind, tensor, axis=-1), given[0].rank)


def _arg_max(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    """The largest and where it stands; the axis is an input, or a field of the operator."""
    axis = _axis_of(ops, op, given)
    graph, value = ops.graph, given[0]
    if name_of(op) == "MaxAndArgmax" and index == 0:
        import numpy as np

        found = graph.add("ReduceMax", ops.real(value), graph.weight(np.array([axis])), keepdims=0)
        return Value(found, value.rank - 1)
    found = graph.add("ArgMax", ops.real(value), axis=axis, keepdims=0)
    return Value(found, value.rank - 1, True)


def _axis_of(ops: Ops, op: Made, given: list[Value]) -> int:
    axis: Any = op.fields.get("axis")
    if len(given) > 1 and given[1].known is not None and given[1].known.size == 1:
        axis = int(given[1].known.ravel()[0])
    if isinstance(axis, tuple | list) and len(axis) == 1:
        axis = axis[0]
    if not isinstance(axis, int) or not -given[0].rank <= axis < given[0].rank:
        raise ops.fail("an axis is missing", expected=f"one of {given[0].rank}", found=axis)
    return axis % given[0].rank


def _reduced(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    import numpy as np

    scalar, axes, value = op.fields.get("scalar_op"), op.fields.get("axis"), given[0]
    kind = REDUCTIONS.get(name_of(op)) or REDUCED.get(scalar.kind if isinstance(scalar, Made) else "")
    axes = list(range(value.rank)) if axes is None else [axes] if isinstance(axes, int) else list(axes)
    if kind is None or not all(isinstance(axis, int) and 0 <= axis < value.rank for axis in axes):
        raise ops.fail("a reduction that cannot be converted", found=f"{name_of(op)} over {shown(axes)}")
    names = [graph_axes] if (graph_axes := ops.graph.weight(np.array(axes, np.int64))) and axes else []
    found = ops.graph.add(kind, ops.real(value), *names, keepdims=0) if axes else ops.real(value)
    return Value(found, value.rank - len(axes))


def _reshape(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    rank = op.fields.get("ndim")
    if not isinstance(rank, int) or not 0 <= rank <= MAX_AXES or not given[1].whole:
        raise ops.fail("a shape is missing", found=rank)
    shape = ops.graph.add("Reshape", given[0].tensor, given[1].tensor)
    return Value(shape, rank, given[0].whole)


def _flatten(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    rank = op.fields.get("outdim", op.fields.get("ndim", 1))
    if rank not in (1, 2):
        raise ops.fail("a flattening to more than two axes", found=rank)
    flat = networks.reshape(ops.graph, given[0].tensor, [-1] if rank == 1 else [0, -1])
    return Value(flat, rank, given[0].whole)


def _shape(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    axis = op.fields.get("i")
    if name_of(op) == "Shape":
        return Value(ops.graph.add("Shape", given[0].tensor), 1, True)
    if not isinstance(axis, int) or not 0 <= axis < given[0].rank:
        raise ops.fail("an axis is missing", found=axis)
    one = ops.graph.add("Shape", given[0].tensor, start=axis, end=axis + 1)
    return Value(ops.graph.add("Squeeze", one), 0, True)


def _vector(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    import numpy as np

    whole = all(value.whole for value in given)
    ones = [
        ops.graph.add("Unsqueeze", v.tensor if whole else ops.real(v), ops.graph.weight(np.array([0])))
        for v in given
    ]
    return Value(ops.graph.add("Concat", *ones, axis=0), 1, whole)


def _join(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    axis = given[0].known
    if axis is None or axis.size != 1 or len(given) < 2:
        raise ops.fail("an axis is missing", expected="a constant")
    tensors = [ops.real(value) for value in given[1:]]
    return Value(ops.graph.add("Concat", *tensors, axis=int(axis.ravel()[0])), given[1].rank)


def _same(ops: Ops, op: Made, given: list[Value], index: int) -> Value:
    return given[0]


OPERATORS: dict[str, Callable[[Ops, Made, list[Value], int], Value]] = {
    "Elemwise": _elementwise,
    **dict.fromkeys(("Dot", "Dot22", "Dot22Scalar"), _dot),
    **dict.fromkeys(("Gemm", "Gemv"), _gemm),
    "DimShuffle": _dim_shuffle,
    **dict.fromkeys(("Softmax", "SoftmaxWithBias", "LogSoftmax"), _softmax),
    **dict.fromkeys(("MaxAndArgmax", "Argmax"), _arg_max),
    **dict.fromkeys(("CAReduce", "CAReduceDtype", *REDUCTIONS), _reduced),
    "Reshape": _reshape,
    "Flatten": _flatten,
    **dict.fromkeys(("Shape", "Shape_i"), _shape),
    "MakeVector": _vector,
    "Join": _join,
    **dict.fromkeys(SAME, _same),
}
