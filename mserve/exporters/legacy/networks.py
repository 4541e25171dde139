"""Neural networks of older frameworks, layer by layer: what their readers share.

A reader walks its layers and adds nodes to a graph; this file has the layers that all of
them know under other names, the gathering of what nobody here knows, and the naming of answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...errors import InputError
from ...tensors import ANY_DIM, Array, Dim, TensorSpec
from .. import answers
from ..answers import Answers
from ..build import Graph, predicts
from ..kinds import Converted, ConvertOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

# A window or an image side; larger ones are mistakes, or meant to harm.
MAX_SIDE = 1 << 20
MAX_FLOAT32 = 3.4028234663852886e38
PROBABILITIES, LOG_PROBABILITIES = "probabilities", "log_probabilities"


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel moves over the last two axes: [height, width] of each."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def check(self, where: str) -> Window:
        """The window itself. Raises InputError where it makes no sense."""
        least = (1, 1, 0, 1)
        for name, low in zip(("kernel", "stride", "pad", "dilation"), least, strict=True):
            if any(not low <= side <= MAX_SIDE for side in getattr(self, name)):
                expected = f"{low} to {MAX_SIDE}"
                raise InputError(f"a bad {name}", where=where, expected=expected, found=getattr(self, name))
        return self


def convolution(
    graph: Graph, given: str, parameters: Sequence[Array], window: Window, *, group: int = 1
) -> str:
    """A convolution with weights [out, in / group, height, width] and perhaps a bias [out]."""
    window = replace(window, kernel=(parameters[0].shape[2], parameters[0].shape[3]))
    return graph.add(
        "Conv",
        given,
        *(graph.weight(one) for one in parameters),
        kernel_shape=window.kernel,
        strides=window.stride,
        pads=window.pad * 2,
        dilations=window.dilation,
        group=group,
    )


def pooling(graph: Graph, given: str, window: Window, *, ceil: bool, average: str = "") -> str:
    """The largest value of each window, or its mean: `average` says "with padding" or "without"."""
    if average:
        return graph.add(
            "AveragePool",
            given,
            kernel_shape=window.kernel,
            strides=window.stride,
            pads=window.pad * 2,
            ceil_mode=int(ceil),
            count_include_pad=int(average == "with padding"),
        )
    return graph.add(
        "MaxPool",
        given,
        kernel_shape=window.kernel,
        strides=window.stride,
        pads=window.pad * 2,
        ceil_mode=int(ceil),
    )


def linear(graph: Graph, given: str, weights: Array, bias: Array | None) -> str:
    """`given` [batch, in] times weights [out, in], plus bias [out]."""
    names = [graph.weight(weights)] + ([graph.weight(bias)] if bias is not None else [])
    return graph.add("Gemm", given, *names, transB=1)


def reshape(graph: Graph, given: str, dims: Sequence[int]) -> str:
    """In ONNX's sense: 0 keeps an axis, -1 takes what is left."""
    import numpy as np

    return graph.add("Reshape", given, graph.weight(np.array(dims, np.int64)))


def per_channel(values: Array, rank: int = 4) -> Array:
    """Values of channels, to be joined with [batch, channels, ...] of a rank."""
    shaped: Array = values.reshape(1, -1, *[1] * (rank - 2))
    return shaped


def finite(array: Array, where: str) -> Array:
    """Weights as float32. Raises InputError where one is no number."""
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore"):  # what becomes of them is refused below
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        at = int(np.argmin(np.isfinite(narrow.ravel())))
        raise InputError(
            "a weight is not a number that float32 holds",
            where=f"{where}: value {at}",
            expected="finite numbers",
            found=array.ravel()[at],
        )
    return narrow


def parameter(value: float, where: str) -> float:
    """A layer's parameter: infinite, for a bound that is none, or what float32 holds. Raises InputError."""
    if value != value or (abs(value) > MAX_FLOAT32 and abs(value) != math.inf):
        raise InputError(
            "a parameter is not a number that float32 holds",
            where=where,
            expected=f"at most {MAX_FLOAT32}",
            found=value,
        )
    return value


def check_known(found: Iterable[str], known: Mapping[str, object], what: str, where: object) -> None:
    """Refuse every layer that has no counterpart here, all at once. Raises InputError."""
    if unknown := sorted({name for name in found if name not in known}):
        raise InputError(
            f"{what} has parts that cannot be converted",
            where=where,
            expected=", ".join(sorted(known)),
            found=", ".join(unknown),
            hint="take these parts out of the model, or write them with others, and save it again",
        )


def finish(
    graph: Graph,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, str],
    kind: str,
    options: ConvertOptions,
) -> Converted:
    """The network as a conversion. `outputs` are tensors by name; `kind` says what a single one means.

    Raises InputError when shapes do not fit each other.
    """
    shapes = _shapes(graph, inputs, outputs)
    given = answers.given_labels
    if len(outputs) == 1:
        tensor = next(iter(outputs.values()))
        found = _answers(graph, tensor, shapes[tensor], kind, options)
    else:
        found = Answers({n: _spec(graph, t, shapes[t], n) for n, t in outputs.items()}, given(options, 0))
    signature = predicts(inputs, found.outputs)
    return Converted(graph.model(signature), {"serving_default": signature}, assets=found.assets)


def _answers(
    graph: Graph, tensor: str, shape: tuple[Dim, ...], kind: str, options: ConvertOptions
) -> Answers:
    columns = shape[1] if len(shape) == 2 else 0
    if isinstance(columns, int) and columns > 1 and kind in (PROBABILITIES, LOG_PROBABILITIES):
        if kind == PROBABILITIES:
            return answers.classes(graph, tensor, columns, options)
        found = answers.classes(graph, graph.add("Exp", tensor), columns, options)
        graph.add("Identity", tensor, name=LOG_PROBABILITIES)
        also = TensorSpec(LOG_PROBABILITIES, "float32", ("batch", columns))
        return Answers({**found.outputs, LOG_PROBABILITIES: also}, found.assets)
    if isinstance(columns, int) and columns > 0:
        return answers.scores(graph, tensor, columns)
    return Answers({"output": _spec(graph, tensor, shape, "output")})


def _spec(graph: Graph, tensor: str, shape: tuple[Dim, ...], name: str) -> TensorSpec:
    graph.add("Identity", tensor, name=name)
    return TensorSpec(name, "float32", shape)


def _shapes(
    graph: Graph, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, str]
) -> dict[str, tuple[Dim, ...]]:
    """The shapes of the outputs' tensors, as they follow from the inputs'; the first axis is the batch."""
    import onnx

    specs = {tensor: TensorSpec(tensor, "float32", None) for tensor in outputs.values()}
    model = graph.model(predicts(inputs, specs))
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise InputError(
            "the layers do not fit each other",
            expected="each to take what the one before it gives",
            found=str(error)[:300],
            hint="is --input what the network was trained on?",
        ) from error
    found: dict[str, tuple[Dim, ...]] = {}
    for port in inferred.graph.output:
        dims = [
            dim.dim_value if dim.HasField("dim_value") else ANY_DIM for dim in port.type.tensor_type.shape.dim
        ]
        found[port.name] = ("batch", *dims[1:])
    return found


Layer = Callable[..., str]
