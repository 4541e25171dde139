"""Caffe models: a network as text (.prototxt) with its weights beside it (--weights X.caffemodel).

The network is taken as it is when it answers: layers for training only, data, losses and
accuracies are left out. What is read from data layers becomes an input; a network that only
names its data takes `--input` for the shape.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import InputError, UsageError
from ...files import read_input, read_text
from ...tensors import Array, TensorSpec
from .. import ports
from ..build import Graph
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import networks
from .caffe_files import Message, is_text, parse_text, parse_weights
from .caffe_layers import LAYERS, OLD_NAMES, Layer

MAX_TEXT_BYTES = 64 << 20
MAX_LAYERS = 100_000
DATA = ("Data", "DummyData", "HDF5Data", "ImageData", "MemoryData", "WindowData", "Python")
# Layers that answer nothing when the network is used.
LEFT_OUT = ("Accuracy", "Silence", "EuclideanLoss", "HingeLoss", "SigmoidCrossEntropyLoss", "ContrastiveLoss")


def convert(source: str, options: ConvertOptions) -> Converted:
    """The network as ONNX. Raises InputError for what is malformed or cannot be mapped."""
    path = Path(source)
    if not is_text(read_input(path)[:256]):
        raise UsageError(
            "these are only a network's weights",
            where=path,
            expected="mserve export deploy.prototxt BASE_PATH --weights X.caffemodel",
        )
    if options.weights is None:
        raise UsageError(
            "a network without weights", where=path, expected="--weights X.caffemodel", found="none"
        )
    weights_path = Path(options.weights)
    network = parse_text(read_text(path, MAX_TEXT_BYTES), str(path))
    layers = _layers(network, parse_weights(read_input(weights_path), str(weights_path)))
    kinds = [layer.kind for layer in layers if layer.kind not in ("Input", *DATA)]
    networks.check_known(kinds, LAYERS, "the network", path)
    graph = Graph()
    inputs, outputs, kind = _connect(graph, network, layers, options)
    return networks.finish(graph, inputs, outputs, kind, options)


def _layers(network: Message, weights: dict[str, list[Array]]) -> list[Layer]:
    """The layers that answer, with their weights."""
    found = []
    described = [*network.messages("layers"), *network.messages("layer")]
    if not 0 < len(described) <= MAX_LAYERS:
        expected = f"1 to {MAX_LAYERS} layers"
        raise InputError("not a network", where=network.where, expected=expected, found=len(described))
    for message in described:
        written = message.text("type")
        kind = OLD_NAMES.get(written, written)
        if kind in LEFT_OUT or not _answers(message):
            continue
        name = message.text("name")
        found.append(Layer(name, kind, message, weights.get(name, [])))
    return found


def _answers(message: Message) -> bool:
    """Whether a layer takes part when the network is used, and not in its training."""
    included, excluded = message.messages("include"), message.messages("exclude")
    phases = [one.text("phase") for one in included]
    if any(phase in ("TRAIN", "0") for phase in phases) and "TEST" not in phases:
        return False
    return not any(one.text("phase") in ("TEST", "1") for one in excluded)


def _connect(
    graph: Graph, network: Message, layers: list[Layer], options: ConvertOptions
) -> tuple[dict[str, TensorSpec], dict[str, str], str]:
    """Add every layer; the inputs, the outputs (what no layer takes) and what a single one means."""
    inputs = _inputs(network, layers, options)
    tensors = {name: name for name in inputs}
    labels = {top for layer in layers if layer.kind in DATA for top in layer.message.texts("top")[1:]}
    taken: set[str] = set()
    made: dict[str, str] = {}
    for layer in layers:
        if layer.kind in ("Input", *DATA):
            continue
        bottoms = [name for name in layer.message.texts("bottom") if name not in labels]
        tops = layer.message.texts("top")
        missing = [name for name in bottoms if name not in tensors]
        if missing or not bottoms or not tops:
            expected = ", ".join([*tensors][-12:])
            found = ", ".join(missing) or "no bottom or no top"
            raise InputError(
                "a layer takes what is not there", where=layer.where, expected=expected, found=found
            )
        found_tensors = LAYERS[layer.kind](graph, layer, tuple(tensors[name] for name in bottoms))
        taken.update(bottoms)
        for name, tensor in zip(tops, found_tensors, strict=False):
            tensors[name] = tensor
            made[name] = layer.kind
            taken.discard(name)
    left = [name for name in made if name not in taken]
    if not left:
        raise InputError("the network gives nothing", where=network.where)
    kind = networks.PROBABILITIES if made[left[-1]] in ("Softmax", "SoftmaxWithLoss") else ""
    return inputs, {name: tensors[name] for name in left}, kind


def _inputs(network: Message, layers: list[Layer], options: ConvertOptions) -> dict[str, TensorSpec]:
    """What the network takes, [batch, ...]; --input says more than the text. Raises UsageError."""
    names = network.texts("input")
    dims = network.integers("input_dim", [])
    shapes = [one.integers("dim", []) for one in network.messages("input_shape")]
    shapes = shapes or [dims[i : i + 4] for i in range(0, len(dims), 4)]
    for layer in layers:
        if layer.kind in ("Input", *DATA):
            tops = layer.message.texts("top") if layer.kind == "Input" else layer.message.texts("top")[:1]
            own = [one.integers("dim", []) for one in layer.message.message("input_param").messages("shape")]
            names += tops
            shapes += [*own, *[[]] * len(tops)][: len(tops)]
    given = ports.specs(options.input)
    ports.only_known(given, names, network.where)
    found = {}
    for name, shape in zip(names, [*shapes, *[[]] * len(names)], strict=False):
        sides = shape[1:]
        if name not in given and (not sides or not all(0 < side <= networks.MAX_SIDE for side in sides)):
            raise UsageError(
                "the text does not say what the network takes",
                where=network.where,
                expected=f"--input {name}:float32[batch,3,224,224], with the sizes that it was trained on",
                found=f"{name}: {shape}",
            )
        found[name] = given.get(name) or TensorSpec(name, "float32", ("batch", *sides))
    if not found:
        raise UsageError("the network has no input", where=network.where, expected="input, or a data layer")
    return found


def _matches(seen: Seen) -> bool:
    head = seen.head
    if re.match(rb"\x0a[\x01-\x40][\x20-\x7e]+(\x12|\xa2\x06)", head[:80]):
        return True  # weights: the network's name, then a layer
    if not head or not is_text(head):
        return False
    layer = re.search(rb"^\s*layers?\s*:?\s*[{<]", head, re.MULTILINE)
    return layer is not None and re.search(rb"\btype\s*:", head) is not None


KIND = Kind(
    name="caffe",
    what="a Caffe model (.prototxt with --weights X.caffemodel)",
    matches=_matches,
    convert=convert,
    options=("input", "labels", "weights"),
)
