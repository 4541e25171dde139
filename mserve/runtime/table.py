"""Tables: keys to rows, looked up in the bundle's own bytes.

A table is a graph of one node, `mserve.Lookup`, whose weights are the sorted keys and
the columns in the same order (FORMAT.md, section 5). Nothing is built at load: keys are
found by binary search in the sorted array, and the rows that were found are copied out
of the columns. So a table takes no memory beside its shards, and of those only the
pages that are looked up.

Integer keys are searched as they are. Text keys are searched by an 8-byte hash; keys
with one hash are neighbours, and each is compared with its bytes, so that a collision
costs a comparison and never a wrong answer.

What lies in the shards is not trusted. The order of keys and the offsets of text are
checked once, when the table is opened; the columns are not read then. Text that is not
UTF-8 fails the request that meets it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, NoReturn, Protocol

from ..errors import ExecutionFailed, FormatUnsupported, MetaGraphMalformed, ModelRefused
from ..format.graph import Graph, Weight
from ..tensors import DTYPES, Array, TensorSpec, dtype_of
from ..wire import graph_proto, protobuf, tensor_proto
from .weights import Weights

DOMAIN, OPERATOR, VERSION = "mserve", "Lookup", 1
HASH_BYTES = 8
MAX_SAME_HASH = 64  # what a key that is not there may cost; honest tables never have three
MISSING = -1


def hash_words(words: Sequence[bytes]) -> Array:
    """The hashes of text keys: BLAKE2b with a digest of 8 bytes, read as little-endian; uint64 [words]."""
    import numpy as np

    digests = b"".join([blake2b(word, digest_size=HASH_BYTES).digest() for word in words])
    return np.frombuffer(digests, "<u8")


class Keys(Protocol):
    """The sorted keys of a table."""

    @property
    def dtype(self) -> str:
        """The dtype of the keys that are asked for."""

    def find(self, wanted: Array) -> Array:
        """The row of each key, or MISSING: int64 of the shape of `wanted`, which is [batch]."""


class Column(Protocol):
    """The values of a table, a row for each key."""

    def rows(self, at: Array, missing: Array) -> Array:
        """The rows `at`; zeros, False or "" where `missing`. Both arrays are [batch]."""


@dataclass(frozen=True, slots=True)
class IntegerKeys:
    """int64 [n], rising."""

    keys: Array
    dtype: str = "int64"

    def find(self, wanted: Array) -> Array:
        at = _first(self.keys, wanted)
        at[self.keys[at] != wanted] = MISSING
        return at


@dataclass(frozen=True, slots=True)
class Words:
    """Texts, one after the other in UTF-8: word i is bytes offsets[i] to offsets[i + 1] of `data`."""

    offsets: Array
    data: memoryview

    def at(self, index: Array) -> list[memoryview]:
        """The words at the given places, as views."""
        spans = zip(self.offsets[index].tolist(), self.offsets[index + 1].tolist(), strict=True)
        return [self.data[start:end] for start, end in spans]


@dataclass(frozen=True, slots=True)
class TextKeys:
    """uint64 [n] hashes, not falling, and the words in the same order."""

    hashes: Array
    words: Words
    dtype: str = "string"

    def find(self, wanted: Array) -> Array:
        import numpy as np

        # Half a surrogate pair is no UTF-8, so no key of the table has its bytes.
        words = [word.encode("utf-8", "surrogatepass") for word in wanted.tolist()]
        hashes = hash_words(words)
        at = _first(self.hashes, hashes)
        rows = np.full(len(words), MISSING)
        near = np.flatnonzero(self.hashes[at] == hashes)
        at = at[near]
        for i, row, candidate in zip(near.tolist(), at.tolist(), self.words.at(at), strict=True):
            rows[i] = row if candidate == words[i] else self._next(row, words[i])
        return rows

    def _next(self, row: int, word: bytes) -> int:
        """The row of a word among the neighbours that have the hash of `row`, or MISSING."""
        import numpy as np

        end = min(row + MAX_SAME_HASH, len(self.hashes))
        same = row + np.flatnonzero(self.hashes[row:end] == self.hashes[row])
        found = (at for at, other in zip(same.tolist(), self.words.at(same), strict=True) if other == word)
        return next(found, MISSING)


def _first(values: Array, wanted: Array) -> Array:
    """The first place in sorted `values` that could hold each wanted one; always a valid index."""
    import numpy as np

    at: Array = np.searchsorted(values, wanted)
    at[at == len(values)] = 0
    return at


@dataclass(frozen=True, slots=True)
class NumberColumn:
    """Values [n, ...]. Those of a bool column are bytes, since any byte may be stored there."""

    values: Array
    is_bool: bool

    def rows(self, at: Array, missing: Array) -> Array:
        rows: Array = self.values.take(at, axis=0)
        rows[missing] = 0
        return rows != 0 if self.is_bool else rows


@dataclass(frozen=True, slots=True)
class TextColumn:
    """Words in row-major order; each row has `shape`, of `width` words."""

    words: Words
    shape: tuple[int, ...]
    width: int

    def rows(self, at: Array, missing: Array) -> Array:
        import numpy as np

        rows: Array = np.full((len(at), self.width), "", dtype=object)
        there = ~missing
        index = at[there, None] * self.width + np.arange(self.width)
        texts = [str(word, "utf-8") for word in self.words.at(index.ravel())]
        rows[there] = np.array(texts, dtype=object).reshape(-1, self.width)
        return rows.reshape(len(at), *self.shape)


@dataclass(frozen=True, slots=True)
class Table:
    """An open table. `key` and `found` are the names of its input and of its last output."""

    key: str
    keys: Keys
    columns: Mapping[str, Column]
    found: str
    weights: Weights

    on_cpu: ClassVar[bool] = True
    threads: ClassVar[int] = 0

    @property
    def private(self) -> bool:
        """Whether the table lies in private memory, so that a lookup cannot wait for the disk."""
        return self.weights.private

    def release(self) -> None:
        """Let go of the table's pages, before the table itself goes."""
        self.weights.release()

    def run_options(self) -> None:
        """A lookup is over soon."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], options: Any = None) -> list[Array]:
        """The named columns, and whether the keys were found. Raises ExecutionFailed."""
        import numpy as np

        wanted = feeds.get(self.key)
        if wanted is None or wanted.ndim != 1 or dtype_of(wanted) != self.keys.dtype:
            kind = "nothing" if wanted is None else f"{dtype_of(wanted)} {list(wanted.shape)}"
            expected = f"{self.keys.dtype} [batch]"
            raise ExecutionFailed("the table has other keys", expected=expected, found=kind)
        try:
            at = self.keys.find(wanted)
            missing = at == MISSING
            at = np.where(missing, 0, at)
            return [~missing if n == self.found else self.columns[n].rows(at, missing) for n in outputs]
        except (ValueError, MemoryError) as error:  # text that is not UTF-8, rows beyond all bounds
            raise ExecutionFailed("the lookup failed", found=str(error)[:500]) from error


def is_table(graph: Graph) -> bool:
    """Whether the graph is for this module: it has an operator of the domain `mserve`."""
    return any(operator.startswith(f"{DOMAIN}.") for operator in graph.operators)


def open_table(model: bytes, graph: Graph, weights: Weights) -> Table:
    """The table of a serialised ModelProto, whose walk is `graph`, over the memory of its weights.

    Reads the keys and the offsets of text, and none of the values. Raises FormatUnsupported
    (another operator or version), MetaGraphMalformed (the node, its ports and its weights do
    not fit together), ModelRefused (the stored keys or offsets are not in order).
    """
    operator = f"{DOMAIN}.{OPERATOR}"
    if graph.operators != {operator: 1} or graph.opsets.get(DOMAIN) != VERSION or graph.functions:
        found = ", ".join(f"{name} x{count}" for name, count in graph.operators.items())
        raise FormatUnsupported(
            "the graph is not a table that this version of mserve knows",
            where=weights.where,
            expected=f"one operator, {operator}, of version {VERSION}",
            found=f"{found} of version {graph.opsets.get(DOMAIN)}"[:500],
            hint="upgrade mserve, or export the table again",
        )
    try:
        (node,) = graph_proto.nodes(model)
        inputs, outputs = graph_proto.ports(model)
    except protobuf.Malformed as error:
        raise MetaGraphMalformed("the node is malformed", where=weights.where, found=error) from error
    if tuple(s.name for s in outputs) != node.outputs or [s.name for s in inputs] != [*node.inputs[:1]]:
        _malformed("the ports of the graph are not those of its node", weights, node.outputs, graph.outputs)
    if node.attributes or node.subgraphs:
        _malformed("the node has attributes", weights, "none", ", ".join(node.attributes) or "subgraphs")
    if not outputs or (outputs[-1].dtype, len(outputs[-1].shape or ())) != ("bool", 1):
        _malformed("the last output is not whether a key was found", weights, "bool [batch]", node.outputs)
    arrays = _Arrays(model, graph, weights, iter(node.inputs[1:]))
    keys, count = _open_keys(inputs[0], arrays)
    columns = {spec.name: _open_column(spec, count, arrays) for spec in outputs[:-1]}
    if len(columns) + 1 != len(set(node.outputs)) or any(True for _ in arrays.names):
        _malformed("the node has inputs or outputs that belong to nothing", weights, "", node.inputs)
    weights.expect_lookups(graph.weights, set(node.inputs))
    return Table(inputs[0].name, keys, columns, outputs[-1].name, weights)


class _Arrays:
    """The inputs of the node, taken one after the other."""

    def __init__(self, model: bytes, graph: Graph, weights: Weights, names: Iterator[str]) -> None:
        self.model = model
        self.weights = weights
        self.names = names
        self._known = {w.name: w for w in graph.weights}
        if len(self._known) != len(graph.weights):
            _malformed("two weights have one name", weights, "", "")

    def take(self, dtype: str, shape: tuple[int | None, ...]) -> Array:
        """The next input as an array over the stored bytes; None in the shape is any size.

        Raises MetaGraphMalformed when it is not a weight of this dtype and shape.
        """
        name = next(self.names, "")
        weight = self._known.get(name)
        expected = f"a weight: {dtype} [{', '.join('n' if d is None else str(d) for d in shape)}]"
        if weight is None:
            _malformed("an input of the node is no weight", self.weights, expected, repr(name))
        have = weight.shape
        fits = len(have) == len(shape) and all(d in (None, h) for d, h in zip(shape, have, strict=True))
        if weight.dtype != dtype or not fits:
            found = f"{name!r}: {weight.dtype} {list(have)}"
            _malformed("a weight does not fit the table", self.weights, expected, found)
        return self._array(weight)

    def _array(self, weight: Weight) -> Array:
        import numpy as np

        kind = DTYPES[weight.dtype].to_numpy() if weight.dtype != "bool" else np.dtype(np.uint8)
        if weight.shard and weight.offset % kind.itemsize:
            expected = f"a multiple of {kind.itemsize}"
            found = f"{weight.name!r} at byte {weight.offset}"
            _malformed("a weight lies at an odd place", self.weights, expected, found)
        buffer: Any = self.weights.buffers[weight.shard] if weight.shard else self._inline(weight)
        array = np.ndarray(weight.shape, kind, buffer, weight.offset if weight.shard else 0)
        array.flags.writeable = False
        return array

    def _inline(self, weight: Weight) -> bytes:
        try:
            return b"".join(tensor_proto.chunks(self.model, weight))
        except protobuf.Malformed as error:
            where = f"{self.weights.where}: {weight.name}"
            raise MetaGraphMalformed("a weight is malformed", where=where, found=error) from error

    def words(self, count: int) -> Words:
        """The next two inputs as `count` words. Raises ModelRefused when the offsets are not in order."""
        offsets = self.take("int64", (count + 1,))
        data = self.take("uint8", (None,))
        in_order = offsets[0] == 0 and offsets[-1] == len(data) and (offsets[1:] >= offsets[:-1]).all()
        if not in_order:
            _refused("the offsets of text are not in order", self.weights, f"0 to {len(data)}, not falling")
        return Words(offsets, data.data)


def _open_keys(spec: TensorSpec, arrays: _Arrays) -> tuple[Keys, int]:
    """The keys, in order, and how many there are."""
    if len(spec.shape or ()) != 1 or spec.dtype not in ("int64", "string"):
        _malformed("the table has keys of another kind", arrays.weights, "int64 or string [batch]", spec)
    if spec.dtype == "int64":
        keys = arrays.take("int64", (None,))
        _check_order(len(keys) > 0 and bool((keys[1:] > keys[:-1]).all()), arrays.weights)
        return IntegerKeys(keys), len(keys)
    hashes = arrays.take("uint64", (None,))
    _check_order(len(hashes) > 0 and bool((hashes[1:] >= hashes[:-1]).all()), arrays.weights)
    if (hashes[MAX_SAME_HASH:] == hashes[:-MAX_SAME_HASH]).any():
        _refused("too many keys have one hash", arrays.weights, f"at most {MAX_SAME_HASH}")
    return TextKeys(hashes, arrays.words(len(hashes))), len(hashes)


def _check_order(in_order: bool, weights: Weights) -> None:
    if not in_order:
        _refused("the keys are not in order", weights, "one key or more, rising")


def _open_column(spec: TensorSpec, count: int, arrays: _Arrays) -> Column:
    row = [d for d in (spec.shape or ())[1:] if isinstance(d, int) and d > 0]
    known = DTYPES.get(spec.dtype)
    if not spec.shape or len(row) != len(spec.shape) - 1 or known is None or 0 < known.bits < 8:
        found = f"{spec.name}: {spec}"
        _malformed("a column cannot be looked up", arrays.weights, "[batch, sizes ...]", found)
    if spec.dtype == "string":
        width = math.prod(row)
        return TextColumn(arrays.words(count * width), tuple(row), width)
    return NumberColumn(arrays.take(spec.dtype, (count, *row)), spec.dtype == "bool")


def _malformed(what: str, weights: Weights, expected: object, found: object) -> NoReturn:
    raise MetaGraphMalformed(what, where=weights.where, expected=expected, found=str(found)[:500])


def _refused(what: str, weights: Weights, expected: str) -> NoReturn:
    raise ModelRefused(
        what, where=weights.where, expected=expected, hint="export the table again; validate checks digests"
    )
