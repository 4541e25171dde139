"""HPACK header blocks, both ways (RFC 7541).

Read with a scan of our own over the table of the `hpack` library: the library's decoder
takes 50 us for the block of a plain call, and most clients send the same block again and
again. What a block was read to is remembered by its bytes while the dynamic table stays
as it is: the same bytes mean something else as soon as an entry is added, evicted or the
table resized, whether or not its length changes, so each of these forgets everything. A
block that itself touches the table is never remembered.

Huffman-coded strings go byte by byte through rows that are made, when first needed, of
the library's table, which goes by half bytes.

Written without the dynamic table, so that the bytes of an answer's head are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from hpack import Decoder, HPACKError
from hpack.hpack import decode_integer
from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE
from hpack.table import HeaderTable

Field = tuple[bytes, bytes]
T = TypeVar("T")

# Bytes of a field list as RFC 9113 counts them in SETTINGS_MAX_HEADER_LIST_SIZE: each field takes 32 more.
LIST_BYTES_MAX = 32 << 10
FIELD_BYTES = 32
# Up to here fields over the limit are read and dropped, so that the table stays right.
BOMB_BYTES = 8 * LIST_BYTES_MAX
MEMO_ENTRIES = 8
MEMO_BLOCK_BYTES = 1 << 10
_INTEGER_BYTES = 8

_STATIC: tuple[Field, ...] = ((b"", b""), *HeaderTable.STATIC_TABLE)
# By state of the library's table, then by byte: the next state, the symbols, and whether a
# string may end here; None where no string goes on like that.
_Step = tuple[int, bytes, bool]
_rows: list[list[_Step | None] | None] = [None] * (len(HUFFMAN_TABLE) // 16)


class BadBlock(Exception):
    """A header block that cannot be read; the tables of the two sides no longer agree."""


class TooLarge(Exception):
    """A header block was read, and its fields together are over LIST_BYTES_MAX."""


class Bomb(Exception):
    """A block stands for many times more than it may; its rest was not read, so what follows cannot be."""


class BlockReader(Generic[T]):
    """Reads the header blocks of one connection, in their order, into what `read(fields)` makes of them.

    `read` must depend on the fields alone; what it raises is passed on, and not remembered.
    """

    def __init__(self, read: Callable[[list[Field]], T]) -> None:
        self._read = read
        self._table = Decoder().header_table
        self._size_max = self._table.maxsize
        self._memo: dict[bytes, T] = {}
        self._touched = False
        self.changes = 0  # how often the table changed

    def remembers(self, block: bytes) -> bool:
        """Whether a block's bytes mean what they meant, and leave the table as it is."""
        return block in self._memo

    def read(self, block: bytes) -> T:
        """What a block says. Raises BadBlock, TooLarge, Bomb, and what the reader of the fields raises."""
        known = self._memo.get(block)
        if known is not None:
            return known
        fields = self.fields(block)
        value = self._read(fields)
        if not self._touched and len(block) <= MEMO_BLOCK_BYTES:
            if len(self._memo) >= MEMO_ENTRIES:
                self._memo.clear()
            self._memo[block] = value
        return value

    def fields(self, block: bytes) -> list[Field]:
        """The fields of a block, in order. Raises BadBlock, TooLarge, Bomb."""
        self._touched = False
        try:
            return self._scan(block)
        except (HPACKError, IndexError) as error:
            raise BadBlock(str(error)) from error
        finally:
            if self._touched:
                self._memo.clear()
                self.changes += 1

    def _scan(self, block: bytes) -> list[Field]:
        fields: list[Field] = []
        at, size, end = 0, 0, len(block)
        while at < end:
            first = block[at]
            if first >= 0x80:
                index, at = (first & 0x7F, at + 1) if first != 0xFF else _integer(block, at, 7)
                field = _STATIC[index] if 0 < index < len(_STATIC) else self._table.get_by_index(index)
            elif first & 0xE0 == 0x20:
                if size:
                    raise BadBlock("a change of the table's size behind a field")
                at = self._resize(block, at)
                continue
            else:
                field, at = self._literal(block, at, first)
            size += FIELD_BYTES + len(field[0]) + len(field[1])
            if size <= LIST_BYTES_MAX:
                fields.append(field)
            elif size > BOMB_BYTES:
                raise Bomb("header fields without end")
        if size > LIST_BYTES_MAX:
            raise TooLarge(f"{size} bytes of header fields")
        return fields

    def _literal(self, block: bytes, at: int, first: int) -> tuple[Field, int]:
        """A field that is spelled out, and where the next one begins."""
        bits = 6 if first & 0x40 else 4
        index = first & ((1 << bits) - 1)
        index, at = (index, at + 1) if index < (1 << bits) - 1 else _integer(block, at, bits)
        if not index:
            name, at = _string(block, at)
        elif index < len(_STATIC):
            name = _STATIC[index][0]
        else:
            name = self._table.get_by_index(index)[0]
        value, at = _string(block, at)
        if first & 0x40:
            self._touched = True
            self._table.add(name, value)
        return (name, value), at

    def _resize(self, block: bytes, at: int) -> int:
        size, at = _integer(block, at, 5)
        if size > self._size_max:
            raise BadBlock("a table larger than this side allows")
        self._touched = True
        self._table.maxsize = size
        return at


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    value, used = decode_integer(block[at : at + _INTEGER_BYTES], bits)
    return value, at + used


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    length, coded = block[at] & 0x7F, block[at] & 0x80
    length, at = (length, at + 1) if length != 0x7F else _integer(block, at, 7)
    end = at + length
    if end > len(block):
        raise BadBlock("the block ends inside a string")
    data = block[at:end]
    return (huffman(data) if coded else data), end


def huffman(data: bytes) -> bytes:
    """The text of a Huffman-coded string. Raises BadBlock."""
    state, whole = 0, True
    pieces: list[bytes] = []
    for byte in data:
        step = (_rows[state] or _row(state))[byte]
        if step is None:
            raise BadBlock("not a Huffman-coded string")
        state, piece, whole = step
        pieces.append(piece)
    if not whole:
        raise BadBlock("a Huffman-coded string that does not end")
    return b"".join(pieces)


def _row(state: int) -> list[_Step | None]:
    """What each byte does in a state, by two steps of the library's table."""
    row: list[_Step | None] = []
    for byte in range(256):
        middle, flags, symbol = HUFFMAN_TABLE[state * 16 + (byte >> 4)]
        last, more, second = HUFFMAN_TABLE[middle * 16 + (byte & 15)]
        symbols = bytes(
            [symbol] * bool(flags & HUFFMAN_EMIT_SYMBOL) + [second] * bool(more & HUFFMAN_EMIT_SYMBOL)
        )
        fails = (flags | more) & HUFFMAN_FAIL
        row.append(None if fails else (last, symbols, bool(more & HUFFMAN_COMPLETE)))
    _rows[state] = row
    return row


def literal(name: bytes, value: bytes) -> bytes:
    """A field as bytes of a block, spelled out and not to be put into a table."""
    return b"\0" + _length(len(name)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    if size < 0x7F:
        return bytes((size,))
    size -= 0x7F
    more = bytearray((0x7F,))
    while size >= 0x80:
        more.append(size & 0x7F | 0x80)
        size >>= 7
    more.append(size)
    return bytes(more)
