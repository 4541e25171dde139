"""The variables of a TensorFlow checkpoint, in both of its formats.

V2, since TensorFlow 0.12: `PREFIX.index` is a table with a BundleHeaderProto under the
empty key and a BundleEntryProto under each name; values are raw bytes in
`PREFIX.data-NNNNN-of-NNNNN`. V1, before: `PREFIX`, or `PREFIX-NNNNN-of-NNNNN`, are tables
that hold the values too; under the empty key stand the names, shapes and parts.

In both, a variable may be stored in parts (slices), spread over the files. Here every
variable is a tuple of parts, of which an ordinary variable has one.

Sources, below https://github.com/tensorflow/tensorflow/tree/master/tensorflow/core:
protobuf/tensor_bundle.proto, util/tensor_bundle/, util/saved_tensor_slice.proto
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleIncomplete, InputError
from ..wire import protobuf
from ..wire.protobuf import FIXED32, Field, Malformed
from . import files, table
from .meta_graph import read_shape
from .slices import Extents, Slice, key_of, read_extents, resolve, tiles
from .tftypes import TfType, type_of

MAX_INDEX_BYTES = 64 << 20
MAX_KEYS_BYTES = 64 << 20
MAX_VARIABLES = 250_000
MAX_PARTS = 100_000
MAX_SHARDS = 100_000  # five digits
_SHARD = re.compile(r"-[0-9]{5}-of-([0-9]{5})")


@dataclass(frozen=True, slots=True)
class Part:
    """A box of a variable: bytes at `offset` of a data file (V2), or the value of `key` in a table (V1)."""

    box: Slice
    shard: str
    offset: int = 0
    length: int = 0
    crc32c: int = 0
    key: bytes = b""


@dataclass(frozen=True, slots=True)
class Variable:
    """A tensor of a checkpoint; `length` is what its values take (0 in V1 for those without a fixed size)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open checkpoint. `shards` are the files that hold values, None as size for absent ones;
    `problems` what keeps it from being complete."""

    prefix: Path
    version: int
    big_endian: bool
    shards: dict[str, int | None]
    variables: tuple[Variable, ...]
    problems: tuple[BundleIncomplete, ...] = ()


def is_checkpoint(prefix: Path) -> bool:
    """Whether files of a checkpoint with this prefix are there, complete or not."""
    index = prefix.with_name(prefix.name + ".index")
    return table.is_table(index) or table.is_table(prefix) or any(map(table.is_table, _v1_shards(prefix)))


def open_checkpoint(prefix: Path) -> Checkpoint:
    """List the variables of a checkpoint; their values are not read.

    Raises BundleIncomplete when there is none, InputError when it is corrupt or not supported.
    Absent and short data files are `problems` of the result.
    """
    index = prefix.with_name(prefix.name + ".index")
    if files.size_of(index) is not None:
        return _open_v2(prefix, index)
    shards = [prefix] if files.size_of(prefix) is not None else _v1_shards(prefix)
    if not shards:
        raise BundleIncomplete(
            "the checkpoint is missing",
            where=prefix,
            expected=f"{prefix.name}.index, {prefix.name} or {prefix.name}-NNNNN-of-NNNNN",
            found="none of them",
            hint=files.COPY_HINT,
        )
    return _open_v1(prefix, shards)


def _v1_shards(prefix: Path) -> list[Path]:
    """The files PREFIX-NNNNN-of-NNNNN that are there, of the newest count if there are several."""
    found: dict[str, list[Path]] = {}
    if prefix.parent.is_dir():
        for path in prefix.parent.iterdir():
            match = _SHARD.fullmatch(path.name[len(prefix.name) :])
            if path.name.startswith(prefix.name) and match:
                found.setdefault(match[1], []).append(path)
    return max((sorted(paths) for paths in found.values()), key=len, default=[])


def _missing(path: Path, expected: str = "") -> BundleIncomplete:
    return BundleIncomplete(
        "a file of the checkpoint is missing", where=path, expected=expected, hint=files.COPY_HINT
    )


# --- V2


@dataclass(frozen=True, slots=True)
class _Entry:
    """One BundleEntryProto."""

    kind: TfType
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    slices: tuple[Extents, ...]


def _open_v2(prefix: Path, index: Path) -> Checkpoint:
    if (size := files.size_of(index) or 0) > MAX_INDEX_BYTES:
        raise InputError(
            "the checkpoint's index is too large", where=index, expected=MAX_INDEX_BYTES, found=size
        )
    with files.reading("the checkpoint's index", index):
        header, entries = _read_index(table.open_table(index))
        if not 0 <= header[1] < MAX_SHARDS:
            raise Malformed(f"{header[1]} data files", 0)
        names = [f"{prefix.name}.data-{i:05d}-of-{header[1]:05d}" for i in range(header[1])]
        variables = []
        for key, entry in entries.items():
            if key and not key.startswith(b"\0"):
                variables.append(_variable(key, entry, entries, names))
    sizes = {name: files.size_of(prefix.with_name(name)) for name in names}
    problems = tuple(_short(prefix, sizes, variables))
    return Checkpoint(prefix, 2, bool(header[2]), sizes, tuple(variables), problems)


def _read_index(index: table.Table) -> tuple[dict[int, int], dict[bytes, _Entry]]:
    """The header's numbers (1: data files, 2: endianness), and the entries by key."""
    header: dict[int, int] = {}
    entries: dict[bytes, _Entry] = {}
    keys_bytes = 0
    for key, value in table.entries(index):
        if not key:
            header = {1: 0, 2: 0}
            for f in protobuf.fields(value):
                if f.number in header:
                    header[f.number] = protobuf.integer(f)
            continue
        if not header:
            raise Malformed("an index that does not begin with its header", 0)
        keys_bytes += len(key)
        entries[key] = _entry(value)
        if len(entries) > MAX_VARIABLES or keys_bytes > MAX_KEYS_BYTES:
            raise Malformed(f"more than {MAX_VARIABLES} variables, or too long names", 0)
    if not header:
        raise Malformed("an index without header", 0)
    return header, entries


def _entry(value: bytes) -> _Entry:
    numbers = {1: 0, 3: 0, 4: 0, 5: 0}
    shape: tuple[int, ...] = ()
    crc32c, slices = 0, []
    for f in protobuf.fields(value):
        if f.number in numbers:
            numbers[f.number] = protobuf.integer(f)
        elif f.number == 2:
            shape = fixed_shape(value, f)
        elif f.number == 6:
            if f.wire_type != FIXED32:
                raise Malformed("a checksum that is not a fixed32", f.record_start)
            crc32c = int.from_bytes(value[f.start : f.end], "little")
        elif f.number == 7:
            slices.append(read_extents(value, f))
            if len(slices) > MAX_PARTS:
                raise Malformed(f"more than {MAX_PARTS} parts of a variable", f.record_start)
    return _Entry(type_of(numbers[1]), shape, numbers[3], numbers[4], numbers[5], crc32c, tuple(slices))


def fixed_shape(data: bytes, record: Field) -> tuple[int, ...]:
    """A shape whose sizes are all known. Raises protobuf.Malformed."""
    shape = read_shape(data, record)
    sizes = [d for d in shape or () if isinstance(d, int)]
    if shape is None or len(sizes) != len(shape):
        raise Malformed("a variable of unknown shape", record.record_start)
    if math.prod(sizes) >= 1 << 63:
        raise Malformed(f"a variable of shape {sizes}", record.record_start)
    return tuple(sizes)


def _variable(key: bytes, entry: _Entry, entries: dict[bytes, _Entry], names: list[str]) -> Variable:
    try:
        name = key.decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"a name that is not UTF-8: {key[:64]!r}", 0) from error
    if not entry.slices:
        parts = [_part(name, entry, Slice((0,) * len(entry.shape), entry.shape), names)]
    else:
        parts = []
        for extents in entry.slices:
            box, stored = resolve(extents, entry.shape, 0), entries.get(key_of(name, extents))
            if stored is None or stored.slices or (stored.kind, stored.shape) != (entry.kind, box.size):
                raise Malformed(f"no part at {box.start} of {name!r}", 0)
            parts.append(_part(name, stored, box, names))
        if not tiles([p.box for p in parts], entry.shape):
            raise Malformed(f"parts that do not fill {name!r}", 0)
    return Variable(name, entry.kind.dtype, entry.shape, sum(p.length for p in parts), tuple(parts))


def _part(name: str, entry: _Entry, box: Slice, names: list[str]) -> Part:
    if entry.shard >= len(names):
        raise Malformed(f"{name!r} in data file {entry.shard} of {len(names)}", 0)
    if entry.kind.width and entry.size != entry.kind.width * math.prod(box.size):
        raise Malformed(f"{entry.size} bytes for {name!r}, {entry.kind.name} {list(box.size)}", 0)
    return Part(box, names[entry.shard], entry.offset, entry.size, entry.crc32c)


def _short(
    prefix: Path, sizes: dict[str, int | None], variables: Iterable[Variable]
) -> Iterable[BundleIncomplete]:
    """The data files that are absent, or end before a variable that lies in them."""
    ends = dict.fromkeys(sizes, 0)
    for part in (p for v in variables for p in v.parts):
        ends[part.shard] = max(ends[part.shard], part.offset + part.length)
    for name, size in sizes.items():
        if size is None:
            yield _missing(prefix.with_name(name), f"{ends[name]} bytes")
        elif size < ends[name]:
            yield BundleIncomplete(
                "a file of the checkpoint is too short",
                where=prefix.with_name(name),
                expected=f"{ends[name]} bytes",
                found=f"{size} bytes",
                hint=files.COPY_HINT,
            )


# --- V1


@dataclass(slots=True)
class _Listed:
    """A variable of V1 while its parts are gathered."""

    kind: TfType
    shape: tuple[int, ...]
    parts: list[Part]


def _open_v1(prefix: Path, shards: list[Path]) -> Checkpoint:
    listed: dict[str, _Listed] = {}
    for path in shards:
        with files.reading("the checkpoint", path):
            key, value = next(table.entries(table.open_table(path)), (b"-", b""))
            if key:
                raise Malformed("a table without a list of variables", 0)
            for record in _slice_metas(value):
                _list(value, record, listed, path.name)
    sizes = {path.name: files.size_of(path) for path in shards}
    problems: list[BundleIncomplete] = []
    count = _SHARD.fullmatch(shards[0].name[len(prefix.name) :])
    for i in range(int(count[1]) if count else 0):
        name = f"{prefix.name}-{i:05d}-of-{count[1] if count else ''}"
        if name not in sizes:
            sizes[name] = None
            problems.append(_missing(prefix.with_name(name)))
    variables = []
    for name, v in sorted(listed.items()):
        if not problems and not tiles([p.box for p in v.parts], v.shape):
            problems.append(_missing(prefix, f"all parts of {name!r}"))
        length = v.kind.width * math.prod(v.shape)
        variables.append(Variable(name, v.kind.dtype, v.shape, length, tuple(v.parts)))
    return Checkpoint(prefix, 1, False, sizes, tuple(variables), tuple(problems))


def _slice_metas(value: bytes) -> Iterable[Field]:
    """The SavedSliceMeta records of a SavedTensorSlices."""
    metas = (f for f in protobuf.fields(value) if f.number == 1)
    return (g for meta in metas for g in protobuf.inside(value, meta) if g.number == 1)


def _list(value: bytes, record: Field, listed: dict[str, _Listed], shard: str) -> None:
    """Add one SavedSliceMeta: a variable, or more parts of it."""
    name, number, shape = "", 0, tuple[int, ...]()
    extents = []
    for f in protobuf.inside(value, record):
        if f.number == 1:
            name = protobuf.text(value, f)
        elif f.number == 2:
            shape = fixed_shape(value, f)
        elif f.number == 3:
            number = protobuf.integer(f)
        elif f.number == 4:
            extents.append(read_extents(value, f))
    known = listed.setdefault(name, _Listed(type_of(number), shape, []))
    if (known.kind, known.shape) != (type_of(number), shape) or len(listed) > MAX_VARIABLES:
        raise Malformed(f"{name!r} listed twice and differently", record.record_start)
    if len(extents) + len(known.parts) > MAX_PARTS:
        raise Malformed(f"more than {MAX_PARTS} parts of {name!r}", record.record_start)
    for one in extents:
        box = resolve(one, shape, record.record_start)
        known.parts.append(Part(box, shard, key=key_of(name, one)))
