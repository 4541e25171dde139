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
from collections.abc import Callable, Iterator, Sequence
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


def matmuls(layers: int, width: int, *, seed: int = 0, alone: bool = False) -> onnx.ModelProto:
    """A chain of square MatMuls and Relus: layers * width * width * 4 bytes of weights.

    With `alone` it takes one number a request and answers with one, and requests cannot
    share a batch: all of their time is the model's.
    """
    random = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    if alone:
        weights.append(numpy_helper.from_array(np.ones((1, width), np.float32), "spread"))
        nodes.append(helper.make_node("Mul", ["x", "spread"], ["wide"]))
        last = "wide"
    for i in range(layers):
        values = random.standard_normal((width, width), dtype=np.float32) * np.float32(1.4 / width**0.5)
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"h{i}"]))
        last = "y" if i == layers - 1 and not alone else f"r{i}"
        nodes.append(helper.make_node("Relu", [f"h{i}"], [last]))
    if alone:
        nodes.append(helper.make_node("ReduceMax", [last], ["y"], axes=[1]))
    shape: list[int | str] = [1, 1] if alone else ["batch", width]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "matmuls", ports[:1], ports[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def predict_request(model: str, **message: Any) -> bytes:
    """The bytes of one TensorFlow Serving REST request: `instances=...` or `inputs=...`."""
    body = json.dumps(message).encode()
    head = f"POST /v1/models/{model}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass(frozen=True)
class Sample:
    """One request: when it was due (seconds from the start), its status (0: no answer), latency in ms."""

    due_s: float
    status: int
    ms: float
    head: bytes = b""


Done = Callable[[Sample], None]


class _Link(asyncio.Protocol):
    """A connection that asks for one answer at a time; answers have a Content-Length."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._data = b""
        self._due = 0.0
        self._done: Done | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]

    def ask(self, due: float, done: Done) -> None:
        """Send the request; `done` is called with its sample."""
        self._due, self._done = due, done
        self._write(self._client.request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._data[:end].lower()
        at = head.index(b"content-length: ") + 16
        stop = head.find(b"\r", at)
        if len(self._data) - end - 4 >= int(head[at : stop if stop > 0 else end]):
            self._data = b""
            self._client.idle.append(self)
            self._finish(int(head[9:12]), head)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._client.idle:
            self._client.idle.remove(self)
        self._finish(0, b"")

    def _finish(self, status: int, head: bytes) -> None:
        done, self._done = self._done, None
        if done is not None:
            now = time.perf_counter()
            done(Sample(self._due - self._client.start, status, (now - self._due) * 1e3, head))


class Client:
    """Sends one request again and again, on as many keep-alive connections as are needed at once."""

    def __init__(self, port: int, request: bytes) -> None:
        self.request, self.idle, self.start = request, list[_Link](), time.perf_counter()
        self._port = port
        self._opening = set[asyncio.Task[None]]()

    def ask(self, due: float, done: Done) -> None:
        """One request; its latency counts from the time at which it was due."""
        if self.idle:
            self.idle.pop().ask(due, done)
            return
        task = asyncio.get_running_loop().create_task(self._open(due, done))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, due: float, done: Done) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, link = await loop.create_connection(lambda: _Link(self), "127.0.0.1", self._port)
        except OSError:
            done(Sample(due - self.start, 0, (time.perf_counter() - due) * 1e3))
        else:
            link.ask(due, done)


async def closed_loop(port: int, request: bytes, callers: int, seconds: float) -> list[Sample]:
    """Each caller asks again as soon as it has its answer."""
    client, samples, over = Client(port, request), list[Sample](), asyncio.Event()
    left = callers

    def done(sample: Sample) -> None:
        nonlocal left
        samples.append(sample)
        if (now := time.perf_counter()) < client.start + seconds:
            client.ask(now, done)
            return
        left -= 1
        if not left:
            over.set()

    for _ in range(callers):
        client.ask(time.perf_counter(), done)
    await over.wait()
    return samples


async def open_loop(port: int, request: bytes, rate: float, seconds: float, *, seed: int = 1) -> list[Sample]:
    """Requests at random times (Poisson), whatever comes back."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    client, samples, over = Client(port, request), list[Sample](), asyncio.Event()

    def done(sample: Sample) -> None:
        samples.append(sample)
        if len(samples) == len(gaps):
            over.set()

    for due in (client.start + np.cumsum(gaps)).tolist():
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        client.ask(due, done)
    await over.wait()
    return samples


def percentile(samples: Sequence[Sample], q: float) -> float:
    """A percentile of the latencies in ms; nan if there are none."""
    return float(np.percentile([s.ms for s in samples], q)) if samples else float("nan")
