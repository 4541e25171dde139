"""Caffe's layers as ONNX nodes.

A layer names the tensors that it takes (`bottom`) and gives (`top`); the same name again means
that it works in place. Sizes of windows stand once for both axes, or for height and width on
their own. Pooling rounds sizes up and convolution down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...errors import InputError
from ...tensors import Array
from ..build import Graph
from . import networks
from .caffe_files import Message
from .networks import Window

ELTWISE = {"PROD": "Mul", "0": "Mul", "SUM": "Add", "1": "Add", "MAX": "Max", "2": "Max"}
POOLS = {"MAX": "", "0": "", "AVE": "with padding", "1": "with padding"}
# What the first version of the format called layers, where it is not the name in capitals.
OLD_NAMES = {
    "ABSVAL": "AbsVal", "BNLL": "BNLL", "CONCAT": "Concat", "CONVOLUTION": "Convolution",
    "DATA": "Data", "DECONVOLUTION": "Deconvolution", "DROPOUT": "Dropout", "DUMMY_DATA": "DummyData",
    "ELTWISE": "Eltwise", "EXP": "Exp", "FLATTEN": "Flatten", "HDF5_DATA": "HDF5Data",
    "IMAGE_DATA": "ImageData", "INNER_PRODUCT": "InnerProduct", "LRN": "LRN",
    "MEMORY_DATA": "MemoryData", "POOLING": "Pooling", "POWER": "Power", "RELU": "ReLU",
    "SIGMOID": "Sigmoid", "SILENCE": "Silence", "SLICE": "Slice", "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss", "SPLIT": "Split", "TANH": "TanH", "THRESHOLD": "Threshold",
    "WINDOW_DATA": "WindowData", "ACCURACY": "Accuracy",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: its description and its blobs."""

    name: str
    kind: str
    message: Message
    blobs: list[Array]

    @property
    def where(self) -> str:
        return f"layer {self.name} ({self.kind})"

    def blob(self, index: int, shape: tuple[int, ...]) -> Array:
        """Weights of a shape, float32. Raises InputError where there are none or others."""
        size = 1
        for side in shape:
            size *= side
        if index >= len(self.blobs) or min(shape) < 1 or self.blobs[index].size != size:
            has = list(self.blobs[index].shape) if index < len(self.blobs) else "none"
            raise InputError(
                "a layer's weights do not fit", where=self.where, expected=f"{list(shape)}", found=has
            )
        return networks.finite(self.blobs[index], f"{self.where}, blob {index}").reshape(shape)

    def parameters(self) -> Message:
        """The layer's own parameters: `inner_product_param` of an InnerProduct."""
        special = {"InnerProduct": "inner_product", "ReLU": "relu", "PReLU": "prelu", "LRN": "lrn",
                   "ELU": "elu", "BatchNorm": "batch_norm", "Deconvolution": "convolution"}  # fmt: skip
        return self.message.message(f"{special.get(self.kind, self.kind.lower())}_param")


Given = tuple[str, ...]


def window(layer: Layer, names: str = "kernel stride pad dilation") -> Window:
    """Sizes by axis: `kernel_size` once or twice, or `kernel_h` and `kernel_w`. Raises InputError."""
    found, message = [], layer.parameters()
    for name, default in zip(names.split(), (0, 1, 0, 1), strict=True):
        sizes = message.integers(f"{name}_size" if name == "kernel" else name, [default])
        height = message.integer(f"{name}_h", sizes[0])
        width = message.integer(f"{name}_w", sizes[-1])
        found.append((height, width))
        if len(sizes) > 2:
            raise InputError("windows have two axes here", where=layer.where, found=sizes)
    return Window(*found).check(layer.where)


def _convolution(graph: Graph, layer: Layer, given: Given) -> list[str]:
    message, moves = layer.parameters(), window(layer)
    out, group = message.integer("num_output", 0), message.integer("group", 1)
    if group < 1 or out < 1:
        raise InputError("a bad size", where=layer.where, expected="1 or more", found=f"{out} by {group}")
    area = moves.kernel[0] * moves.kernel[1]
    held = layer.blobs[0].size if layer.blobs else 0
    planes = held // (out * area)
    turned = layer.kind == "Deconvolution"
    shape = (planes * group, out // group) if turned else (out, planes)
    weight = layer.blob(0, (*shape, *moves.kernel))
    biased = message.flag("bias_term", default=True)
    parameters = [weight] + ([layer.blob(1, (out,))] if biased else [])
    if not turned:
        return [networks.convolution(graph, given[0], parameters, moves, group=group)]
    names = [graph.weight(one) for one in parameters]
    return [
        graph.add(
            "ConvTranspose",
            given[0],
            *names,
            kernel_shape=moves.kernel,
            strides=moves.stride,
            dilations=moves.dilation,
            pads=moves.pad * 2,
            group=group,
        )
    ]


def _pooling(graph: Graph, layer: Layer, given: Given) -> list[str]:
    message = layer.parameters()
    method = message.text("pool", "MAX")
    if method not in POOLS:
        raise InputError("a pooling that ONNX does not have", where=layer.where, found=method[:40])
    average = POOLS[method]
    if message.flag("global_pooling", default=False):
        return [graph.add("GlobalAveragePool" if average else "GlobalMaxPool", given[0])]
    ceil = message.text("round_mode", "CEIL") in ("CEIL", "0")
    return [networks.pooling(graph, given[0], window(layer), ceil=ceil, average=average)]


def _inner_product(graph: Graph, layer: Layer, given: Given) -> list[str]:
    message = layer.parameters()
    out = message.integer("num_output", 0)
    columns = (layer.blobs[0].size if layer.blobs else 0) // max(1, out)
    if message.flag("transpose", default=False):
        weight = layer.blob(0, (columns, out)).T.copy()
    else:
        weight = layer.blob(0, (out, columns))
    bias = layer.blob(1, (out,)) if message.flag("bias_term", default=True) else None
    flat = graph.add("Flatten", given[0], axis=_axis(layer, message, 1))
    return [networks.linear(graph, flat, weight, bias)]


def _axis(layer: Layer, message: Message, default: int) -> int:
    axis = message.integer("axis", default)
    if not (0 < axis < 8 or axis < -1 or axis == -1):
        raise InputError("an axis that is the batch's", where=layer.where, found=axis)
    return axis


def _relu(graph: Graph, layer: Layer, given: Given) -> list[str]:
    slope = layer.parameters().number("negative_slope", 0.0)
    return [graph.add("LeakyRelu", given[0], alpha=slope) if slope else graph.add("Relu", given[0])]


def _prelu(graph: Graph, layer: Layer, given: Given) -> list[str]:
    count = layer.blobs[0].size if layer.blobs else 0
    slope = layer.blob(0, (count,))
    shaped = slope if count == 1 else networks.per_channel(slope)[0]
    return [graph.add("PRelu", given[0], graph.weight(shaped))]


def _elu(graph: Graph, layer: Layer, given: Given) -> list[str]:
    return [graph.add("Elu", given[0], alpha=layer.parameters().number("alpha", 1.0))]


def _power(graph: Graph, layer: Layer, given: Given) -> list[str]:
    message = layer.parameters()
    scale, shift, power = (message.number(n, d) for n, d in (("scale", 1.0), ("shift", 0.0), ("power", 1.0)))
    moved = graph.add("Add", graph.add("Mul", given[0], graph.scalar(scale)), graph.scalar(shift))
    return [moved if power == 1.0 else graph.add("Pow", moved, graph.scalar(power))]


def _exponential(graph: Graph, layer: Layer, given: Given) -> list[str]:
    """base ^ (scale x + shift), or the logarithm of (scale x + shift); base -1 is e."""
    import math

    message = layer.parameters()
    base = message.number("base", -1.0)
    if base != -1.0 and (base <= 0 or base == 1.0):
        raise InputError("a bad base", where=layer.where, expected="a positive number but 1", found=base)
    factor = math.log(base) if base != -1.0 else 1.0
    scale, shift = message.number("scale", 1.0), message.number("shift", 0.0)
    moved = graph.add("Add", graph.add("Mul", given[0], graph.scalar(scale)), graph.scalar(shift))
    if layer.kind == "Exp":
        return [graph.add("Exp", graph.add("Mul", moved, graph.scalar(factor)))]
    return [graph.add("Mul", graph.add("Log", moved), graph.scalar(1 / factor))]


def _softmax(graph: Graph, layer: Layer, given: Given) -> list[str]:
    return [graph.add("Softmax", given[0], axis=_axis(layer, layer.message.message("softmax_param"), 1))]


def _lrn(graph: Graph, layer: Layer, given: Given) -> list[str]:
    message = layer.parameters()
    if message.text("norm_region", "ACROSS_CHANNELS") not in ("ACROSS_CHANNELS", "0"):
        raise InputError("normalisation within channels has no ONNX operator", where=layer.where)
    size, bias = message.integer("local_size", 5), message.number("k", 1.0)
    if size < 1 or size % 2 == 0:
        raise InputError("a bad local_size", where=layer.where, expected="an odd number", found=size)
    alpha, beta = message.number("alpha", 1.0), message.number("beta", 0.75)
    return [graph.add("LRN", given[0], size=size, alpha=alpha, beta=beta, bias=bias)]


def _batch_norm(graph: Graph, layer: Layer, given: Given) -> list[str]:
    """Mean and variance, kept as sums that a third blob divides; no scale and shift of its own."""
    import numpy as np

    count = layer.blobs[0].size if layer.blobs else 0
    factor = float(layer.blob(2, (1,))[0])
    scale = 1.0 / factor if factor else 0.0
    mean, variance = (
        networks.finite(layer.blob(i, (count,)).astype(np.float64) * scale, f"{layer.where}, blob {i}")
        for i in (0, 1)
    )
    ones, zeros = np.ones(count, np.float32), np.zeros(count, np.float32)
    names = [graph.weight(one) for one in (ones, zeros, mean, variance)]
    epsilon = layer.parameters().number("eps", 1e-5)
    return [graph.add("BatchNormalization", given[0], *names, epsilon=epsilon)]


def _scale(graph: Graph, layer: Layer, given: Given) -> list[str]:
    message = layer.parameters()
    if len(given) > 1 or message.integer("axis", 1) != 1 or message.integer("num_axes", 1) != 1:
        raise InputError("a scale that is not one number for each channel", where=layer.where)
    count = layer.blobs[0].size if layer.blobs else 0
    values = [networks.per_channel(layer.blob(0, (count,)))]
    if layer.kind == "Bias":
        return [graph.add("Add", given[0], graph.weight(values[0]))]
    found = graph.add("Mul", given[0], graph.weight(values[0]))
    if message.flag("bias_term", default=False):
        shift = networks.per_channel(layer.blob(1, (count,)))
        found = graph.add("Add", found, graph.weight(shift))
    return [found]


def _eltwise(graph: Graph, layer: Layer, given: Given) -> list[str]:
    message = layer.parameters()
    operation = message.text("operation", "SUM")
    if operation not in ELTWISE:
        raise InputError("an operation that is not known", where=layer.where, found=operation[:40])
    factors = message.numbers("coeff")
    if factors and (len(factors) != len(given) or ELTWISE[operation] != "Add"):
        raise InputError("bad coefficients", where=layer.where, expected=f"{len(given)}", found=len(factors))
    parts = [graph.add("Mul", g, graph.scalar(f)) for g, f in zip(given, factors, strict=False)] or list(
        given
    )
    found = parts[0]
    for part in parts[1:]:
        found = graph.add(ELTWISE[operation], found, part)
    return [found]


def _concat(graph: Graph, layer: Layer, given: Given) -> list[str]:
    message = layer.parameters()
    axis = _axis(layer, message, message.integer("concat_dim", 1))
    return [graph.add("Concat", *given, axis=axis)]


def _flatten(graph: Graph, layer: Layer, given: Given) -> list[str]:
    message = layer.parameters()
    if message.integer("axis", 1) != 1 or message.integer("end_axis", -1) != -1:
        raise InputError("only all axes of a row can be flattened", where=layer.where)
    return [graph.add("Flatten", given[0], axis=1)]


def _reshape(graph: Graph, layer: Layer, given: Given) -> list[str]:
    message = layer.parameters()
    dims = message.message("shape").integers("dim", [])
    if message.integer("axis", 0) != 0 or message.integer("num_axes", -1) != -1 or not dims:
        raise InputError("a reshape of some axes only", where=layer.where)
    if dims[0] > 0:
        dims = [-1 if -1 not in dims else 0, *dims[1:]]  # the batch's size is any
    if dims.count(-1) > 1 or any(dim < -1 for dim in dims):
        raise InputError("bad dims", where=layer.where, found=str(dims)[:60])
    return [networks.reshape(graph, given[0], dims)]


def _plain(op: str) -> Callable[[Graph, Layer, Given], list[str]]:
    def add(graph: Graph, layer: Layer, given: Given) -> list[str]:
        return [graph.add(op, given[0])]

    return add


def _same(graph: Graph, layer: Layer, given: Given) -> list[str]:
    return [given[0]] * max(1, len(layer.message.texts("top")))


def _threshold(graph: Graph, layer: Layer, given: Given) -> list[str]:
    bound = graph.scalar(layer.parameters().number("threshold", 0.0))
    return [graph.cast(graph.add("Greater", given[0], bound), "float32")]


def _slice(graph: Graph, layer: Layer, given: Given) -> list[str]:
    import numpy as np

    message = layer.parameters()
    tops, points = len(layer.message.texts("top")), message.integers("slice_point", [])
    axis = _axis(layer, message, message.integer("slice_dim", 1))
    if len(points) != tops - 1 or any(a >= b for a, b in zip([0, *points], points, strict=False)):
        raise InputError("bad slice_points", where=layer.where, expected=f"{tops - 1}, rising", found=points)
    bounds = zip([0, *points], [*points, 2**31 - 1], strict=True)
    return [
        graph.add("Slice", given[0], *(graph.weight(np.array([x], np.int64)) for x in (low, high, axis)))
        for low, high in bounds
    ]


LAYERS: dict[str, Callable[[Graph, Layer, Given], list[str]]] = {
    "Convolution": _convolution,
    "Deconvolution": _convolution,
    "Pooling": _pooling,
    "InnerProduct": _inner_product,
    "ReLU": _relu,
    "PReLU": _prelu,
    "ELU": _elu,
    "Power": _power,
    "Exp": _exponential,
    "Log": _exponential,
    "Softmax": _softmax,
    "SoftmaxWithLoss": _softmax,
    "LRN": _lrn,
    "BatchNorm": _batch_norm,
    "Scale": _scale,
    "Bias": _scale,
    "Eltwise": _eltwise,
    "Concat": _concat,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Slice": _slice,
    "Threshold": _threshold,
    "Sigmoid": _plain("Sigmoid"),
    "TanH": _plain("Tanh"),
    "AbsVal": _plain("Abs"),
    "BNLL": _plain("Softplus"),
    "Dropout": _same,
    "Split": _same,
}
