"""The values of a checkpoint's variables, as little-endian, row-major bytes in pieces.

A variable stored in parts that only divide axis 0, as every partitioner of TensorFlow does
for tables, streams part after part; other divisions are put together in memory.

Sources: those of `checkpoint`, and framework/tensor.proto in the same place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from ..errors import BundleIncomplete, InputError
from ..wire import protobuf
from ..wire.protobuf import BYTES, FIXED32, FIXED64, Field, Malformed, varint
from ..wire.tensor_proto import little_endian, packed
from . import crc32c, files, table
from .checkpoint import Checkpoint, Part, Variable
from .tftypes import TYPES

_WIDTHS = {t.dtype: t.width for t in TYPES.values()}
# Fields of TensorProto: those whose payload is the values' bytes, and those of varints.
_RAW_FIELDS = {4, 5, 6, 9, 12, 18}
_VARINT_FIELDS = {7, 10, 11, 13, 16, 17}
_STRING_FIELD = 8


def chunks(checkpoint: Checkpoint, variable: Variable) -> Iterator[bytes]:
    """The bytes of a variable of fixed-size values, in order; one value per byte for 4-bit types.

    Checksums are checked as the bytes pass, so an error may come after good pieces. Raises
    BundleIncomplete for an absent or short file, InputError for bytes that are corrupt or in
    a form that is not supported.
    """
    width = _WIDTHS.get(variable.dtype, 0)
    if width == 0:
        raise _unsupported(checkpoint, variable, "values of a fixed size", variable.dtype)
    if checkpoint.big_endian:
        raise _unsupported(checkpoint, variable, "little-endian values", "big-endian")
    parts = sorted(variable.parts, key=lambda part: part.box.start)
    if all(part.box.size[1:] == variable.shape[1:] for part in parts):
        for part in parts:
            yield from _part_chunks(checkpoint, part, width)
    else:
        whole = [(part, b"".join(_part_chunks(checkpoint, part, width))) for part in parts]
        yield _assemble(whole, variable.shape, width)


def strings(checkpoint: Checkpoint, variable: Variable) -> list[bytes]:
    """The values of a string variable. Raises as `chunks`, and for parts that divide another axis than 0."""
    parts = sorted(variable.parts, key=lambda part: part.box.start)
    if variable.dtype != "string" or any(p.box.size[1:] != variable.shape[1:] for p in parts):
        raise _unsupported(checkpoint, variable, "strings, in parts along axis 0", variable.dtype)
    read = _stored_strings if checkpoint.version == 2 else _listed_strings
    return [word for part in parts for word in read(checkpoint.prefix.with_name(part.shard), part)]


def _unsupported(checkpoint: Checkpoint, variable: Variable, expected: str, found: str) -> InputError:
    return InputError(
        "the values of a variable are stored in a way that is not read",
        where=f"{checkpoint.prefix}: {variable.name}",
        expected=expected,
        found=found,
    )


def _part_chunks(checkpoint: Checkpoint, part: Part, width: int) -> Iterator[bytes]:
    path = checkpoint.prefix.with_name(part.shard)
    if checkpoint.version == 2:
        crc = 0
        for piece in files.pieces(path, part.offset, part.length):
            crc = crc32c.extend(crc, piece)
            yield piece
        _check(path, part, crc)
        return
    missing = width * math.prod(part.box.size)
    with files.reading("a value of the checkpoint", path):
        data, tensor = _saved_slice(path, part)
        for f in (g for record in tensor for g in protobuf.inside(data, record)):
            for piece in _tensor_piece(data, f, width):
                missing -= len(piece)
                yield piece
        if missing:
            off = f"{abs(missing)} bytes too {'short' if missing > 0 else 'long'}"
            raise Malformed(f"a value that is {off}", 0)


def _check(path: Path, part: Part, crc: int) -> None:
    if crc32c.masked(crc) != part.crc32c:
        raise InputError(
            "a variable's bytes do not have their checksum",
            where=f"{path}: bytes {part.offset} to {part.offset + part.length}",
            expected=f"{part.crc32c:08x}",
            found=f"{crc32c.masked(crc):08x}",
            hint=files.COPY_HINT,
        )


def _saved_slice(path: Path, part: Part) -> tuple[bytes, list[Field]]:
    """The stored message of a part of V1, and the records of its TensorProto."""
    stored = table.lookup(table.open_table(path), part.key)
    if stored is None:
        raise BundleIncomplete("a value is missing", where=path, expected=f"the part at {part.box.start}")
    saved = (f for f in protobuf.fields(stored) if f.number == 2)
    return stored, [g for f in saved for g in protobuf.inside(stored, f) if g.number == 3]


def _tensor_piece(data: bytes, f: Field, width: int) -> Iterator[bytes]:
    """The values in one record of a TensorProto; nothing for records that hold none."""
    if f.number in _RAW_FIELDS:
        if f.wire_type not in (BYTES, FIXED32, FIXED64) or (f.end - f.start) % width:
            raise Malformed("values that do not have the width of their type", f.record_start)
        yield data[f.start : f.end]
    elif f.number in _VARINT_FIELDS:
        if f.wire_type == BYTES:
            yield from packed(data, f.start, f.end, width)
        else:
            yield little_endian(protobuf.integer(f), width)


def _assemble(parts: list[tuple[Part, bytes]], shape: tuple[int, ...], width: int) -> bytes:
    """One tensor from boxes that fill it, copied in runs along the last axis."""
    out = bytearray(sum(len(data) for _, data in parts))
    strides = [width * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    for part, data in parts:
        run, at = width * part.box.size[-1], 0
        origin = sum(start * stride for start, stride in zip(part.box.start, strides, strict=True))
        for index in itertools.product(*map(range, part.box.size[:-1])):
            to = origin + sum(i * stride for i, stride in zip(index, strides, strict=False))
            out[to : to + run] = data[at : at + run]
            at += run
    return bytes(out)


def _stored_strings(path: Path, part: Part) -> list[bytes]:
    """V2: the lengths as varints, their checksum, the bytes; the lengths are summed as fixed integers."""
    data, count = files.read_range(path, part.offset, part.length), math.prod(part.box.size)
    if count > len(data):
        raise InputError("strings are cut short", where=path, expected=count, found=f"{len(data)} bytes")
    with files.reading("a value of the checkpoint", path):
        at, crc, lengths = 0, 0, []
        for _ in range(count):
            length, at = varint(data, at, len(data))
            crc = crc32c.extend(crc, length.to_bytes(4 if length < 1 << 32 else 8, "little"))
            lengths.append(length)
        if crc32c.masked(crc) != int.from_bytes(data[at : at + 4], "little"):
            raise Malformed("lengths of strings that do not have their checksum", part.offset + at)
        if at + 4 + sum(lengths) != len(data):
            raise Malformed("strings that are not as long as they say", part.offset)
    _check(path, part, crc32c.extend(crc, memoryview(data)[at:]))
    ends = list(itertools.accumulate(lengths, initial=at + 4))
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def _listed_strings(path: Path, part: Part) -> list[bytes]:
    """V1: each string is a record."""
    with files.reading("a value of the checkpoint", path):
        data, tensor = _saved_slice(path, part)
        records = (g for record in tensor for g in protobuf.inside(data, record))
        words = [bytes(protobuf.payload(data, f)) for f in records if f.number == _STRING_FIELD]
        if len(words) != math.prod(part.box.size):
            raise Malformed(f"{len(words)} strings for a part of {list(part.box.size)}", 0)
    return words
