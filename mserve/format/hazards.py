"""What a graph's operators tell of hazards that no single run shows.

An operator that reads across rows makes them depend on each other, perhaps only for some
values. And a division of whole numbers can end the process: the lowest number by -1 raises
a signal of the processor, which ONNX Runtime does not catch. (It refuses a division by 0,
and computes numbers of 8 and 16 bits as wider ones.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..tensors import Array
from .inner import checkable

if TYPE_CHECKING:
    import onnx

    Types = dict[str, onnx.TypeProto.Tensor]

# Operators that read along one axis, with the one they take unless the node says otherwise.
_ALONG = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "ArgMax": 0, "ArgMin": 0, "TopK": -1}
_WHOLE = frozenset({"NonZero", "Unique", "DynamicQuantizeLinear"})
_ROWS = "rows of mserve"  # a symbol that no graph has
_DOMAINS = ("", "ai.onnx")


def across_rows(model: onnx.ModelProto, inputs: Collection[str]) -> list[str]:
    """Nodes of the main graph that read across axis 0 of these inputs, as far as inference sees it.

    Each as a phrase: `ReduceMax 'highest'`.
    """
    probe = _probe(model)
    # The graph's own word on inner shapes would hide which axes are rows.
    del probe.graph.value_info[:]
    for value in (*probe.graph.input, *probe.graph.output):
        for at, dim in enumerate(value.type.tensor_type.shape.dim):
            if value.name in inputs and at == 0:
                dim.dim_param = _ROWS
            elif dim.dim_param:
                dim.Clear()
    types, constants = _types(_inferred(probe, follow_sizes=True).graph), _constants(probe.graph)
    found = []
    for node in probe.graph.node:
        tensor = types.get(node.input[0]) if node.input and node.domain in _DOMAINS else None
        rows = [at for at, dim in enumerate(tensor.shape.dim) if dim.dim_param == _ROWS] if tensor else []
        if tensor and rows and _axes(node, len(tensor.shape.dim), constants).intersection(rows):
            found.append(f"{node.op_type} {node.output[0]!r}")
    return found


def _axes(node: onnx.NodeProto, rank: int, constants: Mapping[str, Array]) -> set[int]:
    """The axes of its first input along which a node reads; none where that is not known."""
    given = {a.name: a for a in node.attribute}
    if node.op_type in _WHOLE:
        return set(range(rank))
    if node.op_type in _ALONG:
        axes = [given["axis"].i if "axis" in given else _ALONG[node.op_type]]
    elif node.op_type != "CumSum" and not node.op_type.startswith("Reduce"):
        return set()
    elif "axes" in given:
        axes = list(given["axes"].ints)
    elif len(node.input) > 1 and node.input[1]:
        if node.input[1] not in constants:
            return set()
        axes = constants[node.input[1]].ravel().tolist()
    else:
        idle = "noop_with_empty_axes" in given and given["noop_with_empty_axes"].i
        axes = [] if idle else list(range(rank))
    return {axis % rank for axis in axes}


def integer_divisions(model: onnx.ModelProto) -> list[str]:
    """Divisions of whole numbers that a request can make end the process, each as a phrase.

    Those whose divisor may be -1 and whose dividend is computed from values of the inputs, in
    the main graph, subgraphs and functions.
    """
    from onnx import inliner

    probe = _probe(model)
    if probe.functions:
        probe = inliner.inline_local_functions(probe)
    return list(_divisions(_inferred(probe).graph, {}, set(), {}))


def _divisions(
    graph: onnx.GraphProto, types: Types, fixed: set[str], constants: Mapping[str, Array]
) -> Iterator[str]:
    """Of one graph; what is given besides it is known from the graphs around. `fixed` are names
    of values that no request chooses: constants, shapes, and what is computed from these.
    """
    import numpy as np
    import onnx

    types = types | _types(graph)
    constants = {**constants, **_constants(graph)}
    fixed = fixed | {t.name for t in graph.initializer}
    wide = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    for node in graph.node:
        inner = [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else []), *a.graphs)]
        for subgraph in inner:
            yield from _divisions(subgraph, types, fixed, constants)
        if node.op_type in ("Shape", "Size") or not (inner or any(n not in fixed for n in node.input if n)):
            fixed.update(node.output)
        fmod = any(a.name == "fmod" and a.i for a in node.attribute)
        if node.op_type not in ("Div", "Mod") or fmod or node.domain not in _DOMAINS or len(node.input) < 2:
            continue
        dividend, divisor = node.input[:2]
        kinds = {types[name].elem_type for name in (dividend, divisor, node.output[0]) if name in types}
        safe = divisor in constants and not np.any(constants[divisor] == -1)
        if kinds.intersection(wide) and dividend not in fixed and not safe:
            yield f"{node.op_type} {node.output[0]!r}"


def _probe(model: onnx.ModelProto) -> onnx.ModelProto:
    stored = {t.name for t in model.graph.initializer if t.data_location == t.EXTERNAL}
    return checkable(model, stored)


def _inferred(model: onnx.ModelProto, *, follow_sizes: bool = False) -> onnx.ModelProto:
    """The model with inferred types, or as it is where inference fails.

    `follow_sizes` also computes sizes that the graph itself computes, for a Reshape say.
    """
    import onnx

    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=follow_sizes)
    except Exception:  # onnx's and protobuf's own exceptions
        return model


def _types(graph: onnx.GraphProto) -> Types:
    values = [*graph.input, *graph.value_info, *graph.output]
    return {v.name: v.type.tensor_type for v in values if v.type.HasField("tensor_type")}


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """The values of initializers and Constant nodes that lie in the graph."""
    import onnx

    tensors: dict[str, Any] = {t.name: t for t in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            tensors[node.output[0]] = onnx.helper.get_attribute_value(attribute)
    return {name: _array(value) for name, value in tensors.items()}


def _array(value: Any) -> Array:
    import numpy as np
    import onnx

    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
