"""The features that a linear model multiplies: rows of them all, or sparse rows of some.

A reader says what it computes; here is how its inputs arrive. Where there are many features,
nearly all of a row is zero, and a request of a whole row costs more than its answer: from
SPARSE_FROM features on the rows are sparse unless the user says otherwise.

Ids of sparse rows are those of the source's own text files, so that a line of such a file is
a request, and gets the answer that the source's program gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from ..sparse import IDS, LENGTHS, VALUES, Sparse, starts
from ..tensors import Array, Ports, TensorSpec
from .answers import FEATURES
from .build import Graph
from .kinds import ConvertOptions
from .sparse_graph import row_dots, row_sums, row_terms, sparse_input

SPARSE_FROM = 4097
DRAWN_ENTRIES = 40


@dataclass(frozen=True, slots=True)
class DenseRows:
    """Rows of `count` float32 numbers; ids in files count from `first`."""

    count: int
    first: int = 0

    def ports(self) -> Ports:
        return {FEATURES: TensorSpec(FEATURES, "float32", ("batch", self.count))}

    def dots(self, graph: Graph, weights: Array, bias: Array) -> str:
        """Rows times weights [count, columns] plus bias [columns], computed in their dtype."""
        values = _cast(graph, FEATURES, "float32", weights)
        return graph.add("Gemm", values, graph.weight(weights, "weights"), graph.weight(bias, "bias"))

    def moments(self, graph: Graph, factors: Array) -> tuple[str, str]:
        """The sums over features of value times factors [count, columns], and of the squares of that."""
        values = _cast(graph, FEATURES, "float32", factors)
        once = graph.add("MatMul", values, graph.weight(factors, "factors"))
        squared = graph.add("Mul", values, values)
        return once, graph.add("MatMul", squared, graph.weight(factors * factors, "factors_squared"))

    def draw(self, rows: int) -> dict[str, Array]:
        """Inputs, half of their values zero as in sparse rows."""
        import numpy as np

        rng = np.random.default_rng(rows)
        made = rng.standard_normal((rows, self.count))
        return {FEATURES: np.where(rng.random(made.shape) < 0.5, made, 0.0).astype(np.float32)}

    def entries(self, inputs: Mapping[str, Array]) -> list[dict[int, float]]:
        """Rows as values that are not zero, by id."""
        rows = inputs[FEATURES].astype(float).tolist()
        return [{self.first + i: v for i, v in enumerate(row) if v} for row in rows]


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Sparse rows of `count` features, whose ids count from `first`; smaller ids are refused.

    Larger ids have no weight with `beyond`; otherwise they are refused, too.
    """

    count: int
    first: int = 0
    beyond: bool = False
    dtype: str = "float32"
    alias: str = FEATURES

    @property
    def port(self) -> Sparse:
        end = self.first + self.count
        words = [f"ids count from {self.first}, as in the model's own text files"]
        words += [f"ids above {end - 1} have no weight"] if self.beyond else []
        size = 0 if self.beyond else end
        return sparse_input(self.alias, size, self.dtype, doc="; ".join(words), first_id=self.first)

    def ports(self) -> Ports:
        return {self.alias: self.port}

    def _table(self, weights: Array) -> Array:
        """Weights by id."""
        import numpy as np

        return np.pad(weights, ((self.first, 0), (0, 0))) if self.first else weights

    def dots(self, graph: Graph, weights: Array, bias: Array) -> str:
        """Rows times weights [count, columns] plus bias [columns], computed in their dtype."""
        port = self.port
        values = _cast(graph, port.tensors[VALUES], self.dtype, weights)
        found = row_dots(graph, port, self._table(weights), values, "weights")
        return graph.add("Add", found, graph.weight(bias, "bias"))

    def moments(self, graph: Graph, factors: Array) -> tuple[str, str]:
        """The sums over features of value times factors [count, columns], and of the squares of that."""
        port = self.port
        values = _cast(graph, port.tensors[VALUES], self.dtype, factors)
        terms = row_terms(graph, port, self._table(factors), values, "factors")
        squares = graph.add("Mul", terms, terms)
        return row_sums(graph, port, terms, factors[:1]), row_sums(graph, port, squares, factors[:1])

    def draw(self, rows: int) -> dict[str, Array]:
        """Inputs: rows with ids in order and each once, some beyond the last where they may be."""
        import numpy as np

        rng = np.random.default_rng(rows)
        end = self.first + self.count + self.beyond * (1 + self.count // 8)
        most = min(DRAWN_ENTRIES, end - self.first)
        ids = [
            np.unique(rng.integers(self.first, end, rng.integers(1 if row == 0 else 0, most + 1)))
            for row in range(rows)
        ]
        found = np.concatenate(ids).astype(np.int64)
        names = self.port.names(self.alias)
        return {
            names[IDS]: found,
            names[VALUES]: rng.standard_normal(len(found)).astype(self.dtype),
            names[LENGTHS]: np.array([len(one) for one in ids], np.int64),
        }

    def entries(self, inputs: Mapping[str, Array]) -> list[dict[int, float]]:
        """Rows as values by id."""
        names = self.port.names(self.alias)
        at = starts(inputs[names[LENGTHS]]).tolist()
        ids, values = inputs[names[IDS]].tolist(), inputs[names[VALUES]].tolist()
        return [dict(zip(ids[begin:end], values[begin:end], strict=True)) for begin, end in pairwise(at)]


FeatureRows = DenseRows | SparseRows


def chosen(count: int, options: ConvertOptions, *, many: int = SPARSE_FROM) -> bool:
    """Whether the rows of so many features are sparse: as the user says, else from `many` features on."""
    return count >= many if options.sparse is None else options.sparse


def _cast(graph: Graph, tensor: str, dtype: str, weights: Array) -> str:
    return tensor if weights.dtype.name == dtype else graph.cast(tensor, weights.dtype.name)
