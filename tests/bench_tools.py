"""Servers whose behaviour is known, and the bench command as a process."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from mserve import cli
from mserve.bench.load.client import HttpConnection, request_bytes
from mserve.bench.load.recorder import OK, Phase, Recorder
from mserve.bench.load.server_view import Counters

MS = 1_000_000
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nmserve-model-version: 7\r\n\r\n{}"
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nbusy"

# Seconds since the server started, to seconds until the answer and its bytes;
# None closes the connection instead.
Behaviour = Callable[[float], tuple[float, bytes] | None]


def at_once(_: float) -> tuple[float, bytes]:
    """Answers as fast as it can."""
    return 0.0, ANSWER


def stalls(start: float, end: float) -> Behaviour:
    """Answers at once, but nothing between two times."""
    return lambda now: (end - now if start <= now < end else 0.0, ANSWER)


def one_at_a_time(service_s: float) -> Behaviour:
    """One server, a constant service time, an endless queue: capacity 1 / service_s."""
    free_at = 0.0

    def behave(now: float) -> tuple[float, bytes]:
        nonlocal free_at
        free_at = max(free_at, now) + service_s
        return free_at - now, ANSWER

    return behave


class _Peer(asyncio.Protocol):
    """One connection of a fake server; its client sends one request at a time."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._server.peers.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.peers.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        answer = self._server.behave(loop.time() - self._server.started_at)
        if answer is None:
            self._transport.abort()
        else:
            loop.call_later(answer[0], self._answer, answer[1])

    def _answer(self, answer: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer)


@dataclass
class FakeConnector:
    """What asks a fake server, in any process."""

    port: int
    connections_max: int
    versions: dict[bytes, int]

    async def connect(self) -> HttpConnection:
        request = request_bytes("h", "/v1/models/m:predict", b"{}")
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: HttpConnection(request, self.versions), "127.0.0.1", self.port
        )
        return connection


class FakeServer:
    """A real server on a real socket, and the bench target that asks it."""

    shares_loop = False

    def __init__(self, behave: Behaviour, connections_max: int = 200) -> None:
        self.behave = behave
        self.connections_max = connections_max
        self.versions: dict[bytes, int] = {}
        self.peers: set[Any] = set()
        self.started_at = 0.0
        self.port = 0
        self.listener: asyncio.Server

    def describe(self) -> dict[str, Any]:
        return {"kind": "url", "url": "fake", "model": "m", "rows": 1, "request_bytes": 1}

    async def start(self) -> None: ...

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self.listener = await loop.create_server(lambda: _Peer(self), "127.0.0.1", self.port)
        self.port = self.listener.sockets[0].getsockname()[1]
        self.started_at = loop.time()

    def die(self) -> None:
        """Stop listening and cut every connection."""
        self.listener.close()
        for transport in list(self.peers):
            transport.abort()

    def description(self) -> FakeConnector:
        return FakeConnector(self.port, self.connections_max, {})

    async def connect(self) -> HttpConnection:
        return await FakeConnector(self.port, self.connections_max, self.versions).connect()

    async def counters(self) -> Counters | None:
        return None

    async def close(self) -> None: ...


@asynccontextmanager
async def fake_server(behave: Behaviour, connections_max: int = 200) -> AsyncIterator[FakeServer]:
    """A fake server that lives on the running loop."""
    server = FakeServer(behave, connections_max)
    await server.open()
    try:
        yield server
    finally:
        server.die()
        await asyncio.sleep(0)


def phase_of(
    latencies_ms: Any,
    *,
    lags_ms: Any = 0.0,
    outcomes: Any = OK,
    gap_ms: float = 1.0,
    stopped: str = "",
) -> Phase:
    """A phase whose requests were due every `gap_ms` and had the given latencies and lags."""
    latencies = np.asarray(latencies_ms, dtype=float)
    n = len(latencies)
    recorder = Recorder(n)
    recorder.count = n
    recorder.intended[:] = np.round(np.arange(n) * gap_ms * MS)
    recorder.taken[:] = recorder.sent[:] = recorder.intended + np.asarray(lags_ms) * MS
    recorder.done[:] = recorder.intended + latencies * MS
    recorder.outcome[:] = outcomes
    return Phase(recorder, int(n * gap_ms * MS), 1, recorder.in_flight_ns(), stopped)


# the command


def run_bench(*arguments: object, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """`mserve bench ARGUMENTS` as a process."""
    return subprocess.run(command(*arguments), check=False, capture_output=True, text=True, timeout=timeout)


@dataclass(frozen=True)
class Refused:
    """What a command line that measures nothing left behind."""

    returncode: int
    stdout: str
    stderr: str


def refused(*arguments: object) -> Refused:
    """`mserve bench ARGUMENTS` in this process: for command lines that end before anything is loaded."""
    out, err = io.StringIO(), io.StringIO()
    argv, sys.argv = sys.argv, ["mserve", "bench", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        return Refused(end.code if isinstance(end.code, int) else 0, out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
    raise AssertionError("the command line did not exit")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mserve", "bench", *map(str, arguments)]


def bench_json(*arguments: object) -> dict[str, Any]:
    """The document of `mserve bench ARGUMENTS --json`; the command must succeed."""
    done = run_bench(*arguments, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@contextmanager
def running_bench(*arguments: object, first_line: str = "loop") -> Iterator[subprocess.Popen[str]]:
    """The command, once it has said on stderr that it measures; killed at the end by its process id."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert first_line in process.stderr.readline()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


# canned servers

Page = tuple[int, Any]


@contextmanager
def canned(pages: Mapping[str, Page], posted: list[bytes] | None = None) -> Iterator[str]:
    """A server with fixed pages by "METHOD PATH"; a value that is no bytes is sent as JSON.

    Yields its URL. Bodies of POSTs are kept in `posted`.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if posted is not None and body:
                posted.append(body)
            status, value = pages.get(f"{self.command} {self.path}", (404, {"error": "Malformed request"}))
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
