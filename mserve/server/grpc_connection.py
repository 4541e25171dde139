"""A connection of gRPC: what HTTP/2 makes of its bytes, to calls, and their answers back.

All frames that came at once are read, then as many calls begin as a tick allows, so that no
client keeps the loop to itself; answers that are given within a tick are written together.
While a client does not take its answers no more of its calls begin. It is still read from,
for it may be about to open its windows; what it may send meanwhile is limited by the
number of its streams and by the budget of all bodies.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ..errors import DeadlineExceeded, HeadersTooLarge, MserveError, Unavailable, Unimplemented
from ..wire import grpc_wire
from ..wire.grpc_head import HeadReader
from ..wire.header_blocks import TooLarge
from ..wire.http2 import DATA, HEAD, RESET, Http2
from ..wire.http2_frames import Code
from ..wire.http2_streams import Stream
from .calls import as_error
from .grpc_calls import StreamCall, UnaryCall, refuse
from .peers import REST_BYTES

if TYPE_CHECKING:
    from .grpc_server import GrpcServer

# Calls that begin in one tick of the loop.
TICK_CALLS = 16
# Bytes of answers that wait for a client before no more of its calls begin.
WAITING_BYTES = 16 << 20
WRITE_BUFFER_BYTES = 1 << 20
HANDSHAKE_S = 10.0
KEEPALIVE_S = 60.0
KEEPALIVE_ANSWER_S = 30.0
LINGER_S = 2.0
DRAIN_S = 0.9
_S = 1_000_000_000


class GrpcConnection(asyncio.Protocol):
    """One client connection. Times are monotonic nanoseconds."""

    def __init__(self, server: GrpcServer) -> None:
        now = time.monotonic_ns()
        self.peers = server.peers
        self.access_log = server.access_log
        self.http2 = Http2(HeadReader(), now)
        self.client = ""
        self.slow: set[StreamCall] = set()
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._ready: deque[UnaryCall] = deque()
        self._dispatching = self._flushing = self._pinged = self._resting = False
        self._began_ns = self._heard_ns = self._busy_ns = now
        self._unread_ns = self._closing_ns = self._draining_ns = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)  # type: ignore[union-attr]
        peer = transport.get_extra_info("peername")
        self.client = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        self._server.open.add(self)
        if len(self._server.open) > self.peers.connections_max:
            self._end(Code.ENHANCE_YOUR_CALM, "the server has too many connections")
        elif self._server.stopping:
            self._end(Code.NO_ERROR, "the server is shutting down")
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self)
        self._transport = None
        self._drop_calls()

    def data_received(self, data: bytes) -> None:
        if len(data) >= REST_BYTES and not self._resting and self._transport is not None:
            self._resting = True
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._rested)
        if self._closing_ns:
            return
        now = self._heard_ns = time.monotonic_ns()
        self._flushing = True  # answers that are given meanwhile are written below
        for kind, stream, payload, last in self.http2.receive(data, now):
            if kind == DATA:
                if not stream.gone and stream.of is not None:
                    stream.of.data(payload, last, now)
            elif kind == HEAD:
                if not stream.gone:
                    self._open(stream, last, now)
            elif kind == RESET:
                if stream.of is not None:
                    stream.of.drop()
            else:
                self._ponged()
        if self._ready and not self._dispatching:
            self._dispatch()
        if self.http2.more() or self.http2.leaving:
            self.flush()
        else:
            self._flushing = False

    def _rested(self) -> None:
        """Others have had their turn."""
        self._resting = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.http2.hold = True
        self._unread_ns = time.monotonic_ns()

    def resume_writing(self) -> None:
        self.http2.hold = False
        self._unread_ns = 0
        self.flush()

    # calls

    def _open(self, stream: Stream, last: bool, now: int) -> None:
        """Begin a call by its head."""
        self._busy_ns = now
        head = stream.head
        try:
            if isinstance(head, TooLarge):
                raise HeadersTooLarge("the metadata is too large", found=head)
            asked = head.asked
            if asked.http_status != 200:
                self.http2.finish(stream, grpc_wire.refusal(asked.http_status))
                return
            if head.problem is not None:
                kind, text = head.problem
                raise kind(text)
            methods, name = self._server.methods, asked.method
            unary = methods.unary.get(name)
            if unary is None and name not in methods.streams:
                raise Unimplemented("no such method", found=name[:200])
            admin = self._server.admit(name, asked.metadata)
            if unary is not None:
                stream.of = UnaryCall(self, stream, unary, now, admin=admin)
            else:
                stream.of = StreamCall(self, stream, methods.streams[name], now, admin=admin)
                if self._draining_ns:
                    stream.of.stop()
            if last:
                stream.of.data(b"", True, now)
        except Exception as error:
            refuse(self, stream, as_error(error, "the head of a call"))

    def ready(self, call: UnaryCall) -> None:
        """A call has its message; it begins when its turn comes."""
        self._ready.append(call)

    def _dispatch(self) -> None:
        """Begin calls that are ready, a tick's share, while the client takes its answers."""
        ready = self._ready
        left = TICK_CALLS
        while ready and left and not self._congested():
            ready.popleft().begin()
            left -= 1
        if ready and not self._dispatching and not self._congested():
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch_later)

    def _dispatch_later(self) -> None:
        self._dispatching = False
        self._dispatch()

    def _congested(self) -> bool:
        return self.http2.hold or self.http2.waiting > WAITING_BYTES

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something in the background that answers for itself."""
        self._server.spawn(work)

    def _drop_calls(self) -> None:
        for stream in list(self.http2.streams.values()):
            stream.gone = True
            if stream.of is not None:
                stream.of.drop()
        self.http2.streams.clear()
        self._ready.clear()

    # out

    def flush_soon(self) -> None:
        """Write what there is when this tick's work is done; at once where no other answer can come."""
        if self._flushing:
            return
        if not self.http2.streams:
            self.flush()
        else:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write what there is, as far as the socket takes it."""
        self._flushing = False
        transport, http2 = self._transport, self.http2
        if transport is None or transport.is_closing():
            return
        while http2.more():
            transport.write(http2.take())
        while self.slow:
            self.slow.pop().sent()
        if http2.ended or (not http2.streams and (http2.leaving or http2.shut_off)):
            self._close()
        elif self._ready and not self._dispatching and not self._congested():
            self._dispatching = True
            asyncio.get_running_loop().call_soon(self._dispatch_later)

    def _close(self) -> None:
        """Close behind what was written: a client that still sends must not lose it to a reset."""
        if self._closing_ns or self._transport is None:
            return
        self._closing_ns = time.monotonic_ns()
        self._drop_calls()
        if self.http2.ended and self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _end(self, code: Code, text: str) -> None:
        """End the connection with a word on why."""
        for stream in list(self.http2.streams.values()):
            if stream.of is not None:
                stream.of.drop()
        self.http2.goaway(code, text)
        self.flush()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # called by the server, every now and then

    def sweep(self, now: int) -> None:
        """Close a connection that is silent or idle for too long, end streams that stand still."""
        send_ns, idle_ns = (int(s * _S) for s in (self.peers.send_timeout_s, self.peers.idle_timeout_s))
        http2 = self.http2
        if self._closing_ns:
            if now - self._closing_ns > LINGER_S * _S:
                self._abort()
        elif self._stuck(now, send_ns):
            self._abort()
        elif not http2.streams:
            if now - self._busy_ns > idle_ns:
                self._end(Code.NO_ERROR, "idle")
        else:
            self._busy_ns = now
            self._sweep_streams(now - send_ns)
            silent = now - self._heard_ns
            if silent > (KEEPALIVE_S + KEEPALIVE_ANSWER_S) * _S:
                self._abort()
            elif silent < KEEPALIVE_S * _S:
                self._pinged = False
            elif not self._pinged:
                self._pinged = True
                http2.ping()
                self.flush()

    def _stuck(self, now: int, send_ns: int) -> bool:
        """Whether the client does not introduce itself, or does not read."""
        late = not self.http2.settled and now - self._began_ns > HANDSHAKE_S * _S
        return late or 0 < self._unread_ns < now - send_ns

    def _sweep_streams(self, since: int) -> None:
        for stream in list(self.http2.streams.values()):
            if stream.waiting is not None and stream.since_ns < since:
                if stream.of is not None:
                    stream.of.drop()
                self.http2.reset(stream, Code.CANCEL)
            elif stream.of is not None and stream.of.overdue(since):
                late = f"the message was not complete after {self.peers.send_timeout_s:g} s"
                stream.of.fail(DeadlineExceeded(late))
        self.flush()

    def drain(self) -> None:
        """Finish what was accepted, then close: who sends nothing is cut after a second."""
        now = time.monotonic_ns()
        if not self._draining_ns:
            self._draining_ns = now
            self.http2.shut(final=False)
            for stream in list(self.http2.streams.values()):
                if stream.of is not None:
                    stream.of.stop()
        elif now - self._draining_ns > DRAIN_S * _S:
            self.http2.shut(final=True)
            since = max(self._draining_ns, now - int(DRAIN_S * _S))
            for stream in list(self.http2.streams.values()):
                if stream.of is not None and stream.of.overdue(since):
                    stream.of.fail(_unfinished())
            if not self.http2.settled:
                self._abort()
        self.flush()

    def cut(self) -> None:
        """The grace time is over."""
        self._drop_calls()
        self._abort()

    def _ponged(self) -> None:
        if self._draining_ns:
            self.http2.shut(final=True)


def _unfinished() -> MserveError:
    return Unavailable("the server is shutting down, and the message was not complete")
