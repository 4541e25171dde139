"""The sorted table of LevelDB, in which TensorFlow keeps checkpoints.

A table is a run of blocks and a 48-byte footer. The footer says where the index block
lies; the index block has one entry for each data block, a key not less than its last one
and its place (a "handle": offset and size). A block holds sorted entries whose keys leave
out what they share with the key before, then the offsets of entries that share nothing
("restarts"), then how many of those there are. Behind a block stand its compression and
the masked CRC-32C of both.

Trust nothing: blocks must follow each other without overlap and keys must rise, so that
every byte is read at most once and nothing can point back; all checksums are checked;
keys and decompressed blocks have limits.

Source: https://github.com/google/leveldb/blob/main/doc/table_format.md
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, MserveError
from ..wire.protobuf import Malformed, varint
from . import crc32c, files, snappy

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER_BYTES = 48
TRAILER_BYTES = 5
MAX_BLOCK_BYTES = 256 << 20  # of a compressed block, when decompressed
MAX_KEY_BYTES = 16 << 10
PLAIN, SNAPPY = 0, 1


class Handle(NamedTuple):
    """Where a block lies, without its trailer."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Table:
    """An open table: its data blocks, each with a key not less than any of its own."""

    path: Path
    blocks: tuple[tuple[bytes, Handle], ...]


def is_table(path: Path) -> bool:
    """Whether a regular file ends as a table does; what cannot be read does not."""
    size = files.size_of(path)
    if size is None or size < FOOTER_BYTES:
        return False
    try:
        return files.read_range(path, size - len(MAGIC), len(MAGIC)) == MAGIC
    except MserveError:
        return False


def open_table(path: Path) -> Table:
    """Read footer and index.

    Raises BundleIncomplete when the file is missing, InputError when it is not a table,
    cut short, or corrupt.
    """
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
    footer = files.read_range(path, max(0, size - FOOTER_BYTES), min(size, FOOTER_BYTES))
    if len(footer) < FOOTER_BYTES or not footer.endswith(MAGIC):
        raise InputError(
            "not a checkpoint file, or one that is cut short",
            where=path,
            expected=f"a footer of {FOOTER_BYTES} bytes that ends in {MAGIC.hex()}",
            found=f"{size} bytes that end in {footer[-8:].hex() or 'nothing'}",
            hint=files.COPY_HINT,
        )
    with files.reading("the checkpoint's index", path):
        _, at = _handle(footer, 0)  # of the meta-index, which TensorFlow leaves empty
        index, _ = _handle(footer, at)
        _check_handle(index, 0, size - FOOTER_BYTES)
        blocks: list[tuple[bytes, Handle]] = []
        for key, value in block_entries(_read_block(path, index)):
            handle, end = _handle(value, 0)
            if end != len(value):
                raise Malformed("a handle with bytes behind it", end)
            last = blocks[-1][1] if blocks else Handle(-TRAILER_BYTES, 0)
            _check_handle(handle, last.offset + last.size + TRAILER_BYTES, index.offset)
            blocks.append((key, handle))
    return Table(path, tuple(blocks))


def entries(table: Table) -> Iterator[tuple[bytes, bytes]]:
    """Every key and value, in order of keys. Raises InputError at a corrupt block."""
    before = b""
    for number, (last, handle) in enumerate(table.blocks):
        with files.reading("a block of the checkpoint", table.path):
            for key, value in block_entries(_read_block(table.path, handle)):
                if not before <= key <= last or (key == before and number):
                    raise Malformed("keys that do not rise", handle.offset)
                yield key, value
                before = key


def lookup(table: Table, wanted: bytes) -> bytes | None:
    """The value of a key, or None. Raises InputError at a corrupt block."""
    for last, handle in table.blocks:
        if wanted <= last:
            with files.reading("a block of the checkpoint", table.path):
                found = (v for key, v in block_entries(_read_block(table.path, handle)) if key == wanted)
                return next(found, None)
    return None


def block_entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys, which rise, and values of one block. Raises Malformed."""
    count = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * count
    if end < 0:
        raise Malformed(f"a block of {len(block)} bytes with {count} restarts", max(0, len(block) - 4))
    restarts = {int.from_bytes(block[i : i + 4], "little") for i in range(end, len(block) - 4, 4)}
    at, key = 0, b""
    while at < end:
        start = at
        shared, at = varint(block, at, end)
        fresh, at = varint(block, at, end)
        length, at = varint(block, at, end)
        if shared > len(key) or shared + fresh > MAX_KEY_BYTES or at + fresh + length > end:
            raise Malformed("an entry that does not fit its block", start)
        if start in restarts and shared:
            raise Malformed("a restart that shares its key", start)
        following = key[:shared] + block[at : at + fresh]
        if following <= key and start:
            raise Malformed("keys that do not rise", start)
        key, at = following, at + fresh + length
        yield key, block[at - length : at]


def _handle(data: bytes, at: int) -> tuple[Handle, int]:
    offset, at = varint(data, at, len(data))
    size, at = varint(data, at, len(data))
    return Handle(offset, size), at


def _check_handle(handle: Handle, start: int, end: int) -> None:
    if handle.offset < start or handle.offset + handle.size + TRAILER_BYTES > end:
        raise Malformed(f"a block of {handle.size} bytes outside of bytes {start} to {end}", handle.offset)


def _read_block(path: Path, handle: Handle) -> bytes:
    stored = files.read_range(path, handle.offset, handle.size + TRAILER_BYTES)
    body, kind = stored[: handle.size], stored[handle.size]
    expected = int.from_bytes(stored[-4:], "little")
    found = crc32c.masked(crc32c.extend(0, memoryview(stored)[:-4]))
    if found != expected:
        raise Malformed(f"a block with checksum {found:08x}, not {expected:08x},", handle.offset)
    if kind == PLAIN:
        return body
    if kind != SNAPPY:
        raise Malformed(f"a block of unknown compression {kind}", handle.offset)
    return snappy.decompress(body, MAX_BLOCK_BYTES)
