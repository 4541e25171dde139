"""CRC-32C (Castagnoli), in pure Python for short data and in numpy's lanes for long.

A CRC is linear, so a long piece is cut into lanes of equal length whose registers all
advance together, one byte of every lane at a time; then neighbours are joined pairwise:
the left register is moved forward over the right one's bytes, as if those were zeros,
and the two are added. Moving a register over n zero bytes is a 32 x 32 matrix of bits,
found by repeated squaring.

TensorFlow and LevelDB store checksums masked, because a checksum of data that holds
checksums is weak.

Source: https://www.rfc-editor.org/rfc/rfc3720#appendix-B.4 (polynomial),
https://github.com/google/leveldb/blob/main/util/crc32c.h (mask).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..wire.protobuf import Buffer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

POLYNOMIAL = 0x82F63B78  # bits reversed
LONG_BYTES = 64 << 10
LANES = 1 << 14


def _table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (POLYNOMIAL if value & 1 else 0) for value in table]
    return table


_TABLE = _table()


def extend(crc: int, data: Buffer) -> int:
    """The CRC of what `crc` covers followed by `data`; begin with 0."""
    register = crc ^ 0xFFFFFFFF
    if len(data) >= LONG_BYTES:
        whole = len(data) // LANES * LANES
        register = _long(register, memoryview(data)[:whole])
        data = memoryview(data)[whole:]
    for byte in data:
        register = _TABLE[(register ^ byte) & 0xFF] ^ register >> 8
    return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """A CRC as it is stored."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _long(register: int, data: memoryview) -> int:
    import numpy as np

    length = len(data) // LANES
    rows = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(LANES, length).T)
    table = np.array(_TABLE, np.uint32)
    lanes = np.zeros(LANES, np.uint32)
    lanes[0] = register
    for row in rows:
        lanes = table[(lanes ^ row) & 0xFF] ^ lanes >> 8
    while len(lanes) > 1:
        lanes = _forward(lanes[::2], length) ^ lanes[1::2]
        length *= 2
    return int(lanes[0])


def _forward(registers: npt.NDArray[np.uint32], length: int) -> npt.NDArray[np.uint32]:
    """Every register moved over `length` zero bytes."""
    import numpy as np

    moved: Any = np.zeros_like(registers)
    for bit, image in enumerate(_zeros(length)):
        moved ^= (registers >> bit & 1) * np.uint32(image)
    return np.asarray(moved, np.uint32)


@lru_cache(maxsize=256)
def _zeros(length: int) -> tuple[int, ...]:
    """The images of the 32 bits of a register after `length` zero bytes."""
    if length == 1:
        return tuple(_TABLE[(1 << bit) & 0xFF] ^ (1 << bit) >> 8 for bit in range(32))
    half = _zeros(length // 2)
    twice = tuple(_apply(half, image) for image in half)
    return tuple(_apply(_zeros(1), image) for image in twice) if length % 2 else twice


def _apply(matrix: tuple[int, ...], register: int) -> int:
    result = 0
    for image in matrix:
        if register & 1:
            result ^= image
        register >>= 1
    return result
