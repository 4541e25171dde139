"""gRPC's calls between a connection and the codecs: one message and one answer, or streams of both.

A unary call is one object, without a task or a future: it gathers its message, hands it
over, and its `reply` writes the answer. A stream is a task that runs the codec's iterator;
its messages stay bytes in one buffer until the codec asks for the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from ..errors import DeadlineExceeded, MserveError, RequestError, Unimplemented
from ..wire import grpc_wire
from ..wire.context import Context
from ..wire.grpc_head import Head
from ..wire.grpc_wire import PREFIX, PREFIX_BYTES, framed
from ..wire.header_blocks import literal
from ..wire.http2_streams import Stream
from ..wire.inflate import deflate
from . import logs
from .calls import as_error
from .exchange import Cancel
from .grpc_inbox import Inbox, check_size, taken_out
from .peers import Held
from .rpc import Rpc, Unary
from .rpc import Stream as StreamHandler

if TYPE_CHECKING:
    from .grpc_connection import GrpcConnection

# Bytes of an error's text. It may repeat what a client sent, and goes out as a header, in which a
# byte may take three; clients refuse headers over 8 KiB.
DETAILS_MAX = 2000
# What is larger is inflated on a thread.
INFLATE_BYTES = 4 << 10
# A smaller answer is not worth the time that compressing takes.
COMPRESS_BYTES = 4 << 10
# Bytes of answers that wait for the client before its codec does.
AHEAD_BYTES = 64 << 10


def refuse(connection: GrpcConnection, stream: Stream, error: MserveError, echo: bytes = b"") -> None:
    """End a stream with an error's status; as the only head where none was sent."""
    text = str(error).encode(errors="replace")[:DETAILS_MAX].decode(errors="ignore")
    block = grpc_wire.status(error.grpc_status, text) + echo
    if retry := getattr(error, "retry_after_s", 0):
        block += literal(b"retry-after", b"%d" % retry)
    if isinstance(error, Unimplemented):
        block += grpc_wire.ACCEPTED  # where it was the encoding, its client must be told
    connection.http2.finish(stream, block if stream.headed else grpc_wire.HEAD + block)
    connection.flush_soon()


def identify(head: Head, access_log: bool) -> logs.Identity | None:
    """Who a call is by its own account, None for nobody; where calls are logged each gets a name."""
    if not (head.identified or access_log):
        return None
    who = logs.identity(head.request_id, head.traceparent)
    if access_log and not who.request_id:
        who.request_id = logs.new_request_id()
    return who


def context_of(head: Head, who: logs.Identity | None, began_ns: int, now_ns: int, *, admin: bool) -> Context:
    """The context of a call whose head came at `began_ns`, and which is handed over now."""
    timeout = head.timeout_ns and max(1, head.timeout_ns - (now_ns - began_ns))
    if who is None:
        return Context(now_ns, timeout, "", "", admin)
    return Context(now_ns, timeout, who.request_id, who.traceparent, admin)


def echo(who: logs.Identity | None) -> bytes:
    """A call's identity as fields of its trailers."""
    pairs = who.headers() if who else ()
    return b"".join(literal(name.encode(), value.encode("latin-1")) for name, value in pairs)


class UnaryCall:
    """A call with one message and one answer."""

    __slots__ = (
        "_admin",
        "_began_ns",
        "_body",
        "_cancel",
        "_compressed",
        "_connection",
        "_done",
        "_handle",
        "_held",
        "_quiet_ns",
        "_rpc",
        "_size",
        "_stream",
        "_who",
    )

    def __init__(
        self, connection: GrpcConnection, stream: Stream, handle: Unary, now_ns: int, *, admin: bool
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._handle = handle
        self._began_ns = self._quiet_ns = now_ns
        self._admin = admin
        self._size = 0
        self._held: Held | None = None
        self._body: bytes | bytearray | None = None
        self._compressed = self._done = False
        self._rpc: Rpc | None = None
        self._cancel: Cancel | None = None
        self._who: logs.Identity | None = None

    def data(self, data: bytes, last: bool, now_ns: int) -> None:
        """Take bytes of the message; behind the last ones the call is ready to begin."""
        try:
            self._size += len(data)
            self._connection.peers.receive(len(data))
            if self._body is None:
                self._body = data if last else bytearray(data)
            else:
                self._body += data
            self._quiet_ns = now_ns
            if last:
                self._connection.ready(self)
            elif len(self._body) >= PREFIX_BYTES:
                size = PREFIX.unpack_from(self._body)[1]
                check_size(size, self._connection.peers)
                if len(self._body) > PREFIX_BYTES + size:
                    raise RequestError("the call has more than one message")
        except MserveError as error:
            self.reply(error)

    def begin(self) -> None:
        """Hand the message over."""
        if self._done:
            return
        try:
            body = self._body or b""
            if len(body) < PREFIX_BYTES:
                raise RequestError("the call has no message")
            compressed, size = PREFIX.unpack_from(body)
            check_size(size, self._connection.peers)
            if size != len(body) - PREFIX_BYTES:
                raise RequestError(
                    "not one message", expected=f"{size} bytes", found=len(body) - PREFIX_BYTES
                )
            message = (
                body[PREFIX_BYTES:] if isinstance(body, bytes) else bytes(memoryview(body)[PREFIX_BYTES:])
            )
            self._body = None
            if not compressed:
                self._hand_over(message)
                return
            self._compressed, self._held = True, Held(self._connection.peers)
            if size > INFLATE_BYTES:
                self._connection.spawn(self._begin_large(message, self._held))
            else:
                self._hand_over(taken_out(self._stream.head, message, self._held))
        except Exception as error:
            self.reply(as_error(error, self._stream.head.asked.method))

    async def _begin_large(self, message: bytes, held: Held) -> None:
        loop = asyncio.get_running_loop()
        try:
            message = await loop.run_in_executor(None, taken_out, self._stream.head, message, held)
            if not self._done:
                self._hand_over(message)
        except Exception as error:
            self.reply(as_error(error, self._stream.head.asked.method))

    def _hand_over(self, message: bytes) -> None:
        head = self._stream.head
        now = self._quiet_ns
        if head.identified or self._connection.access_log:
            self._who = identify(head, self._connection.access_log)
        context = context_of(head, self._who, self._began_ns, now, admin=self._admin)
        self._rpc = rpc = Rpc(head.asked.method, message, context, head.asked.metadata)
        cancel = self._handle(rpc, self.reply)
        if not self._done:
            self._cancel = cancel

    def reply(self, result: bytes | MserveError) -> None:
        """Answer, once; what comes later is dropped, as is every answer of a client that has left."""
        if self._done:
            return
        if self._who is None and not self._compressed and not isinstance(result, MserveError):
            self._release()
            self._rpc = None
            connection = self._connection
            connection.http2.answer(self._stream, grpc_wire.HEAD, framed(result), grpc_wire.TRAILERS)
            connection.flush_soon()
            return
        compress = self._compressed and not isinstance(result, MserveError) and len(result) >= COMPRESS_BYTES
        if compress and self._stream.head.asked.takes_gzip:
            assert isinstance(result, bytes)
            self._compressed = False
            self._connection.spawn(self._reply_compressed(result))
            return
        self._write(result, grpc_wire.HEAD)

    async def _reply_compressed(self, message: bytes) -> None:
        packed = await asyncio.get_running_loop().run_in_executor(None, deflate, message, b"gzip")
        if not self._done:
            self._write(packed, grpc_wire.HEAD_GZIP)

    def _write(self, result: bytes | MserveError, head: bytes) -> None:
        self._release()
        connection, stream = self._connection, self._stream
        echoed = echo(self._who)
        if isinstance(result, MserveError):
            refuse(connection, stream, result, echoed)
        else:
            body = framed(result, head is grpc_wire.HEAD_GZIP)
            connection.http2.answer(stream, head, body, grpc_wire.TRAILERS + echoed)
            connection.flush_soon()
        if self._who is not None and connection.access_log:
            self._log(self._who, result)
        self._rpc = None

    def _release(self) -> None:
        """It is over: nothing of it counts any more."""
        self._done, self._cancel = True, None
        self._connection.peers.received -= self._size
        if self._held is not None:
            self._held.release()

    def _log(self, who: logs.Identity, result: bytes | MserveError) -> None:
        assert self._rpc is not None
        code, size = ("OK", len(result)) if isinstance(result, bytes) else (result.grpc_status, 0)
        sizes, start = (len(self._rpc.message), size), self._rpc.context.start_ns
        logs.write_access(
            logs.Line(self._connection.client, "RPC", "/" + self._rpc.method, code, *sizes, start, who)
        )

    def drop(self) -> None:
        """The client has left."""
        if not self._done:
            cancel = self._cancel
            self._release()
            if cancel is not None:
                cancel()
            self._rpc = self._body = None

    def overdue(self, quiet_ns: int) -> bool:
        """Whether the message is not complete, and nothing of it came since then."""
        return not self._stream.ended and self._quiet_ns < quiet_ns

    def fail(self, error: MserveError) -> None:
        """Answer with an error, whatever is under way."""
        cancel = self._cancel
        self.reply(error)
        if cancel is not None:
            cancel()

    def stop(self) -> None:
        """The server stops; who has been accepted is answered."""


class StreamCall:
    """A call with streams of messages and answers."""

    def __init__(
        self, connection: GrpcConnection, stream: Stream, handle: StreamHandler, now_ns: int, *, admin: bool
    ) -> None:
        head = stream.head
        self._connection = connection
        self._stream = stream
        self._quiet_ns = now_ns
        self._who = identify(head, connection.access_log)
        context = context_of(head, self._who, now_ns, now_ns, admin=admin)
        self._rpc = Rpc(head.asked.method, b"", context, head.asked.metadata)
        self._inbox = Inbox(head, connection.peers, self._resume)
        self._sent: asyncio.Future[None] | None = None
        self._error: MserveError | None = None
        loop = asyncio.get_running_loop()
        self._deadline: asyncio.TimerHandle | None = None
        if head.timeout_ns:
            late = DeadlineExceeded("the deadline of the stream has passed")
            self._deadline = loop.call_later(head.timeout_ns / 1e9, self.fail, late)
        self._task = loop.create_task(self._run(handle))
        self._task.add_done_callback(self._over)

    async def _run(self, handle: StreamHandler) -> None:
        async with aclosing(cast(AsyncGenerator[bytes], handle(self._inbox, self._rpc))) as answers:
            async for message in answers:
                await self._send(message)

    def _over(self, task: asyncio.Task[None]) -> None:
        """The codec has ended, or was cancelled, perhaps before it began."""
        self._inbox.close()
        if self._deadline is not None:
            self._deadline.cancel()
        caught = None if task.cancelled() else task.exception()
        error = self._error
        if error is None and isinstance(caught, Exception):
            error = as_error(caught, self._rpc.method)
        if error is not None or not task.cancelled():
            self._finish(error)

    async def _send(self, message: bytes) -> None:
        stream, connection = self._stream, self._connection
        head = None if stream.headed else grpc_wire.HEAD
        connection.http2.send(stream, head, framed(message))
        connection.flush_soon()
        while stream.waiting is not None and len(stream.waiting) > AHEAD_BYTES:
            self._sent = asyncio.get_running_loop().create_future()
            connection.slow.add(self)
            await self._sent

    def _finish(self, error: MserveError | None) -> None:
        stream, connection = self._stream, self._connection
        if error is not None:
            refuse(connection, stream, error)
            return
        head = b"" if stream.headed else grpc_wire.HEAD
        connection.http2.finish(stream, head + grpc_wire.TRAILERS)
        connection.flush_soon()

    def sent(self) -> None:
        """Some of what waited has gone out."""
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(None)

    def _resume(self) -> None:
        if self._stream.paused:
            self._stream.paused = False
            self._connection.http2.refill(self._stream)
            self._connection.flush_soon()

    def data(self, data: bytes, last: bool, now_ns: int) -> None:
        """Take bytes of the stream."""
        self._quiet_ns = now_ns
        try:
            self._stream.paused = self._inbox.feed(data, last)
        except MserveError as error:
            self.fail(error)

    def fail(self, error: MserveError) -> None:
        """End the stream with an error."""
        if self._error is None:
            self._error = error
            self._task.cancel()

    def drop(self) -> None:
        """The client has left."""
        self._task.cancel()

    def overdue(self, quiet_ns: int) -> bool:
        """Whether a message has begun and is not complete, and nothing of it came since then."""
        return self._inbox.partial() and self._quiet_ns < quiet_ns

    def stop(self) -> None:
        """The server stops: no message is waited for any more."""
        self._inbox.stopped = True
        self._inbox.wake()
