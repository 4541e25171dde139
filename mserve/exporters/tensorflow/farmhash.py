"""FarmHash's Fingerprint64 of texts, in a graph: what TensorFlow puts words into buckets with.

The hash has a formula for each of five ranges of length. Here every text goes through those for
up to 64 bytes, and the right one of their numbers is taken. Longer texts, if any, are read in
blocks of 64 by a loop, which runs as often as the longest has blocks. The formulas read eight bytes
at places that depend on the length. So the bytes of all texts lie one behind the other with
zeros around them, and a table has the eight bytes that begin at each place. What a formula
reads outside of its text is not used.

Source: farmhashna::Hash64 in https://github.com/google/farmhash
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..build import Graph
from .machine_words import Word, Words
from .utf8_bytes import bytes_of

if TYPE_CHECKING:
    import onnx

K0, K1, K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F
SEED = 81
BLOCK = 64
STATES = ("v0", "v1", "w0", "w1", "x", "y", "z")


@dataclass(frozen=True, slots=True)
class _Texts:
    """Where texts begin and end in the table of eight bytes, int64 [texts], and their lengths."""

    words: Words
    table: str
    start: str
    end: str

    def at(self, offset: int) -> Word:
        """Eight bytes that begin so far behind each text's first byte."""
        return self._read("Add", self.start, offset)

    def back(self, offset: int) -> Word:
        """Eight bytes that begin so far before each text's end."""
        return self._read("Sub", self.end, offset)

    def byte(self, place: str) -> Word:
        """The byte at a place behind each text's first one."""
        return self._read("Add", self.start, place) & 0xFF

    def _read(self, op: str, place: str, offset: int | str) -> Word:
        graph = self.words.graph
        if offset != 0:
            step = graph.scalar(offset, "int64") if isinstance(offset, int) else offset
            place = graph.add(op, place, step)
        return Word(self.words, graph.add("Gather", self.table, place))


def buckets(graph: Graph, texts: str, count: int, name: str = "") -> str:
    """Fingerprint64 modulo a number of buckets, of texts of any shape: int64."""
    flat = graph.add("Reshape", texts, _ints(graph, [-1]))
    found = graph.cast((fingerprints(graph, flat) % count).tensor, "int64")
    return graph.add("Reshape", found, graph.add("Shape", texts), name=name, allowzero=1)


def fingerprints(graph: Graph, texts: str) -> Word:
    """Fingerprint64 of texts, string [texts]: uint64 [texts]."""
    import numpy as np

    words = Words(graph, 64)
    # One more text, since nothing can be read of no bytes at all.
    some = graph.add("Concat", texts, graph.weight(np.array(["-"], object)), axis=0)
    found = bytes_of(graph, some)
    margin = graph.scalar(BLOCK, "int64")
    start, end = (graph.add("Add", x, margin) for x in (found.starts, found.ends))
    known = _Texts(words, _table(words, found.stream), start, end)
    size = graph.add("Sub", end, start)
    length = words.of(size)
    answer = words.constant(K2)
    for least, number in (
        (1, _to_3(known, size)),
        (4, _to_7(known, length)),
        (8, _to_16(known, length)),
        (17, _to_32(known, length)),
        (33, _to_64(known, length)),
    ):
        short = graph.add("Less", size, graph.scalar(least, "int64"))
        answer = words.where(short, answer, number)
    answer = _with_longer(known, size, answer)
    return Word(words, graph.add("Slice", answer.tensor, _ints(graph, [0]), _ints(graph, [-1])))


def _table(words: Words, stream: str) -> str:
    """The eight bytes that begin at each byte, the first one the lowest, with zeros around them all."""
    import numpy as np

    graph = words.graph
    margin = graph.weight(np.zeros(BLOCK, np.int64))
    table = words.of(graph.add("Concat", margin, stream, margin, axis=0))
    for size in (1, 2, 4):
        low = graph.add("Slice", table.tensor, _ints(graph, [0]), _ints(graph, [-size]))
        high = graph.add("Slice", table.tensor, _ints(graph, [size]), _ints(graph, [1 << 62]))
        table = Word(words, low) | (Word(words, high) << (8 * size))
    return table.tensor


def _mixed(number: Word) -> Word:
    return number ^ (number >> 47)


def _joined(u: Word, v: Word, factor: Word) -> Word:
    a = _mixed((u ^ v) * factor)
    return _mixed((v ^ a) * factor) * factor


def _to_3(texts: _Texts, size: str) -> Word:
    graph, words = texts.words.graph, texts.words
    half = graph.add("Div", size, graph.scalar(2, "int64"))
    y = texts.byte(graph.scalar(0, "int64")) + (texts.byte(half) << 8)
    z = words.of(size) + ((texts.back(1) & 0xFF) << 2)
    return _mixed((y * K2) ^ (z * K0)) * K2


def _to_7(texts: _Texts, length: Word) -> Word:
    low, high = (x & 0xFFFFFFFF for x in (texts.at(0), texts.back(4)))
    return _joined(length + (low << 3), high, length * 2 + K2)


def _to_16(texts: _Texts, length: Word) -> Word:
    factor = length * 2 + K2
    a, b = texts.at(0) + K2, texts.back(8)
    return _joined(b.turned(37) * factor + a, (a.turned(25) + b) * factor, factor)


def _to_32(texts: _Texts, length: Word) -> Word:
    return _joined(*_four(texts, length, K1), length * 2 + K2)


def _four(texts: _Texts, length: Word, first: int) -> tuple[Word, Word]:
    """Two numbers of the first and the last 16 bytes."""
    a, b = texts.at(0) * first, texts.at(8)
    c, d = texts.back(8) * (length * 2 + K2), texts.back(16) * K2
    return (a + b).turned(43) + c.turned(30) + d, a + (b + K2).turned(18) + c


def _to_64(texts: _Texts, length: Word) -> Word:
    factor = length * 2 + K2
    y, second = _four(texts, length, K2)
    z = _joined(y, second, factor)
    e, f = texts.at(16) * factor, texts.at(24)
    g, h = (y + texts.back(32)) * factor, (z + texts.back(24)) * factor
    a = texts.at(0) * K2
    return _joined((e + f).turned(43) + g.turned(30) + h, e + (f + a).turned(18) + g, factor)


@dataclass(frozen=True, slots=True)
class _State:
    """What the hash of a long text knows between two blocks."""

    v0: Word
    v1: Word
    w0: Word
    w1: Word
    x: Word
    y: Word
    z: Word


def _with_longer(texts: _Texts, size: str, answer: Word) -> Word:
    """The answer, with the hashes of the texts that are longer than a block in their places."""
    graph, words = texts.words.graph, texts.words
    long = graph.add("Greater", size, graph.scalar(BLOCK, "int64"))
    places = graph.add("Reshape", graph.add("NonZero", long), _ints(graph, [-1]))
    start, end, some = (graph.add("Compress", x, long) for x in (texts.start, texts.end, size))
    found = _longer(replace(texts, start=start, end=end), some)
    signed = (graph.cast(x.tensor, "int64") for x in (answer, found))
    return words.of(graph.add("ScatterElements", next(signed), places, next(signed)))


def _longer(texts: _Texts, size: str) -> Word:
    graph, words = texts.words.graph, texts.words
    y = (SEED * K1 + 113) % (1 << 64)
    z = (y * K2 + 113) % (1 << 64)
    zero = texts.at(0) & 0
    begun = (SEED * K2, y, (z ^ z >> 47) * K2)
    x, y_, z_ = (zero + number for number in begun)
    state = _State(zero, zero, zero, zero, x + texts.at(0), y_, z_)
    last = graph.add("Sub", size, graph.scalar(1, "int64"))
    state = _blocks(texts, graph.add("Div", last, graph.scalar(BLOCK, "int64")), state)
    rest = graph.add("Mod", last, graph.scalar(BLOCK, "int64"))
    factor = ((state.z & 0xFF) << 1) + K1
    w0 = state.w0 + words.of(rest)
    v0 = state.v0 + w0
    state = replace(state, v0=v0, w0=w0 + v0)
    ending = replace(texts, start=graph.add("Sub", texts.end, graph.scalar(BLOCK, "int64")))
    state = _step(ending, state, factor, 9)
    first = _joined(state.v0, state.w0, factor) + _mixed(state.y) * K0 + state.z
    return _joined(first, _joined(state.v1, state.w1, factor) + state.x, factor)


def _step(texts: _Texts, s: _State, factor: Word | int, weight: int) -> _State:
    """One block of 64 bytes. `weight` is what two parts of the state count for."""
    x = (s.x + s.y + s.v0 + texts.at(8)).turned(37) * factor ^ _times(s.w1, weight)
    y = (s.y + s.v1 + texts.at(48)).turned(42) * factor + _times(s.v0, weight) + texts.at(40)
    z = (s.z + s.w0).turned(33) * factor
    v = _weak(texts, 0, s.v1 * factor, x + s.w0)
    w = _weak(texts, 32, z + s.w1, y + texts.at(16))
    return _State(*v, *w, z, y, x)


def _times(number: Word, weight: int) -> Word:
    return number if weight == 1 else number * weight


def _weak(texts: _Texts, offset: int, a: Word, b: Word) -> tuple[Word, Word]:
    """Two numbers of 32 bytes and two others."""
    w, x, y, z = (texts.at(offset + step) for step in (0, 8, 16, 24))
    a = a + w
    b = (b + a + z).turned(21)
    c = a + x + y
    return c + z, b + c.turned(44) + a


def _blocks(texts: _Texts, counts: str, state: _State) -> _State:
    """The state after each text's blocks but the last one: a loop over the blocks of the longest."""
    from onnx import TensorProto, helper

    graph, name = texts.words.graph, f"{counts}_body_"
    body = Graph(name)
    inside = Words(body, 64)
    number, going, given = f"{name}number", f"{name}going", [f"{name}{x}" for x in STATES]
    # A text that has no such block reads another one's bytes, or the zeros, and keeps its state.
    offset = body.add("Mul", number, body.scalar(BLOCK, "int64"))
    place = body.add("Min", body.add("Add", texts.start, offset), texts.end)
    before = _State(*(Word(inside, x) for x in given))
    after = _step(_Texts(inside, texts.table, place, texts.end), before, K1, 1)
    runs = body.add("Less", number, counts)
    pairs = zip(STATES, given, strict=True)
    kept = [inside.where(runs, getattr(after, x), Word(inside, old)).tensor for x, old in pairs]
    still = body.add("Identity", going)

    def info(tensor: str, kind: int, shape: list[str]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor, kind, shape)

    flags = [info(number, TensorProto.INT64, []), info(going, TensorProto.BOOL, [])]
    unsigned = [info(x, TensorProto.UINT64, [f"{name}texts"]) for x in given]
    outputs = [
        info(still, TensorProto.BOOL, []),
        *(info(x, TensorProto.UINT64, [f"{name}texts"]) for x in kept),
    ]
    inner = body.inner(f"{name}block", [*flags, *unsigned], outputs)
    longest = graph.add("ReduceMax", graph.add("Concat", counts, _ints(graph, [0]), axis=0), keepdims=0)
    first = (getattr(state, x).tensor for x in STATES)
    found = graph.add_many("Loop", len(STATES), longest, "", *first, body=inner)
    return _State(*(Word(texts.words, x) for x in found))


def _ints(graph: Graph, values: list[int]) -> str:
    import numpy as np

    return graph.weight(np.array(values, np.int64))
