"""ModelInfer on a 784-128-10 perceptron, and our transport alone, against a server of grpcio's.

The last two answer a constant.

    python benchmarks/grpc_transport.py [SECONDS]

Load comes from h2load, 16 connections with one stream each and 4 with 16, the servers in
turns, and the best of several rounds counts, for what else runs on a machine only slows. The
processor time that a server takes for a call is told as well: it says the same on a busy machine.
h2load sends the same head again and again. So calls with an `x-request-id` and a
`traceparent` of their own come from a generator of frames made beforehand, once spelled
out as grpcio's clients do, once put into the table, Huffman-coded, as Go's and Java's do;
it also sends heads that are all the same, to be compared with.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx
import uvloop
from fairness_clients import Ends
from hpack import Encoder
from onnx import TensorProto, helper, numpy_helper
from serving_tools import serving

import mserve
from mserve.wire import http2_frames as h2
from mserve.wire.header_blocks import literal
from mserve.wire.http2_frames import Kind, Setting
from mserve.wire.messages import message

PATH = "/inference.GRPCInferenceService/ModelInfer"
LOADS = ((16, 1), (4, 16))
ROUNDS = 5
PREPARED = 20_000
HEADS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PATH),
    (":authority", "localhost"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("user-agent", "bench/1"),
)
GRPCIO = """
import asyncio, sys, grpc
answer = bytes.fromhex(sys.argv[1])
class Handlers(grpc.GenericRpcHandler):
    def service(self, details):
        async def infer(message, context):
            return answer
        return grpc.unary_unary_rpc_method_handler(infer)
async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()
asyncio.run(main())
"""


def perceptron() -> onnx.ModelProto:
    """784 pixels to 10 scores, with 128 units between."""
    random = np.random.default_rng(1)
    weights = [
        numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32) * np.float32(0.05), name)
        for name, shape in (("w1", (784, 128)), ("b1", (128,)), ("w2", (128, 10)), ("b2", (10,)))
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s]) for n, s in (("x", 784), ("y", 10))
    ]
    graph = helper.make_graph(nodes, "perceptron", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def request() -> bytes:
    """A ModelInferRequest of one row, as it goes into DATA."""
    asked = message("inference.ModelInferRequest")(model_name="mlp")
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 784])
    asked.raw_input_contents.append(np.random.default_rng(2).random(784, np.float32).tobytes())
    body = asked.SerializeToString()
    return struct.pack(">BI", 0, len(body)) + body


def answer() -> bytes:
    """A ModelInferResponse as large as the model's."""
    made = message("inference.ModelInferResponse")(model_name="mlp", model_version="1")
    made.outputs.add(name="y", datatype="FP32", shape=[1, 10])
    made.raw_output_contents.append(bytes(40))
    return bytes(made.SerializeToString())


OURS = """
import asyncio, sys, uvloop
from mserve.server.grpc_server import GrpcServer, listen_grpc
from mserve.server.peers import Peers
from mserve.server.rpc import Methods
answer = bytes.fromhex(sys.argv[1])
async def main():
    methods = Methods({"inference.GRPCInferenceService/ModelInfer": lambda rpc, reply: reply(answer)}, {})
    server = GrpcServer(methods, lambda method, metadata: False, Peers())
    await server.start(await listen_grpc("127.0.0.1", 0))
    print(server.port, flush=True)
    await asyncio.Event().wait()
uvloop.run(main())
"""


@contextmanager
def constant(code: str) -> Iterator[tuple[int, int]]:
    """A server that answers a constant; its port and process id."""
    command = [sys.executable, "-c", code, answer().hex()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.wait()


def h2load(port: int, body: Path, connections: int, streams: int, seconds: float) -> float:
    """Calls a second; every one must succeed."""
    command = ["h2load", f"-c{connections}", f"-m{streams}", "-t1", f"-D{seconds:g}", "-d", str(body)]
    command += [
        "-H",
        "content-type: application/grpc",
        "-H",
        "te: trailers",
        f"http://127.0.0.1:{port}{PATH}",
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wrong = re.search(r"(\d+) failed, (\d+) errored", text)
    rate = re.search(r"finished in [^,]+, ([\d.]+) req/s", text)
    if wrong is None or rate is None or wrong.groups() != ("0", "0"):
        raise RuntimeError(text)
    return float(rate[1])


def blocks(kind: str) -> list[bytes]:
    """Header blocks of calls in their order on one connection: "same", "spelled" out, or in the "table"."""
    encoder = Encoder()
    first = encoder.encode(HEADS)
    again = encoder.encode(HEADS)
    made = [first]
    for number in range(1, PREPARED):
        own = (("x-request-id", f"{number:032x}"), ("traceparent", f"00-{number:032x}-{number:016x}-01"))
        if kind == "same":
            made.append(again)
        elif kind == "spelled":
            made.append(again + b"".join(literal(n.encode(), v.encode()) for n, v in own))
        else:
            made.append(encoder.encode((*HEADS, *own)))
    return made


class Caller(asyncio.Protocol):
    """A connection that keeps `streams` calls under way; counts the answers."""

    def __init__(self, blocks: list[bytes], body: bytes, streams: int) -> None:
        self.answers = 0
        self._blocks = iter(blocks)
        self._body = body
        self._streams = streams
        self._next = itertools.count(1, 2)
        self._ends = Ends()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]
        grown = h2.frame(Kind.WINDOW_UPDATE, 0, 0, h2.number(h2.WINDOW_MAX - h2.WINDOW_DEFAULT))
        self._write(h2.PREFACE + h2.settings({Setting.INITIAL_WINDOW_SIZE: h2.WINDOW_MAX}) + grown)
        self._ask(self._streams)

    def _ask(self, count: int) -> None:
        pieces = []
        for stream, block in zip(itertools.islice(self._next, count), self._blocks, strict=False):
            pieces.append(h2.frame(Kind.HEADERS, h2.END_HEADERS, stream, block))
            pieces.append(h2.frame(Kind.DATA, h2.END_STREAM, stream, self._body))
        if pieces:
            self._write(b"".join(pieces))

    def data_received(self, data: bytes) -> None:
        over = self._ends.take(data)
        self.answers += over
        self._ask(over)


async def generate(port: int, made: list[bytes], connections: int, streams: int, seconds: float) -> float:
    """Calls a second by the generator."""
    callers = [Caller(made, request(), streams) for _ in range(connections)]
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    links = [(await loop.create_connection(lambda c=c: c, "127.0.0.1", port))[0] for c in callers]  # type: ignore[misc]
    await asyncio.sleep(seconds)
    rate = sum(c.answers for c in callers) / (time.perf_counter() - start)
    for link in links:
        link.abort()
    if any(c.answers > PREPARED - 100 for c in callers):
        raise RuntimeError("too few calls were made beforehand for so long a run")
    return rate


def cpu_s(pid: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(servers: dict[str, tuple[int, int]], body: Path, seconds: float) -> None:
    """The calls a second of each server under each load, and the processor time of a call."""
    for load in LOADS:
        best, cost = dict.fromkeys(servers, 0.0), dict.fromkeys(servers, math.inf)
        for _ in range(ROUNDS):
            for name, (port, pid) in servers.items():
                before = cpu_s(pid)
                rate = h2load(port, body, *load, seconds)
                best[name] = max(best[name], rate)
                cost[name] = min(cost[name], (cpu_s(pid) - before) / (rate * seconds) * 1e6)
        print(f"{load[0]} connections, {load[1]} streams each")
        for name in servers:
            faster, cheaper = best[name] / best["grpcio"], cost["grpcio"] / cost[name]
            times = f"{faster:.1f} times grpcio's calls, 1/{cheaper:.1f} of its time"
            print(f"  {name:20} {best[name]:9,.0f} calls/s, {cost[name]:5.1f} us each: {times}", flush=True)


def main(seconds: float) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        constant(OURS) as ours,
        constant(GRPCIO) as theirs,
        ExitStack() as stack,
    ):
        onnx.save(perceptron(), Path(folder, "mlp.onnx"))
        mserve.export(Path(folder, "mlp.onnx"), Path(folder, "mlp"))
        body = Path(folder, "body")
        body.write_bytes(request())
        server = stack.enter_context(serving(str(Path(folder, "mlp")), "--name", "mlp"))
        whole = server.grpc_port, server.process.pid
        compare({"mserve, ModelInfer": whole, "our transport": ours, "grpcio": theirs}, body, seconds)
        for load in LOADS:
            rates = dict.fromkeys(("same", "spelled", "table"), 0.0)
            for _ in range(ROUNDS):
                for kind in rates:
                    run = generate(server.grpc_port, blocks(kind), *load, min(seconds, 1.0))
                    rates[kind] = max(rates[kind], uvloop.run(run))
            text = ", ".join(f"{k} {r:,.0f} ({r / rates['same']:.2f})" for k, r in rates.items())
            print(f"{load[0]} connections, {load[1]} streams each, heads: {text}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)
