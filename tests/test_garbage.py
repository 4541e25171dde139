"""What was answered is freed at once, without the garbage collector.

It comes seldom, and until then a reference cycle would keep bodies, arrays and unloaded
versions, each with a heap around it that cannot shrink.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import builders
import grpc
import pytest

import mserve
from mserve.batching.batcher import Batch, Entry
from mserve.loader.servable import Servable
from mserve.server.app import Server
from mserve.server.calls import Call
from mserve.server.config import Source, load
from mserve.server.grpc_server import listen_grpc
from mserve.server.http import Connection
from mserve.wire.http1 import Request
from mserve.wire.messages import message

KINDS = (Batch, Call, Connection, Entry, Request, Servable)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def kept() -> Counter[str]:
    """What is still there of requests and versions, by type."""
    return Counter(type(o).__name__ for o in gc.get_objects() if issubclass(type(o), KINDS))


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Server]:
    """A server of model m on this loop, whose batches wait for 50 ms."""
    mserve.export(builders.constant(7), folder / "m", golden=0)
    server = Server(load(Source(base_path=folder / "m", flags={"batching.delay_ms": 50})))
    server.reconciler.start()
    try:
        await until(lambda: not server.unready())
        yield server
    finally:
        server.executor.close()
        await server.reconciler.close()


ROW = json.dumps({"instances": [[1.0]]}).encode()
LARGE = json.dumps({"instances": [[1.0]] * 100_000}).encode()
ENDS = [
    ("one answer", "m", [ROW], b"200"),
    ("several answers on one connection", "m", [ROW, ROW, ROW], b"200"),
    ("a large body and a large answer, both done on threads", "m", [LARGE], b"200"),
    ("a body that is refused", "m", [b"{"], b"400"),
    ("a model that is not there", "nothing", [ROW], b"404"),
    ("a client that leaves before it is answered", "m", [ROW], b""),
]


@pytest.mark.parametrize(("what", "model", "bodies", "status"), ENDS)
@pytest.mark.usefixtures("no_collector")
def test_http_leaves_nothing(
    tmp_path: Path, what: str, model: str, bodies: list[bytes], status: bytes
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as server:
            listener = await asyncio.get_running_loop().create_server(server.connection, "127.0.0.1", 0)
            before = kept()
            reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
            for body in bodies:
                head = f"POST /v1/models/{model}:predict HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                if status:
                    answer = await reader.readuntil(b"\r\n\r\n")
                    assert answer.split()[1] == status
                    await reader.readexactly(int(answer.lower().partition(b"content-length: ")[2].split()[0]))
                else:
                    await until(lambda: len(server.executor.batcher))
            assert kept() != before, "the connection at least"
            writer.close()
            await until(lambda: kept() == before)
            listener.close()
            before["Servable"] -= 1
            server.reconciler.set_wanted("m", False)
            await until(lambda: kept() == before)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("what", "model", "datatype", "status"),
    [
        ("an answer", "m", "FP32", "OK"),
        ("a request that is refused", "m", "INT8", "INVALID_ARGUMENT"),
        ("a model that is not there", "nothing", "FP32", "NOT_FOUND"),
    ],
)
@pytest.mark.usefixtures("no_collector")
def test_grpc_leaves_nothing(tmp_path: Path, what: str, model: str, datatype: str, status: str) -> None:
    request = message("inference.ModelInferRequest")(model_name=model)
    port = request.inputs.add(name="x", datatype=datatype, shape=[1, 1])
    port.contents.fp32_contents.append(1.0)

    async def main() -> None:
        async with serving(tmp_path) as server:
            listener = server.grpc()
            await listener.start(await listen_grpc("127.0.0.1", 0))
            before = kept()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
                method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                call = method(request.SerializeToString())
                assert (await call.code()).name == status
                await until(lambda: kept() == before)
            await listener.stop(1.0)

    asyncio.run(main())
