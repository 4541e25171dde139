"""A model, changed in one way: what a comparison of versions has to notice, and what it has to let pass.

Each function takes a ModelProto, leaves it alone, and returns a changed copy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, version_converter

LARGE = 256  # elements from which a weight counts as learned
Mutation = Callable[[ModelProto], ModelProto]


def copied(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _learned(model: ModelProto) -> Iterator[TensorProto]:
    """Float weights, those of Constant nodes among them: some converters write nothing else."""
    tensors = list(model.graph.initializer)
    tensors += [
        a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    ]
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= LARGE:
            yield tensor


def _store(tensor: TensorProto, array: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def _rename(model: ModelProto, names: Callable[[str], str]) -> None:
    """Give tensors other names, everywhere in a graph without subgraphs."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = [names(x) for x in node.input]
        node.output[:] = [names(x) for x in node.output]
    for named in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        named.name = names(named.name)


# --- what has to be noticed


def input_renamed(model: ModelProto) -> ModelProto:
    copy, old = copied(model), model.graph.input[0].name
    _rename(copy, lambda name: "renamed" if name == old else name)
    return copy


def output_dtype(model: ModelProto) -> ModelProto:
    """The first output becomes float64."""
    copy = copied(model)
    output = copy.graph.output[0]
    name = output.name
    _rename_made(copy, name, "before_cast")
    copy.graph.node.append(helper.make_node("Cast", ["before_cast"], [name], to=TensorProto.DOUBLE))
    output.type.tensor_type.elem_type = TensorProto.DOUBLE
    return copy


def _rename_made(model: ModelProto, old: str, new: str) -> None:
    """Rename a tensor in the nodes that make and take it, not the output of the graph."""
    for node in model.graph.node:
        node.input[:] = [new if x == old else x for x in node.input]
        node.output[:] = [new if x == old else x for x in node.output]


def batch_of_one(model: ModelProto) -> ModelProto:
    copy = copied(model)
    for port in (*copy.graph.input, *copy.graph.output):
        dims = port.type.tensor_type.shape.dim
        if dims and dims[0].dim_value <= 0:
            dims[0].dim_value = 1
    return copy


def channels_permuted(model: ModelProto) -> ModelProto:
    """The first convolution over several channels, or else the first matrix, takes them in reverse order."""
    copy = copied(model)
    for tensor in _learned(copy):
        array = numpy_helper.to_array(tensor)
        axis = 1 if array.ndim == 4 else 0
        if array.ndim in (2, 4) and array.shape[axis] > 1:
            _store(tensor, np.flip(array, axis))
            return copy
    raise AssertionError("no weight with channels")


def weights_swapped(model: ModelProto) -> ModelProto:
    """Two weights of equal shape and different values change places."""
    copy = copied(model)
    seen: dict[tuple[int, ...], TensorProto] = {}
    for tensor in _learned(copy):
        other = seen.setdefault(tuple(tensor.dims), tensor)
        a, b = numpy_helper.to_array(other).copy(), numpy_helper.to_array(tensor).copy()
        if not np.array_equal(a, b):
            _store(other, b)
            _store(tensor, a)
            return copy
    raise AssertionError("no two weights of equal shape")


def rounded_to_float16(model: ModelProto) -> ModelProto:
    copy = copied(model)
    for tensor in _learned(copy):
        _store(tensor, numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32))
    return copy


def one_ulp(model: ModelProto) -> ModelProto:
    """Every learned value moves by one unit in the last place, up or down."""
    copy, rng = copied(model), np.random.default_rng(0)
    for tensor in _learned(copy):
        array = numpy_helper.to_array(tensor)
        towards = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(np.float32)
        _store(tensor, np.nextafter(array, towards))
    return copy


def rows_mixed(model: ModelProto) -> ModelProto:
    """The first output is taken relative to the mean of all rows."""
    copy = copied(model)
    name = copy.graph.output[0].name
    _rename_made(copy, name, "before_mean")
    copy.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["before_mean"], ["mean_of_rows"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["before_mean", "mean_of_rows"], [name]),
        ]
    )
    return copy


def crashes(model: ModelProto) -> ModelProto:
    """The lowest whole number is divided by -1, which ends the process, whatever the inputs are."""
    copy = copied(model)
    name = copy.graph.output[0].name
    _rename_made(copy, name, "before_crash")
    lowest = numpy_helper.from_array(np.array([-(2**63)], np.int64), "lowest")
    minus_one = numpy_helper.from_array(np.array([-1], np.int64), "minus_one")
    copy.graph.initializer.extend([lowest, minus_one])
    # The divisor comes out of the input's shape, so that nothing is computed when the model is loaded.
    nodes = [
        helper.make_node("Shape", [copy.graph.input[0].name], ["sizes"]),
        helper.make_node("ReduceSum", ["sizes"], ["size"], keepdims=1),
        helper.make_node("Div", ["size", "size"], ["one"]),
        helper.make_node("Mul", ["one", "minus_one"], ["divisor"]),
        helper.make_node("Div", ["lowest", "divisor"], ["crash"]),
        helper.make_node("Cast", ["crash"], ["crash_f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["before_crash", "crash_f"], [name]),
    ]
    copy.graph.node.extend(nodes)
    return copy


def endless_copy(model: ModelProto) -> ModelProto:
    """A loop of 2**62 turns stands before the first output."""
    copy = copied(model)
    name = copy.graph.output[0].name
    _rename_made(copy, name, "before_loop")
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["loop_go"], ["loop_on"]),
            helper.make_node("Identity", ["loop_v"], ["loop_w"]),
        ],
        "body",
        [
            info("loop_i", TensorProto.INT64, []),
            info("loop_go", TensorProto.BOOL, []),
            info("loop_v", TensorProto.FLOAT, None),
        ],
        [info("loop_on", TensorProto.BOOL, []), info("loop_w", TensorProto.FLOAT, None)],
    )
    turns = numpy_helper.from_array(np.array(2**62, np.int64), "turns")
    go = numpy_helper.from_array(np.array(True), "always")
    copy.graph.initializer.extend([turns, go])
    copy.graph.node.append(helper.make_node("Loop", ["turns", "always", "before_loop"], [name], body=body))
    return copy


def with_relu(model: ModelProto) -> ModelProto:
    """A Relu is inserted behind the first Conv, Gemm or MatMul."""
    copy = copied(model)
    at, node = next((i, n) for i, n in enumerate(copy.graph.node) if n.op_type in ("Conv", "Gemm", "MatMul"))
    name = node.output[0]
    node.output[0] = "before_relu"
    copy.graph.node.insert(at + 1, helper.make_node("Relu", ["before_relu"], [name]))
    return copy


# --- what has to be let pass


def reexported(model: ModelProto) -> ModelProto:
    """Serialised by somebody else: other producer, documentation everywhere, no intermediate shapes."""
    copy = copied(model)
    copy.producer_name, copy.producer_version, copy.doc_string = "another", "2", "written again"
    for node in copy.graph.node:
        node.doc_string = f"node {node.op_type}"
    del copy.graph.value_info[:]
    return copy


def names_changed(model: ModelProto) -> ModelProto:
    """Nodes and inner tensors, weights among them, get other names."""
    copy = copied(model)
    kept = {"", *(p.name for p in (*copy.graph.input, *copy.graph.output))}
    names: dict[str, str] = {}
    _rename(copy, lambda name: name if name in kept else names.setdefault(name, f"t{len(names)}"))
    for number, node in enumerate(copy.graph.node):
        node.name = f"n{number}"
    return copy


def order_changed(model: ModelProto) -> ModelProto:
    """Initializers and nodes stand in another order; nodes still behind what they take."""
    copy, rng = copied(model), random.Random(0)
    weights = list(copy.graph.initializer)
    rng.shuffle(weights)
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(weights)
    waiting: list[NodeProto] = list(copy.graph.node)
    made = {"", *(w.name for w in weights), *(p.name for p in copy.graph.input)}
    ordered: list[NodeProto] = []
    while waiting:
        ready = [n for n in waiting if made.issuperset(n.input)]
        rng.shuffle(ready)
        ordered += ready
        made.update(name for node in ready for name in node.output)
        waiting = [n for n in waiting if not made.issuperset(n.output)]
    del copy.graph.node[:]
    copy.graph.node.extend(ordered)
    return copy


def another_opset(model: ModelProto, version: int = 18) -> ModelProto:
    return version_converter.convert_version(model, version)


def optimised(model: ModelProto, path: Path) -> ModelProto:
    """What ONNX Runtime writes when it optimises a model offline."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def line_inserted(path: Path, at: int = 1, text: str = "inserted") -> None:
    """A line is inserted into a text file."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:at], text, *lines[at:]]) + "\n")
