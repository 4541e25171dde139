"""Text in raw bytes: whatever way it is read, the elements are those that were written, or it is refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mserve.errors import RequestError
from mserve.wire import oip_texts
from mserve.wire.oip import to_raw
from mserve.wire.oip_texts import WIDE_BYTES, texts_of


def raw(*words: str) -> bytes:
    return to_raw(np.array(words, object))


def one_by_one(data: bytes, count: int) -> list[str]:
    """What the protocol says, in the plainest way. Raises ValueError."""
    words, at = [], 0
    for _ in range(count):
        if at + 4 > len(data):
            raise ValueError
        (size,) = struct.unpack_from("<I", data, at)
        if at + 4 + size > len(data):
            raise ValueError
        words.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    if at != len(data):
        raise ValueError
    return words


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["85f751fd", "a99f214a"], id="ids of one length"),
        pytest.param(["1", "320", "x" * 127], id="lengths up to the last that is ASCII"),
        pytest.param(["a", "", "b"], id="an empty element"),
        pytest.param(["a\0b", "c"], id="a zero inside"),
        pytest.param(["a\0", "c\0\0"], id="zeros at the end, which numpy's own text would lose"),
        pytest.param(["x" * 128, "y"], id="a length that is not ASCII"),
        pytest.param(["Z\u00fcrich", "\U0001f600"], id="more than ASCII"),
        pytest.param(["x" * 127] + ["y"] * 1000, id="one long among many short"),
        pytest.param([], id="no elements"),
    ],
)
def test_elements_come_back(words: list[str]) -> None:
    array = texts_of(raw(*words), len(words), "x")
    assert array.shape == (len(words),)
    assert array.tolist() == words


def test_short_ascii_is_read_at_once() -> None:
    assert texts_of(raw("85f751fd", "a9"), 2, "x").dtype == np.dtype("U8")
    assert texts_of(raw("85f751fd", ""), 2, "x").dtype == object


def test_the_longest_element_does_not_decide_the_memory_of_all() -> None:
    words = ["x" * 100] * (WIDE_BYTES // 400 + 1)
    assert texts_of(raw(*words), len(words), "x").dtype == object


@given(words=st.lists(st.text(st.characters(codec="utf-8"), max_size=130), max_size=20))
def test_any_text(words: list[str]) -> None:
    assert texts_of(raw(*words), len(words), "x").tolist() == words


pieces = st.sampled_from(
    [b"\1\0\0\0a", b"\2\0\0\0ab", b"\0", b"\0\0\0", b"a", b"\1", b"\3\0\1\0abc", b"\x80"]
)


@given(data=st.lists(pieces, max_size=8).map(b"".join), count=st.integers(0, 5))
@example(b"\1\0\1\0" + b"a" * 65536 + b"\0", 1)
@example(b"\2\0\0\0a\1\0\0\0b", 2)
def test_hostile_bytes_are_read_as_the_protocol_says_or_refused(data: bytes, count: int) -> None:
    try:
        expected = one_by_one(data, count)
    except ValueError:
        with pytest.raises(RequestError, match="input 'x'"):
            texts_of(data, count, "x")
    else:
        assert texts_of(data, count, "x").tolist() == expected


@given(data=st.binary(max_size=64), count=st.integers(1, 6))
def test_at_once_never_says_anything_else(data: bytes, count: int) -> None:
    found = oip_texts._at_once(data, count) if data.isascii() else None
    if found is not None:
        assert found.tolist() == one_by_one(data, count)
