"""What `inspect` shows when asked: the nodes of a bundle's graph, and the values of its weights."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import BundleIncomplete, MetaGraphMalformed
from ..wire import graph_proto, protobuf, tensor_proto
from ..wire.graph_proto import Node, Subgraph
from .graph import Weight
from .layout import META_FILE
from .reader import Bundle

PIECE_BYTES = 4 << 20


def nodes(bundle: Bundle) -> tuple[list[Node], list[Subgraph]]:
    """The nodes of the main graph, and the functions. Raises MetaGraphMalformed where they make no sense."""
    try:
        return list(graph_proto.nodes(bundle.meta)), list(graph_proto.functions(bundle.meta))
    except protobuf.Malformed as error:
        where = bundle.path / META_FILE
        raise MetaGraphMalformed("the graph is not a protobuf message", where=where, found=error) from error


def chunks(bundle: Bundle, weight: Weight) -> Iterator[bytes]:
    """The little-endian bytes of a weight of a known dtype that is not string, in pieces of 4 MiB.

    Raises BundleIncomplete when the shard has shrunk, MetaGraphMalformed when the values in
    the graph do not fit the shape.
    """
    if not weight.shard:
        try:
            yield from tensor_proto.chunks(bundle.meta, weight)
        except protobuf.Malformed as error:
            where = f"{bundle.path / META_FILE}: {weight.name}"
            raise MetaGraphMalformed("a weight is malformed", where=where, found=error) from error
        return
    path, missing = bundle.path / weight.shard, weight.length
    with path.open("rb") as file:
        file.seek(weight.offset)
        while missing:
            piece = file.read(min(missing, PIECE_BYTES))
            if not piece:
                raise BundleIncomplete("a shard ends inside a weight", where=f"{path}: {weight.name}")
            missing -= len(piece)
            yield piece
