"""Unsigned numbers of 32 or 64 bits in a graph, which wrap and are computed with as in C."""

from __future__ import annotations

from ..build import Graph


class Words:
    """The constants of a graph that is made of such numbers, each of them there once."""

    def __init__(self, graph: Graph, bits: int) -> None:
        self.graph, self.bits = graph, bits
        self._known: dict[int, str] = {}

    def of(self, tensor: str) -> Word:
        """A tensor, of integers of any dtype, as such numbers."""
        return Word(self, self.graph.cast(tensor, f"uint{self.bits}"))

    def constant(self, value: int) -> Word:
        """One number, modulo 2**bits."""
        value %= 1 << self.bits
        if value not in self._known:
            self._known[value] = self.graph.scalar(value, f"uint{self.bits}")
        return Word(self, self._known[value])

    def where(self, condition: str, yes: Word, no: Word) -> Word:
        """One number or the other; ONNX Runtime chooses between signed ones only."""
        signed = (self.graph.cast(one.tensor, "int64") for one in (yes, no))
        return self.of(self.graph.add("Where", condition, *signed))


class Word:
    """A tensor of such numbers; with Python's operators, the other one may be a number of Python's."""

    def __init__(self, words: Words, tensor: str) -> None:
        self.words, self.tensor = words, tensor

    def _with(self, op: str, other: Word | int, **attributes: str) -> Word:
        right = self.words.constant(other) if isinstance(other, int) else other
        return Word(self.words, self.words.graph.add(op, self.tensor, right.tensor, **attributes))

    def __add__(self, other: Word | int) -> Word:
        return self._with("Add", other)

    def __sub__(self, other: Word | int) -> Word:
        return self._with("Sub", other)

    def __mul__(self, other: Word | int) -> Word:
        return self._with("Mul", other)

    def __mod__(self, other: Word | int) -> Word:
        return self._with("Mod", other)

    def __xor__(self, other: Word | int) -> Word:
        return self._with("BitwiseXor", other)

    def __or__(self, other: Word | int) -> Word:
        return self._with("BitwiseOr", other)

    def __and__(self, other: Word | int) -> Word:
        return self._with("BitwiseAnd", other)

    def __rshift__(self, other: Word | int) -> Word:
        return self._with("BitShift", other, direction="RIGHT")

    def __lshift__(self, other: Word | int) -> Word:
        return self._with("BitShift", other, direction="LEFT")

    def turned(self, bits: int) -> Word:
        """The bits turned to the right."""
        return (self >> bits) | (self << (self.words.bits - bits))
