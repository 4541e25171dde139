"""Columns of a table on its way through a Spark pipeline, as tensors of a graph in the making.

A vector is kept in blocks, because most of it is one-hot codes: a block is either dense, or a
bag of positions. Scalers do nothing but note a factor and a shift for each entry. So a
linear model over tens of thousands of one-hot columns is a look-up of a few weights, and no
long row is ever built; what needs the row itself asks for it.

Where Spark would raise an error or leave a row out (an unknown category, a missing value),
there is no such answer for one row of a batch: its numbers are NaN and its label is -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...errors import InputError
from ...sparse import Sparse
from ...tensors import Array, TensorSpec
from ..build import Graph
from ..legacy.networks import finite
from ..sparse_graph import row_dots, sparse_input

TEXT, NUMBER, VECTOR, WORDS = "text", "a number", "a vector", "words"
MAX_SIZE = 1 << 24


@dataclass(frozen=True, slots=True)
class Text:
    """string [batch]."""

    tensor: str


@dataclass(frozen=True, slots=True)
class Words:
    """string [batch, n], and which of them are there, bool [batch, n]."""

    tensor: str
    there: str


@dataclass(frozen=True, slots=True)
class Number:
    """float32 [batch]; `labels` are the texts that its values, as indices, stand for."""

    tensor: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a vector: a tensor [batch, size]; or, `bag`, positions int64 [batch, n], where `size` means
    none; or the entries of a sparse input, the `port`.
    """

    tensor: str
    size: int
    bag: bool = False
    port: Sparse | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """Blocks side by side, then times `scale`, plus `shift`: float64 [size] each."""

    blocks: tuple[Block, ...]
    scale: Array
    shift: Array

    @property
    def size(self) -> int:
        return len(self.scale)

    def scaled(self, scale: Array, shift: Array, where: str) -> Vector:
        """Times and plus further numbers, one for each entry. Raises InputError where they do not fit."""
        if scale.shape != self.scale.shape or shift.shape != self.scale.shape:
            raise InputError("a vector has another size", where=where, expected=len(scale), found=self.size)
        return Vector(self.blocks, self.scale * scale, self.shift * scale + shift)


def vector_of(blocks: Sequence[Block]) -> Vector:
    """A vector of blocks as they are."""
    import numpy as np

    size = sum(block.size for block in blocks)
    return Vector(tuple(blocks), np.ones(size), np.zeros(size))


def concatenated(vectors: Sequence[Vector]) -> Vector:
    """Vectors side by side."""
    import numpy as np

    return Vector(
        tuple(block for one in vectors for block in one.blocks),
        np.concatenate([one.scale for one in vectors]),
        np.concatenate([one.shift for one in vectors]),
    )


def dense(graph: Graph, vector: Vector) -> str:
    """The vector as a row, float32 [batch, size]. Raises InputError where rows are sparse."""
    sparse = [block.tensor for block in vector.blocks if block.port is not None]
    if sparse:
        raise InputError(
            "the model wants whole rows",
            where=f"column {sparse[0]}",
            expected="a linear model, behind nothing but scalers and assemblers, for sparse rows",
            hint="export it without --sparse",
        )
    parts = [_row(graph, block) if block.bag else block.tensor for block in vector.blocks]
    row = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
    if (vector.scale != 1).any():
        row = graph.add("Mul", row, graph.weight(finite(vector.scale, "a scaler")))
    if vector.shift.any():
        row = graph.add("Add", row, graph.weight(finite(vector.shift, "a scaler")))
    return row


def _row(graph: Graph, block: Block) -> str:
    """How often each position stands in the bag, float32 [batch, size]."""
    import numpy as np

    batch = graph.add("Shape", block.tensor, start=0, end=1)
    shape = graph.add("Concat", batch, graph.weight(np.array([block.size + 1])), axis=0)
    zeros = graph.add("Expand", graph.scalar(0.0), shape)
    ones = graph.add("Expand", graph.scalar(1.0), graph.add("Shape", block.tensor))
    counts = graph.add("ScatterElements", zeros, block.tensor, ones, axis=1, reduction="add")
    bounds = [graph.weight(np.array([value], np.int64)) for value in (0, block.size, 1)]
    return graph.add("Slice", counts, *bounds)


def linear(graph: Graph, vector: Vector, weights: Array, bias: Array, where: str) -> str:
    """The vector times weights [size, columns] plus bias [columns], float32 [batch, columns].

    Raises InputError where they do not fit.
    """
    import numpy as np

    if len(weights) != vector.size:
        raise InputError("a vector has another size", where=where, expected=len(weights), found=vector.size)
    scaled = weights * vector.scale[:, None]
    constant = bias + vector.shift @ weights
    tables, positions, dense_parts, dense_weights, terms = [], [], [], [], []
    start = offset = 0
    for block in vector.blocks:
        rows = scaled[start : start + block.size]
        start += block.size
        if block.bag:
            tables += [rows, np.zeros((1, weights.shape[1]))]
            moved = graph.add("Add", block.tensor, graph.scalar(offset, "int64")) if offset else block.tensor
            positions.append(moved)
            offset += block.size + 1
        elif block.port is not None:
            terms.append(row_dots(graph, block.port, finite(rows, where)))
        else:
            dense_parts.append(block.tensor)
            dense_weights.append(rows)
    if tables:
        table = graph.weight(finite(np.concatenate(tables), where))
        joined = positions[0] if len(positions) == 1 else graph.add("Concat", *positions, axis=1)
        terms.append(graph.add("ReduceSum", graph.add("Gather", table, joined), _axis(graph), keepdims=0))
    if dense_parts:
        row = dense_parts[0] if len(dense_parts) == 1 else graph.add("Concat", *dense_parts, axis=1)
        terms.append(graph.add("MatMul", row, graph.weight(finite(np.concatenate(dense_weights), where))))
    total = terms[0] if len(terms) == 1 else graph.add("Sum", *terms)
    return graph.add("Add", total, graph.weight(finite(constant, where)))


def _axis(graph: Graph) -> str:
    import numpy as np

    return graph.weight(np.array([1]))


Column = Text | Words | Number | Vector


@dataclass(slots=True)
class Table:
    """The columns known so far; whatever else is asked for becomes an input.

    `described` are the inputs that the user described; vectors among the inputs are `sparse` if so asked;
    `invalid` are tensors, bool [batch], of the
    rows that have no answer.
    """

    graph: Graph
    described: dict[str, TensorSpec]
    sparse: bool = False
    columns: dict[str, Column] = field(default_factory=dict)
    inputs: dict[str, TensorSpec | Sparse] = field(default_factory=dict)
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    invalid: list[str] = field(default_factory=list)

    def text(self, name: str, where: str) -> str:
        """A column of text. Raises InputError where it is something else."""
        column = self._known(name, TEXT, 0)
        if not isinstance(column, Text):
            raise self._other(name, TEXT, where)
        return column.tensor

    def words(self, name: str, where: str) -> Words:
        column = self.columns.get(name)
        if not isinstance(column, Words):
            raise self._other(name, "words of a tokenizer in the same pipeline", where)
        return column

    def number(self, name: str, where: str) -> Number:
        column = self._known(name, NUMBER, 0)
        if not isinstance(column, Number):
            raise self._other(name, NUMBER, where)
        return column

    def vector(self, name: str, size: int, where: str) -> Vector:
        """A column of vectors; an input has the given size, which is 0 where the caller does not know."""
        column = self._known(name, VECTOR, size)
        if not isinstance(column, Vector):
            raise self._other(name, VECTOR, where)
        if size and column.size != size:
            raise InputError(
                "a vector has another size",
                where=f"{where}: {name}",
                expected=f"{size} numbers",
                found=column.size,
                hint="an input column that holds vectors is described with --input NAME:float32[batch,N]",
            )
        return column

    def part(self, name: str, where: str) -> Vector | Number:
        """A number or a vector, as a part of a longer vector."""
        column = self._known(name, NUMBER, 0)
        if isinstance(column, Number | Vector):
            return column
        raise self._other(name, "a number or a vector", where)

    def _known(self, name: str, kind: str, size: int) -> Column:
        if name not in self.columns:
            self.columns[name] = self._input(name, kind, size)
        return self.columns[name]

    def _input(self, name: str, kind: str, size: int) -> Column:
        spec = self.described.get(name)
        if spec is not None and len(spec.shape or ()) == 2 and isinstance((spec.shape or ())[1], int):
            kind, size = VECTOR, int((spec.shape or (0, 0))[1])
        if kind == VECTOR and not 0 < size <= MAX_SIZE:
            raise InputError(
                "the size of a vector is not known",
                where=f"column {name}",
                expected=f"--input {name}:float32[batch,N]",
                found=size,
            )
        if kind == VECTOR and self.sparse:
            port = sparse_input(name, size, doc="ids count from 0, as the indices of Spark's vectors")
            self.inputs[name] = port
            return vector_of([Block(name, size, port=port)])
        dtype = "string" if kind == TEXT else "float32"
        shape = ("batch", size) if kind == VECTOR else ("batch",)
        self.inputs[name] = TensorSpec(name, dtype, shape)
        if kind == TEXT:
            return Text(name)
        return vector_of([Block(name, size)]) if kind == VECTOR else Number(name)

    def _other(self, name: str, expected: str, where: str) -> InputError:
        column = self.columns.get(name)
        found = type(column).__name__.lower() if column is not None else "no such column"
        return InputError(
            "a column is not what a stage takes", where=f"{where}: {name}", expected=expected, found=found
        )
