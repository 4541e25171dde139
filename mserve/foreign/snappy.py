"""Snappy's raw block format, decompression only.

A block begins with its decompressed length, then literals and copies of earlier output.
A copy of 64 bytes takes at least 3, so no honest block grows more than 22 times: a
declared length beyond that, or beyond the caller's limit, is refused before anything is
allocated, and output never outgrows the declared length.

Source: https://github.com/google/snappy/blob/main/format_description.txt
"""

from __future__ import annotations

from ..wire.protobuf import Buffer, Malformed, varint

MAX_GROWTH = 22


def decompress(data: Buffer, limit: int) -> bytes:
    """The decompressed block. Raises Malformed when it is not one, or longer than `limit`."""
    length, at = varint(data, 0, len(data))
    if length > min(limit, MAX_GROWTH * len(data)):
        raise Malformed(f"a snappy block of {len(data)} bytes that claims {length}", 0)
    out = bytearray()
    while at < len(data):
        element, tag = at, data[at]
        at += 1
        if tag & 3 == 0:
            size, at = _literal_size(data, tag >> 2, at)
            if at + size > len(data) or len(out) + size > length:
                raise Malformed(f"a snappy literal of {size} bytes", element)
            out += data[at : at + size]
            at += size
            continue
        size, offset, at = _copy(data, tag, at)
        if offset == 0 or offset > len(out) or len(out) + size > length:
            raise Malformed(f"a snappy copy of {size} bytes from {offset} back", element)
        start = len(out) - offset
        # A copy may read what it writes: then the last `offset` bytes repeat.
        source = out[start : start + size]
        out += (source * (size // offset + 1))[:size]
    if len(out) != length:
        raise Malformed(f"a snappy block of {len(out)} bytes that claims {length}", len(data))
    return bytes(out)


def _literal_size(data: Buffer, code: int, at: int) -> tuple[int, int]:
    """Length of a literal, and where it starts: codes from 60 say how many bytes hold the length."""
    if code < 60:
        return code + 1, at
    size, at = _little_endian(data, at, code - 59)
    return size + 1, at


def _copy(data: Buffer, tag: int, at: int) -> tuple[int, int, int]:
    """Length and distance of a copy, and where the next element starts."""
    if tag & 3 == 1:
        low, at = _little_endian(data, at, 1)
        return (tag >> 2 & 7) + 4, (tag >> 5) << 8 | low, at
    offset, at = _little_endian(data, at, 2 if tag & 3 == 2 else 4)
    return (tag >> 2) + 1, offset, at


def _little_endian(data: Buffer, at: int, width: int) -> tuple[int, int]:
    if at + width > len(data):
        raise Malformed("the snappy block ends inside an element", at)
    return int.from_bytes(data[at : at + width], "little"), at + width
