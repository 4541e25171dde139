"""TensorFlow's MetaGraphDef: a graph, what may be asked of it, and how it is restored.

Both layouts hold it: a SavedModel some of them in `saved_model.pb`, a SessionBundle one in
`export.meta`. Nodes are counted, not kept: a graph may have a million.

Sources, all below https://github.com/tensorflow/tensorflow/tree/master/tensorflow/core:
protobuf/meta_graph.proto, protobuf/saver.proto, framework/{graph,node_def,function,op_def}.proto
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..tensors import ANY_DIM, Dim, Shape
from ..wire import protobuf
from ..wire.protobuf import Field, Malformed
from .slices import MAX_RANK
from .tftypes import type_of

MAX_SIGNATURES = 10_000
ASSET_COLLECTIONS = ("saved_model_assets", "serving_assets")
INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op", "serving_init_op")
INIT_SIGNATURE = "__saved_model_init_op"
DENSE, SPARSE, COMPOSITE = "dense", "sparse", "composite"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor that a signature names; a sparse or composite one has the names of its parts instead."""

    name: str
    dtype: str
    shape: Shape
    kind: str = DENSE
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SignatureDef:
    """Method name and tensors by alias; `defaults` are the inputs that a request may leave out."""

    method_name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    defaults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AssetFileDef:
    """A file of `assets/`, and the tensor that is fed its path."""

    filename: str
    tensor: str


@dataclass(frozen=True, slots=True)
class SaverDef:
    """How variables are restored: the tensor that takes the path, the operator to run, the format."""

    filename_tensor: str
    restore_op: str
    sharded: bool
    version: int


@dataclass(frozen=True, slots=True)
class GraphDef:
    """How many of which operators; functions are the graph's library."""

    producer: int = 0
    operators: Counter[str] = field(default_factory=Counter)
    functions: int = 0
    function_operators: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class MetaGraphDef:
    """One meta graph. `init_op` is what runs after the variables are restored, "" for nothing.

    `collections` has the records of each collection's values, and `graphs` those of its
    GraphDef (one, if an ordinary writer wrote it): places in the file that was read.
    """

    tags: tuple[str, ...]
    tensorflow_version: str
    git_version: str
    graph: GraphDef
    saver: SaverDef | None
    signatures: Mapping[str, SignatureDef]
    assets: tuple[AssetFileDef, ...]
    init_op: str
    collections: Mapping[str, tuple[Field, ...]]
    graphs: tuple[Field, ...]


def read_meta_graph(data: bytes, records: Iterator[Field]) -> MetaGraphDef:
    """Read a MetaGraphDef from its records. Raises protobuf.Malformed."""
    tags: list[str] = []
    versions = {5: "", 6: ""}
    graphs: list[Field] = []
    saver: SaverDef | None = None
    signatures: dict[str, SignatureDef] = {}
    assets: list[AssetFileDef] = []
    collections: dict[str, tuple[Field, ...]] = {}
    for f in records:
        if f.number == 1:
            _read_meta_info(data, f, tags, versions)
        elif f.number == 2:
            graphs.append(f)
        elif f.number == 3:
            saver = _saver(data, f)
        elif f.number == 4:
            name, value = protobuf.map_entry(data, f)
            collections[name] = tuple(_collection(data, value)) if value else ()
        elif f.number == 5:
            name, value = protobuf.map_entry(data, f)
            signatures[name] = _signature(data, value) if value else SignatureDef("", {}, {})
            if len(signatures) > MAX_SIGNATURES:
                raise Malformed(f"more than {MAX_SIGNATURES} signatures", f.record_start)
        elif f.number == 6:
            assets.append(read_asset(data, protobuf.inside(data, f)))
    listed = (f for name in ASSET_COLLECTIONS for f in collections.get(name, ()))
    return MetaGraphDef(
        tags=tuple(tags),
        tensorflow_version=versions[5],
        git_version=versions[6],
        graph=read_graph(data, graphs),
        saver=saver,
        init_op=_init_op(data, collections, signatures),
        signatures=signatures,
        # TensorFlow, too, turns to the collection when the field is empty.
        assets=tuple(assets) or tuple(read_asset(data, any_message(data, f)) for f in listed),
        collections=collections,
        graphs=tuple(graphs),
    )


def _init_op(
    data: bytes, collections: Mapping[str, tuple[Field, ...]], signatures: dict[str, SignatureDef]
) -> str:
    """The operator to run after the restore; since TensorFlow 2 it is written as a signature."""
    written = signatures.pop(INIT_SIGNATURE, None)
    names = [info.name for info in written.outputs.values()] if written else []
    names += [protobuf.text(data, f) for name in INIT_COLLECTIONS for f in collections.get(name, ())]
    return names[0] if names else ""


def _read_meta_info(data: bytes, record: Field, tags: list[str], versions: dict[int, str]) -> None:
    for f in protobuf.inside(data, record):
        if f.number == 4:
            tags.append(protobuf.text(data, f))
        elif f.number in versions:
            versions[f.number] = protobuf.text(data, f)


def _saver(data: bytes, record: Field) -> SaverDef:
    names, sharded, version = {1: "", 3: ""}, False, 0
    for f in protobuf.inside(data, record):
        if f.number in names:
            names[f.number] = protobuf.text(data, f)
        elif f.number == 5:
            sharded = bool(protobuf.integer(f))
        elif f.number == 7:
            version = protobuf.integer(f)
    return SaverDef(names[1], names[3], sharded, version)


def _collection(data: bytes, record: Field) -> Iterator[Field]:
    """The values of a collection of nodes, bytes or messages, each a record."""
    for kind in protobuf.inside(data, record):
        if kind.number in (1, 2, 5):  # node_list, bytes_list, any_list; the others hold numbers
            yield from (f for f in protobuf.inside(data, kind) if f.number == 1)


def any_message(data: bytes, record: Field) -> Iterator[Field]:
    """The records of the message inside an Any. Raises protobuf.Malformed."""
    for f in protobuf.inside(data, record):
        if f.number == 2:
            yield from protobuf.inside(data, f)


def read_asset(data: bytes, records: Iterator[Field]) -> AssetFileDef:
    """An AssetFileDef, or the AssetFile of 2016, which has the same shape. Raises protobuf.Malformed."""
    filename = tensor = ""
    for f in records:
        if f.number == 1:
            tensor = name_of(data, f)
        elif f.number == 2:
            filename = protobuf.text(data, f)
    return AssetFileDef(filename, tensor)


def name_of(data: bytes, record: Field) -> str:
    """Field 1 of a message, as text: the name of a TensorInfo, a TensorBinding or an OpDef."""
    name = ""
    for f in protobuf.inside(data, record):
        if f.number == 1:
            name = protobuf.text(data, f)
    return name


def _signature(data: bytes, record: Field) -> SignatureDef:
    sides: dict[int, dict[str, TensorInfo]] = {1: {}, 2: {}}
    method, defaults = "", []
    for f in protobuf.inside(data, record):
        if f.number in sides:
            alias, value = protobuf.map_entry(data, f)
            sides[f.number][alias] = _tensor_info(data, value) if value else TensorInfo("", "?", None)
        elif f.number == 3:
            method = protobuf.text(data, f)
        elif f.number == 4:
            defaults.append(protobuf.map_entry(data, f)[0])
    inputs, outputs = (dict(sorted(side.items())) for side in sides.values())
    return SignatureDef(method, inputs, outputs, tuple(sorted(defaults)))


def _tensor_info(data: bytes, record: Field) -> TensorInfo:
    name, dtype, shape, kind = "", 0, None, DENSE
    parts: list[str] = []
    for f in protobuf.inside(data, record):
        if f.number == 1:
            name = protobuf.text(data, f)
        elif f.number == 2:
            dtype = protobuf.integer(f)
        elif f.number == 3:
            shape = read_shape(data, f)
        elif f.number == 4:  # CooSparse: the names of values, indices and dense shape
            kind = SPARSE
            parts += [protobuf.text(data, g) for g in protobuf.inside(data, f)]
        elif f.number == 5:  # CompositeTensor: each component is a TensorInfo
            kind = COMPOSITE
            parts += [name_of(data, g) for g in protobuf.inside(data, f) if g.number == 2]
    return TensorInfo(name, type_of(dtype).dtype, shape, kind, tuple(parts))


def read_shape(data: bytes, record: Field) -> Shape:
    """A TensorShapeProto: unknown sizes are "?", an unknown rank is None. Raises protobuf.Malformed."""
    dims: list[Dim] = []
    unknown = False
    for f in protobuf.inside(data, record):
        if f.number == 2:
            size = 0
            for g in protobuf.inside(data, f):
                if g.number == 1:
                    size = protobuf.signed(protobuf.integer(g))
            dims.append(size if size >= 0 else ANY_DIM)
            if len(dims) > MAX_RANK:
                raise Malformed(f"a shape of more than {MAX_RANK} axes", record.record_start)
        elif f.number == 3:
            unknown = bool(protobuf.integer(f))
    return None if unknown else tuple(dims)


def read_graph(data: bytes, graphs: list[Field]) -> GraphDef:
    """Count the operators of a GraphDef; parts of it add up. Raises protobuf.Malformed."""
    operators: Counter[str] = Counter()
    inner: Counter[str] = Counter()
    producer = functions = 0
    for f in (f for graph in graphs for f in protobuf.inside(data, graph)):
        if f.number == 1:
            operators[_operator(data, f)] += 1
        elif f.number == 2:
            for function in protobuf.inside(data, f):
                if function.number == 1:
                    functions += 1
                    inner.update(_function_operators(data, function))
        elif f.number == 3:
            producer = producer or protobuf.integer(f)  # before version 4: field 4 did not exist
        elif f.number == 4:
            producer = next((protobuf.integer(g) for g in protobuf.inside(data, f) if g.number == 1), 0)
    return GraphDef(producer, operators, functions, inner)


def _operator(data: bytes, node: Field) -> str:
    op = ""
    for f in protobuf.inside(data, node):
        if f.number == 2:
            op = protobuf.text(data, f)
    return op


def _function_operators(data: bytes, function: Field) -> Iterator[str]:
    for f in protobuf.inside(data, function):
        if f.number == 3:
            yield _operator(data, f)
