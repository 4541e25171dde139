"""What the serving benchmarks share: a server process, an open-loop client, percentiles, models of a size."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass
class Server:
    """A server process: its process id, ports, and what it said."""

    process: subprocess.Popen[bytes]
    port: int
    grpc_port: int
    log: Path

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            link.request(method, path, body)
            answer = link.getresponse()
            return answer.status, answer.read()
        finally:
            link.close()

    def wait_ready(self) -> None:
        """Wait until every model has a version that answers."""
        while self.ask("GET", "/readyz")[0] != 200:
            time.sleep(0.02)

    def memory_mb(self) -> dict[str, float]:
        """Resident memory in MB: all of it, and what is not backed by files."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = dict(re.findall(r"^(VmRSS|RssAnon):\s+(\d+) kB", status, re.M))
        return {name: int(kb) / 1024 for name, kb in found.items()}


@contextmanager
def serving(*arguments: str, wait: bool = True) -> Iterator[Server]:
    """`mserve serve ARGUMENTS` on free loopback ports, stopped at the end."""
    log = Path(tempfile.mkstemp(prefix="mserve-", suffix=".log")[1])
    command = [sys.executable, "-m", "mserve", "serve", "--port", "0", "--grpc-port", "0", *arguments]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        while not (
            ports := re.search(r"listening on \S+:(\d+)[^\n]*\n\s+gRPC on \S+:(\d+)", log.read_text())
        ):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.02)
        server = Server(process, int(ports[1]), int(ports[2]), log)
        if wait:
            server.wait_ready()
        yield server
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def matmuls(layers: int, width: int, *, seed: int = 0, batched: bool = True) -> onnx.ModelProto:
    """A chain of square MatMuls and Relus: layers * width * width * 4 bytes of weights."""
    random = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        values = random.standard_normal((width, width), dtype=np.float32) * np.float32(1.4 / width**0.5)
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"]))
        last = "y" if i == layers - 1 else f"r{i}"
        nodes.append(helper.make_node("Relu", [f"h{i}"], [last]))
    rows = "batch" if batched else 1
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, width]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "matmuls", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def predict_request(model: str, **message: Any) -> bytes:
    """The bytes of one TensorFlow Serving REST request: `instances=...` or `inputs=...`."""
    body = json.dumps(message).encode()
    head = f"POST /v1/models/{model}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Link(asyncio.Protocol):
    """A connection that asks for one answer at a time; answers have a Content-Length."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, mark, body = self._data.partition(b"\r\n\r\n")
        if mark:
            length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
            if len(body) >= length and self.answer is not None:
                self._data, answer, self.answer = b"", self.answer, None
                answer.set_result((int(head[9:12]), head))

    def connection_lost(self, error: Exception | None) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(ConnectionError("closed"))


@dataclass(frozen=True)
class Sample:
    """One request: when it was due (seconds from the start), its status (0: no answer), latency in ms."""

    due_s: float
    status: int
    ms: float
    head: bytes = b""


class Client:
    """Sends requests on as many keep-alive connections as are needed at once."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port, self._request, self._idle = port, request, list[_Link]()

    async def ask(self, due: float, start: float) -> Sample:
        """One request; its latency counts from the time at which it was due."""
        try:
            link = self._idle.pop() if self._idle else await self._connect()
            link.answer = asyncio.get_running_loop().create_future()
            link.transport.write(self._request)  # type: ignore[attr-defined]
            status, head = await link.answer
            self._idle.append(link)
        except OSError:
            status, head = 0, b""
        return Sample(due - start, status, (time.perf_counter() - due) * 1e3, head)

    async def _connect(self) -> _Link:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(_Link, "127.0.0.1", self._port))[1]


async def closed_loop(port: int, request: bytes, callers: int, seconds: float) -> list[Sample]:
    """Each caller asks again as soon as it has its answer."""
    client, start, samples = Client(port, request), time.perf_counter(), list[Sample]()

    async def caller() -> None:
        while (now := time.perf_counter()) < start + seconds:
            samples.append(await client.ask(now, start))

    await asyncio.gather(*(caller() for _ in range(callers)))
    return samples


async def open_loop(port: int, request: bytes, rate: float, seconds: float, *, seed: int = 1) -> list[Sample]:
    """Requests at random times (Poisson), whatever comes back."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    client, start = Client(port, request), time.perf_counter()
    tasks = []
    for due in (start + np.cumsum(gaps)).tolist():
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(client.ask(due, start)))
    return list(await asyncio.gather(*tasks))


def percentile(samples: Sequence[Sample], q: float) -> float:
    """A percentile of the latencies in ms; nan if there are none."""
    return float(np.percentile([s.ms for s in samples], q)) if samples else float("nan")
