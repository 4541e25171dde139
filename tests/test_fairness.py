"""What one connection may do in one tick of the loop, so that the next one has its turn.

The loop is uvloop, which reads from a socket again and again while there is something.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from http2_tools import HELLO, data, headers, window

from mserve.server.exchange import Cancel, Reply
from mserve.server.grpc_connection import TICK_CALLS, GrpcConnection
from mserve.server.grpc_server import GrpcServer
from mserve.server.http import PIPELINE_MAX, Connection
from mserve.server.peers import REST_BYTES, Peers
from mserve.server.rpc import Methods, Rpc
from mserve.wire.grpc_wire import framed
from mserve.wire.http1 import Request, Response

PAGE = b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /page HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
LARGE = 8 << 20


class Ticks:
    """Counts what happened in each tick of the running loop."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self._now = 0
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self._now += 1
        self._loop.call_soon(self._next)

    def note(self) -> None:
        self.counts[self._now] += 1


def spy(kind: type[Any], reads: Ticks) -> type[Any]:
    """A kind of connection that notes its large reads."""

    class Spied(kind):  # type: ignore[misc]
        def data_received(self, data: bytes) -> None:
            if len(data) >= REST_BYTES:
                reads.note()
            super().data_received(data)

    return Spied


async def exchange(make: Callable[[], asyncio.Protocol], said: bytes, over: Callable[[], bool]) -> None:
    """Say something to a connection of a server, and read all answers until it is over."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(said)
    while not over():
        await asyncio.wait_for(reader.read(1 << 16), 30)
    writer.close()
    server.close()
    await server.wait_closed()


HTTP = [
    ("answered at once", PAGE, 500, False),
    ("answered later, and all together", PAGE, 500, True),
    ("heads that are never known", CHUNKED, 500, False),
]


@pytest.mark.parametrize(("why", "page", "count", "later"), HTTP, ids=[row[0] for row in HTTP])
def test_a_pipeliner_begins_few_requests_in_a_tick(why: str, page: bytes, count: int, later: bool) -> None:
    async def test() -> None:
        begun, answered, waiting = Ticks(), [0], list[Reply]()

        def answer(reply: Reply) -> None:
            answered[0] += 1
            reply(Response(200, b"x", "text/plain"))

        def answer_all() -> None:
            while waiting:
                answer(waiting.pop(0))

        def handle(request: Request, reply: Reply) -> Cancel | None:
            begun.note()
            if not later:
                answer(reply)
                return None
            if not waiting:
                asyncio.get_running_loop().call_soon(answer_all)
            waiting.append(reply)
            return None

        peers = Peers()
        await exchange(lambda: Connection(handle, peers), page * count, lambda: answered[0] == count)
        assert sum(begun.counts.values()) == count
        assert max(begun.counts.values()) <= PIPELINE_MAX

    uvloop.run(test())


def test_a_large_body_is_read_piece_by_piece() -> None:
    async def test() -> None:
        reads, sizes = Ticks(), list[int]()

        def handle(request: Request, reply: Reply) -> Cancel | None:
            sizes.append(len(request.body))
            reply(Response(200, b"x", "text/plain"))
            return None

        said = b"POST /page HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % LARGE + bytes(LARGE)
        kind, peers = spy(Connection, reads), Peers()
        await exchange(lambda: kind(handle, peers), said + PAGE, lambda: len(sizes) == 2)
        assert sizes == [LARGE, 0]
        assert sum(reads.counts.values()) > 10
        assert set(reads.counts.values()) == {1}

    uvloop.run(test())


def grpc(handle: Callable[[Rpc, Any], None], kind: type[Any]) -> Callable[[], asyncio.Protocol]:
    """Connections of gRPC with one method, /a/b."""
    server = GrpcServer(Methods({"a/b": handle}, {}), lambda method, metadata: False, Peers())
    return lambda: kind(server)


def test_calls_of_grpc_begin_few_in_a_tick() -> None:
    async def test() -> None:
        begun = Ticks()

        def handle(rpc: Rpc, reply: Any) -> None:
            begun.note()
            reply(rpc.message)

        calls = (headers(n) + data(n, framed(b"x"), last=True) for n in range(1, 801, 2))
        over = lambda: sum(begun.counts.values()) == 400  # noqa: E731
        await exchange(grpc(handle, GrpcConnection), HELLO + b"".join(calls), over)
        assert max(begun.counts.values()) <= TICK_CALLS

    uvloop.run(test())


def test_large_messages_of_grpc_are_read_piece_by_piece() -> None:
    async def test() -> None:
        reads, sizes = Ticks(), list[int]()

        def handle(rpc: Rpc, reply: Any) -> None:
            sizes.append(len(rpc.message))
            reply(b"")

        message = framed(bytes(LARGE))
        pieces = [message[at : at + (16 << 10)] for at in range(0, len(message), 16 << 10)]
        said = b"".join(data(1, piece, last=piece is pieces[-1]) for piece in pieces)
        await exchange(
            grpc(handle, spy(GrpcConnection, reads)),
            HELLO + headers(1) + said + window(0, 1),
            lambda: len(sizes) == 1,
        )
        assert sizes == [LARGE]
        assert sum(reads.counts.values()) > 10
        assert set(reads.counts.values()) == {1}

    uvloop.run(test())
