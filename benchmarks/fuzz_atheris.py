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
    from mserve.wire import protobuf, tfs_json

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


def one_input(data: bytes) -> None:
    reader = read_meta if data[:1] < b"\x80" else read_request
    with suppress(MserveError, protobuf.Malformed):
        reader(data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
