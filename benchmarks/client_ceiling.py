"""What bench's own client can ask in a second: its limit, below which it measures servers.

    python benchmarks/client_ceiling.py [SECONDS]

A server process gives every request the same short answer without looking at it, so that
the client is the bottleneck. Prints requests per second, also per second of the client's
CPU time, which is what a client on a core of its own would reach.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import uvloop

from mserve.bench.client import HttpConnection, request_bytes
from mserve.bench.driver import Pool
from mserve.bench.job import Job
from mserve.bench.loops import driver
from mserve.bench.server_view import Counters

BODY = b'{"instances":[[0.1,0.2,0.3,0.4]]}'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 23\r\n"
    b'mserve-model-version: 1\r\n\r\n{"predictions":[[0.5]]}'
)
CONNECTIONS = (1, 16, 64)


class Constant(asyncio.Protocol):
    """Answers each chunk of bytes that arrives; the client sends one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._write(ANSWER)


def serve(ready: Connection) -> None:
    """The server process."""

    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(Constant, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(forever())


class ConstantTarget:
    """The server as the driver sees it."""

    shares_loop = False
    connections_max = 1024

    def __init__(self, port: int) -> None:
        self.versions: dict[bytes, int] = {}
        self._port = port
        self._request = request_bytes(f"127.0.0.1:{port}", "/v1/models/m:predict", BODY)

    def describe(self) -> dict[str, object]:
        return {}

    async def start(self) -> None: ...

    async def connect(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: HttpConnection(self._request, self.versions), "127.0.0.1", self._port
        )
        return connection

    async def counters(self) -> Counters | None:
        return None

    async def close(self) -> None: ...


async def measure(port: int, seconds: float) -> None:
    """Closed loops of several widths, a line for each."""
    for connections in CONNECTIONS:
        pool = Pool(ConstantTarget(port))
        await driver(pool, Job(0.2, 1.0, concurrency=connections)).run()
        cpu = time.process_time()
        phase = await driver(pool, Job(seconds, 1.0, concurrency=connections)).run()
        cpu = time.process_time() - cpu
        ok = phase.recorder.ok()
        print(
            f"{connections:3} connections: {ok / seconds:9,.0f} requests/s, "
            f"{ok / cpu:9,.0f} per second of client CPU ({cpu / seconds:.0%} busy)"
        )
        pool.close()


def main() -> None:
    """Start the server, measure, stop the server."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    try:
        uvloop.run(measure(ours.recv(), seconds))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
