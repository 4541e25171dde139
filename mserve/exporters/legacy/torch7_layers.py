"""The layers of Torch7's `nn` as ONNX nodes.

A layer takes a tensor, or a table of them (here a tuple), whose first axis is the batch. Axes are
counted from 1 in the files. What a layer did only while training (dropout) it no longer
does; a dropout of the first version scales its input by 1 - p instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ...errors import InputError
from ..build import Graph
from . import networks
from .torch7_file import MAX_DEPTH
from .torch7_layer import Layer, plain

Value = str | tuple[str, ...]
MAX_LAYERS = 100_000
REDUCED = {"nn.Mean": "ReduceMean", "nn.Max": "ReduceMax", "nn.Min": "ReduceMin", "nn.Sum": "ReduceSum"}
JOINED = {"nn.CAddTable": "Add", "nn.CMulTable": "Mul", "nn.CSubTable": "Sub", "nn.CDivTable": "Div"}
PLAIN = {
    "Tanh": "Tanh", "Sigmoid": "Sigmoid", "Abs": "Abs", "Sqrt": "Sqrt", "Exp": "Exp", "Log": "Log",
    "SoftSign": "Softsign", "ReLU": "Relu",
}  # fmt: skip
SAME = ("Identity", "Contiguous", "Copy", "SpatialDropout", "VolumetricDropout", "GradientReversal")


def walk(layer: Layer, depth: int = 0) -> Iterator[Layer]:
    """The layer and all inside. Raises InputError: a layer inside itself, too many of them."""
    pending, count = [(layer, depth)], 0
    while pending:
        one, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_LAYERS:
            expected = f"at most {MAX_LAYERS} layers, and {MAX_DEPTH} inside each other"
            raise InputError("the layers do not end", where=layer.where, expected=expected)
        yield one
        if plain(one.thing.name) in CONTAINERS:
            pending += [(part, depth + 1) for part in reversed(one.parts())]


def apply(graph: Graph, layer: Layer, given: Value) -> Value:
    """What a layer makes of a value. Raises InputError."""
    return LAYERS[plain(layer.thing.name)](graph, layer, given)


def _one(layer: Layer, given: Value) -> str:
    if not isinstance(given, str):
        raise InputError("a layer gets a table", where=layer.where, expected="a tensor")
    return given


def _many(layer: Layer, given: Value) -> tuple[str, ...]:
    if isinstance(given, str) or not given:
        raise InputError("a layer gets a tensor", where=layer.where, expected="a table of tensors")
    return given


def _flat(layer: Layer, values: list[Value]) -> tuple[str, ...]:
    return tuple(_one(layer, value) for value in values)


def _sequential(graph: Graph, layer: Layer, given: Value) -> Value:
    for part in layer.parts():
        given = apply(graph, part, given)
    return given


def _concat(graph: Graph, layer: Layer, given: Value) -> Value:
    values = _flat(layer, [apply(graph, part, given) for part in layer.parts()])
    return graph.add("Concat", *values, axis=_axis(layer, "dimension"))


def _concat_table(graph: Graph, layer: Layer, given: Value) -> Value:
    return _flat(layer, [apply(graph, part, given) for part in layer.parts()])


def _parallel_table(graph: Graph, layer: Layer, given: Value) -> Value:
    parts, values = layer.parts(), _many(layer, given)
    if len(parts) != len(values):
        raise layer.wrong("modules", f"{len(values)} layers", len(parts))
    return _flat(layer, [apply(graph, p, v) for p, v in zip(parts, values, strict=True)])


def _axis(layer: Layer, key: str) -> int:
    axis = layer.integer(key)
    if layer.integer("nInputDims", 0) > 0:
        axis += 1  # an axis of one row
    if not 1 < axis <= 8:
        raise layer.wrong(key, "an axis after the batch's", axis)
    return axis - 1


def _join_table(graph: Graph, layer: Layer, given: Value) -> Value:
    return graph.add("Concat", *_many(layer, given), axis=_axis(layer, "dimension"))


def _joined(graph: Graph, layer: Layer, given: Value) -> Value:
    first, *others = _many(layer, given)
    for other in others:
        first = graph.add(JOINED[plain(layer.thing.name)], first, other)
    return first


def _linear(graph: Graph, layer: Layer, given: Value) -> Value:
    weight = layer.array("weight")
    if weight.ndim != 2:
        raise layer.wrong("weight", "[out, in]", list(weight.shape))
    bias = layer.maybe("bias")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise layer.wrong("bias", f"[{len(weight)}]", list(bias.shape))
    return networks.linear(graph, _one(layer, given), weight, bias)


def _convolution(graph: Graph, layer: Layer, given: Value) -> Value:
    window, group = layer.window(), layer.integer("groups", 1)
    planes, out = layer.integer("nInputPlane"), layer.integer("nOutputPlane")
    if group < 1 or planes % group:
        raise layer.wrong("groups", f"what divides {planes}")
    weight = layer.shaped("weight", (out, planes // group, *window.kernel))
    parameters = [weight] + ([layer.shaped("bias", (out,))] if layer.maybe("bias") is not None else [])
    return networks.convolution(graph, _one(layer, given), parameters, window, group=group)


def _full_convolution(graph: Graph, layer: Layer, given: Value) -> Value:
    window = layer.window()
    out = layer.integer("nOutputPlane")
    weight = layer.shaped("weight", (layer.integer("nInputPlane"), out, *window.kernel))
    parameters = [weight] + ([layer.shaped("bias", (out,))] if layer.maybe("bias") is not None else [])
    return graph.add(
        "ConvTranspose",
        _one(layer, given),
        *(graph.weight(one) for one in parameters),
        kernel_shape=window.kernel,
        strides=window.stride,
        pads=window.pad * 2,
        output_padding=(layer.integer("adjH", 0), layer.integer("adjW", 0)),
    )


def _max_pooling(graph: Graph, layer: Layer, given: Value) -> Value:
    ceil = layer.flag("ceil_mode", default=False)
    return networks.pooling(graph, _one(layer, given), layer.window(), ceil=ceil)


def _average_pooling(graph: Graph, layer: Layer, given: Value) -> Value:
    ceil = layer.flag("ceil_mode", default=False)
    padded = layer.flag("count_include_pad", default=True)
    average = "with padding" if padded else "without"
    if not layer.flag("divide", default=True):
        raise layer.wrong("divide", "true: sums of windows have no ONNX operator")
    return networks.pooling(graph, _one(layer, given), layer.window(), ceil=ceil, average=average)


def _batch_normalisation(graph: Graph, layer: Layer, given: Value) -> Value:
    import numpy as np

    mean, epsilon = layer.array("running_mean"), layer.number("eps", 1e-5)
    if layer.thing.fields.get("running_var") is not None:
        variance = layer.shaped("running_var", mean.shape)
    else:  # before 2015 the inverse of the deviation was kept
        with np.errstate(divide="ignore"):  # of no inverse, which is refused below
            variance = layer.shaped("running_std", mean.shape).astype(np.float64) ** -2.0 - epsilon
        variance = networks.finite(variance, f"{layer.where}.running_std")
    ones, zeros = np.ones_like(mean), np.zeros_like(mean)
    weight = ones if layer.maybe("weight") is None else layer.shaped("weight", mean.shape)
    bias = zeros if layer.maybe("bias") is None else layer.shaped("bias", mean.shape)
    names = [graph.weight(one) for one in (weight, bias, mean, variance)]
    return graph.add("BatchNormalization", _one(layer, given), *names, epsilon=epsilon)


def _view(graph: Graph, layer: Layer, given: Value) -> Value:
    sizes = layer.sizes("size")
    if plain(layer.thing.name) == "nn.Reshape" and layer.thing.fields.get("batchMode") is False:
        raise layer.wrong("batchMode", "true: the first axis is the batch's", "false")
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise layer.wrong("size", "sizes, one of them -1 at most", sizes)
    # With -1 among the sizes it stands for what is left of a row.
    dims = [0, *sizes] if -1 in sizes else [-1, *sizes]
    named = layer.thing.fields.get("numInputDims") is None
    if named and len(sizes) > 1 and sizes[0] == -1:  # View(-1, n): the batch's axis is named
        dims = sizes
    return networks.reshape(graph, _one(layer, given), dims)


def _dropout(graph: Graph, layer: Layer, given: Value) -> Value:
    if layer.flag("v2", default=False):
        return given
    kept = 1.0 - layer.number("p", 0.5)
    return graph.add("Mul", _one(layer, given), graph.scalar(kept))


def _soft(graph: Graph, layer: Layer, given: Value) -> Value:
    name = plain(layer.thing.name).removeprefix("nn.")
    tensor = _one(layer, given)
    if name == "SoftMin":
        tensor = graph.add("Neg", tensor)
    # Torch7 takes the channels of an image, and the columns of a row.
    return graph.add("LogSoftmax" if name.endswith("LogSoftMax") else "Softmax", tensor, axis=1)


def _threshold(graph: Graph, layer: Layer, given: Value) -> Value:
    tensor, least = _one(layer, given), layer.number("threshold", 0.0)
    above = graph.add("Greater", tensor, graph.scalar(least))
    return graph.add("Where", above, tensor, graph.scalar(layer.number("val", 0.0)))


def _clipped(graph: Graph, layer: Layer, given: Value) -> Value:
    low, high = (0.0, 6.0) if plain(layer.thing.name) == "nn.ReLU6" else (-1.0, 1.0)
    bounds = (layer.number("min_val", low), layer.number("max_val", high))
    return graph.add("Clip", _one(layer, given), *(graph.scalar(bound) for bound in bounds))


def _power(graph: Graph, layer: Layer, given: Value) -> Value:
    return graph.add("Pow", _one(layer, given), graph.scalar(layer.number("pow", 2.0)))


def _soft_plus(graph: Graph, layer: Layer, given: Value) -> Value:
    beta = layer.number("beta", 1.0)
    scaled = graph.add("Softplus", graph.add("Mul", _one(layer, given), graph.scalar(beta)))
    return graph.add("Div", scaled, graph.scalar(beta))


def _constant(op: str, key: str) -> Callable[[Graph, Layer, Value], Value]:
    def add(graph: Graph, layer: Layer, given: Value) -> Value:
        return graph.add(op, _one(layer, given), graph.scalar(layer.number(key)))

    return add


def _elementwise(op: str, key: str) -> Callable[[Graph, Layer, Value], Value]:
    def add(graph: Graph, layer: Layer, given: Value) -> Value:
        values = layer.array(key)
        if values.ndim < 2 and values.size > 1:
            values = values.reshape(1, -1)  # one for each column
        return graph.add(op, _one(layer, given), graph.weight(values))

    return add


def _prelu(graph: Graph, layer: Layer, given: Value) -> Value:
    slope = layer.array("weight")
    shaped = slope if slope.size == 1 else networks.per_channel(slope)[0]
    return graph.add("PRelu", _one(layer, given), graph.weight(shaped))


def _activated(op: str, key: str, default: float) -> Callable[[Graph, Layer, Value], Value]:
    def add(graph: Graph, layer: Layer, given: Value) -> Value:
        return graph.add(op, _one(layer, given), alpha=layer.number(key, default))

    return add


def _plain(graph: Graph, layer: Layer, given: Value) -> Value:
    return graph.add(PLAIN[plain(layer.thing.name).removeprefix("nn.")], _one(layer, given))


def _padding(graph: Graph, layer: Layer, given: Value) -> Value:
    import numpy as np

    top, bottom, left, right = (layer.integer(f"pad_{side}", 0) for side in "tblr")
    if any(abs(side) > networks.MAX_SIDE for side in (top, bottom, left, right)):
        raise layer.wrong("pad_t", f"sides of at most {networks.MAX_SIDE}", [top, bottom, left, right])
    pads = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
    return graph.add("Pad", _one(layer, given), graph.weight(pads))


def _lrn(graph: Graph, layer: Layer, given: Value) -> Value:
    size, k = layer.integer("size"), layer.number("k", 1.0)
    alpha, beta = layer.number("alpha", 1e-4), layer.number("beta", 0.75)
    if not 0 < size <= networks.MAX_SIDE:
        raise layer.wrong("size", f"1 to {networks.MAX_SIDE}")
    return graph.add("LRN", _one(layer, given), size=size, alpha=alpha, beta=beta, bias=k)


def _lookup(graph: Graph, layer: Layer, given: Value) -> Value:
    rows = graph.cast(_one(layer, given), "int64")
    rows = graph.add("Sub", rows, graph.scalar(1, "int64"))  # words are counted from 1
    return graph.add("Gather", graph.weight(layer.array("weight")), rows)


def _reduced(graph: Graph, layer: Layer, given: Value) -> Value:
    import numpy as np

    op, axis = REDUCED[plain(layer.thing.name)], _axis(layer, "dimension")
    axes = graph.weight(np.array([axis], np.int64))
    keep = int(not layer.flag("squeeze", default=True))
    return graph.add(op, _one(layer, given), axes, keepdims=keep)


def _same(graph: Graph, layer: Layer, given: Value) -> Value:
    return given


CONTAINERS: dict[str, Callable[[Graph, Layer, Value], Value]] = {
    "nn.Sequential": _sequential,
    "nn.Concat": _concat,
    "nn.ConcatTable": _concat_table,
    "nn.ParallelTable": _parallel_table,
}
LAYERS: dict[str, Callable[[Graph, Layer, Value], Value]] = CONTAINERS | {
    "nn.JoinTable": _join_table,
    **dict.fromkeys(JOINED, _joined),
    **dict.fromkeys(REDUCED, _reduced),
    **{f"nn.{name}": _plain for name in PLAIN},
    **{f"nn.{name}": _same for name in SAME},
    "nn.Linear": _linear,
    "nn.LinearNoBias": _linear,
    **dict.fromkeys(
        ("nn.SpatialConvolution", "nn.SpatialConvolutionMM", "nn.SpatialDilatedConvolution"), _convolution
    ),
    "nn.SpatialFullConvolution": _full_convolution,
    "nn.SpatialMaxPooling": _max_pooling,
    "nn.SpatialAveragePooling": _average_pooling,
    "nn.BatchNormalization": _batch_normalisation,
    "nn.SpatialBatchNormalization": _batch_normalisation,
    "nn.View": _view,
    "nn.Reshape": _view,
    "nn.Dropout": _dropout,
    **{
        f"nn.{name}": _soft
        for name in ("SoftMax", "LogSoftMax", "SoftMin", "SpatialSoftMax", "SpatialLogSoftMax")
    },
    "nn.Threshold": _threshold,
    "nn.HardTanh": _clipped,
    "nn.ReLU6": _clipped,
    "nn.Power": _power,
    "nn.Square": _power,
    "nn.SoftPlus": _soft_plus,
    "nn.MulConstant": _constant("Mul", "constant_scalar"),
    "nn.AddConstant": _constant("Add", "constant_scalar"),
    "nn.Add": _elementwise("Add", "bias"),
    "nn.CAdd": _elementwise("Add", "bias"),
    "nn.Mul": _elementwise("Mul", "weight"),
    "nn.CMul": _elementwise("Mul", "weight"),
    "nn.PReLU": _prelu,
    "nn.LeakyReLU": _activated("LeakyRelu", "negval", 0.01),
    "nn.ELU": _activated("Elu", "alpha", 1.0),
    "nn.SpatialZeroPadding": _padding,
    "nn.SpatialCrossMapLRN": _lrn,
    "nn.LookupTable": _lookup,
}
