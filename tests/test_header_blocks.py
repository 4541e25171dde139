"""HPACK: our reader of header blocks against the `hpack` library's, and what it remembers."""

from __future__ import annotations

import random
from typing import Any

import hpack
import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.wire.header_blocks import (
    LIST_BYTES_MAX,
    MEMO_ENTRIES,
    BadBlock,
    BlockReader,
    TooLarge,
    huffman,
    literal,
)

WORDS = st.sampled_from(
    [b"a", b"te", b":path", b"x-request-id", b"authorization", b"x" * 300, b"", b"\xff\0"]
)
FIELD = st.tuples(WORDS | st.binary(max_size=8), WORDS | st.binary(max_size=40), st.booleans())
STEP = st.one_of(
    st.tuples(st.just("fields"), st.lists(FIELD, max_size=8), st.booleans()),
    st.tuples(st.just("size"), st.sampled_from([0, 40, 100, 4096]), st.none()),
    st.tuples(st.just("bytes"), st.binary(max_size=30), st.none()),
    st.tuples(st.just("bent"), st.lists(FIELD, min_size=1, max_size=4), st.integers(0, 2**32)),
)


def both(decoder: Decoder, reader: BlockReader[Any], block: bytes) -> tuple[Any, Any]:
    """What the library and we make of a block: its fields, or None for one that is bad."""
    try:
        theirs: Any = [tuple(field) for field in decoder.decode(block, raw=True)]
    except (hpack.HPACKError, IndexError):
        theirs = None
    try:
        ours: Any = reader.read(block)
    except BadBlock:
        ours = None
    return theirs, ours


@given(st.lists(STEP, max_size=12))
@settings(max_examples=600, deadline=None)
def test_blocks_are_read_as_the_library_reads_them(steps: list[Any]) -> None:
    """A connection's blocks in turn, some of them twice, until one is bad; the tables stay the same."""
    encoder, decoder, reader = Encoder(), Decoder(), BlockReader(list)
    for kind, what, more in steps:
        if kind == "size":
            encoder.header_table_size = what
            continue
        if kind == "fields":
            block = encoder.encode(what, huffman=more)
        elif kind == "bytes":
            block = what
        else:
            bent = bytearray(encoder.encode(what))
            rng = random.Random(more)
            bent[rng.randrange(len(bent))] ^= 1 << rng.randrange(8)
            block = bytes(bent)
        for _ in range(2):
            theirs, ours = both(decoder, reader, block)
            assert ours == theirs
            if theirs is None:
                return
            assert list(reader._table.dynamic_entries) == list(decoder.header_table.dynamic_entries)
            assert reader._table.maxsize == decoder.header_table.maxsize


@given(st.binary(max_size=60))
@settings(max_examples=500, deadline=None)
def test_huffman_strings(data: bytes) -> None:
    from hpack.huffman_table import decode_huffman

    try:
        theirs: bytes | None = decode_huffman(data)
    except hpack.HPACKError:
        theirs = None
    try:
        ours: bytes | None = huffman(data)
    except BadBlock:
        ours = None
    assert ours == theirs


def test_every_byte_survives_huffman() -> None:
    coder = Encoder().huffman_coder
    for size in (1, 2, 3):
        for byte in range(256):
            assert huffman(coder.encode(bytes([byte]) * size)) == bytes([byte]) * size


class Counted(BlockReader[list[Any]]):
    """A reader that counts what it had to read."""

    def __init__(self) -> None:
        super().__init__(list)
        self.scans = 0

    def fields(self, block: bytes) -> list[Any]:
        self.scans += 1
        return super().fields(block)


def test_the_same_block_is_read_once() -> None:
    encoder, reader = Encoder(), Counted()
    first = encoder.encode([("a", "b"), (":path", "/x")])
    again = encoder.encode([("a", "b"), (":path", "/x")])
    assert reader.read(first) == [(b"a", b"b"), (b":path", b"/x")]
    for _ in range(5):
        assert reader.read(again) == [(b"a", b"b"), (b":path", b"/x")]
    assert reader.scans == 2


CHANGES = [
    ("an entry is added and evicts another: the table is as long as before", [("t", "2" * 1300)], None),
    ("an entry that is too large empties the table", [("t", "2" * 5000)], None),
    ("the table is made smaller", [("a", "b", True)], 100),
]


@pytest.mark.parametrize(("why", "fields", "size"), CHANGES, ids=[c[0] for c in CHANGES])
def test_the_same_bytes_mean_something_else_when_the_table_has_changed(
    why: str, fields: Any, size: int | None
) -> None:
    """Another caller's token must never be what a block is remembered for."""
    encoder, decoder, reader = Encoder(), Decoder(), Counted()

    def read(block: bytes) -> None:
        theirs, ours = both(decoder, reader, block)
        assert ours == theirs, why

    for mark in "xyz":
        read(encoder.encode([("authorization", mark * 1200)]))
    indexed = b"\xbe\xbf"
    read(indexed)
    read(indexed)
    assert reader.scans == 4
    if size is not None:
        encoder.header_table_size = size
    read(encoder.encode(fields))
    read(indexed)
    assert reader.scans == 6, "what was remembered is forgotten"


def test_little_is_remembered() -> None:
    reader = Counted()
    for number in range(1000):
        reader.read(literal(b"a", b"%d" % number))
    assert len(reader._memo) <= MEMO_ENTRIES
    reader.read(literal(b"a", b"x" * 5000))
    assert all(len(block) < 2000 for block in reader._memo)


def test_too_many_fields_are_not_kept_and_the_table_stays_right() -> None:
    encoder, reader = Encoder(), BlockReader(list)
    block = encoder.encode([("a", "b"), *((f"n{i}", "v" * 1000) for i in range(40)), ("last", "c")])
    with pytest.raises(TooLarge):
        reader.read(block)
    assert reader.read(encoder.encode([("last", "c")])) == [(b"last", b"c")]
    fits = [("a", "x" * (LIST_BYTES_MAX - 33))]
    assert reader.read(encoder.encode(fits)) == [(b"a", b"x" * (LIST_BYTES_MAX - 33))]


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 300, 20_000])
def test_what_we_write_the_library_reads(size: int) -> None:
    block = literal(b"n" * max(1, size), b"v" * size)
    assert [tuple(f) for f in Decoder().decode(block, raw=True)] == [(b"n" * max(1, size), b"v" * size)]
