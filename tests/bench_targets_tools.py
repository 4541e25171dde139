"""Asking a bench target without a driver, and gRPC servers that others wrote."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import uvloop

from mserve.bench.load.client import Connection
from mserve.bench.targets.opening import open_target
from mserve.bench.targets.target import Ask, Connector, Target


class Answers:
    """Outcomes, messages and first bytes of some requests, by index."""

    def __init__(self) -> None:
        self.outcomes: dict[int, int] = {}
        self.messages: dict[int, str] = {}
        self.first_ns: dict[int, int] = {}

    def counts(self) -> dict[int, int]:
        return dict(Counter(self.outcomes.values()))


async def ask_all(source: Connector, count: int, connections: int = 1) -> Answers:
    """Ask `count` requests over some connections, each one at a time."""
    answers, left = Answers(), iter(range(count))

    async def work(connection: Connection) -> None:
        for index in left:
            ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
            connection.send(index, lambda _, o, m, ended=ended: ended.set_result((o, m)))
            answers.outcomes[index], answers.messages[index] = await asyncio.wait_for(ended, 30)
            answers.first_ns[index] = connection.first_ns
            if not connection.usable:
                connection = await source.connect()
        connection.abort()

    opened = [await source.connect() for _ in range(connections)]
    await asyncio.gather(*(work(connection) for connection in opened))
    return answers


def drive(target: Target, count: int = 40, connections: int = 4) -> Answers:
    """Start a target, ask it, and close it."""

    async def run() -> Answers:
        await target.start()
        try:
            return await ask_all(target, count, connections)
        finally:
            await target.close()

    return uvloop.run(run())


def opened(target: str | Path, **ask: Any) -> Target:
    return open_target(str(target), Ask(**ask))


Handler = Callable[[bytes, grpc.ServicerContext], bytes]


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, methods: Mapping[str, Handler]) -> None:
        self._methods = methods

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handler = self._methods.get(details.method.removeprefix("/"))
        return None if handler is None else grpc.unary_unary_rpc_method_handler(handler)


class GrpcioServer:
    """A server of grpcio's with handlers of bytes, by "service/method"."""

    def __init__(self, methods: Mapping[str, Handler], port: int, server: grpc.Server) -> None:
        self.port = port
        self.server = server

    @property
    def url(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"


@contextmanager
def grpcio_server(methods: Mapping[str, Handler], *options: tuple[str, Any]):  # type: ignore[no-untyped-def]
    """grpcio answers on a free port."""
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), *options]
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, (_Handlers(methods),), options=limits)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield GrpcioServer(methods, port, server)
        finally:
            server.stop(None).wait()


@asynccontextmanager
async def tcp_server(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A port where something of the test's own talks."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
