"""Protocol Buffers' wire format, read and written without generated classes.

A message is a sequence of records: a varint tag (field number << 3 | wire type) and a
payload. Reading one level of a message needs nothing else, so a bundle can be opened,
checked and listed without importing onnx, and a half-copied or hostile file is refused
at the exact byte where it stops making sense. Payloads are returned as positions in the
caller's buffer: nothing is copied.

Source: https://protobuf.dev/programming-guides/encoding/ (groups, wire types 3 and 4,
do not occur in the messages read here and are refused).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Buffer = bytes | memoryview


class Malformed(ValueError):
    """The bytes are not a protobuf message. `offset` is where reading failed."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.reason = reason
        self.offset = offset


class Field(NamedTuple):
    """One record: payload bytes are `buffer[start:end]`; `value` is set for varints only."""

    number: int
    wire_type: int
    start: int
    end: int
    value: int
    record_start: int


def fields(buffer: Buffer, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yield the records of the message in `buffer[start:end]`, in stored order.

    Raises Malformed at the first byte that cannot be part of a message.
    """
    stop = len(buffer) if end is None else end
    at = start
    while at < stop:
        record = at
        tag, at = varint(buffer, at, stop)
        number, wire_type, value = tag >> 3, tag & 7, 0
        if number == 0 or number > 0x1FFFFFFF:
            raise Malformed(f"field number {number}", record)
        payload = at
        if wire_type == VARINT:
            value, at = varint(buffer, at, stop)
        elif wire_type == BYTES:
            length, payload = varint(buffer, at, stop)
            at = payload + length
        elif wire_type == FIXED64:
            at += 8
        elif wire_type == FIXED32:
            at += 4
        else:
            raise Malformed(f"wire type {wire_type}", record)
        if at > stop:
            raise Malformed(f"field {number} ends at byte {at} of {stop}", record)
        yield Field(number, wire_type, payload, at, value, record)


def varint(buffer: Buffer, at: int, stop: int) -> tuple[int, int]:
    """The unsigned integer that begins at byte `at`, and where it ends. Raises Malformed."""
    result = shift = 0
    first = at
    while at < stop:
        byte = buffer[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise Malformed("a varint longer than ten bytes", first)
    raise Malformed("the data ends inside a varint", first)


def inside(buffer: Buffer, field: Field) -> Iterator[Field]:
    """The records of a nested message. Raises Malformed when the field is something else."""
    if field.wire_type != BYTES:
        raise Malformed(f"field {field.number} is not a message", field.record_start)
    return fields(buffer, field.start, field.end)


def integer(field: Field) -> int:
    """A varint field's unsigned value. Raises Malformed when the field is something else."""
    if field.wire_type != VARINT:
        raise Malformed(f"field {field.number} is not an integer", field.record_start)
    return field.value


def text(buffer: Buffer, field: Field) -> str:
    """A string field's text. Raises Malformed when it is not a UTF-8 string."""
    if field.wire_type != BYTES:
        raise Malformed(f"field {field.number} is not a string", field.record_start)
    try:
        return bytes(buffer[field.start : field.end]).decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"field {field.number} is not UTF-8", field.start) from error


def payload(buffer: Buffer, field: Field) -> Buffer:
    """A bytes field's content. Raises Malformed when the field is something else."""
    if field.wire_type != BYTES:
        raise Malformed(f"field {field.number} is not a string of bytes", field.record_start)
    return buffer[field.start : field.end]


def map_entry(buffer: Buffer, field: Field) -> tuple[str, Field | None]:
    """Key and value record of one entry of a map with text keys. Raises Malformed."""
    key, value = "", None
    for f in inside(buffer, field):
        if f.number == 1:
            key = text(buffer, f)
        elif f.number == 2:
            value = f
    return key, value


def signed(value: int) -> int:
    """A varint's value as a signed 64-bit integer (int32, int64, enum)."""
    return value - (1 << 64) if value >> 63 else value


def packed_varints(buffer: Buffer, field: Field) -> list[int]:
    """The signed values of one record of a repeated integer field, packed or not."""
    if field.wire_type == VARINT:
        return [signed(field.value)]
    if field.wire_type != BYTES:
        raise Malformed(f"field {field.number} is not a list of integers", field.record_start)
    values, at = [], field.start
    while at < field.end:
        value, at = varint(buffer, at, field.end)
        values.append(signed(value))
    return values


def encode_varint(value: int) -> bytes:
    """A non-negative integer as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_bytes(number: int, payload: bytes) -> bytes:
    """One length-delimited record."""
    return encode_varint(number << 3 | BYTES) + encode_varint(len(payload)) + payload
