"""Tiny files in TensorFlow's layouts, written field by field, so that every byte can be chosen."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mserve.foreign import crc32c
from mserve.foreign.slices import WHOLE, Extents, key_of
from mserve.foreign.table import MAGIC
from mserve.wire.protobuf import VARINT, encode_bytes, encode_varint

FLOAT, INT32, STRING, INT64 = 1, 3, 7, 9
Value = int | str | bytes


def message(*fields: tuple[int, Value]) -> bytes:
    """A message of varint and length-delimited fields; a text or bytes may be a message of its own."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += encode_varint(number << 3 | VARINT) + encode_varint(value % 2**64)
        else:
            out += encode_bytes(number, value.encode() if isinstance(value, str) else value)
    return out


def fixed32(number: int, value: int) -> bytes:
    return encode_varint(number << 3 | 5) + value.to_bytes(4, "little")


def shape(*dims: int) -> bytes:
    """A TensorShapeProto."""
    return message(*((2, message((1, d))) for d in dims))


def entry(key: str, value: bytes) -> bytes:
    """An entry of a map."""
    return message((1, key), (2, value))


# --- tables


def literal(data: bytes) -> bytes:
    """A snappy block of literals only."""
    out = encode_varint(len(data))
    for at in range(0, len(data), 60):
        piece = data[at : at + 60]
        out += bytes([len(piece) - 1 << 2]) + piece
    return out


def block(entries: Sequence[tuple[bytes, bytes]], restart_every: int = 16) -> bytes:
    """A block whose keys leave out what they share with the key before."""
    out, restarts, before = b"", [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += encode_varint(shared) + encode_varint(len(key) - shared) + encode_varint(len(value))
        out += key[shared:] + value
        before = key
    restarts = restarts or [0]
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def stored(body: bytes, kind: int = 0) -> bytes:
    """A block with its compression and checksum."""
    body += bytes([kind])
    return body + crc32c.masked(crc32c.extend(0, body)).to_bytes(4, "little")


def handle(offset: int, size: int) -> bytes:
    return encode_varint(offset) + encode_varint(size)


def footer(index_offset: int, index_size: int) -> bytes:
    handles = handle(0, 0) + handle(index_offset, index_size)
    return handles.ljust(40, b"\0") + MAGIC


def table_of(entries: Mapping[bytes, bytes], *, per_block: int = 1000, snappy: bool = False) -> bytes:
    """A table of the given entries."""
    rows, out, index = sorted(entries.items()), b"", []
    for at in range(0, len(rows), per_block):
        group = rows[at : at + per_block]
        body = literal(block(group)) if snappy else block(group)
        index.append((group[-1][0], handle(len(out), len(body))))
        out += stored(body, int(snappy))
    body = literal(block(index)) if snappy else block(index)
    return out + stored(body, int(snappy)) + footer(len(out), len(body))


# --- checkpoints


@dataclass(frozen=True)
class Saved:
    """A variable to write: dtype number, shape, bytes; or the boxes it is cut into, with their bytes."""

    number: int
    dims: tuple[int, ...]
    data: bytes = b""
    parts: tuple[tuple[Extents, bytes], ...] = ()


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def extents(*pairs: tuple[int, int]) -> bytes:
    """A TensorSliceProto."""
    return message(*((1, message(*((n, v) for n, v in enumerate(p, 1) if p != (0, WHOLE)))) for p in pairs))


def bundle_entry(number: int, dims: Sequence[int], offset: int, data: bytes, *boxes: Extents) -> bytes:
    crc = crc32c.masked(crc32c.extend(0, data))
    place = message((1, number), (2, shape(*dims)), (4, offset), (5, len(data)))
    return place + fixed32(6, crc) + message(*((7, extents(*box)) for box in boxes))


def write_v2(prefix: Path, variables: Mapping[str, Saved], **options: bool) -> Path:
    """A checkpoint of format V2 with one data file."""
    data, entries = b"", {b"": message((1, 1), (2, 0))}
    for name, v in variables.items():
        for box, piece in v.parts:
            dims = [d if e == (0, WHOLE) else e[1] for e, d in zip(box, v.dims, strict=True)]
            entries[key_of(name, box)] = bundle_entry(v.number, dims, len(data), piece)
            data += piece
        boxes = [box for box, _ in v.parts]
        entries[name.encode()] = bundle_entry(v.number, v.dims, len(data), v.data, *boxes)
        data += v.data
    prefix.parent.mkdir(parents=True, exist_ok=True)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table_of(entries, **options))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    return prefix


_VALUE_FIELDS = {FLOAT: 5, INT32: 7, INT64: 10}


def v1_table(variables: Mapping[str, Saved], **options: bool) -> bytes:
    """One file of a checkpoint of format V1; the bytes of a variable are its packed field."""
    metas, entries = [], {}
    for name, v in sorted(variables.items()):
        parts = v.parts or ((((0, WHOLE),) * len(v.dims), v.data),)
        slices = ((4, extents(*box)) for box, _ in parts)
        metas.append(message((1, name), (2, shape(*v.dims)), (3, v.number), *slices))
        for box, data in parts:
            field = (8, data) if v.number == STRING else (_VALUE_FIELDS[v.number], data)
            tensor = message((1, v.number), field)
            saved = message((1, name), (2, extents(*box)), (3, tensor))
            entries[key_of(name, box)] = message((2, saved))
    entries[b""] = message((1, message(*((1, meta) for meta in metas))))
    return table_of(entries, **options)


# --- meta graphs


def tensor_info(name: str, number: int = FLOAT, dims: Sequence[int] | None = (-1,)) -> bytes:
    fields: list[tuple[int, Value]] = [(1, name), (2, number)]
    return message(*fields, *([(3, shape(*dims))] if dims is not None else []))


def signature(method: str, inputs: Mapping[str, bytes], outputs: Mapping[str, bytes]) -> bytes:
    ports = [(n, entry(a, t)) for n, side in ((1, inputs), (2, outputs)) for a, t in side.items()]
    return message(*ports, (3, method))


def node(name: str, op: str, **attributes: bytes) -> bytes:
    return message((1, name), (2, op), *((5, entry(k, v)) for k, v in attributes.items()))


def any_list(kind: str, *messages: bytes) -> bytes:
    """A collection of messages."""
    packed = (message((1, f"type.googleapis.com/{kind}"), (2, m)) for m in messages)
    return message((5, message(*((1, p) for p in packed))))


def node_list(*names: str) -> bytes:
    return message((1, message(*((1, n) for n in names))))


HALF_PLUS_TWO = {
    "a": Saved(FLOAT, (), floats(0.5)),
    "b": Saved(FLOAT, (), floats(2.0)),
}
NODES = [node("x", "Placeholder"), node("a", "VariableV2"), node("y", "Mul"), node("z", "Mul")]


def graph_def(*nodes: bytes, functions: Sequence[bytes] = ()) -> bytes:
    library = message(*((1, f) for f in functions))
    return message(*((1, n) for n in nodes), (2, library), (4, message((1, 26))))


def saved_model_pb(*meta_graphs: bytes, schema: int = 1) -> bytes:
    return message((1, schema), *((2, m) for m in meta_graphs))


def meta_graph(**parts: object) -> bytes:
    """A MetaGraphDef: tags, version, nodes, functions, signatures, assets, collections."""
    tags, version = parts.get("tags", ("serve",)), parts.get("version", "1.15.0")
    assert isinstance(tags, tuple)
    info = message(*((4, tag) for tag in tags), (5, str(version)))
    functions = [message((1, message((1, "f"))), (3, node("n", "AddV2")))]
    saver = message((1, "save/Const:0"), (3, "save/restore_all"), (5, 1), (7, 2))
    fields: list[tuple[int, Value]] = [(1, info), (2, graph_def(*NODES, functions=functions)), (3, saver)]
    for number, key in ((4, "collections"), (5, "signatures")):
        table = parts.get(key, {})
        assert isinstance(table, dict)
        fields += [(number, entry(name, value)) for name, value in table.items()]
    assets = parts.get("assets", {})
    assert isinstance(assets, dict)
    for filename, tensor in assets.items():
        fields.append((6, message((1, tensor_info(tensor, STRING)), (2, filename))))
    return message(*fields)


PREDICT = signature(
    "tensorflow/serving/predict", {"x": tensor_info("x:0")}, {"y": tensor_info("y:0", dims=(-1, 1))}
)


def write_saved_model(path: Path) -> Path:
    """y = a x + b, with one asset."""
    path.mkdir(parents=True)
    graph = meta_graph(signatures={"serving_default": PREDICT}, assets={"words.txt": "Const:0"})
    (path / "saved_model.pb").write_bytes(saved_model_pb(graph))
    (path / "assets").mkdir()
    (path / "assets" / "words.txt").write_text("a\nb\n")
    write_v2(path / "variables" / "variables", HALF_PLUS_TWO, snappy=True)
    return path


def binding(name: str) -> bytes:
    return message((1, name))


def generic(**tensors: str) -> bytes:
    """A manifest Signature of the generic kind."""
    return message((3, message(*((1, entry(a, binding(t))) for a, t in tensors.items()))))


def regression(source: str, target: str) -> bytes:
    return message((1, message((1, binding(source)), (2, binding(target)))))


def classification(source: str, classes: str, scores: str) -> bytes:
    return message((2, message((1, binding(source)), (2, binding(classes)), (3, binding(scores)))))


def manifest(default: bytes | None = None, **named: bytes) -> bytes:
    """The `serving_signatures` collection."""
    first = [(1, default)] if default is not None else []
    signatures = message(*first, *((2, entry(name, value)) for name, value in named.items()))
    return any_list("tensorflow.serving.Signatures", signatures)


def write_session_bundle(path: Path, signatures: bytes | None = None, *, version: int = 1) -> Path:
    """y = a x + b as an exporter of 2016 left it: V1 in two shards, or V2."""
    path.mkdir(parents=True)
    asset = message((1, binding("Const_1:0")), (2, "hello.txt"))
    output_shapes = message((1, message((7, shape(-1, 1)))))
    serving = graph_def(node("x", "Placeholder", dtype=message((6, FLOAT)), _output_shapes=output_shapes))
    collections = {
        "serving_assets": any_list("tensorflow.serving.AssetFile", asset),
        "serving_init_op": node_list("group_deps"),
        "serving_graph": any_list("tensorflow.GraphDef", serving),
        "serving_signatures": signatures or manifest(inputs=generic(x="x:0"), outputs=generic(y="y:0")),
    }
    (path / "export.meta").write_bytes(meta_graph(tags=(), version="0.11.0", collections=collections))
    (path / "assets").mkdir()
    (path / "assets" / "hello.txt").write_text("hello\n")
    if version == 2:
        write_v2(path / "export", HALF_PLUS_TWO)
        return path
    for number, (name, v) in enumerate(HALF_PLUS_TWO.items()):
        (path / f"export-{number:05d}-of-00002").write_bytes(v1_table({name: v}))
    return path
