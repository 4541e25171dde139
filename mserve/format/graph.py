"""The graph in `export.meta`: what it holds, and that its tensors lie where they may.

The walk itself is `wire.model_proto`; the bundle format keeps the constants of subgraphs
and functions inline, so the one level that it reads is all that can name another file.
"""

from __future__ import annotations

from ..errors import MetaGraphMalformed
from ..tensors import DTYPES
from ..wire import protobuf
from ..wire.model_proto import DIGEST_KEY, Graph, Weight, read_model
from .metagraph import MetaGraph

__all__ = ["DIGEST_KEY", "MAX_DIMS", "Graph", "Weight", "check_placement", "check_signatures", "read_graph"]

MAX_DIMS = 32  # more than HDF5 can hold


def read_graph(data: bytes, where: object) -> Graph:
    """Walk a serialised ModelProto. Raises MetaGraphMalformed at bytes that make no sense."""
    try:
        return read_model(data)
    except protobuf.Malformed as error:
        raise MetaGraphMalformed("the graph is not a protobuf message", where=where, found=error) from error


def check_signatures(graph: Graph, metagraph: MetaGraph, where: object) -> None:
    """Every tensor that a signature names is an input, or an output, of the graph.

    Raises MetaGraphMalformed naming the signature and the port.
    """
    for name, signature in metagraph.signatures.items():
        outputs = [(alias, spec.name) for alias, spec in signature.outputs.items()]
        for side, known, ports in (
            ("inputs", graph.inputs, signature.tensors()),
            ("outputs", graph.outputs, outputs),
        ):
            for alias, tensor in ports:
                if tensor not in known:
                    raise MetaGraphMalformed(
                        f"a signature names a tensor that is not among the graph's {side}",
                        where=f"{where}: signature {name}.{side}.{alias}",
                        expected=", ".join(known[:20]),
                        found=repr(tensor),
                    )


def check_placement(graph: Graph, metagraph: MetaGraph, where: object) -> None:
    """Every external tensor lies in a listed shard, inside it, and has the size of its shape.

    Raises MetaGraphMalformed naming the tensor.
    """
    sizes = {record.name: record.size for record in metagraph.shards}
    for w in graph.weights:
        if len(w.shape) > MAX_DIMS:
            raise MetaGraphMalformed(
                "a tensor has too many dimensions",
                where=f"{where}: {w.name}",
                expected=f"at most {MAX_DIMS}",
                found=len(w.shape),
            )
        if any(d < 0 for d in w.shape):
            raise MetaGraphMalformed(
                "a tensor has a negative size", where=f"{where}: {w.name}", found=list(w.shape)
            )
        if not w.shard:
            continue
        if w.shard not in sizes:
            raise MetaGraphMalformed(
                "a tensor lies in a file that is not a listed shard",
                where=f"{where}: {w.name}",
                expected=", ".join(sizes),
                found=repr(w.shard),
            )
        known = DTYPES.get(w.dtype)
        if known is None or known.bits == 0:
            raise MetaGraphMalformed(
                "a tensor of this dtype cannot lie in a shard", where=f"{where}: {w.name}", found=w.dtype
            )
        if w.length != known.byte_size(w.elements):
            raise MetaGraphMalformed(
                "a tensor's length does not fit its shape",
                where=f"{where}: {w.name}",
                expected=f"{known.byte_size(w.elements)} bytes for {w.dtype} {list(w.shape)}",
                found=f"{w.length} bytes",
            )
        if w.offset + w.length > sizes[w.shard]:
            raise MetaGraphMalformed(
                "a tensor ends behind the end of its shard",
                where=f"{where}: {w.name}",
                expected=f"at most byte {sizes[w.shard]} of {w.shard}",
                found=f"byte {w.offset + w.length}",
            )
