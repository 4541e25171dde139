"""Variables stored in parts: where a part lies in its tensor, and under which key.

The key of a part is an "ordered code", whose bytes sort as the values do: 0, the name,
the number of axes, and start and length on each; an axis taken whole is (0, -1).

Source: https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/framework/tensor_slice.proto
and tensorflow/core/lib/strings/ordered_code.h in the same repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..wire import protobuf
from ..wire.protobuf import Buffer, Field, Malformed

WHOLE = -1
MAX_RANK = 254


@dataclass(frozen=True, slots=True)
class Slice:
    """A box in a tensor: its first index and its size on each axis."""

    start: tuple[int, ...]
    size: tuple[int, ...]


Extents = tuple[tuple[int, int], ...]


def read_extents(buffer: Buffer, record: Field) -> Extents:
    """Start and length on each axis of a TensorSliceProto; a length of -1 is the whole axis."""
    extents = []
    for f in protobuf.inside(buffer, record):
        if f.number != 1:
            continue
        start, length = 0, WHOLE
        for g in protobuf.inside(buffer, f):
            if g.number == 1:
                start = protobuf.signed(protobuf.integer(g))
            elif g.number == 2:
                length = protobuf.signed(protobuf.integer(g))
        extents.append((start, length))
    return tuple(extents)


def resolve(extents: Extents, shape: Sequence[int], at: int) -> Slice:
    """The box that extents mean in a tensor of the given shape. Raises Malformed when it leaves it."""
    if len(extents) != len(shape):
        raise Malformed(f"a slice of {len(extents)} axes in a tensor of {len(shape)}", at)
    starts = tuple(start for start, _ in extents)
    sizes = tuple(
        size if extent == (0, WHOLE) else extent[1] for extent, size in zip(extents, shape, strict=True)
    )
    for start, length, size in zip(starts, sizes, shape, strict=True):
        if start < 0 or length < 0 or start + length > size:
            raise Malformed(f"a slice from {start} of length {length} in an axis of {size}", at)
    return Slice(starts, sizes)


def tiles(parts: Sequence[Slice], shape: Sequence[int]) -> bool:
    """Whether the boxes are the cells of a grid that fills the tensor: no gap, no overlap."""
    cells = 1
    for axis, size in enumerate(shape):
        cuts = sorted({(p.start[axis], p.size[axis]) for p in parts})
        at = 0
        for start, length in cuts:
            if start != at:
                return False
            at += length
        if at != size:
            return False
        cells *= len(cuts)
    return len(parts) == cells == len(set(parts))


def key_of(name: str, extents: Extents) -> bytes:
    """The key under which a checkpoint keeps a part of a variable."""
    escaped = name.encode().replace(b"\xff", b"\xff\x00").replace(b"\x00", b"\x00\xff")
    numbers = b"".join(_signed(value) for extent in extents for value in extent)
    return _unsigned(0) + escaped + b"\x00\x01" + _unsigned(len(extents)) + numbers


def _unsigned(value: int) -> bytes:
    digits = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return bytes([len(digits)]) + digits


def _signed(value: int) -> bytes:
    """Seven bits to a byte; as many leading ones as bytes, inverted for negative values."""
    length = ((~value if value < 0 else value).bit_length()) // 7 + 1
    header = (1 << length) - 1 << 7 * length
    return ((value ^ header) & (1 << 8 * length) - 1).to_bytes(length, "big")
