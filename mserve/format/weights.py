"""The values of a bundle's weights, as little-endian bytes in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import BundleIncomplete, MetaGraphMalformed
from ..wire import protobuf, tensor_proto
from .graph import Weight
from .layout import META_FILE
from .reader import Bundle

PIECE_BYTES = 4 << 20


def chunks(bundle: Bundle, weight: Weight) -> Iterator[bytes]:
    """The bytes of a weight of a known dtype that is not string, from its shard or from the graph.

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
