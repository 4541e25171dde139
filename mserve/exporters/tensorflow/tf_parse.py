"""Where a TensorFlow graph parses serialised examples, cut out: the server parses them instead.

An operator ParseExample or ParseExampleV2 takes texts, each a serialised tf.Example, and gives
a tensor for each dense feature, the triple of indices, values and shape for each sparse one,
values and row splits for each ragged one. It is replaced by inputs of the graph, and what it
says of each feature (dtype, shape, default) becomes what the signature says of that input.
So the classify and regress calls, which carry examples, find the features by their names.

Source: tensorflow/core/ops/parsing_ops.cc in https://github.com/tensorflow/tensorflow
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ...sparse import Sparse
from ...tensors import ANY_DIM, Array, Dim, TensorSpec
from .tf_feeds import full
from .tf_graph import node_of

DENSE, SPARSE, RAGGED = "dense", "sparse", "ragged"


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of the examples, by the name it has there, and what the graph is fed with for it."""

    key: str
    kind: str
    port: TensorSpec | Sparse


@dataclass(slots=True)
class Parsed:
    """A graph without parsers. `features` are by the placeholder that took the serialised examples."""

    graph: Any
    features: Mapping[str, Sequence[Feature]]


def cut(graph: Any, where: object) -> Parsed:
    """Replace every parser that reads a placeholder by placeholders for what it gives.

    Others stay, and the converter refuses them. Raises InputError for a parser whose features
    are not constants.
    """
    import tensorflow as tf

    nodes = {node.name: node for node in graph.node}
    read = {full(x) for node in graph.node for x in node.input}
    features: dict[str, list[Feature]] = {}
    renamed: dict[str, str] = {}
    made: list[Any] = []
    gone: set[str] = set()
    for node in graph.node:
        if node.op not in ("ParseExample", "ParseExampleV2"):
            continue
        source = _origin(nodes, node.input[0])
        if source.op not in ("Placeholder", "PlaceholderWithDefault"):
            continue
        found = _Parser(node, graph, where, read)
        features.setdefault(source.name, []).extend(found.features())
        renamed |= found.renamed
        made += found.made
        gone.add(node.name)
    cut_graph = tf.compat.v1.GraphDef()
    cut_graph.CopyFrom(graph)
    del cut_graph.node[:]
    for node in (*(n for n in graph.node if n.name not in gone), *made):
        copy = cut_graph.node.add()
        copy.CopyFrom(node)
        inputs = [renamed.get(full(x), x) for x in copy.input if node_of(x) not in gone or x[0] != "^"]
        copy.ClearField("input")
        copy.input.extend(inputs)
    return Parsed(cut_graph, features)


def _origin(nodes: Mapping[str, Any], tensor: str) -> Any:
    """The node behind a chain of identities."""
    node = nodes[node_of(tensor)]
    while node.op in ("Identity", "Snapshot") and node.input:
        node = nodes[node_of(node.input[0])]
    return node


class _Parser:
    """One parser: its features, and the placeholders that stand for its outputs."""

    def __init__(self, node: Any, graph: Any, where: object, read: Container[str]) -> None:
        self._node, self._graph, self._where, self._read = node, graph, where, read
        self.made: list[Any] = []
        self.renamed: dict[str, str] = {}
        self._next = 0

    def features(self) -> Iterator[Feature]:
        """Every feature, in the order of the operator's outputs."""
        sparse, dense, ragged, defaults = self._specification()
        attr = self._node.attr
        triples = [attr["sparse_types"].list.type, attr["Tdense"].list.type]
        groups = [(key, "indices") for key in sparse], [(key, "values") for key in sparse]
        names: dict[str, dict[str, str]] = {key: {} for key in (*sparse, *ragged)}
        for key, role in groups[0]:
            names[key][role] = self._stand_in(key, role, "int64", (None, 2))
        for (key, role), number in zip(groups[1], triples[0], strict=True):
            names[key][role] = self._stand_in(key, role, _dtype(number), (None,))
        for key, number in zip(sparse, triples[0], strict=True):
            names[key]["shape"] = self._stand_in(key, "shape", "int64", (2,))
            self._bind(names[key], _dtype(number))
        shapes = attr["dense_shapes"].list.shape
        plain = list(zip(dense, triples[1], shapes, defaults, strict=True))
        dense_names = [
            self._stand_in(key, "", _dtype(number), (None, *_sizes(shape))) for key, number, shape, _ in plain
        ]
        for key, number in zip(ragged, attr["ragged_value_types"].list.type, strict=True):
            names[key]["values"] = self._stand_in(key, "values", _dtype(number), (None,))
        for key, number in zip(ragged, attr["ragged_split_types"].list.type, strict=True):
            names[key]["splits"] = self._stand_in(key, "splits", "int64", (None,), _dtype(number))
        kinds = [*((k, SPARSE, t) for k, t in zip(sparse, triples[0], strict=True))]
        kinds += [(k, RAGGED, t) for k, t in zip(ragged, attr["ragged_value_types"].list.type, strict=True)]
        for key, kind, number in kinds:
            port = Sparse(RAGGED, _dtype(number), names[key], ("batch", ANY_DIM), optional=True)
            yield Feature(key, kind, port)
        for (key, number, shape, default), name in zip(plain, dense_names, strict=True):
            sizes: tuple[Dim, ...] = tuple(ANY_DIM if d is None else d for d in _sizes(shape))
            spec = TensorSpec(name, _dtype(number), ("batch", *sizes), default=_default(default, sizes))
            yield Feature(key, DENSE, spec)

    def _specification(self) -> tuple[list[str], list[str], list[str], list[Array]]:
        """Keys of sparse, dense and ragged features, and the defaults of the dense ones."""
        values = self._constants([x for x in self._node.input[2:] if not x.startswith("^")])
        if self._node.op == "ParseExampleV2":
            sparse, dense, ragged = map(_keys, values[:3])
            return sparse, dense, ragged, values[3:]
        count, many = self._node.attr["Nsparse"].i, self._node.attr["Ndense"].i
        keys = [key for array in values[: count + many] for key in _keys(array)]
        return keys[:count], keys[count:], [], values[count + many :]

    def _constants(self, tensors: list[str]) -> list[Array]:
        """The values of tensors that no input changes."""
        import tensorflow as tf

        with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
            tf.import_graph_def(self._graph, name="")
            try:
                found: list[Array] = session.run([graph.get_tensor_by_name(full(x)) for x in tensors])
            except tf.errors.OpError as error:
                raise InputError(
                    "the features that the graph parses are not constants",
                    where=f"{self._where}: {self._node.name}",
                    found=error.message,
                ) from error
        return found

    def _bind(self, names: Mapping[str, str], dtype: str) -> None:
        """Have the graph need all of a sparse feature.

        Its indices need its shape, which they are below: many graphs read the number of rows from
        another feature, and the server gives it with each. Values need the indices, of which there
        are as many, where the graph reads values alone: weights of another feature's entries.
        """
        import tensorflow as tf

        indices, values, shape = (names[role] for role in ("indices", "values", "shape"))
        old = {new: old for old, new in self.renamed.items() if new in names.values()}
        with tf.Graph().as_default() as small:
            given = tf.compat.v1.placeholder("int64", (None, 2), name=node_of(indices))
            ends = tf.compat.v1.placeholder("int64", (2,), name=node_of(shape))
            stem = node_of(indices)
            one = tf.constant(1, tf.int64, name=f"{stem}_one")
            last = tf.subtract(ends, one, name=f"{stem}_last")
            bound = tf.minimum(given, last, name=f"{stem}_below")
            self.renamed[old[indices]] = bound.name
            if old[indices] not in self._read:
                entries = tf.compat.v1.placeholder(dtype, (None,), name=node_of(values))
                with tf.name_scope(f"{node_of(values)}_held"):
                    held = tf.slice(entries, [0], [tf.shape(bound)[0]])
                self.renamed[old[values]] = held.name
            nodes = [n for n in small.as_graph_def(add_shapes=True).node if n.op != "Placeholder"]
        self.made += nodes

    def _stand_in(
        self, key: str, role: str, dtype: str, shape: tuple[int | None, ...], taken_as: str = ""
    ) -> str:
        """A placeholder for the operator's next output, which the graph may take in another dtype."""
        import tensorflow as tf

        stem = re.sub(r"[^A-Za-z0-9_.\-/]+", "_", f"{self._node.name}/{key}{'.' if role else ''}{role}")
        name = f"{stem.lstrip('_-/') or 'feature'}_{self._next}"
        with tf.Graph().as_default() as small:
            tensor = tf.compat.v1.placeholder(dtype, shape, name=name)
            if taken_as not in ("", dtype):
                tensor = tf.cast(tensor, taken_as, name=f"{name}_cast")
            self.made += small.as_graph_def(add_shapes=True).node
        self.renamed[f"{self._node.name}:{self._next}"] = tensor.name
        self._next += 1
        return f"{name}:0"


def _keys(array: Array) -> list[str]:
    import numpy as np

    return [x.decode("utf-8", "replace") for x in np.asarray(array, object).reshape(-1).tolist()]


def _dtype(number: int) -> str:
    import tensorflow as tf

    return str(tf.as_dtype(number).name)


def _sizes(shape: Any) -> tuple[int | None, ...]:
    return tuple(d.size if d.size >= 0 else None for d in shape.dim)


def _default(array: Array, sizes: tuple[Dim, ...]) -> Any:
    """A dense feature's default as a JSON value for one row; None where there is none."""
    import numpy as np

    if array.size == 0:
        return None
    fixed = tuple(d for d in sizes if isinstance(d, int))
    whole = array
    if len(fixed) == len(sizes):
        whole = np.broadcast_to(array.reshape(-1)[0], fixed) if array.size == 1 else array.reshape(fixed)
    values = whole.tolist()
    return _text(values) if array.dtype.kind == "O" else values


def _text(values: Any) -> Any:
    if isinstance(values, list):
        return [_text(x) for x in values]
    return values.decode("utf-8", "replace") if isinstance(values, bytes) else values
