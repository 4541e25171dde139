"""A TensorFlow graph made flat and constant: what an ONNX converter can take.

A loaded graph calls functions, reads variables and looks words up in tables, all of which live
in a session. Here the calls are replaced by what they call, variables by their values, and
tables are read out. What a model *does* is kept out: a graph that changes its own variables
while it answers has no fixed meaning, and one that touches files is a program (`may_run`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import InputError, UsageError
from ...tensors import Array

# Operators that reach out of the graph. Tables read their words from the model's own assets.
_REACH = re.compile(
    "File|Reader|Dataset|PyFunc|^Save|MergeV2Checkpoints|Summary|^Debug|^PrintV2|Rpc|Socket|LMDB|Vocab"
)
_ASSET_TABLES = ("InitializeTableFromTextFile", "InitializeTableFromTextFileV2")
_CHANGES = re.compile(
    "^Assign|^(Resource)?(Sparse)?Apply|^(Resource)?(Scatter(Nd)?)(Add|Sub|Mul|Div|Min|Max|Update)"
    "|^CountUpTo|^StatefulRandom|^RngSkip|(Queue|Stack|TensorList|Barrier)(Push|Enqueue)|^LookupTable(Insert|Remove)"
)
_STATELESS_LISTS = re.compile("^TensorList")
_SCATTERS_OF_VARIABLES = re.compile("^Scatter(Nd)?(Add|Sub|Mul|Div|Min|Max|Update)$|^ResourceScatter")
_NODES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Flat:
    """A graph without functions or variables, and each table's keys and values by its shared name."""

    graph: Any
    tables: Mapping[bytes, tuple[Array, Array]]


def node_of(tensor: str) -> str:
    """The node that a reference to a tensor (`name:0`, `^name`) names."""
    return tensor.lstrip("^").partition(":")[0]


def reachable(graph: Any, names: Iterable[str]) -> Iterator[Any]:
    """Every node that the named nodes need, inside the functions that they call too."""
    functions = {f.signature.name: f for f in graph.library.function}
    called: set[str] = set()
    pending = [*_above(graph.node, names)]
    while pending:
        node = pending.pop()
        yield node
        for name in _functions(node):
            if name in functions and name not in called:
                called.add(name)
                pending += functions[name].node_def


def _above(nodes: Iterable[Any], names: Iterable[str]) -> Iterator[Any]:
    known = {node.name: node for node in nodes}
    pending, seen = [node_of(name) for name in names], set[str]()
    while pending:
        name = pending.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        yield known[name]
        pending += [node_of(x) for x in known[name].input]


def _functions(node: Any) -> Iterator[str]:
    """The functions that a node names: those it calls as an operator, or has in its attributes."""
    yield node.op
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (f.name for f in value.list.func)


def check_trust(graph: Any, names: Iterable[str], *, assets: bool, trust: bool, where: object) -> None:
    """Refuse a graph that reaches out of itself when it is loaded or asked. Raises UsageError."""
    found = sorted(
        {n.op for n in reachable(graph, names) if _REACH.search(n.op)} - set(_ASSET_TABLES if assets else ())
    )
    if found and not trust:
        raise UsageError(
            "loading a SavedModel runs its operators, and some reach out of the model",
            where=where,
            expected="--trust, if you know who made it",
            found=f"operators that touch files or run code: {', '.join(found)}",
            hint="with --trust it runs in a process of its own, without network where the system allows",
        )


def check_fixed(graph: Any, outputs: Mapping[str, Iterable[str]], where: object) -> None:
    """Refuse a model whose answers change its variables. `outputs` are by signature. Raises InputError."""
    found: dict[str, list[str]] = {}
    for signature, names in outputs.items():
        nodes = [n for n in reachable(graph, names) if _changes(n)]
        if nodes:
            found[signature] = sorted({f"{n.op} ({n.name})" for n in nodes})[:_NODES_SHOWN]
    if found:
        raise InputError(
            "the model is stateful: answering changes its variables",
            where=where,
            expected="signatures whose answers depend on their inputs alone",
            found="; ".join(f"{name}: {', '.join(ops)}" for name, ops in found.items()),
            hint="export a SavedModel without these signatures; the state belongs to the client",
        )


def _changes(node: Any) -> bool:
    if node.op.startswith(("Scatter", "ResourceScatter")):
        return bool(_SCATTERS_OF_VARIABLES.search(node.op))
    return bool(_CHANGES.search(node.op)) and not _STATELESS_LISTS.search(node.op)


def flatten(session: Any, outputs: list[str]) -> Flat:
    """The graph of a session that the output tensors need, flat and constant.

    What TensorFlow raises here is the caller's to explain.
    """
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_from_session_graph,
        disable_lower_using_switch_merge,
    )

    graph = session.graph.as_graph_def(add_shapes=True)
    graph = disable_lower_using_switch_merge(plain(graph))
    nodes = [node_of(name) for name in outputs]
    graph = _inlined(graph, outputs)
    constant = convert_variables_to_constants_from_session_graph(session, graph, nodes)
    return Flat(constant, _tables(session, constant))


def plain(graph: Any) -> Any:
    """The graph, changed in place: without devices, the operators of before 0.12 and hints for GPUs."""
    for node in graph.node:
        node.device = ""
        if node.op == "Variable":
            node.op = "VariableV2"
    for function in graph.library.function:
        if "api_implements" in function.attr:
            del function.attr["api_implements"]
    return graph


def _inlined(graph: Any, outputs: list[str]) -> Any:
    """The graph with the bodies of the functions that it calls in place of the calls."""
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
    from tensorflow.python.grappler import tf_optimizer

    with tf.Graph().as_default():
        meta = tf.compat.v1.train.export_meta_graph(graph_def=graph)
    wanted = meta_graph_pb2.CollectionDef()
    wanted.node_list.value.extend(outputs)
    meta.collection_def["train_op"].CopyFrom(wanted)
    config = config_pb2.ConfigProto()
    rewrite = config.graph_options.rewrite_options
    rewrite.min_graph_nodes = -1
    rewrite.optimizers.append("function")
    rewrite.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    return tf_optimizer.OptimizeGraph(config, meta)


def _tables(session: Any, graph: Any) -> dict[bytes, tuple[Array, Array]]:
    """What stands in the tables of a graph, which are given names of their own where they have none."""
    import tensorflow as tf

    found: dict[bytes, tuple[Array, Array]] = {}
    sizes: dict[str, int] = {}
    known = {op.name for op in session.graph.get_operations()}
    with session.graph.as_default():
        for node in graph.node:
            if node.op not in ("HashTableV2", "HashTable", "MutableHashTableV2"):
                continue
            types = [tf.as_dtype(node.attr[key].type) for key in ("key_dtype", "value_dtype")]
            if node.op == "HashTable":
                node.op = "HashTableV2"
            shared = node.attr["shared_name"].s
            if node.name in known and session.graph.get_operation_by_name(node.name).type.endswith("V2"):
                handle = session.graph.get_tensor_by_name(f"{node.name}:0")
            else:
                handle = tf.raw_ops.HashTableV2(
                    key_dtype=types[0],
                    value_dtype=types[1],
                    container=node.attr["container"].s,
                    shared_name=shared or node.name.encode(),
                )
            keys, values = session.run(
                tf.raw_ops.LookupTableExportV2(table_handle=handle, Tkeys=types[0], Tvalues=types[1])
            )
            node.attr["shared_name"].s = shared or node.name.encode()
            found[node.attr["shared_name"].s] = keys, values
            sizes[node.name] = len(keys)
    for node in graph.node:
        if node.op == "LookupTableSizeV2" and node_of(node.input[0]) in sizes:
            _make_constant(node, sizes[node_of(node.input[0])])
    return found


def _make_constant(node: Any, value: int) -> None:
    """An operator that answers an int64, as the constant that it answers."""
    import numpy as np
    import tensorflow as tf

    node.op = "Const"
    node.ClearField("input")
    node.ClearField("attr")
    node.attr["dtype"].type = tf.int64.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.int64(value)))
