"""The values of an ONNX TensorProto, as little-endian bytes in bounded pieces.

A tensor keeps its values as raw bytes or in one of six typed fields; those of short types
stand in `int32_data`, one bit pattern for each value (for 4-bit types, for each pair).

Field numbers: onnx/onnx.proto3, https://github.com/onnx/onnx.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..tensors import DTYPES
from . import protobuf
from .model_proto import Weight
from .protobuf import BYTES, FIXED32, FIXED64, Field, Malformed, varint

PIECE_BYTES = 4 << 20
VARINTS_PER_PIECE = 1 << 16
STRING_FIELD = 6
_RAW_FIELDS = (4, 9, 10)
_VARINT_FIELDS = (5, 7, 11)


def chunks(data: bytes, weight: Weight) -> Iterator[bytes]:
    """The bytes of an inline tensor of a known dtype that is not string.

    Raises protobuf.Malformed when they are not as many as its shape needs.
    """
    dtype = DTYPES[weight.dtype]
    width, missing = max(1, dtype.bits // 8), dtype.byte_size(weight.elements)
    for f in protobuf.fields(data, weight.start, weight.end):
        for piece in _field(data, f, width):
            missing -= len(piece)
            if missing < 0:
                raise Malformed(f"more values than {weight.name!r} has", f.record_start)
            yield piece
    if missing:
        raise Malformed(f"{missing} bytes less than {weight.name!r} has", weight.start)


def count_strings(data: bytes, weight: Weight) -> int:
    """How many strings an inline tensor holds. Raises protobuf.Malformed."""
    return sum(f.number == STRING_FIELD for f in protobuf.fields(data, weight.start, weight.end))


def _field(data: bytes, f: Field, width: int) -> Iterator[bytes]:
    if f.number in _RAW_FIELDS:
        if f.wire_type not in (BYTES, FIXED32, FIXED64) or (f.end - f.start) % width:
            raise Malformed("values that do not have the width of their type", f.record_start)
        for at in range(f.start, f.end, PIECE_BYTES):
            yield data[at : min(at + PIECE_BYTES, f.end)]
    elif f.number in _VARINT_FIELDS:
        if f.wire_type != BYTES:
            yield little_endian(protobuf.integer(f), width)
            return
        yield from packed(data, f.start, f.end, width)


def packed(data: bytes, at: int, end: int, width: int) -> Iterator[bytes]:
    """Packed varints as integers of `width` bytes. Raises protobuf.Malformed."""
    while at < end:
        values: list[bytes] = []
        while at < end and len(values) < VARINTS_PER_PIECE:
            value, at = varint(data, at, end)
            values.append(little_endian(value, width))
        yield b"".join(values)


def little_endian(value: int, width: int) -> bytes:
    """The low bytes of an integer."""
    return (value & (1 << 8 * width) - 1).to_bytes(width, "little")
