"""A TensorFlow SessionBundle: the version directory that exporters wrote in 2016.

    export.meta                 a MetaGraphDef, with what serving needs in its collections
    export, export-NNNNN-of-NNNNN, or export.index and export.data-NNNNN-of-NNNNN
    assets/                     the files that `serving_assets` lists

No maintained tool reads it, so its signatures are turned into those of a SavedModel by the
rule that TensorFlow had for it: a default signature of regression or classification, else
the named pair "inputs" and "outputs", becomes `serving_default`; others stay as they are
named. Tensors are given by name only, so dtypes and shapes come from the nodes.

Sources: https://github.com/tensorflow/serving/tree/0.4.1/tensorflow_serving/session_bundle
(exporter.py, manifest.proto, session_bundle.cc), tensorflow/contrib/session_bundle/bundle_shim.cc
in TensorFlow before 2.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import BundleIncomplete, InputError
from ..tensors import DEFAULT_SIGNATURE, Shape
from ..wire import protobuf
from ..wire.protobuf import Field
from . import files
from .checkpoint import Checkpoint, open_checkpoint
from .meta_graph import (
    MetaGraphDef,
    SignatureDef,
    TensorInfo,
    name_of,
    read_graph,
    read_meta_graph,
    read_shape,
)
from .saved_model import missing_assets
from .tftypes import UNKNOWN, type_of

META_FILE = "export.meta"
PREFIX = "export"
METHOD = "tensorflow/serving/"
REGRESSION, CLASSIFICATION, GENERIC = "regression", "classification", "generic"
_KINDS = {1: REGRESSION, 2: CLASSIFICATION, 3: GENERIC}
_PORTS = {REGRESSION: ("input", "output"), CLASSIFICATION: ("input", "classes", "scores")}


@dataclass(frozen=True, slots=True)
class NamedSignature:
    """A signature as the bundle has it: its kind, and tensors by the names that the kind gives them."""

    kind: str
    tensors: Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class SessionBundle:
    """An open SessionBundle. `named` has the original signatures, the default one under "";
    `meta_graph` is None where `export.meta` is missing; `problems` keep it from being complete."""

    path: Path
    meta_graph: MetaGraphDef | None
    named: Mapping[str, NamedSignature]
    checkpoint: Checkpoint | None
    assets: dict[str, int]
    problems: tuple[BundleIncomplete, ...]


def open_session_bundle(path: Path) -> SessionBundle:
    """Read what a SessionBundle directory says; the values of its variables are not read.

    Absent and short files are `problems` of the result. Raises InputError when a file is
    corrupt, UnsafePath when an asset lies elsewhere.
    """
    problems: list[BundleIncomplete] = []
    meta_graph, named, checkpoint = None, dict[str, NamedSignature](), None
    try:
        meta_graph, named = read_export(path / META_FILE)
    except BundleIncomplete as error:
        problems.append(error)
    try:
        checkpoint = open_checkpoint(path / PREFIX)
        problems += checkpoint.problems
    except BundleIncomplete as error:
        problems.append(error)
    assets = files.listing(path / "assets")
    problems += missing_assets(path, assets, meta_graph.assets if meta_graph else ())
    return SessionBundle(path, meta_graph, named, checkpoint, assets, tuple(problems))


def read_export(path: Path) -> tuple[MetaGraphDef, dict[str, NamedSignature]]:
    """The MetaGraphDef in a file, its signatures up-converted, and its original signatures.

    Raises BundleIncomplete when the file is missing, InputError when it is corrupt.
    """
    data = files.read_message(path)
    with files.reading("the MetaGraphDef", path):
        meta_graph = read_meta_graph(data, protobuf.fields(data))
        graphs = [*_message(data, meta_graph, "serving_graph", path)]
        if graphs:  # the graph to serve, with its devices cleared; shapes stand in the other one
            meta_graph = replace(meta_graph, graph=read_graph(data, graphs))
        named = {}
        for record in _message(data, meta_graph, "serving_signatures", path):
            named = _signatures(data, record)
        named = _describe(data, (*meta_graph.graphs, *graphs), named)
    converted = {**meta_graph.signatures, **up_convert(named)}
    return replace(meta_graph, signatures=converted), named


def _message(data: bytes, meta_graph: MetaGraphDef, collection: str, path: Path) -> Iterator[Field]:
    """The one message, inside its Any, of a collection that may hold one. Raises InputError for more."""
    values = meta_graph.collections.get(collection, ())
    if len(values) > 1:
        raise InputError(
            "a collection has more than one value",
            where=f"{path}: {collection}",
            expected="one",
            found=len(values),
        )
    for record in values:
        yield from (f for f in protobuf.inside(data, record) if f.number == 2)


def up_convert(named: Mapping[str, NamedSignature]) -> dict[str, SignatureDef]:
    """The `serving_default` that TensorFlow made of a bundle's signatures; empty where it made none."""
    default = named.get("", NamedSignature("", {}))
    inputs = _renamed(default, {"input": "inputs"})
    if default.kind == REGRESSION:
        outputs = _renamed(default, {"output": "outputs"})
        return {DEFAULT_SIGNATURE: SignatureDef(METHOD + "regress", inputs, outputs)}
    if default.kind == CLASSIFICATION:
        outputs = _renamed(default, {"classes": "classes", "scores": "scores"})
        return {DEFAULT_SIGNATURE: SignatureDef(METHOD + "classify", inputs, outputs)}
    pair = [named.get(side) for side in ("inputs", "outputs")]
    sides = [dict(one.tensors) for one in pair if one and one.kind == GENERIC]
    if "" in named or len(sides) != 2:
        return {}
    return {DEFAULT_SIGNATURE: SignatureDef(METHOD + "predict", sides[0], sides[1])}


def _renamed(one: NamedSignature, aliases: dict[str, str]) -> dict[str, TensorInfo]:
    return {aliases[port]: info for port, info in one.tensors.items() if port in aliases}


def _signatures(data: bytes, record: Field) -> dict[str, NamedSignature]:
    """The manifest's Signatures: 1 is the default signature, 2 the map of named ones."""
    found: dict[str, NamedSignature] = {}
    for f in protobuf.inside(data, record):
        if f.number == 1:
            found[""] = _signature(data, f)
        elif f.number == 2:
            name, value = protobuf.map_entry(data, f)
            if value and name:
                found[name] = _signature(data, value)
    return found


def _signature(data: bytes, record: Field) -> NamedSignature:
    kind, names = "", dict[str, str]()
    for f in protobuf.inside(data, record):
        kind = _KINDS.get(f.number, "")
        ports = dict(enumerate(_PORTS.get(kind, ()), 1))
        for g in protobuf.inside(data, f):
            if kind == GENERIC and g.number == 1:
                alias, value = protobuf.map_entry(data, g)
                names[alias] = name_of(data, value) if value else ""
            elif g.number in ports:
                names[ports[g.number]] = name_of(data, g)
    tensors = {alias: TensorInfo(name, UNKNOWN.dtype, None) for alias, name in sorted(names.items()) if name}
    return NamedSignature(kind, tensors)


def _describe(
    data: bytes, graphs: tuple[Field, ...], named: dict[str, NamedSignature]
) -> dict[str, NamedSignature]:
    """The signatures with the dtypes and shapes that the nodes give to their tensors."""
    wanted = {info.name.partition(":")[0] for one in named.values() for info in one.tensors.values()}
    known: dict[str, tuple[int, list[Shape]]] = {}
    for node in (f for graph in graphs for f in protobuf.inside(data, graph) if f.number == 1):
        name = name_of(data, node)
        if name in wanted:
            number, shapes = _output(data, node)
            known[name] = (number or known.get(name, (0, []))[0], shapes or known.get(name, (0, []))[1])
    return {
        name: replace(one, tensors={alias: _with_type(info, known) for alias, info in one.tensors.items()})
        for name, one in named.items()
    }


def _with_type(info: TensorInfo, known: dict[str, tuple[int, list[Shape]]]) -> TensorInfo:
    node, _, port = info.name.partition(":")
    number, shapes = known.get(node, (0, []))
    index = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    shape = shapes[index] if index < len(shapes) else None
    return replace(info, dtype=type_of(number if index == 0 else 0).dtype, shape=shape)


# The attribute that holds the dtype of output 0, by its usual names, the most telling first.
_TYPE_ATTRIBUTES = ("dtype", "DstT", "out_type", "output_type", "Tout", "T")


def _output(data: bytes, node: Field) -> tuple[int, list[Shape]]:
    """The dtype of a node's output 0 and the shapes of all outputs, as far as its attributes say."""
    types: dict[str, int] = {}
    shapes: list[Shape] = []
    for f in protobuf.inside(data, node):
        if f.number != 5:
            continue
        key, value = protobuf.map_entry(data, f)
        for g in protobuf.inside(data, value) if value else ():
            if g.number == 6:
                types[key] = protobuf.integer(g)
            elif g.number == 1 and key == "_output_shapes":
                shapes = [read_shape(data, h) for h in protobuf.inside(data, g) if h.number == 7]
    return next((types[key] for key in _TYPE_ATTRIBUTES if key in types), 0), shapes
