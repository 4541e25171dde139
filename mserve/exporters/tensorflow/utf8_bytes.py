"""The bytes of texts, in a graph, though ONNX has no operator that looks into a text.

ONNX Runtime can split a text into its characters, and hash a character with MurmurHash3. In
UTF-8 a character is at most four bytes, one block of that hash, and every step of the hash with
one block can be undone, given the number of bytes. So the hash is undone for one, two, three
and four bytes, and what comes out is right where it has UTF-8's marks of a first byte and of
those that follow. A wrong one can have these too, once in some thousand characters, but not the
same with two seeds: that was tried with all 1,112,064 characters.

The operator that splits makes rows as long as the longest text. So texts are split into pieces
first, and one long text among many does not make the others cost what it does.

Sources: MurmurHash3_x86_32 in https://github.com/aappleby/smhasher; RFC 3629.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...tensors import Array
from ..build import ML, Graph
from .machine_words import Word, Words

MICROSOFT = "com.microsoft"
PIECE = 128
SEEDS = (0, 42)
SIZES = (1, 2, 3, 4)
# Which bits of a character of each size are marks, and what they are; the first byte is the lowest.
MARKS = (0xFFFFFF80, 0xFFFFC0E0, 0xFFC0C0F0, 0xC0C0C0F8)
MARKED = (0x00000000, 0x000080C0, 0x008080E0, 0x808080F0)


@dataclass(frozen=True, slots=True)
class Bytes:
    """The bytes of texts one behind the other, int64 [bytes]; where each begins and ends, int64 [texts]."""

    stream: str
    starts: str
    ends: str


def bytes_of(graph: Graph, texts: str) -> Bytes:
    """The bytes of texts, string [texts], of which one at least must not be empty."""
    pieces, pieces_each = _split(graph, texts, tokenexp=f"(?s).{{1,{PIECE}}}")
    letters, letters_each = _split(graph, pieces, separators=[""])
    values, sizes = _undone(graph, letters)
    shifts = Word(values.words, graph.weight(_array([0, 8, 16, 24], "uint32")))
    split = (_column(values) >> shifts) & 0xFF
    wide = graph.add("Unsqueeze", sizes, _ints(graph, [1]))
    used = graph.add("Reshape", graph.add("Less", _ints(graph, [0, 1, 2, 3]), wide), _ints(graph, [-1]))
    stream = graph.add("Compress", graph.cast(split.tensor, "int64"), used)
    by_piece = graph.add("Gather", _places(graph, sizes), _places(graph, letters_each))
    places = graph.add("Gather", by_piece, _places(graph, pieces_each))
    starts = graph.add("Slice", places, _ints(graph, [0]), _ints(graph, [-1]))
    return Bytes(stream, starts, graph.add("Slice", places, _ints(graph, [1]), _ints(graph, [1 << 62])))


def _split(graph: Graph, texts: str, **how: Any) -> tuple[str, str]:
    """The parts of texts [n] one behind the other, and how many each text has: int64 [n]."""
    parts = graph.add("Tokenizer", texts, domain=MICROSOFT, mark=0, mincharnum=1, pad_value="", **how)
    parts = graph.cast(parts, "string")  # onnx does not know what Tokenizer gives
    there = graph.add("LabelEncoder", parts, domain=ML, keys_strings=[""], values_int64s=[0], default_int64=1)
    kept = graph.add("Reshape", graph.cast(there, "bool"), _ints(graph, [-1]))
    return graph.add("Compress", parts, kept), graph.add("ReduceSum", there, _ints(graph, [1]), keepdims=0)


def _places(graph: Graph, counts: str) -> str:
    """Where each one's begin, and where the last one's end, if they lie one behind the other: [n + 1]."""
    return graph.add(
        "Concat", _ints(graph, [0]), graph.add("CumSum", counts, graph.scalar(0, "int64")), axis=0
    )


def _undone(graph: Graph, letters: str) -> tuple[Word, str]:
    """Characters [n] as numbers, whose lowest byte is the first, and how many bytes they have: int64 [n]."""
    first, second = (_candidates(graph, letters, seed) for seed in SEEDS)
    masks, marks = (Word(first.words, graph.weight(_array(x, "uint32"))) for x in (MARKS, MARKED))
    marked = graph.add("Equal", (first & masks).tensor, marks.tensor)
    same = graph.add("Equal", first.tensor, second.tensor)
    right = graph.cast(graph.add("And", marked, same), "int64")
    number = graph.add("Mul", right, graph.cast(first.tensor, "int64"))
    size = graph.add("Mul", right, _ints(graph, list(SIZES)))
    axis = _ints(graph, [1])
    number, size = (graph.add("ReduceSum", x, axis, keepdims=0) for x in (number, size))
    return first.words.of(number), size


def _candidates(graph: Graph, letters: str, seed: int) -> Word:
    """What characters are if they are of each of the sizes: uint32 [n, sizes]."""
    words = Words(graph, 32)
    hashed = graph.add("MurmurHash3", letters, domain=MICROSOFT, positive=1, seed=seed)
    h = _column(words.of(hashed))
    h = (h ^ (h >> 16)) * _inverse(0xC2B2AE35)
    h = (h ^ (h >> 13) ^ (h >> 26)) * _inverse(0x85EBCA6B)
    h = h ^ (h >> 16) ^ Word(words, graph.weight(_array(SIZES, "uint32")))
    block = ((h - 0xE6546B64) * _inverse(5)).turned(13)
    whole = graph.weight(_array(SIZES, "uint32") == len(SIZES))
    h = words.where(whole, block, h) ^ seed
    return (h * _inverse(0x1B873593)).turned(15) * _inverse(0xCC9E2D51)


def _inverse(factor: int) -> int:
    return pow(factor, -1, 1 << 32)


def _column(word: Word) -> Word:
    graph = word.words.graph
    return Word(word.words, graph.add("Unsqueeze", word.tensor, _ints(graph, [1])))


def _ints(graph: Graph, values: list[int]) -> str:
    return graph.weight(_array(values, "int64"))


def _array(values: object, dtype: str) -> Array:
    import numpy as np

    return np.array(values, dtype)
