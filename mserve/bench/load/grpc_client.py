"""gRPC connections of bench's own: unary calls whose bytes were made beforehand.

A `Channel` is one TCP connection that carries many calls at a time, each a stream of
HTTP/2 (`wire/http2_client.py`); a `GrpcConnection` is a place in one, for one call at a
time, so that thousands of requests on their way do not need thousands of sockets.

Calls that are sent while answers are being read go out together when all were read. A
call that the server refuses unseen (REFUSED_STREAM) is asked again, as clients of gRPC do,
and the connection carries one call less at a time from then on: servers that count a stream
as open until its last write has ended refuse some within the limit that they told.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from ...wire.grpc_answer import outcome, read
from ...wire.grpc_wire import PREFIX, PREFIX_BYTES, STATUS, framed
from ...wire.header_blocks import literal
from ...wire.http2 import RESET, Event
from ...wire.http2_client import ANSWER, Http2Client, Reply, Request
from ...wire.http2_frames import Code
from .client import ANSWER_BYTES_MAX, Check, Done
from .recorder import CONNECTION, GRPC, NOT_HTTP, OK, WRONG

REFUSED_MAX = 8
# What the end of a stream means where the server told nothing else.
_OF_RESET: dict[int, str] = {
    Code.REFUSED_STREAM: "UNAVAILABLE",
    Code.CANCEL: "CANCELLED",
    Code.ENHANCE_YOUR_CALM: "RESOURCE_EXHAUSTED",
    Code.INADEQUATE_SECURITY: "PERMISSION_DENIED",
}


def call(authority: str, path: str, message: bytes, *, secure: bool = False, token: str = "") -> Request:
    """A unary call, ready to be sent: its header block leaves the table of fields alone."""
    fields = [
        (b":path", path.encode()),
        (b":authority", authority.encode("idna") if not authority.isascii() else authority.encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"user-agent", b"mserve-bench"),
    ]
    if token:
        fields.append((b"authorization", f"Bearer {token}".encode()))
    # `:method: POST` and `:scheme:` have numbers of their own.
    start = b"\x83\x87" if secure else b"\x83\x86"
    return Request(start + b"".join(literal(*field) for field in fields), framed(message))


class Channel(asyncio.Protocol):
    """One TCP connection. `taken` counts the places that were given away and are not given up."""

    def __init__(self, requests: Sequence[Request], version_of: Callable[[bytes], bytes]) -> None:
        self.requests = requests
        self.taken = 0
        self.versions: dict[bytes, int] = {}
        self.check: Check | None = None
        self.version_of = version_of
        self.http2 = Http2Client(read, time.perf_counter_ns())
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.usable = True
        self._places: set[GrpcConnection] = set()
        self._waiting: deque[GrpcConnection] = deque()
        self._transport: asyncio.Transport | None = None
        self._reading = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if self.usable:
            self.flush()
        else:  # nobody waits for it any more
            transport.abort()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter_ns()
        self._reading = True
        http2 = self.http2
        for event in http2.receive(data, now):
            connection = event[1].of if event[1] is not None else None
            if connection is not None:
                if not connection.first_ns:
                    connection.first_ns = now
                connection.take(event)
        if not self.settled.done() and http2.settled:
            self.settled.set_result(None)
        while self._waiting and not http2.full:
            self._begin(self._waiting.popleft())
        self._reading = False
        self.flush()
        if http2.ended or http2.leaving:
            self._leave()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        said = self.http2.farewell.decode("utf-8", "replace")
        gone = f": {exc}" if exc else f": {said}" if said else ""
        self._transport = None
        self.close(f"connection lost{gone}" if gone else "the server closed the connection without an answer")

    def pause_writing(self) -> None:
        self.http2.hold = True

    def resume_writing(self) -> None:
        self.http2.hold = False
        self.flush()

    # calls

    def place(self) -> GrpcConnection:
        """One more place; the caller has counted it in `taken`."""
        connection = GrpcConnection(self)
        connection.usable = self.usable
        self._places.add(connection)
        return connection

    def ask(self, connection: GrpcConnection) -> None:
        """Send the call of a connection, or have it wait for a stream."""
        if self.http2.full and not self.http2.leaving and not self.http2.ended:
            self._waiting.append(connection)
        elif self.http2.full or self._transport is None:
            asyncio.get_running_loop().call_soon(connection.end, CONNECTION, "the server went away")
        else:
            self._begin(connection)
            if not self._reading:
                self.flush()

    def _begin(self, connection: GrpcConnection) -> None:
        if connection.usable:
            request = self.requests[connection.number]
            connection.stream = self.http2.request(request, connection)

    def count(self, version: bytes) -> None:
        """Count an answer by the version that gave it, where it says."""
        if version:
            self.versions[version] = self.versions.get(version, 0) + 1

    def give_up(self, connection: GrpcConnection) -> None:
        """A place is free; without places there is no connection."""
        stream, connection.stream = connection.stream, None
        if stream is not None:
            self.http2.reset(stream, Code.CANCEL)
        self.taken -= 1
        self._places.discard(connection)
        if not self.taken:
            self.close("")
        elif stream is not None:
            self.flush()

    def flush(self) -> None:
        """Write what there is, as far as the socket takes it."""
        transport, http2 = self._transport, self.http2
        while transport is not None and http2.more():
            transport.write(http2.take())

    def _leave(self) -> None:
        """The server takes no more calls; those on their way are finished."""
        self._retire()
        if self.http2.ended or not self.http2.streams:
            self.close("the server went away")

    def _retire(self) -> None:
        self.usable = False
        for connection in self._places:
            connection.usable = False

    def close(self, why: str) -> None:
        """End the connection, and all calls on their way with that reason."""
        self._retire()
        if not self.settled.done():
            self.settled.set_exception(ConnectionError(why or "closed"))
            self.settled.exception()  # nobody may be left to take it
        on_way = [stream.of for stream in self.http2.streams.values()] + list(self._waiting)
        self.http2.streams.clear()
        self._waiting.clear()
        for connection in on_way:
            connection.end(CONNECTION, why)
        if self._transport is not None:
            self._transport.abort()


class GrpcConnection:
    """A place in a channel: one call at a time."""

    def __init__(self, channel: Channel) -> None:
        self.index = -1
        self.first_ns = 0
        self.number = 0
        self.stream: Reply | None = None
        self._channel = channel
        self.usable = True
        self._given_up = False
        self._refused = 0
        self._done: Done | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def send(self, index: int, done: Done) -> None:
        """Send a call; `done` is called when its answer is complete, or can never be."""
        self.index, self._done, self.first_ns, self._refused = index, done, 0, 0
        channel = self._channel
        self.number = index % len(channel.requests)
        channel.ask(self)

    def abort(self) -> None:
        """Give up on the answer, and the place."""
        self._done = None
        if not self._given_up:
            self._given_up, self.usable = True, False
            self._channel.give_up(self)

    def end(self, result: int, message: str) -> None:
        """The call is over."""
        self.stream = None
        if self._parts:
            self._parts, self._size = [], 0
        done, self._done = self._done, None
        if done is not None:
            done(self, result, message)

    def take(self, event: Event) -> None:
        """What came for the call."""
        kind, stream, data, last = event
        channel = self._channel
        if stream is not self.stream:  # of a call that is over
            return
        assert stream is not None
        if kind == ANSWER:
            channel.http2.over(stream)
            channel.count(data)
            self.end(OK, "")
        elif kind == RESET:
            code = int.from_bytes(data, "big") if data else Code.PROTOCOL_ERROR
            if code == Code.REFUSED_STREAM and self._refused < REFUSED_MAX and not channel.http2.leaving:
                self._refused += 1  # the server has not looked at it
                http2 = channel.http2
                http2.streams_taken = max(1, min(http2.streams_taken, len(http2.streams) + 1) - 1)
                channel.ask(self)
                return
            status = STATUS[_OF_RESET.get(code, "INTERNAL")]
            self.end(GRPC + status, f"the stream was reset, code {code}")
        else:
            if data:
                self._parts.append(data)
                self._size += len(data)
            if self._size > ANSWER_BYTES_MAX:
                channel.http2.reset(stream, Code.CANCEL)
                self.end(NOT_HTTP, "an answer without end")
            elif last:
                channel.http2.over(stream)
                self.end(*self._judge(stream))

    def _judge(self, stream: Reply) -> tuple[int, str]:
        """What a whole answer amounts to."""
        channel = self._channel
        code, message = outcome(stream.head, stream.tail)
        if code:
            return GRPC + code, message
        body = b"".join(self._parts)
        if len(body) < PREFIX_BYTES or PREFIX.unpack_from(body) != (0, len(body) - PREFIX_BYTES):
            return NOT_HTTP, f"the answer is not one plain message: {len(body)} bytes"
        answer = body[PREFIX_BYTES:]
        version = channel.version_of(answer)
        channel.count(version)
        if channel.check is not None and (wrong := channel.check(self.number, answer, None)):
            return WRONG, wrong
        if len(self._parts) == 1:
            channel.http2.learn(stream, body, version)
        return OK, ""
