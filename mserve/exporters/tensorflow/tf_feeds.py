"""Signatures that feed a tensor in the middle of a TensorFlow graph, which an ONNX graph cannot.

TensorFlow runs a graph from whatever tensors a request feeds; so one signature takes serialised
examples and another one the tensor that they are parsed to. ONNX inputs have nothing behind
them. What lies between such tensors and the signature's outputs is therefore there twice, the
second time behind inputs of its own; weights, on which nothing fed has an effect, are shared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .tf_graph import node_of

Names = dict[str, str]


def full(tensor: str) -> str:
    """A tensor's name with its number; control inputs as they are."""
    return tensor if ":" in tensor or tensor.startswith("^") else f"{tensor}:0"


def separate(
    graph: Any, session: Any, feeds: Mapping[str, Sequence[str]], outputs: Mapping[str, Sequence[str]]
) -> tuple[Any, dict[str, Names]]:
    """The graph with an input for every tensor that a signature feeds, and what became of its tensors.

    The result has, by signature, the new name of each tensor that is called otherwise now.
    """
    nodes = {node.name: node for node in graph.node}
    renamed: dict[str, Names] = {}
    known: dict[frozenset[str], tuple[str, set[str]]] = {}
    for signature, tensors in feeds.items():
        inner = frozenset(full(t) for t in tensors if _is_inner(nodes.get(node_of(t))))
        if not inner:
            renamed[signature] = {}
            continue
        prefix, done = known.setdefault(inner, (_prefix(signature, nodes), set()))
        copies = _between(nodes, inner, outputs[signature])
        for name in sorted(copies - done):
            _copy(graph, nodes[name], prefix, inner, copies)
        if not done:
            _add_inputs(graph, session, prefix, inner)
        done |= copies | {""}
        renamed[signature] = {
            t: _renamed(full(t), prefix, inner, copies) for t in (*tensors, *outputs[signature])
        }
    return graph, renamed


def _is_inner(node: Any) -> bool:
    return node is not None and not node.op.startswith("Placeholder")


def _prefix(signature: str, nodes: Mapping[str, Any]) -> str:
    stem = re.sub(r"[^A-Za-z0-9_.]+", "_", signature).lstrip("_") or "signature"
    while any(name.startswith(f"{stem}/") for name in nodes):
        stem += "_"
    return f"{stem}/"


def _between(nodes: Mapping[str, Any], inner: frozenset[str], outputs: Iterable[str]) -> set[str]:
    """The nodes on the way from some tensors to the outputs."""
    above, pending = set[str](), [node_of(t) for t in outputs if full(t) not in inner]
    while pending:
        name = pending.pop()
        if name not in above and name in nodes:
            above.add(name)
            pending += [node_of(x) for x in nodes[name].input if full(x) not in inner]
    found = {name for name in above if any(full(x) in inner for x in nodes[name].input)}
    takers: dict[str, list[str]] = {}
    for name in above:
        for tensor in nodes[name].input:
            takers.setdefault(node_of(tensor), []).append(name)
    pending = list(found)
    while pending:
        for name in takers.get(pending.pop(), ()):
            if name not in found:
                found.add(name)
                pending.append(name)
    return found


def _renamed(tensor: str, prefix: str, inner: frozenset[str], copies: set[str]) -> str:
    if tensor in inner:
        return f"{prefix}{_input_name(tensor)}:0"
    if node_of(tensor) not in copies:
        return tensor
    return f"^{prefix}{tensor[1:]}" if tensor.startswith("^") else prefix + tensor


def _input_name(tensor: str) -> str:
    node, _, port = tensor.partition(":")
    return f"{node}_fed" if port == "0" else f"{node}_fed_{port}"


def _copy(graph: Any, node: Any, prefix: str, inner: frozenset[str], copies: set[str]) -> None:
    copy = graph.node.add()
    copy.CopyFrom(node)
    copy.name = prefix + node.name
    inputs = [_renamed(full(x), prefix, inner, copies) for x in node.input]
    copy.ClearField("input")
    copy.input.extend(inputs)
    if "_class" in copy.attr:
        del copy.attr["_class"]
    if "frame_name" in copy.attr:
        copy.attr["frame_name"].s = prefix.encode() + copy.attr["frame_name"].s


def _add_inputs(graph: Any, session: Any, prefix: str, inner: frozenset[str]) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as small:
        for tensor in sorted(inner):
            known = session.graph.get_tensor_by_name(tensor)
            tf.compat.v1.placeholder(known.dtype.base_dtype, known.shape, name=prefix + _input_name(tensor))
        graph.node.extend(small.as_graph_def(add_shapes=True).node)


def add_outputs(graph: Any, renamed: Mapping[str, Names], outputs: Mapping[str, Sequence[str]]) -> list[str]:
    """Behind every output of a signature a node that does nothing, whose names are returned and in `renamed`.

    The converter fails at outputs that its handlers of some operators name themselves.
    """
    import tensorflow as tf

    taken = {node.name for node in graph.node}
    made: dict[str, str] = {}
    with tf.Graph().as_default() as whole:
        tf.import_graph_def(graph, name="")
    for signature, tensors in outputs.items():
        for tensor in tensors:
            known = full(renamed[signature].get(tensor, tensor))
            if known not in made:
                name = f"{known.replace(':0', '').replace(':', '_')}/answer"
                while name in taken:
                    name += "_"
                taken.add(name)
                node = graph.node.add(name=name, op="Identity", input=[known])
                node.attr["T"].type = whole.get_tensor_by_name(known).dtype.as_datatype_enum
                made[known] = f"{name}:0"
            renamed[signature][tensor] = made[known]
    return list(made.values())
