"""The least that a batching model server in Python can be, without routing, checks, limits or counters.

    python benchmarks/front_tick.py MODEL.onnx

uvloop and httptools; all requests that arrive in one tick of the loop form a batch; the model
runs on the loop; orjson. It takes TensorFlow Serving's JSON rows, and v2 requests with one
binary tensor. What mserve adds to this is to cost nothing: it must not be slower. Prints
`port N` when it listens.
"""

from __future__ import annotations

import asyncio
import sys

import httptools
import numpy as np
import onnxruntime as ort
import orjson
import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
BINARY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
)


class Tick:
    """What has arrived in this tick, and the model."""

    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._waiting: list[tuple[Connection, np.ndarray, bool]] = []

    def add(self, connection: Connection, rows: np.ndarray, binary: bool) -> None:
        """Queue a request; the first of a tick sees to it that the batch runs at its end."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._run)
        self._waiting.append((connection, rows, binary))

    def _run(self) -> None:
        batch, self._waiting = self._waiting, []
        x = np.concatenate([rows for _, rows, _ in batch])
        y = self._session.run(None, {self._input: x})[0]
        at = 0
        for connection, rows, binary in batch:
            part = y[at : at + len(rows)]
            at += len(rows)
            connection.write(_binary(part) if binary else _json(part))


def _json(y: np.ndarray) -> bytes:
    body = orjson.dumps({"predictions": y}, option=orjson.OPT_SERIALIZE_NUMPY)
    return HEAD % len(body) + body


def _binary(y: np.ndarray) -> bytes:
    data = y.tobytes()
    output = {"name": "scores", "datatype": "FP32", "shape": y.shape}
    size = {"parameters": {"binary_data_size": len(data)}}
    head = orjson.dumps({"model_name": "mlp", "model_version": "1", "outputs": [{**output, **size}]})
    return BINARY % (len(head), len(head) + len(data)) + head + data


class Connection(asyncio.Protocol):
    """HTTP on one connection."""

    tick: Tick

    def __init__(self) -> None:
        # uvloop looks this up before it says that the connection is made.
        self.data_received = httptools.HttpRequestParser(self).feed_data  # type: ignore[method-assign]
        self._body: list[bytes] = []
        self._json_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self._json_bytes = int(value)

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        body, at = b"".join(self._body), self._json_bytes
        self._body, self._json_bytes = [], 0
        if at:
            shape = orjson.loads(body[:at])["inputs"][0]["shape"]
            self.tick.add(self, np.frombuffer(body, np.float32, offset=at).reshape(shape), True)
        else:
            self.tick.add(self, np.array(orjson.loads(body)["instances"], np.float32), False)


async def forever() -> None:
    """Listen on a free port."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0)
    print("port", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    Connection.tick = Tick(sys.argv[1])
    uvloop.run(forever())
