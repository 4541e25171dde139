"""Coverage-guided fuzzing of what reads a bundle's bytes, requests as JSON and as protobuf, and HTTP/2.

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
    from mserve.wire import grpc_wire, http2, oip_json, oip_known, protobuf, tfs_examples, tfs_json, tfs_proto
    from mserve.wire.grpc_head import HeadReader
    from mserve.wire.http2_frames import PREFACE

LIMIT = 1 << 20
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


def read_examples(body: bytes) -> None:
    tfs_examples.to_inputs(*tfs_examples.of_body(tfs_json.parse(body)), SIGNATURE, LIMIT)


def read_predict_request(body: bytes) -> None:
    request = tfs_proto.read("tensorflow.serving.PredictRequest", body)
    arrays = tfs_proto.to_arrays(request.inputs, LIMIT)
    assert sum(array.nbytes for array in arrays.values()) <= LIMIT
    for array in arrays.values():
        tfs_proto.from_array(array)


def read_input(body: bytes) -> None:
    examples = tfs_proto.examples_of(tfs_proto.read("tensorflow.serving.Input", body))
    tfs_examples.to_inputs(*examples, SIGNATURE, LIMIT)


def read_grpc_request(body: bytes) -> None:
    reader = oip_known.Reader()
    first, second = reader.read(body), reader.read(body)
    assert (first.known.model, first.id) == (second.known.model, second.id)
    assert repr(first.message()) == repr(second.message())  # a NaN is not equal to itself


def read_http2(body: bytes) -> None:
    """Frames behind a good beginning, in two portions: answers go out, and the connection goes on or ends."""
    connection = http2.Http2(HeadReader(), 0)
    for portion in (PREFACE + b"\0\0\0\4\0\0\0\0\0" + body[: len(body) // 2], body[len(body) // 2 :]):
        for kind, stream, _, last in connection.receive(portion, 0):
            if kind == http2.DATA and last:
                connection.answer(stream, grpc_wire.HEAD, b"answer", grpc_wire.TRAILERS)
        while connection.take():
            pass
    assert connection.ended or connection.waiting == sum(
        len(s.waiting or b"") for s in connection.streams.values()
    )


READERS = (
    read_meta,
    read_request,
    read_infer_request,
    read_examples,
    read_predict_request,
    read_input,
    read_grpc_request,
    read_http2,
)


def one_input(data: bytes) -> None:
    reader = READERS[data[0] % len(READERS)] if data else read_request
    with suppress(MserveError, *((protobuf.Malformed,) if reader is read_meta else ())):
        reader(data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
