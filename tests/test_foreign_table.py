"""The table format under TensorFlow's checkpoints: checksums, snappy, blocks, and lies about them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from foreign_writers import block, footer, handle, literal, stored, table_of
from hypothesis import given
from hypothesis import strategies as st

from mserve.errors import BundleIncomplete, InputError
from mserve.foreign import crc32c, snappy, table
from mserve.wire.protobuf import Malformed, encode_varint


@pytest.mark.parametrize(
    ("data", "crc", "why"),
    [
        (b"", 0, "nothing"),
        (b"123456789", 0xE3069283, "the check value of the polynomial"),
        (b"\0" * 32, 0x8A9136AA, "RFC 3720 B.4, zeros"),
        (b"\xff" * 32, 0x62A8AB43, "RFC 3720 B.4, ones"),
        (bytes(range(32)), 0x46DD794E, "RFC 3720 B.4, rising"),
        (bytes(range(31, -1, -1)), 0x113FDB5C, "RFC 3720 B.4, falling"),
    ],
)
def test_checksums_of_known_data(data: bytes, crc: int, why: str) -> None:
    assert crc32c.extend(0, data) == crc, why


@pytest.mark.parametrize("length", [65535, 65536, 65537, 100_001, 16384 * 7, 16384 * 8 + 3])
def test_long_checksums_are_those_of_the_parts(length: int) -> None:
    data = random.Random(length).randbytes(length)
    piecewise = 7
    for at in range(0, length, 50_000):
        piecewise = crc32c.extend(piecewise, data[at : at + 50_000])
    assert crc32c.extend(7, data) == piecewise


def copy(size: int, back: int) -> bytes:
    """A snappy copy with a two-byte distance."""
    return bytes([size - 1 << 2 | 2]) + back.to_bytes(2, "little")


@pytest.mark.parametrize(
    ("data", "text", "why"),
    [
        (b"\0", b"", "nothing"),
        (literal(b"abc"), b"abc", "a literal"),
        (b"\x46\xf0\x45" + b"x" * 70, b"x" * 70, "a literal whose length takes a byte of its own"),
        (b"\x46\xf4\x45\0" + b"x" * 70, b"x" * 70, "and two bytes"),
        (b"\x06\x08abc" + copy(3, 3), b"abcabc", "a copy"),
        (b"\x0a\x04ab" + copy(8, 2), b"ababababab", "a copy that reads what it writes"),
        (b"\x08\x0cabcd" + b"\x01\x04", b"abcdabcd", "a copy with an 11-bit distance"),
        (b"\x08\x0cabcd" + b"\x0f\x04\0\0\0", b"abcdabcd", "a copy with a four-byte distance"),
    ],
)
def test_snappy(data: bytes, text: bytes, why: str) -> None:
    assert snappy.decompress(data, 1000) == text, why


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no length"),
        (b"\x05\x08abc", "shorter than it says"),
        (b"\x02\x08abc", "longer than it says"),
        (b"\x03\x0cab", "a literal behind the end"),
        (b"\x46\xf4\x45", "a length cut short"),
        (b"\x06\x08abc" + copy(3, 4), "a copy from before the start"),
        (b"\x06\x08abc" + copy(3, 0), "a copy from nowhere"),
        (b"\x06\x08abc\x0a\x03", "a copy cut short"),
        (b"\x04\x08abc" + copy(64, 1), "a copy that outgrows the length"),
        (encode_varint(1 << 32) + b"\x08abc", "a length that no such block can have"),
        (encode_varint(1 << 30) + b"\0a" + copy(64, 1) * 9, "a bomb"),
        (literal(b"x" * 2000), "more than the caller's limit"),
    ],
)
def test_bad_snappy(data: bytes, why: str) -> None:
    with pytest.raises(Malformed):
        snappy.decompress(data, 1000)


def test_a_snappy_block_grows_at_most_22_times() -> None:
    """The densest block there can be is within the limit, so no honest one is refused."""
    copies = 10_000
    dense = encode_varint(1 + 64 * copies) + b"\0a" + copy(64, 1) * copies
    assert snappy.decompress(dense, 1 << 30) == b"a" * (1 + 64 * copies)


@given(
    st.dictionaries(st.binary(max_size=20), st.binary(max_size=50), max_size=40),
    st.integers(1, 10),
    st.booleans(),
)
def test_a_table_gives_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[bytes, bytes], per_block: int, compress: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "table"
    path.write_bytes(table_of(rows, per_block=per_block, snappy=compress))
    opened = table.open_table(path)
    assert table.is_table(path)
    assert list(table.entries(opened)) == sorted(rows.items())
    assert all(table.lookup(opened, key) == value for key, value in rows.items())
    assert table.lookup(opened, b"no such key, and longer than any") is None


def test_keys_are_shared_with_the_key_before(tmp_path: Path) -> None:
    rows = [(b"layer/a", b"1"), (b"layer/b", b"2"), (b"layer/bias", b"3")]
    assert len(block(rows)) < len(block(rows, restart_every=1))
    assert list(table.block_entries(block(rows))) == rows


def one_block(body: bytes, kind: int = 0, key: bytes = b"\xff") -> bytes:
    """A table of one given block."""
    index = block([(key, handle(0, len(body)))])
    data = stored(body, kind)
    return data + stored(index) + footer(len(data), len(index))


def indexed(*handles: tuple[bytes, bytes]) -> bytes:
    """A table of one good block of 100 bytes or more, and an index of the given entries."""
    data, index = stored(block([(b"a", b"x" * 100)])), block(list(handles))
    return data + stored(index) + footer(len(data), len(index))


def entry(shared: int, fresh: int, length: int, data: bytes = b"") -> bytes:
    return encode_varint(shared) + encode_varint(fresh) + encode_varint(length) + data


ONE_RESTART = b"\0\0\0\0\1\0\0\0"
BAD_TABLES = [
    ("an empty file", b"", "48 bytes"),
    ("another file", b"x" * 100, "ends"),
    ("no block", footer(0, 10), "outside of bytes"),
    ("an index behind the end", stored(block([])) + footer(0, 1000), "outside of bytes"),
    ("an index far away", stored(block([])) + footer(2**63, 8), "outside of bytes"),
    ("an index without checksum", block([]) + b"\0\0\0\0\0" + footer(0, 8), "checksum"),
    ("a block of 3 bytes", one_block(b"abc"), "restarts"),
    ("more restarts than bytes", one_block(b"\xff\xff\xff\xff"), "restarts"),
    ("a key that shares with nothing", one_block(entry(5, 0, 0) + ONE_RESTART), "does not fit"),
    ("a key behind the end", one_block(entry(0, 99, 0) + ONE_RESTART), "does not fit"),
    ("a value behind the end", one_block(entry(0, 1, 99, b"a") + ONE_RESTART), "does not fit"),
    ("a key of 2^60 bytes", one_block(entry(0, 1 << 60, 0) + ONE_RESTART), "does not fit"),
    (
        "a restart that shares",
        one_block(entry(0, 1, 0, b"a") + entry(1, 1, 0, b"b") + b"\0\0\0\0\4\0\0\0\2\0\0\0"),
        "restart",
    ),
    ("a key twice", one_block(entry(0, 1, 0, b"a") * 2 + ONE_RESTART), "rise"),
    ("keys that fall", one_block(block([(b"b", b""), (b"a", b"")])), "rise"),
    ("a key over the index's", one_block(block([(b"b", b"")]), key=b"a"), "rise"),
    ("unknown compression", one_block(block([(b"a", b"")]), kind=7), "compression 7"),
    ("a bomb", one_block(encode_varint(1 << 40) + b"\0a", kind=1), "claims"),
    ("a handle cut short", indexed((b"a", b"\x80")), "inside a varint"),
    ("a handle and more", indexed((b"a", handle(0, 10) + b"!")), "behind it"),
    ("a block twice", indexed((b"a", handle(0, 20)), (b"b", handle(0, 20))), "outside of bytes"),
    ("blocks that overlap", indexed((b"a", handle(0, 20)), (b"b", handle(24, 20))), "outside of bytes"),
    ("a block in the index", indexed((b"a", handle(80, 200))), "outside of bytes"),
]


@pytest.mark.parametrize(("what", "data", "part"), BAD_TABLES, ids=[row[0] for row in BAD_TABLES])
def test_bad_tables(tmp_path: Path, what: str, data: bytes, part: str) -> None:
    path = tmp_path / "table"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        list(table.entries(table.open_table(path)))
    assert part in str(caught.value)
    assert str(path) in caught.value.where


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """Checksums cover every block, and nothing lies between blocks but the footer's padding."""
    good = table_of({b"": b"header", b"a": b"1", b"b": b"2"}, per_block=2)
    path = tmp_path / "table"
    for at in range(len(good) - 48):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(InputError):
            list(table.entries(table.open_table(path)))


def test_an_absent_table_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(BundleIncomplete):
        table.open_table(tmp_path / "absent")
    assert not table.is_table(tmp_path / "absent")
    assert not table.is_table(tmp_path)
