"""gRPC, carried by grpcio: bytes in, a codec's handler, bytes out.

The codecs know nothing of grpcio: a unary handler takes an Rpc and a reply callback, as
an HTTP handler takes a Request and one; a stream handler takes an iterator of messages
and is one of answers. So another transport can take grpcio's place without touching them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import EnvironmentProblem, MserveError, RequestError, Unavailable
from ..wire.context import Context
from . import logs
from .calls import as_error
from .exchange import Cancel
from .peers import Held, Peers

log = logging.getLogger("mserve")

STREAMS_MAX = 1000
KEEPALIVE_MS = 60_000
PING_INTERVAL_MS = 10_000
HANDSHAKE_MS = 10_000
POLL_S = 0.02
CUT_S = 0.1
# Bytes of an error's text. It may repeat what a client sent, and goes out as a header, in which a
# byte may take three; clients refuse headers over 8 KiB.
DETAILS_MAX = 2000


@dataclass(slots=True)
class Rpc:
    """One message of a call: the method's full name without the first slash, the bytes, what came along."""

    method: str
    message: bytes
    context: Context
    metadata: Mapping[str, str | bytes]


RpcReply = Callable[[bytes | MserveError], None]
Unary = Callable[[Rpc, RpcReply], Cancel | None]
Stream = Callable[[AsyncIterator[bytes], Rpc], AsyncIterator[bytes]]
Admit = Callable[[str, Mapping[str, str | bytes]], bool]


@dataclass(frozen=True, slots=True)
class Methods:
    """What a codec answers, by full method name such as "inference.GRPCInferenceService/ModelInfer"."""

    unary: Mapping[str, Unary]
    streams: Mapping[str, Stream]


class GrpcServer:
    """Listens, and hands calls to the codecs' handlers on the event loop.

    `admit(method, metadata)` raises MserveError for a call that may not be made, and
    tells whether the client may make administrative ones.
    """

    def __init__(self, methods: Methods, admit: Admit, peers: Peers, *, access_log: bool = False) -> None:
        self._methods = methods
        self._admit = admit
        self._peers = peers
        self._access_log = access_log
        self._server: Any = None
        self._stopped = asyncio.Event()
        self._under_way = 0
        self.port = 0

    async def start(self, address: str, credentials: Any = None) -> None:
        """Listen on host:port. Raises EnvironmentProblem when that is not possible."""
        import grpc

        options = [
            ("grpc.max_receive_message_length", self._peers.body_max),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", STREAMS_MAX),
            ("grpc.so_reuseport", 0),
            # A client that is gone without a word is noticed, and what it asked for dropped.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_MS // 2),
            ("grpc.max_allowed_incoming_connections", self._peers.connections_max),
            ("grpc.max_connection_idle_ms", int(self._peers.idle_timeout_s * 1000)),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_MS),
        ]
        logging.getLogger("grpc._cython.cygrpc").addFilter(_worth_a_line)
        most = self._peers.connections_max
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=most)
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise EnvironmentProblem(
                "cannot listen for gRPC",
                where=address,
                found="another process listens there, perhaps",
                hint="choose another --grpc-port; 0 takes any free one, off none",
            ) from error
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and finish those under way within the grace time."""
        if self._server is None:
            return
        self._stopped.set()
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        while self._under_way and not stopping.done():
            await asyncio.sleep(POLL_S)
        # What is left are calls whose client has not sent its request yet.
        await asyncio.wait((stopping,), timeout=CUT_S)
        await self._server.stop(0)
        await stopping

    def handler(self, name: str) -> Any:
        """grpcio's handler of a method, None for one that nobody answers."""
        import grpc

        if name in self._methods.unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(name))
        if name in self._methods.streams:
            return grpc.stream_stream_rpc_method_handler(self._stream(name))
        return None

    def _unary(self, name: str) -> Any:
        handle = self._methods.unary[name]

        async def answer(message: bytes, grpc_context: Any) -> bytes:
            future: asyncio.Future[bytes | MserveError] = asyncio.get_running_loop().create_future()

            def reply(result: bytes | MserveError) -> None:
                if not future.done():
                    future.set_result(result)

            cancel, rpc, held = None, None, Held(self._peers)
            self._count(grpc_context)
            try:
                held.take(len(message))
                rpc = self._rpc(name, message, grpc_context)
                cancel = handle(rpc, reply)
                result = await future
            except asyncio.CancelledError:
                if cancel is not None:
                    cancel()
                raise
            except Exception as error:
                result = as_error(error, name)
            finally:
                held.release()
            if rpc is not None:
                self._close(rpc, grpc_context, result)
            if isinstance(result, MserveError):
                # grpcio keeps the frames of a call that fails until the garbage collector comes.
                del message, rpc, cancel
                await _abort(grpc_context, result.without_frames())
            assert isinstance(result, bytes)
            return result

        return answer

    def _stream(self, name: str) -> Any:
        handle = self._methods.streams[name]

        async def answer(messages: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[bytes]:
            self._count(grpc_context)
            try:
                rpc = self._rpc(name, b"", grpc_context)
                async for message in handle(self._until_stopped(messages), rpc):
                    yield message
            except MserveError as error:
                await _abort(grpc_context, error)

        return answer

    def _count(self, grpc_context: Any) -> None:
        """Count a call as under way until its answer is on the wire."""

        def done(_: Any) -> None:
            self._under_way -= 1

        self._under_way += 1
        grpc_context.add_done_callback(done)

    async def _until_stopped(self, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The messages of a stream. Raises Unavailable when the server stops before the next one."""
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            while True:
                coming = asyncio.ensure_future(_next(messages))
                await asyncio.wait((coming, stopped), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    raise Unavailable("the server is shutting down", hint="try again elsewhere")
                if (message := coming.result()) is None:
                    return
                del coming
                yield message
                del message  # not held here until the next one comes
        finally:
            stopped.cancel()

    def _close(self, rpc: Rpc, grpc_context: Any, result: bytes | MserveError) -> None:
        """Echo the request's identity, and log it where that is asked for."""
        who = logs.Identity(rpc.context.request_id, rpc.context.traceparent)
        if who.headers():
            grpc_context.set_trailing_metadata(who.headers())
        if self._access_log:
            code, size = ("OK", len(result)) if isinstance(result, bytes) else (result.grpc_status, 0)
            sizes = len(rpc.message), size
            line = (grpc_context.peer(), "RPC", "/" + rpc.method, code, *sizes, rpc.context.start_ns)
            logs.write_access(logs.Line(*line, who))

    def _rpc(self, name: str, message: bytes, grpc_context: Any) -> Rpc:
        start = time.monotonic_ns()
        pairs = tuple(grpc_context.invocation_metadata() or ())
        metadata = dict(pairs)
        if sum(key == "authorization" for key, _ in pairs) > 1:
            raise RequestError("the call has more than one authorization")
        admin = self._admit(name, metadata)
        left = grpc_context.time_remaining()
        timeout = 0 if left is None else max(1, int(left * 1e9))
        given, trace = (str(metadata.get(h, "")) for h in ("x-request-id", "traceparent"))
        who = logs.identity(given, trace)
        if self._access_log and not who.request_id:
            who.request_id = logs.new_request_id()
        context = Context(start, timeout, who.request_id, who.traceparent, admin)
        return Rpc(name, message, context, metadata)


async def _next(messages: AsyncIterator[bytes]) -> bytes | None:
    return await anext(messages, None)


class _Handlers:
    """grpcio asks this object for the handler of each call."""

    def __init__(self, server: GrpcServer) -> None:
        self._server = server

    def service(self, details: Any) -> Any:
        return self._server.handler(details.method.removeprefix("/"))


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Whether grpcio's message says more than that a client has left while it was answered.

    That one is an error with a traceback, which any client could write into the log at will.
    """
    return not record.getMessage().startswith("ExecuteBatchError raised in core by servicer method")


async def _abort(grpc_context: Any, error: MserveError) -> None:
    """End a call with an error's status; raises."""
    import grpc

    retry = getattr(error, "retry_after_s", 0)
    trailers = (*(grpc_context.trailing_metadata() or ()), *((("retry-after", str(retry)),) if retry else ()))
    text = str(error).encode(errors="replace")[:DETAILS_MAX].decode(errors="ignore")
    await grpc_context.abort(getattr(grpc.StatusCode, error.grpc_status), text, trailers)
