"""The clients of fairness.py, each in a process of its own: a quiet one, and those who are not.

    python benchmarks/fairness_clients.py NAME PORT GRPC_PORT SECONDS DIRECTORY

The directory holds requests as they go over the wire. Only the standard library, uvloop and
mserve's frames of HTTP/2 are imported, so that a client starts in a moment.

quiet            a request every 5 ms, over three keep-alive connections in turn: binary, JSON, gRPC;
                 prints its latencies in ms
deaf             pipelines as fast as it can, reads nothing, and begins anew once nothing more goes out
pipeliner        64 requests under way on one connection
uploads          bodies of almost 64 MiB, one behind the other
refused-uploads  bodies of more than the server takes, each on a connection of its own
crowd            64 connections in a closed loop
grpc-deaf        1,000 calls whose answers have no window, and are not read; begins anew like deaf
grpc-streams     1,000 calls under way on one connection
scraper          the page of counters, over and over
idle             nothing, for the comparison with itself
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from mserve.wire import http2_frames as h2
from mserve.wire.header_blocks import literal
from mserve.wire.http2_frames import Kind, Setting

EVERY_S = 0.005
STUCK_S = 0.1
DEPTH, CROWD, STREAMS = 64, 64, 1000
PIECE = 1 << 20
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
HEADS = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/inference.GRPCInferenceService/ModelInfer"),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)


def greeting(window: int) -> bytes:
    """How a connection of HTTP/2 begins whose client takes `window` bytes of each answer."""
    grown = h2.frame(Kind.WINDOW_UPDATE, 0, 0, h2.number(h2.WINDOW_MAX - h2.WINDOW_DEFAULT))
    return h2.PREFACE + h2.settings({Setting.INITIAL_WINDOW_SIZE: window}) + grown


def calls(body: bytes) -> Iterator[bytes]:
    """One call after the other on a connection, each with a message of its own in DATA."""
    for stream in itertools.count(1, 2):
        yield h2.frame(Kind.HEADERS, h2.END_HEADERS, stream, HEADS) + h2.frame(
            Kind.DATA, h2.END_STREAM, stream, body
        )


def connect(port: int) -> socket.socket:
    """A connection that sends at once."""
    link = socket.create_connection(("127.0.0.1", port), timeout=60)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


class Answers:
    """Counts answers of HTTP/1.1, all of which have the first one's length; each must be 200."""

    def __init__(self) -> None:
        self._length = self._received = 0
        self._first = b""

    def take(self, data: bytes) -> int:
        """How many answers these bytes complete."""
        before = self._received // self._length if self._length else 0
        self._received += len(data)
        if not self._length:
            self._first += data
            end = self._first.find(b"\r\n\r\n") + 4
            if end < 4:
                return 0
            if not self._first.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(self._first[:300])
            at = self._first.lower().index(b"\r\ncontent-length: ") + 18
            self._length = end + int(self._first[at:end].split(b"\r", 1)[0])
        return self._received // self._length - before


class Ends:
    """Counts calls that are over by the frames that a server sends; each must have its trailers."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> int:
        """How many calls these bytes end."""
        data, at, over = self._rest + data, 0, 0
        while len(data) - at >= h2.HEADER_BYTES:
            high, low, kind, flags, _ = h2.HEADER.unpack_from(data, at)
            until = at + h2.HEADER_BYTES + (high << 16 | low)
            if until > len(data):
                break
            if kind in (Kind.GOAWAY, Kind.RST_STREAM):
                raise RuntimeError(data[at:until])
            over += kind == Kind.HEADERS and bool(flags & h2.END_STREAM)
            at = until
        self._rest = data[at:]
        return over


def timed(link: socket.socket, request: bytes, answers: Answers | Ends) -> float:
    """One request and its answer, in ms."""
    start = time.perf_counter()
    link.sendall(request)
    while not answers.take(link.recv(PIECE)):
        pass
    return (time.perf_counter() - start) * 1e3


def quiet(port: int, grpc_port: int, until: float, files: Path) -> None:
    """Ask now and then, and print the latencies by kind of request."""
    kinds: dict[str, Callable[[], float]] = {}
    for kind in ("binary", "json"):
        kinds[kind] = _asking(connect(port), (files / kind).read_bytes(), Answers())
    link, asked = connect(grpc_port), calls((files / "grpc").read_bytes())
    link.sendall(greeting(h2.WINDOW_MAX))
    ends = Ends()
    kinds["grpc"] = lambda: timed(link, next(asked), ends)
    for ask in kinds.values():
        ask()
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    due = time.perf_counter()
    for kind in itertools.cycle(kinds):
        if due > until:
            break
        time.sleep(max(0.0, due - time.perf_counter()))
        found[kind].append(kinds[kind]())
        due = max(due + EVERY_S, time.perf_counter())
    print(json.dumps(found))


def _asking(link: socket.socket, request: bytes, answers: Answers) -> Callable[[], float]:
    return lambda: timed(link, request, answers)


def deaf(port: int, greet: bytes, requests: Iterator[bytes], until: float) -> None:
    """Send until nothing goes out any more, or all has gone; then wait a moment and leave."""
    with connect(port) as link:
        link.settimeout(STUCK_S)
        try:
            link.sendall(greet)
            for request in requests:
                link.sendall(request)
                if time.perf_counter() > until:
                    return
            time.sleep(STUCK_S)
        except OSError:  # stuck, or cut off
            return


def uploads(port: int, until: float, request: bytes, *, reconnect: bool) -> None:
    """Send large bodies, one behind the other."""
    link, answers = connect(port), Answers()
    view = memoryview(request)
    while time.perf_counter() < until:
        try:
            for at in range(0, len(request), PIECE):
                link.sendall(view[at : at + PIECE])
            if not reconnect:
                while not answers.take(link.recv(PIECE)):
                    pass
                continue
        except OSError:
            if not reconnect:
                raise
        link.close()
        link = connect(port)


class Closed(asyncio.Protocol):
    """A connection that keeps `depth` requests under way."""

    def __init__(self, answers: Answers | Ends, requests: Iterator[bytes], depth: int, greet: bytes) -> None:
        self._answers = answers
        self._requests = requests
        self._depth = depth
        self._greet = greet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]
        self._write(self._greet + b"".join(itertools.islice(self._requests, self._depth)))

    def data_received(self, data: bytes) -> None:
        if over := self._answers.take(data):
            self._write(b"".join(itertools.islice(self._requests, over)))


async def closed_loop(port: int, until: float, make: Callable[[], Closed], connections: int) -> None:
    """So many connections, until the time is over."""
    loop = asyncio.get_running_loop()
    links = [(await loop.create_connection(make, "127.0.0.1", port))[0] for _ in range(connections)]
    await asyncio.sleep(until - time.perf_counter())
    for link in links:
        link.abort()


def scrape(port: int, until: float) -> None:
    """Ask for the counters, on a connection each time: the page's length changes."""
    while time.perf_counter() < until:
        with connect(port) as link:
            timed(link, SCRAPE, Answers())


def main(name: str, port: int, grpc_port: int, seconds: float, files: Path) -> None:
    """Be one of the clients for so long."""
    until = time.perf_counter() + seconds

    def http(depth: int) -> Callable[[], Closed]:
        request = (files / "binary").read_bytes()
        return lambda: Closed(Answers(), itertools.repeat(request), depth, b"")

    def grpc() -> Closed:
        return Closed(Ends(), calls((files / "grpc").read_bytes()), STREAMS, greeting(h2.WINDOW_MAX))

    match name:
        case "idle":
            time.sleep(seconds)
        case "quiet":
            quiet(port, grpc_port, until, files)
        case "deaf":
            asked = (files / "binary").read_bytes() * DEPTH
            while time.perf_counter() < until:
                deaf(port, b"", itertools.repeat(asked), until)
        case "pipeliner":
            uvloop.run(closed_loop(port, until, http(DEPTH), 1))
        case "uploads":
            uploads(port, until, (files / "large").read_bytes(), reconnect=False)
        case "refused-uploads":
            uploads(port, until, (files / "too-large").read_bytes(), reconnect=True)
        case "crowd":
            uvloop.run(closed_loop(port, until, http(1), CROWD))
        case "grpc-deaf":
            while time.perf_counter() < until:
                opened = itertools.islice(calls((files / "grpc").read_bytes()), STREAMS)
                deaf(grpc_port, greeting(0), opened, until)
        case "grpc-streams":
            uvloop.run(closed_loop(grpc_port, until, grpc, 1))
        case "scraper":
            scrape(port, until)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
