"""Torch7 models: a network of `nn` layers in a file of `torch.save` (.t7).

A network does not say what it takes. Where its first layer is a matrix, that tells; where
the network was saved with the buffers of its training, the gradient of its input has the
input's shape; otherwise `--input` says it. A file that holds a table (a checkpoint) must have
one network in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import InputError, UsageError
from ...files import read_input
from ...tensors import Dim, TensorSpec
from .. import ports
from ..build import Graph
from ..kinds import Converted, ConvertOptions, Kind, Seen
from . import networks, torch7_layers
from .torch7_file import Thing, View, parse
from .torch7_layer import Layer, plain

INPUT = "x"
# Where a network begins, these keep the shape and so are looked past.
_THROUGH = ("nn.Dropout", "nn.Identity", "nn.Contiguous", "nn.Copy")


def convert(source: str, options: ConvertOptions) -> Converted:
    """The network as ONNX. Raises InputError for what is malformed or cannot be mapped."""
    path = Path(source)
    root = Layer(_network(parse(read_input(path), str(path)), path), f"{path}: network")
    layers = list(torch7_layers.walk(root))
    names = [plain(layer.thing.name) for layer in layers]
    networks.check_known(names, torch7_layers.LAYERS, "the network", path)
    inputs, notes = _inputs(layers, options, path)
    graph = Graph()
    specs = tuple(inputs.values())
    given = tuple(_narrow(graph, spec) for spec in specs)
    found = torch7_layers.apply(graph, root, given[0] if len(given) == 1 else given)
    tensors = (found,) if isinstance(found, str) else found
    outputs = {f"output{i}" if len(tensors) > 1 else "output": t for i, t in enumerate(tensors)}
    converted = networks.finish(graph, inputs, outputs, _kind(layers), options)
    converted.notes = notes
    return converted


def _narrow(graph: Graph, spec: TensorSpec) -> str:
    """The input as the float32 that layers take."""
    return spec.name if spec.dtype == "float32" else graph.cast(spec.name, "float32")


def _network(value: Any, path: Path) -> Thing:
    if isinstance(value, Thing) and plain(value.name).startswith(("nn.", "cudnn.")):
        return value
    if isinstance(value, dict):
        found = {k: v for k, v in value.items() if isinstance(v, Thing) and plain(v.name).startswith("nn.")}
        if len(found) == 1:
            return next(iter(found.values()))
        has = ", ".join(str(key) for key in value)[:200] or "an empty table"
        raise InputError(
            "the table has not one network in it", where=path, expected="one nn module", found=has
        )
    has = value.name if isinstance(value, Thing) else type(value).__name__
    raise InputError("not a network", where=path, expected="an nn module", found=has[:80])


def _kind(layers: list[Layer]) -> str:
    """What the columns of the last layer mean."""
    name = plain(layers[-1].thing.name)
    known = {"nn.SoftMax": networks.PROBABILITIES, "nn.LogSoftMax": networks.LOG_PROBABILITIES}
    return known.get(name, "")


def _inputs(
    layers: list[Layer], options: ConvertOptions, path: Path
) -> tuple[dict[str, TensorSpec], tuple[str, ...]]:
    if options.input:
        return ports.specs(options.input), ()
    first = next((x for x in layers if plain(x.thing.name) not in ("nn.Sequential", *_THROUGH)), layers[0])
    if plain(first.thing.name) in ("nn.Linear", "nn.LinearNoBias"):
        columns = first.array("weight").shape[-1]
        return {INPUT: TensorSpec(INPUT, "float32", ("batch", columns))}, ()
    gradient = layers[0].thing.fields.get("gradInput")
    if isinstance(gradient, View) and len(gradient.sizes) > 1 and min(gradient.sizes) > 0:
        shape: tuple[Dim, ...] = ("batch", *gradient.sizes[1:])
        note = (
            f"the input's shape, {list(shape)}, is that of the gradient which training left in the file; "
            "--input says it otherwise"
        )
        return {INPUT: TensorSpec(INPUT, "float32", shape)}, (note,)
    raise UsageError(
        "the file does not say what the network takes",
        where=path,
        expected="--input x:float32[batch,3,224,224], with the sizes that it was trained on",
        found=f"a network that begins with {first.thing.name}",
    )


def _matches(seen: Seen) -> bool:
    """An object of nn or a table that holds one, in either form."""
    head = seen.head
    binary = head[:8] == b"\4\0\0\0\1\0\0\0" or (head[:8] == b"\3\0\0\0\1\0\0\0" and b"V 1" in head)
    ascii_form = head[:4] in (b"4\n1\n", b"3\n1\n") and b"\nV 1\n" in head
    return (binary and (b"nn." in head or b"torch." in head)) or ascii_form


KIND = Kind(
    name="torch7",
    what="a Torch7 model (.t7)",
    matches=_matches,
    convert=convert,
    options=("input", "labels"),
)
