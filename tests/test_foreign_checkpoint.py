"""Checkpoints of both formats: whole and partitioned variables, their bytes, and lies about them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from foreign_writers import (
    FLOAT,
    INT32,
    INT64,
    STRING,
    Saved,
    bundle_entry,
    extents,
    fixed32,
    floats,
    message,
    shape,
    table_of,
    v1_table,
    write_v2,
)
from hypothesis import given
from hypothesis import strategies as st

from mserve.errors import BundleIncomplete, InputError
from mserve.foreign import crc32c, values
from mserve.foreign.checkpoint import Checkpoint, Variable, is_checkpoint, open_checkpoint
from mserve.foreign.slices import WHOLE, Slice, key_of, tiles
from mserve.foreign.tftypes import type_of
from mserve.wire.protobuf import encode_varint

ALL = (0, WHOLE)
# A 3 x 4 table of 0..11, whole and cut in three ways.
TABLE = floats(*range(12))
ROWS = ((((0, 1), ALL), TABLE[:16]), (((1, 2), ALL), TABLE[16:]))
COLUMNS = (
    ((ALL, (0, 1)), floats(0, 4, 8)),
    ((ALL, (1, 3)), floats(1, 2, 3, 5, 6, 7, 9, 10, 11)),
)
GRID = (
    (((0, 2), (0, 2)), floats(0, 1, 4, 5)),
    (((0, 2), (2, 2)), floats(2, 3, 6, 7)),
    (((2, 1), (0, 2)), floats(8, 9)),
    (((2, 1), (2, 2)), floats(10, 11)),
)


def one(checkpoint: Checkpoint, name: str) -> Variable:
    return next(v for v in checkpoint.variables if v.name == name)


def read(checkpoint: Checkpoint, name: str) -> bytes:
    return b"".join(values.chunks(checkpoint, one(checkpoint, name)))


def write_v1(prefix: Path, *shards: dict[str, Saved]) -> Path:
    for number, variables in enumerate(shards):
        name = f"{prefix.name}-{number:05d}-of-{len(shards):05d}"
        prefix.with_name(name).write_bytes(v1_table(variables))
    return prefix


WHOLE_AND_CUT = [
    ("whole", Saved(FLOAT, (3, 4), TABLE)),
    ("cut by rows", Saved(FLOAT, (3, 4), parts=ROWS)),
    ("cut by rows, stored in another order", Saved(FLOAT, (3, 4), parts=ROWS[::-1])),
    ("cut by columns", Saved(FLOAT, (3, 4), parts=COLUMNS)),
    ("cut both ways", Saved(FLOAT, (3, 4), parts=GRID)),
]


@pytest.mark.parametrize(("what", "saved"), WHOLE_AND_CUT, ids=[row[0] for row in WHOLE_AND_CUT])
@pytest.mark.parametrize("version", [1, 2])
def test_a_table_comes_back_however_it_is_cut(tmp_path: Path, version: int, what: str, saved: Saved) -> None:
    variables = {"layer/w": saved, "b": Saved(FLOAT, (), floats(2))}
    prefix = tmp_path / "ckpt"
    write_v2(prefix, variables) if version == 2 else write_v1(prefix, variables)
    assert is_checkpoint(prefix)
    checkpoint = open_checkpoint(prefix)
    found = one(checkpoint, "layer/w")
    assert (checkpoint.version, checkpoint.problems) == (version, ())
    assert [v.name for v in checkpoint.variables] == ["b", "layer/w"]
    assert (found.dtype, found.shape, found.length) == ("float32", (3, 4), 48)
    assert read(checkpoint, "layer/w") == TABLE
    assert read(checkpoint, "b") == floats(2)


def test_v1_gathers_the_parts_of_its_files(tmp_path: Path) -> None:
    shards = [{"w": Saved(FLOAT, (3, 4), parts=(part,))} for part in ROWS]
    checkpoint = open_checkpoint(write_v1(tmp_path / "ckpt", *shards))
    assert list(checkpoint.shards) == ["ckpt-00000-of-00002", "ckpt-00001-of-00002"]
    assert [part.box for part in one(checkpoint, "w").parts] == [
        Slice((0, 0), (1, 4)),
        Slice((1, 0), (2, 4)),
    ]
    assert read(checkpoint, "w") == TABLE


def test_v1_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "export").write_bytes(v1_table({"a": Saved(FLOAT, (2,), floats(0.5, 2))}, snappy=True))
    assert read(open_checkpoint(tmp_path / "export"), "a") == floats(0.5, 2)


@pytest.mark.parametrize(
    ("number", "packed", "stored"),
    [
        (INT32, b"\1" + encode_varint(2**64 - 1), struct.pack("<2i", 1, -1)),
        (INT64, encode_varint(2**63) + b"\0", struct.pack("<2q", -(2**63), 0)),
    ],
)
def test_v1_keeps_integers_as_varints(tmp_path: Path, number: int, packed: bytes, stored: bytes) -> None:
    (tmp_path / "c").write_bytes(v1_table({"i": Saved(number, (2,), packed)}))
    assert read(open_checkpoint(tmp_path / "c"), "i") == stored


def test_a_variable_without_values_has_no_bytes(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_v2(tmp_path / "c", {"e": Saved(FLOAT, (0, 5))}))
    assert read(checkpoint, "e") == b""


def packed_strings(*words: bytes) -> tuple[bytes, int]:
    """Strings as V2 stores them, and their masked checksum."""
    lengths = b"".join(encode_varint(len(w)) for w in words)
    crc = crc32c.extend(0, b"".join(len(w).to_bytes(4, "little") for w in words))
    rest = crc32c.masked(crc).to_bytes(4, "little") + b"".join(words)
    return lengths + rest, crc32c.masked(crc32c.extend(crc, rest))


def write_strings(prefix: Path, data: bytes, crc: int, count: int) -> Checkpoint:
    place = message((1, STRING), (2, shape(count)), (5, len(data))) + fixed32(6, crc)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table_of({b"": message((1, 1)), b"s": place}))
    prefix.with_name(f"{prefix.name}.data-00000-of-00001").write_bytes(data)
    return open_checkpoint(prefix)


def test_strings(tmp_path: Path) -> None:
    words = [b"", b"\xff\0", b"x" * 300]
    checkpoint = write_strings(tmp_path / "c", *packed_strings(*words), 3)
    assert values.strings(checkpoint, one(checkpoint, "s")) == words
    with pytest.raises(InputError, match="not read"):
        list(values.chunks(checkpoint, one(checkpoint, "s")))
    (tmp_path / "d").write_bytes(v1_table({"s": Saved(STRING, (1,), b"abc")}))
    first = open_checkpoint(tmp_path / "d")
    assert values.strings(first, one(first, "s")) == [b"abc"]


@pytest.mark.parametrize(
    ("spoil", "count", "why"),
    [
        (lambda d: d, 1000, "more strings than bytes"),
        (lambda d: d[:-1], 2, "bytes that end early"),
        (lambda d: d + b"x", 2, "bytes that end late"),
        (lambda d: b"\1" + d[1:], 2, "another length"),
        (lambda d: d[:-1] + b"!", 2, "another letter"),
        (lambda d: b"\xff" * 9 + d[9:], 2, "a length without end"),
    ],
)
def test_bad_strings(tmp_path: Path, spoil, count: int, why: str) -> None:  # type: ignore[no-untyped-def]
    data, crc = packed_strings(b"abc", b"defghijkl")
    checkpoint = write_strings(tmp_path / "c", spoil(data), crc, count)
    with pytest.raises(InputError):
        values.strings(checkpoint, one(checkpoint, "s"))


@pytest.mark.parametrize(
    ("value", "code"),
    [(0, "80"), (-1, "7f"), (63, "bf"), (64, "c040"), (-64, "40"), (-65, "3fbf"), (8192, "e02000")],
)
def test_keys_of_parts_are_ordered_codes(value: int, code: str) -> None:
    """The bytes that TensorFlow writes, of which those for 0, -1 and 64 stand in real checkpoints."""
    assert (
        key_of("a\0b\xff", ((value, 1),)).hex()
        == "00" + b"a\0\xffb\xc3\xbf".hex() + "0001" + "0101" + code + "81"
    )


@given(st.lists(st.tuples(st.integers(-(2**62), 2**62), st.integers(-1, 2**62)), max_size=3))
def test_keys_sort_as_their_starts_do(pairs: list[tuple[int, int]]) -> None:
    keys = [(start, key_of("w", ((start, length),))) for start, length in pairs]
    assert [k for _, k in sorted(keys)] == sorted(k for _, k in keys)


@pytest.mark.parametrize(
    ("parts", "fills", "why"),
    [
        ([((0,), (4,))], True, "one box"),
        ([((0,), (1,)), ((1,), (3,))], True, "two boxes"),
        ([((0,), (1,)), ((2,), (2,))], False, "a gap"),
        ([((0,), (2,)), ((1,), (3,))], False, "an overlap"),
        ([((0,), (4,)), ((0,), (4,))], False, "a box twice"),
        ([((0,), (3,))], False, "a box too short"),
        ([], False, "no box"),
    ],
)
def test_boxes_fill_a_tensor_or_do_not(
    parts: list[tuple[tuple[int, ...], tuple[int, ...]]], fills: bool, why: str
) -> None:
    assert tiles([Slice(*part) for part in parts], (4,)) is fills, why


@pytest.mark.parametrize(
    ("number", "dtype", "width"),
    [
        (1, "float32", 4),
        (101, "float32", 4),
        (7, "string", 0),
        (8, "tf:complex64", 8),
        (10, "bool", 1),
        (11, "tf:qint8", 1),
        (14, "bfloat16", 2),
        (19, "float16", 2),
        (20, "tf:resource", 0),
        (25, "float8e4m3fn", 1),
        (29, "int4", 1),
        (0, "?", 0),
        (77, "tf:77", 0),
    ],
)
def test_element_types(number: int, dtype: str, width: int) -> None:
    assert (type_of(number).dtype, type_of(number).width) == (dtype, width)


# --- what is not as it should be


def test_files_that_are_missing_or_short_are_problems(tmp_path: Path) -> None:
    """The variables are listed all the same, and reading them raises."""
    prefix = write_v2(tmp_path / "c", {"w": Saved(FLOAT, (3, 4), TABLE)})
    data = tmp_path / "c.data-00000-of-00001"
    data.write_bytes(TABLE[:-1])
    (problem,) = open_checkpoint(prefix).problems
    assert (problem.where, problem.expected, problem.found) == (str(data), "48 bytes", "47 bytes")
    data.unlink()
    checkpoint = open_checkpoint(prefix)
    assert checkpoint.shards == {"c.data-00000-of-00001": None}
    assert "missing" in checkpoint.problems[0].what
    with pytest.raises(BundleIncomplete):
        read(checkpoint, "w")


def test_a_missing_file_of_v1_is_a_problem(tmp_path: Path) -> None:
    shards = [{"w": Saved(FLOAT, (3, 4), parts=(part,))} for part in ROWS]
    prefix = write_v1(tmp_path / "c", *shards)
    (tmp_path / "c-00000-of-00002").unlink()
    checkpoint = open_checkpoint(prefix)
    assert checkpoint.problems[0].where.endswith("c-00000-of-00002")
    assert [v.shape for v in checkpoint.variables] == [(3, 4)]


def test_parts_that_leave_a_gap_in_v1_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(v1_table({"w": Saved(FLOAT, (3, 4), parts=ROWS[:1])}))
    assert "all parts of 'w'" in open_checkpoint(tmp_path / "c").problems[0].expected


def test_no_checkpoint_is_incomplete(tmp_path: Path) -> None:
    with pytest.raises(BundleIncomplete, match="the checkpoint is missing"):
        open_checkpoint(tmp_path / "c")
    assert not is_checkpoint(tmp_path / "c")
    assert not is_checkpoint(tmp_path / "nowhere" / "c")


def test_values_that_do_not_have_their_checksum(tmp_path: Path) -> None:
    prefix = write_v2(tmp_path / "c", {"w": Saved(FLOAT, (3, 4), TABLE)})
    (tmp_path / "c.data-00000-of-00001").write_bytes(TABLE[:-1] + b"!")
    with pytest.raises(InputError, match="checksum") as caught:
        read(open_checkpoint(prefix), "w")
    assert "bytes 0 to 48" in caught.value.where


def test_big_endian_values_are_refused(tmp_path: Path) -> None:
    rows = {b"": message((1, 1), (2, 1)), b"w": bundle_entry(FLOAT, (1,), 0, floats(1))}
    (tmp_path / "c.index").write_bytes(table_of(rows))
    checkpoint = open_checkpoint(tmp_path / "c")
    with pytest.raises(InputError, match="not read"):
        read(checkpoint, "w")


HEADER = message((1, 1), (2, 0))
GOOD = bundle_entry(FLOAT, (2,), 0, floats(1, 2))
CUT = bundle_entry(FLOAT, (2,), 0, b"", ((0, 1),), ((1, 1),))
HALF = bundle_entry(FLOAT, (1,), 0, floats(1))
BAD_INDEXES: list[tuple[str, dict[bytes, bytes], str]] = [
    ("nothing", {}, "without header"),
    ("no header", {b"w": GOOD}, "begin with its header"),
    ("2^63 data files", {b"": message((1, 2**63))}, "data files"),
    ("a header that is text", {b"": message((1, "x"))}, "not an integer"),
    ("an unknown data file", {b"": HEADER, b"w": GOOD + message((3, 1))}, "data file 1 of 1"),
    ("a data file before the first", {b"": HEADER, b"w": GOOD + message((3, -1))}, "of 1"),
    ("a size that does not fit", {b"": HEADER, b"w": GOOD + message((5, 9))}, "9 bytes for 'w'"),
    ("an unknown size", {b"": HEADER, b"w": GOOD + message((2, shape(-1)))}, "unknown shape"),
    ("2^64 values", {b"": HEADER, b"w": GOOD + message((2, shape(2**32, 2**32)))}, "of shape"),
    ("300 axes", {b"": HEADER, b"w": GOOD + message((2, shape(*[1] * 300)))}, "254 axes"),
    ("a checksum that is a varint", {b"": HEADER, b"w": GOOD + message((6, 1))}, "fixed32"),
    ("a name that is no text", {b"": HEADER, b"\xff": GOOD}, "not UTF-8"),
    ("parts that are not there", {b"": HEADER, b"w": CUT}, "no part at (0,)"),
    ("a part with parts", {b"": HEADER, b"w": CUT, key_of("w", ((0, 1),)): CUT}, "no part at (0,)"),
    (
        "a part of another shape",
        {b"": HEADER, b"w": CUT, key_of("w", ((0, 1),)): GOOD, key_of("w", ((1, 1),)): HALF},
        "no part at (0,)",
    ),
    (
        "a gap",
        {b"": HEADER, b"w": GOOD + message((7, extents((0, 1)))), key_of("w", ((0, 1),)): HALF},
        "do not fill",
    ),
    ("a part outside", {b"": HEADER, b"w": GOOD + message((7, extents((1, 2))))}, "in an axis of 2"),
    ("a part of two axes", {b"": HEADER, b"w": GOOD + message((7, extents(ALL, ALL)))}, "2 axes"),
    ("a part from -1", {b"": HEADER, b"w": GOOD + message((7, extents((-1, 1))))}, "in an axis of 2"),
]


@pytest.mark.parametrize(("what", "rows", "part"), BAD_INDEXES, ids=[row[0] for row in BAD_INDEXES])
def test_bad_indexes(tmp_path: Path, what: str, rows: dict[bytes, bytes], part: str) -> None:
    (tmp_path / "c.index").write_bytes(table_of(rows))
    with pytest.raises(InputError) as caught:
        open_checkpoint(tmp_path / "c")
    assert part in str(caught.value)
    assert "c.index" in caught.value.where


def test_a_variable_may_lie_anywhere_but_outside(tmp_path: Path) -> None:
    """An offset of 2^63 is a short file, found before anything is read."""
    rows = {b"": HEADER, b"w": GOOD + message((4, 2**63))}
    (tmp_path / "c.index").write_bytes(table_of(rows))
    (tmp_path / "c.data-00000-of-00001").write_bytes(b"x" * 100)
    assert "too short" in open_checkpoint(tmp_path / "c").problems[0].what


@pytest.mark.parametrize(("limit", "value"), [("MAX_KEYS_BYTES", 49), ("MAX_VARIABLES", 9)])
def test_names_are_counted_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """Long names that share all but their ends are short in the file, and long when read."""
    rows = {b"": HEADER} | {b"name%d" % i: b"" for i in range(10)}
    (tmp_path / "c.index").write_bytes(table_of(rows))
    monkeypatch.setattr(f"mserve.foreign.checkpoint.{limit}", value)
    with pytest.raises(InputError, match="corrupt") as caught:
        open_checkpoint(tmp_path / "c")
    assert "too long names" in caught.value.found


def test_an_index_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "c.index").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(InputError, match="too large"):
        open_checkpoint(tmp_path / "c")


V1_META = message((1, "w"), (2, shape(2)), (3, FLOAT), (4, extents(ALL)))


def v1_rows(meta: bytes, saved: bytes = b"") -> bytes:
    return table_of({b"": message((1, message((1, meta)))), key_of("w", (ALL,)): message((2, saved))})


def v1_value(*fields: tuple[int, int | bytes]) -> bytes:
    return message((1, "w"), (3, message(*fields)))


@pytest.mark.parametrize(
    ("data", "part", "why"),
    [
        (table_of({b"a": b""}), "without a list of variables", "a table of something else"),
        (v1_rows(V1_META + message((2, shape(-1)))), "unknown shape", "an unknown size"),
        (v1_rows(V1_META + message((4, extents((1, 5))))), "in an axis of 2", "a part outside"),
        (v1_rows(V1_META), "8 bytes too short", "no values"),
        (v1_rows(V1_META, v1_value((5, floats(1)))), "4 bytes too short", "a value too few"),
        (v1_rows(V1_META, v1_value((5, floats(1, 2, 3)))), "4 bytes too long", "a value too many"),
        (v1_rows(V1_META, v1_value((5, 1))), "width of their type", "an integer for floats"),
        (v1_rows(V1_META, v1_value((5, b"123"), (5, b"45678"))), "width of their type", "three bytes"),
        (v1_rows(V1_META, v1_value((7, b"\x80"))), "inside a varint", "a varint cut short"),
        (table_of({b"": message((1, message((1, V1_META))))}), "missing", "no entry"),
    ],
)
def test_bad_files_of_v1(tmp_path: Path, data: bytes, part: str, why: str) -> None:
    (tmp_path / "c").write_bytes(data)
    with pytest.raises((InputError, BundleIncomplete)) as caught:
        read(open_checkpoint(tmp_path / "c"), "w")
    assert part in str(caught.value), why


def test_v1_files_must_agree(tmp_path: Path) -> None:
    prefix = write_v1(
        tmp_path / "c", {"w": Saved(FLOAT, (1,), floats(1))}, {"w": Saved(FLOAT, (2,), floats(1, 2))}
    )
    with pytest.raises(InputError, match="corrupt"):
        open_checkpoint(prefix)
