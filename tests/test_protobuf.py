"""The protobuf walker against Google's own implementation."""

from __future__ import annotations

import builders
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, StringStringEntryProto, TensorProto, helper

from mserve.wire import protobuf
from mserve.wire.protobuf import BYTES, FIXED32, FIXED64, VARINT, Malformed

INT64 = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.integers(1, 2**29 - 1)
PAYLOADS = st.one_of(
    st.tuples(st.just(VARINT), st.integers(0, 2**64 - 1)),
    st.tuples(st.just(BYTES), st.binary(max_size=300)),
    st.tuples(st.just(FIXED32), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(FIXED64), st.integers(0, 2**64 - 1)),
)
RECORDS = st.lists(st.tuples(NUMBERS, PAYLOADS), max_size=12)


def readable(data: bytes, *, payloads: bool = False) -> tuple[list[protobuf.Field], int | None]:
    """The records before the first malformed one, and where that one is; with `payloads`, read those too."""
    found: list[protobuf.Field] = []
    try:
        for f in protobuf.fields(data):
            if payloads:
                protobuf.packed_varints(data, f)
                protobuf.text(data, f)
            found.append(f)
    except Malformed as error:
        return found, error.offset
    return found, None


def encode(records: list[tuple[int, tuple[int, int | bytes]]]) -> bytes:
    out = b""
    for number, (kind, value) in records:
        if isinstance(value, bytes):
            out += protobuf.encode_bytes(number, value)
            continue
        width = {FIXED32: 4, FIXED64: 8}.get(kind)
        payload = value.to_bytes(width, "little") if width else protobuf.encode_varint(value)
        out += protobuf.encode_varint(number << 3 | kind) + payload
    return out


def walked(data: bytes) -> list[tuple[int, tuple[int, int | bytes]]]:
    found: list[tuple[int, tuple[int, int | bytes]]] = []
    for f in protobuf.fields(data):
        payload = data[f.start : f.end]
        value = f.value if f.wire_type == VARINT else int.from_bytes(payload, "little")
        found.append((f.number, (f.wire_type, payload if f.wire_type == BYTES else value)))
    return found


@given(RECORDS)
def test_the_walker_finds_what_was_encoded(records: list[tuple[int, tuple[int, int | bytes]]]) -> None:
    data = encode(records)
    assert walked(data) == records
    starts = [f.record_start for f in protobuf.fields(data)]
    ends = [f.end for f in protobuf.fields(data)]
    assert [0, *ends] == [*starts, len(data)], "records follow each other without gaps"


@given(RECORDS)
def test_google_reads_our_encoding_alike(records: list[tuple[int, tuple[int, int | bytes]]]) -> None:
    # Numbers from 1000 up are unknown to every ONNX message and so come back as they are.
    data = encode([(number | 1024, payload) for number, payload in records])
    unknown = UnknownFieldSet(StringStringEntryProto.FromString(data))
    assert [(f.field_number, (f.wire_type, f.data)) for f in unknown] == walked(data)


@given(
    dims=st.lists(INT64, max_size=6),
    name=st.text(),
    raw=st.binary(max_size=200),
    doc=st.text(),
    kind=st.sampled_from(TensorProto.DataType.values()),
    external=st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_tensor_fields_are_found_again(
    dims: list[int], name: str, raw: bytes, doc: str, kind: int, external: dict[str, str]
) -> None:
    tensor = TensorProto(dims=dims, name=name, raw_data=raw, doc_string=doc, data_type=kind)
    for key, value in external.items():
        tensor.external_data.add(key=key, value=value)
    data = tensor.SerializeToString()
    by_number: dict[int, list[protobuf.Field]] = {}
    for f in protobuf.fields(data):
        by_number.setdefault(f.number, []).append(f)
    assert [v for f in by_number.get(1, []) for v in protobuf.packed_varints(data, f)] == dims
    assert protobuf.text(data, by_number[8][0]) == name
    assert data[by_number[9][0].start : by_number[9][0].end] == raw
    assert protobuf.text(data, by_number[12][0]) == doc
    assert by_number[2][0].value == kind
    assert len(by_number.get(13, [])) == len(external)


@given(st.lists(INT64, min_size=1, max_size=20))
def test_packed_and_unpacked_integers_read_alike(values: list[int]) -> None:
    packed = AttributeProto(ints=values).SerializeToString()  # ONNX stores these unpacked
    payload = b"".join(protobuf.encode_varint(v % 2**64) for v in values)
    for data in (packed, protobuf.encode_bytes(8, payload)):
        found = [v for f in protobuf.fields(data) for v in protobuf.packed_varints(data, f)]
        assert found == values


def test_every_truncation_is_a_prefix_or_malformed() -> None:
    """Cut at every byte, a model reads as its first records, or is refused; nothing else."""
    node = helper.make_node("Relu", ["x"], ["y"])
    data = builders.elementwise(node, weights=[builders.weight("w", builders.floats(3))]).SerializeToString()
    whole = list(protobuf.fields(data))
    ends = {0, *(f.end for f in whole)}
    for length in range(len(data)):
        found, bad_at = readable(data[:length])
        assert (bad_at is None) == (length in ends)
        assert bad_at is None or 0 <= bad_at <= length
        assert found == whole[: len(found)]


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_random_bytes_read_or_are_malformed(data: bytes) -> None:
    found, bad_at = readable(data, payloads=True)
    assert all(f.record_start < f.end <= len(data) for f in found)
    assert bad_at is None or 0 <= bad_at <= len(data)


@pytest.mark.parametrize(
    ("data", "reason", "why"),
    [
        (b"\x80", "the data ends inside a varint at byte 0", "a tag without its end"),
        (b"\x08\xff", "the data ends inside a varint at byte 1", "a value without its end"),
        (b"\x0a\x05abc", "field 1 ends at byte 7 of 5 at byte 0", "a string longer than the data"),
        (b"\x09\0\0\0", "field 1 ends at byte 9 of 4 at byte 0", "a fixed64 cut short"),
        (b"\x0d\0", "field 1 ends at byte 5 of 2 at byte 0", "a fixed32 cut short"),
        (b"\x00", "field number 0 at byte 0", "zero is no field number"),
        (b"\x80\x80\x80\x80\x10\x00", "field number 536870912 at byte 0", "a field number over 2^29-1"),
        (b"\x0b", "wire type 3 at byte 0", "groups do not occur"),
        (b"\x0f", "wire type 7 at byte 0", "wire type 7 does not exist"),
        (
            b"\x08" + b"\x80" * 10 + b"\x01",
            "a varint longer than ten bytes at byte 1",
            "a varint without end",
        ),
        (b"\x0a" + b"\xff" * 9 + b"\x01", "field 1 ends at byte", "a length of almost 2^64"),
    ],
)
def test_malformed_bytes_name_their_place(data: bytes, reason: str, why: str) -> None:
    with pytest.raises(Malformed) as caught:
        list(protobuf.fields(data))
    assert str(caught.value).startswith(reason), why


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"\x08\x01", "field 1 is not a string"), (b"\x0a\x01\xff", "field 1 is not UTF-8")],
)
def test_text_that_is_none_is_malformed(data: bytes, reason: str) -> None:
    (field,) = protobuf.fields(data)
    with pytest.raises(Malformed, match=reason):
        protobuf.text(data, field)


def test_a_range_of_a_buffer_is_walked_without_its_surroundings() -> None:
    inner = protobuf.encode_bytes(1, b"key") + protobuf.encode_bytes(2, b"value")
    data = protobuf.encode_bytes(14, inner) + b"\xff\xff"
    (outer,) = list(protobuf.fields(data, 0, len(data) - 2))
    assert [data[f.start : f.end] for f in protobuf.fields(memoryview(data), outer.start, outer.end)] == [
        b"key",
        b"value",
    ]


@pytest.mark.parametrize("value", [0, 1, 127, 128, 2**32, 2**63 - 1, 2**64 - 1])
def test_varints_round_trip(value: int) -> None:
    data = b"\x08" + protobuf.encode_varint(value)
    (field,) = protobuf.fields(data)
    assert field.value == value
    assert protobuf.signed(value) == (value if value < 2**63 else value - 2**64)


def test_a_model_survives_reading_by_records() -> None:
    """The records of a model, put together again, are the model."""
    data = builders.mlp().SerializeToString()
    parts = [data[f.record_start : f.end] for f in protobuf.fields(data)]
    assert ModelProto.FromString(b"".join(parts)) == builders.mlp()
