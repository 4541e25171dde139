"""Coverage-guided fuzzing of what reads a bundle's bytes and a request's body.

    pip install atheris
    python benchmarks/fuzz_atheris.py -max_total_time=1800 -rss_limit_mb=1000 -timeout=10

The first byte chooses the reader; the rest is given to it, an `export.meta` with its
digest made right. Nothing but an MserveError may come out. Options are libFuzzer's.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress

import atheris

with atheris.instrument_imports(include=["mserve"]):
    from mserve.errors import MserveError
    from mserve.format.graph import check_placement, check_signatures, read_graph
    from mserve.format.metagraph import content_digest, parse
    from mserve.format.prune import Parts
    from mserve.tensors import Signature, TensorSpec
    from mserve.wire import oip_json, protobuf, tfs_json

TRAILER = b"\x72\x51\x0a\x0dmserve.sha256\x12\x40"
PORTS = {"x": TensorSpec("x", "float32", ("batch", 2)), "s": TensorSpec("s", "string", ("batch",))}
SIGNATURE = Signature("predict", PORTS, PORTS, 0)


def read_meta(body: bytes) -> None:
    data = body + TRAILER + hashlib.sha256(body).hexdigest().encode()
    graph = read_graph(data, "fuzz")
    with suppress(protobuf.Malformed):
        parts = Parts(data)
        parts.tables()
        parts.cut({"y"})
    content_digest(data)
    metagraph = parse(data, "fuzz")
    check_placement(graph, metagraph, "fuzz")
    check_signatures(graph, metagraph, "fuzz")


def read_request(body: bytes) -> None:
    tfs_json.inputs_of(tfs_json.parse(body), SIGNATURE)


def read_infer_request(body: bytes) -> None:
    """A body whose first byte says how much of the rest is JSON: 255 all of it, 0 none."""
    header = None if body[:1] == b"\xff" else str(len(body[1:]) * (body or b"\0")[0] // 254).encode()
    message = oip_json.parse(body[1:], header)
    message.wanted(SIGNATURE)
    message.arrays(SIGNATURE)


READERS = (read_meta, read_request, read_infer_request)


def one_input(data: bytes) -> None:
    with suppress(MserveError, protobuf.Malformed):
        READERS[(data or b"\0")[0] % len(READERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
