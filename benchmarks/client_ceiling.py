"""What bench's own clients can ask in a second: their limit, below which they measure servers.

    python benchmarks/client_ceiling.py [SECONDS] [ROUNDS]

A server process gives every request the same short answer without looking at it, so that
the client is the bottleneck. Prints, for each protocol and number of connections, the
requests per second of the best round, also per second of the client's CPU time, which is
what a client on a core of its own would reach. "verified" compares every answer;
"changing" gets an answer with other bytes each time, so that every one is read anew.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import numpy as np
import uvloop

from mserve.bench.load.connectors import connector
from mserve.bench.load.driver import Pool
from mserve.bench.load.job import Job
from mserve.bench.load.loops import driver
from mserve.bench.requests.codecs import CODECS, Asked
from mserve.bench.requests.verify import Checker
from mserve.bench.targets.endpoint import Endpoint
from mserve.wire import http2_frames as h2
from mserve.wire import tfs_proto
from mserve.wire.grpc_wire import HEAD, TRAILERS, framed
from mserve.wire.messages import message

CONNECTIONS = (1, 16, 64)
KINDS = ("plain", "verified", "changing")
OUTPUT = {"y": np.full((1, 1), 0.5, np.float32)}


def http_answer(protocol: str, number: int) -> bytes:
    """An answer over HTTP."""
    extra, body = b"", b'{"predictions":[[0.5]]}'
    if protocol == "oip":
        body = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,1],"data":[0.5]}]}'
    elif protocol == "oip-binary":
        size = b'"parameters":{"binary_data_size":4}'
        body = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1,1],%b}]}' % size
        extra = b"Inference-Header-Content-Length: %d\r\n" % len(body)
        body += OUTPUT["y"].tobytes()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return head + extra + b"mserve-model-version: 1\r\nX-Number: %08d\r\n\r\n" % number + body


def grpc_answer(protocol: str, number: int) -> bytes:
    """The message of an answer over gRPC."""
    if protocol == "grpc":
        made = message("inference.ModelInferResponse")(model_name="m", model_version="1", id=f"{number:08d}")
        made.outputs.add(name="y", datatype="FP32", shape=[1, 1])
        made.raw_output_contents.append(OUTPUT["y"].tobytes())
    else:
        made = message("tensorflow.serving.PredictResponse")()
        made.model_spec.name, made.model_spec.version.value = f"{number:08d}", 1
        tfs_proto.write(made.outputs["y"], OUTPUT["y"])
    return framed(made.SerializeToString())


class HttpConstant(asyncio.Protocol):
    """Answers each chunk of bytes that arrives; the client sends one request at a time."""

    def __init__(self, answers: itertools.cycle[bytes]) -> None:
        self._answers = answers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._write(next(self._answers))


class GrpcConstant(HttpConstant):
    """Answers each message that fits into a frame."""

    _rest, _used = b"", 0

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        elif data.startswith(h2.PREFACE):
            self._write(h2.settings({}))
            data = data[len(h2.PREFACE) :]
        at, out = 0, []
        while len(data) - at >= h2.HEADER_BYTES:
            high, low, kind, flags, stream = h2.HEADER.unpack_from(data, at)
            end = at + h2.HEADER_BYTES + (high << 16 | low)
            if end > len(data):
                break
            if kind == h2.Kind.SETTINGS and not flags:
                out.append(h2.frame(h2.Kind.SETTINGS, h2.ACK, 0))
            elif kind == h2.Kind.DATA:
                self._used += end - at
                out.append(self._answer(stream))
            at = end
        self._rest = data[at:]
        if self._used > 30_000:
            out.append(h2.frame(h2.Kind.WINDOW_UPDATE, 0, 0, h2.number(self._used)))
            self._used = 0
        self._write(b"".join(out))

    def _answer(self, stream: int) -> bytes:
        head = h2.frame(h2.Kind.HEADERS, h2.END_HEADERS, stream, HEAD)
        tail = h2.frame(h2.Kind.HEADERS, h2.END_HEADERS | h2.END_STREAM, stream, TRAILERS)
        return head + h2.frame(h2.Kind.DATA, 0, stream, next(self._answers)) + tail


def serve(ready: Connection) -> None:
    """The server process: a port for each protocol, with constant answers and with changing ones."""

    async def forever() -> None:
        loop, ports = asyncio.get_running_loop(), {}
        for protocol, codec in CODECS.items():
            for changing in (False, True):
                make = grpc_answer if codec.method else http_answer
                answers = [make(protocol, number) for number in range(10_000 if changing else 1)]
                kind = GrpcConstant if codec.method else HttpConstant
                server = await loop.create_server(
                    lambda kind=kind, answers=answers: kind(itertools.cycle(answers)), "127.0.0.1", 0
                )
                ports[protocol, changing] = server.sockets[0].getsockname()[1]
        ready.send(ports)
        await asyncio.Event().wait()

    uvloop.run(forever())


async def measure(port: int, protocol: str, connections: int, how: tuple[str, float]) -> tuple[float, float]:
    """A closed loop: requests per second, and per second of the client's CPU time."""
    kind, seconds = how
    codec = CODECS[protocol]
    scheme = "grpc" if codec.method else "http"
    endpoint = Endpoint(f"{scheme}://127.0.0.1:{port}", scheme, "127.0.0.1", port, "127.0.0.1")
    request = codec.encode(endpoint, Asked("m"), {"x": np.array([[0.1, 0.2, 0.3, 0.4]], np.float32)})
    check = Checker(protocol, [OUTPUT]) if kind == "verified" else None
    pool = Pool(connector(endpoint, protocol, [request], check, 16))  # type: ignore[arg-type]
    await driver(pool, Job(0.1, 1.0, concurrency=connections)).run()
    cpu = time.process_time()
    phase = await driver(pool, Job(seconds, 1.0, concurrency=connections)).run()
    cpu = time.process_time() - cpu
    pool.close()
    ok = phase.recorder.ok()
    if ok < phase.recorder.count:
        raise SystemExit(f"{protocol}: not every answer was good: {phase.messages}")
    return ok / seconds, ok / cpu


def main() -> None:
    """Start the server, measure in turns, stop the server."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        ports = ours.recv()
        cases = list(itertools.product(CODECS, KINDS, CONNECTIONS))
        best = dict.fromkeys(cases, (0.0, 0.0))
        for _ in range(rounds):
            for protocol, kind, connections in cases:
                port = ports[protocol, kind == "changing"]
                found = uvloop.run(measure(port, protocol, connections, (kind, seconds)))
                known = best[protocol, kind, connections]
                best[protocol, kind, connections] = max(known[0], found[0]), max(known[1], found[1])
    finally:
        server.terminate()
        server.join()
    print(f"{'protocol':10} {'answers':9} {'connections':>11} {'requests/s':>11} {'per s of client CPU':>20}")
    for (protocol, kind, connections), (rate, own) in best.items():
        print(f"{protocol:10} {kind:9} {connections:11} {rate:11,.0f} {own:20,.0f}")


if __name__ == "__main__":
    main()
