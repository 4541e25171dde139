"""A load generator for gRPC whose requests can differ, which h2load's cannot.

    python benchmarks/serving_blast.py PORT MESSAGE_FILE --connections N --streams N --seconds S [--unique]

Every request has an x-request-id and a traceparent, with `--unique` of its own. Frames are put
together from prepared bytes and answers are only counted, so that one process asks more than
servers in Python answer; the CPU time it took is told beside each figure, and with it what it
could ask at most. Headers are sent as gRPC's own clients do: those that repeat are in HPACK's
dynamic table after the first request of a connection, custom ones are literals that are not
indexed (RFC 7541, 6.2.2). Blocking sends are safe: what is under way on a connection fits into
the buffers of its socket.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import struct
import sys
import time
from itertools import count
from pathlib import Path

from serving_load import Load, measured

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
TABLE_SIZE, FIRST_WINDOW = 1, 65_535
WINDOW = 1 << 30
PATH = b"/inference.GRPCInferenceService/ModelInfer"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


# :method POST and :scheme http are in the static table; so are the names of the first, second, third
# and fifth of the others.
FIXED = b"\x83\x86"
NAMED = ((4, PATH), (1, b"127.0.0.1"), (31, b"application/grpc"), (0, b"trailers"), (58, b"blast/1"))


def _fields(kind: int) -> bytes:
    """The repeating fields as literals: `kind` 0x40 puts them into the dynamic table, 0 does not."""
    out = b""
    for index, value in NAMED:
        if kind == 0 and index >= 15:  # a prefix of four bits
            name = b"\x0f" + bytes((index - 15,))
        else:
            name = bytes((kind | index,)) + (_text(b"te") if index == 0 else b"")
        out += name + _text(value)
    return out


# Five entries, the last of which has the lowest index, 62.
INDEXED = FIXED + bytes(0x80 | index for index in (66, 65, 64, 63, 62))
ID, TRACE = b"\0" + _text(b"x-request-id"), b"\0" + _text(b"traceparent")


def ids(n: int) -> bytes:
    """Both fields, for the n-th request."""
    return b"%b\x12bench-%012x%b\x3700-%032x-%016x-01" % (ID, n, TRACE, n + 1, n + 1)


class Link:
    """One connection: what it may still send, and what has come."""

    def __init__(self, port: int, message: bytes, numbers: count[int] | None) -> None:
        self.done = self.failed = self.data_bytes = 0
        self._message, self._numbers = message, numbers
        self._stream, self._window, self._owed, self._rest = 1, FIRST_WINDOW, 0, b""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        window = struct.pack(">HI", 4, WINDOW)
        self.socket.sendall(
            PREFACE + frame(SETTINGS, 0, 0, window) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW))
        )
        self._first = self._repeated = b""
        while not self._first:
            self.receive()

    def ask(self, requests: int) -> None:
        """Send so many more, or as many as the connection's window has room for; the rest later."""
        self._owed += requests
        size, out = len(self._message), list[bytes]()
        while self._owed and self._window >= size:
            n = 0 if self._numbers is None else next(self._numbers)
            block = (self._repeated if self._stream > 1 else self._first) + ids(n)
            stream = self._stream.to_bytes(4, "big")
            out += (len(block).to_bytes(3, "big"), b"\1\4", stream, block)
            out += (size.to_bytes(3, "big"), b"\0\1", stream, self._message)
            self._stream += 2
            self._owed -= 1
            self._window -= size
        if out:
            self.socket.sendall(b"".join(out))

    def receive(self) -> int:
        """Read what is there; how many answers it ended."""
        chunk = self.socket.recv(1 << 15)
        if not chunk:
            raise RuntimeError("the server hung up")
        data, at, ended = self._rest + chunk, 0, 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if end > len(data):
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind == HEADERS:
                ended += flags & END_STREAM
            elif kind == DATA:
                self.data_bytes += end - at - 9
                ended += flags & END_STREAM
            else:
                ended += self._control(kind, flags, data[at + 5 : at + 9], data[at + 9 : end])
            at = end
        self._rest = data[at:]
        self.done += ended
        return ended

    def _control(self, kind: int, flags: int, stream: bytes, payload: bytes) -> int:
        if kind == SETTINGS and not flags & ACK:
            table = dict(struct.iter_unpack(">HI", payload)).get(TABLE_SIZE, 4096)
            literal = FIXED + _fields(0)
            # A small table is not used at all, which the first block has to say.
            self._first = FIXED + _fields(0x40) if table >= 1024 else b"\x20" + literal
            self._repeated = INDEXED if table >= 1024 else literal
            self.socket.sendall(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self.socket.sendall(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == b"\0\0\0\0":
            self._window += int.from_bytes(payload, "big")
            self.ask(0)
        elif kind == GOAWAY:
            raise RuntimeError(f"GOAWAY {payload!r}")
        elif kind == RST_STREAM:
            self.failed += 1
            return 1
        return 0


def run(links: list[Link], streams: int, seconds: float) -> float:
    """A closed loop on all connections; the seconds it took."""
    poll = select.epoll()
    by_fd = {link.socket.fileno(): link for link in links}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    began = time.perf_counter()
    for link in links:
        link.ask(streams)
    while (now := time.perf_counter()) < began + seconds:
        for fd, _ in poll.poll(1.0):
            link = by_fd[fd]
            if ended := link.receive():
                link.ask(ended)
    return now - began


def blast(
    pid: int, port: int, message: Path, shape: tuple[int, int], seconds: float, *, unique: bool, size: int
) -> Load:
    """One run in a process of its own; `size` is that of a good answer's DATA frame."""
    command = [sys.executable, __file__, str(port), str(message), "--seconds", str(seconds)]
    command += ["--connections", str(shape[0]), "--streams", str(shape[1]), *(["--unique"] if unique else [])]
    printed, _, server = measured(pid, command)
    told = json.loads(printed)
    nan, bad = float("nan"), told["done"] - told["data_bytes"] // size
    each = told["data_bytes"] / max(1, told["done"])
    took = told["seconds"]
    return Load(told["done"] / took, nan, nan, bad, each, told["cpu"] / took, server / took)


def main() -> None:
    """Ask, count, print one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("message", type=Path)
    for name in ("--connections", "--streams"):
        parser.add_argument(name, type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--unique", action="store_true")
    asked = parser.parse_args()
    numbers = count(1) if asked.unique else None
    message = asked.message.read_bytes()
    links = [Link(asked.port, message, numbers) for _ in range(asked.connections)]
    cpu = time.process_time()
    seconds = run(links, asked.streams, asked.seconds)
    cpu = time.process_time() - cpu
    told = {name: sum(getattr(link, name) for link in links) for name in ("done", "failed", "data_bytes")}
    print(json.dumps({"seconds": seconds, "cpu": cpu, **told}))


if __name__ == "__main__":
    main()
