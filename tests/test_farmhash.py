"""FarmHash in a graph: equal to the hash as it is written down, for texts of every length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from mserve.exporters.build import Graph
from mserve.exporters.tensorflow import farmhash
from mserve.exporters.tensorflow.utf8_bytes import bytes_of

WRAP = (1 << 64) - 1
K0, K1, K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


OPSETS = [helper.make_opsetid(d, v) for d, v in (("", 18), ("ai.onnx.ml", 2), ("com.microsoft", 1))]


def turn(value: int, bits: int) -> int:
    return (value >> bits | value << (64 - bits)) & WRAP


def fold(value: int) -> int:
    return value ^ value >> 47


def word(data: bytes, at: int, size: int = 8) -> int:
    assert 0 <= at <= len(data) - size, "the hash reads its own text alone"
    return int.from_bytes(data[at : at + size], "little")


def mix(u: int, v: int, factor: int) -> int:
    a = fold((u ^ v) * factor & WRAP)
    return fold((v ^ a) * factor & WRAP) * factor & WRAP


def weak(data: bytes, at: int, a: int, b: int) -> tuple[int, int]:
    w, x, y, z = (word(data, at + 8 * i) for i in range(4))
    a = a + w & WRAP
    b = turn(b + a + z & WRAP, 21)
    whole = a + x + y & WRAP
    return whole + z & WRAP, b + turn(whole, 44) + a & WRAP


def fingerprint(data: bytes) -> int:
    """farmhashna::Hash64, in whole numbers of any size that are cut to 64 bits."""
    n, factor = len(data), len(data) * 2 + K2
    if n == 0:
        return K2
    if n < 4:
        y, z = data[0] + (data[n >> 1] << 8), n + (data[-1] << 2)
        return fold((y * K2 ^ z * K0) & WRAP) * K2 & WRAP
    if n < 8:
        return mix(n + (word(data, 0, 4) << 3), word(data, n - 4, 4), factor)
    if n <= 16:
        a, b = word(data, 0) + K2 & WRAP, word(data, n - 8)
        return mix(turn(b, 37) * factor + a & WRAP, (turn(a, 25) + b) * factor & WRAP, factor)
    if n > 64:
        return long_fingerprint(data)
    a = word(data, 0) * (K1 if n <= 32 else K2) & WRAP
    b, c, d = word(data, 8), word(data, n - 8) * factor & WRAP, word(data, n - 16) * K2 & WRAP
    y = turn(a + b & WRAP, 43) + turn(c, 30) + d & WRAP
    both = mix(y, a + turn(b + K2 & WRAP, 18) + c & WRAP, factor)
    if n <= 32:
        return both
    e, f = word(data, 16) * factor & WRAP, word(data, 24)
    g, h = (y + word(data, n - 32)) * factor & WRAP, (both + word(data, n - 24)) * factor & WRAP
    first = turn(e + f & WRAP, 43) + turn(g, 30) + h & WRAP
    return mix(first, e + turn(f + a & WRAP, 18) + g & WRAP, factor)


def long_fingerprint(data: bytes) -> int:
    n = len(data)
    y = 81 * K1 + 113 & WRAP
    z = fold(y * K2 + 113 & WRAP) * K2 & WRAP
    x = 81 * K2 + word(data, 0) & WRAP
    v, w = (0, 0), (0, 0)
    blocks = range(0, (n - 1) // 64 * 64, 64)
    for last, at in [*((False, at) for at in blocks), (True, n - 64)]:
        factor, weight = (K1 + ((z & 0xFF) << 1), 9) if last else (K1, 1)
        if last:
            more = w[0] + ((n - 1) & 63)
            v = (v[0] + more & WRAP, v[1])
            w = (more + v[0] & WRAP, w[1])
        x = turn(x + y + v[0] + word(data, at + 8) & WRAP, 37) * factor ^ w[1] * weight
        y = turn(y + v[1] + word(data, at + 48) & WRAP, 42) * factor + v[0] * weight + word(data, at + 40)
        x, y, z = x & WRAP, y & WRAP, turn(z + w[0] & WRAP, 33) * factor & WRAP
        v, w = (
            weak(data, at, v[1] * factor, x + w[0]),
            weak(data, at + 32, z + w[1], y + word(data, at + 16)),
        )
        x, z = z, x
    first = mix(v[0], w[0], factor) + fold(y) * K0 + z & WRAP
    return mix(first, mix(v[1], w[1], factor) + x & WRAP, factor)


# What TensorFlow 2.21 gives: tf.strings.to_hash_bucket_fast by two numbers of buckets, put together.
GOLDEN = [
    ("", 0x9AE16A3B2F90404F),
    ("a", 0xB3454265B6DF75E3),
    ("abc", 0x24A5B3A074E7F369),
    ("word", 0xE4F7876374C312C0),
    ("xxxxxxxx", 0xC5C78B7965B88A7E),
    ("0123456789abcdef", 0x54B961E5DC834067),
    ("0123456789abcdef0", 0x6DEB36B4A021A909),
    ("Chicago Elite Cab Corp.", 0xB9B26BDEC913F8D4),
    ("Blue Ribbon Taxi Association Inc.", 0x886376D134A819D9),
    ("ab" * 32, 0x17AB66E52F679116),
    ("ab" * 32 + "c", 0x3BF2EE617877037B),
    ("abc" * 43, 0xC642F3DEED2B6FA8),
    ("Müller & Söhne " * 20, 0xF34EC4EEE2AECA3E),
    ("é", 0x099E89E5ECBB4CC1),
    ("漢字", 0x138F7BABC827A6A8),
    ("😀 taxi", 0x8073D702864242F2),
]


def session(graph: Graph, outputs: Sequence[tuple[str, int]]) -> onnxruntime.InferenceSession:
    """A graph whose input is texts, of any shape."""
    text = helper.make_tensor_value_info("texts", onnx.TensorProto.STRING, None)
    made = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs]
    model = helper.make_model(
        graph.inner("hash", [text], made),
        opset_imports=OPSETS,
        ir_version=9,
    )
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def hashing() -> onnxruntime.InferenceSession:
    graph = Graph()
    number = farmhash.fingerprints(graph, "texts").tensor
    return session(graph, [(number, onnx.TensorProto.UINT64)])


def hashed(session: onnxruntime.InferenceSession, texts: Iterable[str]) -> list[int]:
    return [int(x) for x in session.run(None, {"texts": np.array([*texts], object)})[0]]


def known(texts: Iterable[str]) -> list[int]:
    return [fingerprint(text.encode()) for text in texts]


def test_what_tensorflow_gives(hashing: Any) -> None:
    texts, numbers = zip(*GOLDEN, strict=True)
    assert known(texts) == [*numbers]
    assert hashed(hashing, texts) == [*numbers]


def test_texts_of_every_length(hashing: Any) -> None:
    letters = "the five boxing wizards jump quickly; " * 9
    texts = [letters[n % 7 : n % 7 + n] for n in range(300)]
    assert hashed(hashing, texts) == known(texts)
    assert [hashed(hashing, [text])[0] for text in texts[::17]] == known(texts[::17])


def test_every_character() -> None:
    """All that a text may have: each one's bytes, and where they begin and end."""
    graph = Graph()
    found = bytes_of(graph, "texts")
    outputs = [(name, onnx.TensorProto.INT64) for name in (found.stream, found.starts, found.ends)]
    reading = session(graph, outputs)
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for first in range(0, len(characters), 1 << 16):
        some = characters[first : first + (1 << 16)]
        stream, starts, ends = reading.run(None, {"texts": np.array(some, object)})
        encoded = [x.encode() for x in some]
        np.testing.assert_array_equal(stream, np.frombuffer(b"".join(encoded), np.uint8))
        np.testing.assert_array_equal(ends - starts, [len(x) for x in encoded])
        np.testing.assert_array_equal(starts[1:], ends[:-1])


SHAPES = [("none", (0,)), ("rows of one", (3, 1)), ("a grid", (2, 3)), ("one alone", ()), ("no rows", (0, 2))]


@pytest.mark.parametrize(("why", "shape"), SHAPES, ids=[row[0] for row in SHAPES])
def test_buckets_keep_the_shape(why: str, shape: tuple[int, ...]) -> None:
    graph = Graph()
    bucket = farmhash.buckets(graph, "texts", 1000, name="bucket")
    size = int(np.prod(shape))
    texts = np.array([f"text {'y' * (9 * n)}" for n in range(size)], object).reshape(shape)
    (found,) = session(graph, [(bucket, onnx.TensorProto.INT64)]).run(None, {"texts": texts})
    assert found.shape == shape
    assert found.ravel().tolist() == [number % 1000 for number in known(texts.ravel())]


def test_shapes_can_be_inferred() -> None:
    """The inference of onnx ends the process at some operators of which it does not know the inputs."""
    graph = Graph()
    farmhash.buckets(graph, "texts", 10, name="bucket")
    text = helper.make_tensor_value_info("texts", onnx.TensorProto.STRING, ["batch"])
    made = helper.make_tensor_value_info("bucket", onnx.TensorProto.INT64, None)
    model = helper.make_model(graph.inner("hash", [text], [made]), opset_imports=OPSETS)
    (bucket,) = onnx.shape_inference.infer_shapes(model).graph.output
    assert bucket.type.tensor_type.elem_type == onnx.TensorProto.INT64


def test_one_long_text_among_many(hashing: Any) -> None:
    """Rows as long as the longest text would be 2,000 of 100,000 texts of one character each."""
    texts = ["word"] * 1000 + ["é漢😀\n" * 25_000] + [""] * 1000
    assert hashed(hashing, texts) == known(texts)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=90)


@given(st.lists(TEXTS, max_size=5))
def test_any_texts(hashing: Any, texts: list[str]) -> None:
    assert hashed(hashing, texts) == known(texts)
