"""The express way: the same answers as the long way, whatever happens on it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import builders
import grpc
import numpy as np
import pytest
from onnx import helper

import mserve
from mserve.errors import ExecutionFailed
from mserve.server.access import Access
from mserve.server.app import Server
from mserve.server.config import Source, load
from mserve.server.express import Express
from mserve.server.grpc_server import listen_grpc
from mserve.wire.messages import message

WIDTH = 4


def doubling() -> object:
    """y = 2x, float32 [N, M]."""
    return builders.elementwise(helper.make_node("Add", ["x", "x"], ["y"]), width="M")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Express]:
    """Every request that began on the express way."""
    begun: list[Express] = []
    begin = Express.begin

    def noted(self: Express, timeout_ns: int = 0) -> None:
        begin(self, timeout_ns)
        begun.append(self)

    monkeypatch.setattr(Express, "begin", noted)
    return begun


@asynccontextmanager
async def serving(folder: Path, **flags: object) -> AsyncIterator[tuple[Server, tuple[str, int]]]:
    """A server of model m on this loop, and where its HTTP listens."""
    mserve.export(doubling(), folder / "m", golden=0)
    server = Server(load(Source(base_path=folder / "m", flags=flags)))
    server.reconciler.start()
    listener = await asyncio.get_running_loop().create_server(server.connection, "127.0.0.1", 0)
    try:
        await until(lambda: not server.unready())
        yield server, listener.sockets[0].getsockname()
    finally:
        listener.close()
        server.executor.close()
        await server.reconciler.close()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


def request(value: float, *lines: str, rows: int = 1, width: int = WIDTH, raw: bytes | None = None) -> bytes:
    """A binary request of rows that are all `value`."""
    raw = np.full((rows, width), value, np.float32).tobytes() if raw is None else raw
    size = {"binary_data_size": rows * width * 4}
    port = {"name": "x", "datatype": "FP32", "shape": [rows, width], "parameters": size}
    head = json.dumps({"inputs": [port], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]})
    http = [
        "POST /v2/models/m/infer HTTP/1.1",
        "Host: here",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(head) + len(raw)}",
        *lines,
    ]
    return "\r\n".join([*http, "", ""]).encode() + head.encode() + raw


async def answer(reader: asyncio.StreamReader) -> tuple[list[bytes], bytes]:
    """The lines of the next answer's head, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
    length = next(int(line.split()[1]) for line in head if line.lower().startswith(b"content-length"))
    return head, await reader.readexactly(length)


def values(body: bytes) -> list[float]:
    return np.frombuffer(body[body.rindex(b"}") + 1 :], np.float32).tolist()


Scene = Callable[[Server, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def play(folder: Path, scene: Scene, **flags: object) -> None:
    """Two requests open the express way of a connection; then the scene goes on with it."""

    async def main() -> None:
        async with serving(folder, **flags) as (server, address):
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(3):
                writer.write(request(1))
                head, body = await answer(reader)
                assert head[0] == b"HTTP/1.1 200 OK"
                assert values(body) == [2] * WIDTH
            await scene(server, reader, writer)
            writer.close()

    asyncio.run(main())


def test_the_answers_are_those_of_the_long_way(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        long = []
        for begun in (False, True):  # a head that is new goes the long way, then not
            for value in (3, -0.5) if begun else (3,):
                before = len(taken)
                writer.write(request(value, "x-odd: 1"))
                long.append((await answer(reader), value, len(taken) - before))
        writer.write(request(-0.5, "x-odd: 2"))
        (first, _, _), *others = long
        assert [went for *_, went in others] == [0, 1] or [went for *_, went in others] == [1, 1]
        assert others[0][0] == first
        assert others[1][0] == await answer(reader)

    play(tmp_path, scene)
    assert taken


def test_pipelined_requests_are_answered_in_order(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        before = len(taken)
        writer.write(b"".join(request(v) for v in range(40)))
        assert [values((await answer(reader))[1])[0] for _ in range(40)] == [2.0 * v for v in range(40)]
        assert len(taken) > before
        assert server.peers.received == 0

    play(tmp_path, scene)


def test_a_request_keeps_its_own_id(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        for i in range(4):
            writer.write(request(i, f"x-request-id: r-{i}", f"traceparent: {trace}"))
            head, body = await answer(reader)
            assert f"x-request-id: r-{i}".encode() in head
            assert f"traceparent: {trace}".encode() in head
            assert values(body) == [2.0 * i] * WIDTH
            known = server.recorder.explain(f"r-{i}")
            assert known is not None
            assert (known["model"], known["protocol"], known["code"]) == ("m", "oip-rest", "200")
            assert {"parse", "queue", "compute", "encode"} <= known["ms"].keys()
        assert taken[-1].request_id == "r-3"
        writer.write(request(1, "x-request-id: not\tgood"))
        assert not [line for line in (await answer(reader))[0] if line.startswith(b"x-request-id")]

    play(tmp_path, scene)


def test_a_token_that_is_revoked_is_asked_for_at_once(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        before = len(taken)
        tokens = tmp_path / "tokens"
        tokens.write_text("a-token-of-some-length\n")
        server.access = Access(tokens)
        writer.write(request(1))
        assert (await answer(reader))[0][0].startswith(b"HTTP/1.1 401")
        assert len(taken) == before

    play(tmp_path, scene)


def test_a_new_version_answers_as_soon_as_it_is_there(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mserve.export(doubling(), tmp_path / "m", golden=0)
        server.reconciler.poll_s = 0.05
        seen = set()
        async with asyncio.timeout(30):
            while b"2" not in seen:
                writer.write(request(1))
                head, body = await answer(reader)
                assert values(body) == [2] * WIDTH
                seen |= {line.split()[1] for line in head if line.startswith(b"mserve-model-version")}
        assert seen <= {b"1", b"2"}

    play(tmp_path, scene, **{"server.poll": 0.1})
    assert {e.servable.version for e in taken} >= {1}


def test_other_shapes_and_sizes_are_answered_too(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for rows, width in ((3, 4), (1, 7), (300, 2), (3, 4), (0, 4), (2, 40_000)):
            for _ in range(4):
                writer.write(request(1, rows=rows, width=width))
                head, body = await answer(reader)
                assert head[0] == b"HTTP/1.1 200 OK", body
                assert values(body) == [2] * rows * width

    play(tmp_path, scene)
    assert {e.rows for e in taken} >= {1, 3, 300}


def test_a_compressed_answer_goes_the_long_way(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for line in ("accept-encoding: gzip", "accept-encoding: br") * 3:
            writer.write(request(1, line, width=4000))
            head, body = await answer(reader)
            assert (b"Content-Encoding: gzip" in head) == ("gzip" in line)
            assert len(body) < 4000 or "br" in line

    play(tmp_path, scene)


def test_a_full_queue_refuses_with_the_time_to_come_back(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        batcher = server.executor.batcher
        batcher.limits = replace(batcher.limits, max_queue_rows=2)
        writer.write(request(1) * 8)
        heads = [(await answer(reader))[0] for _ in range(8)]
        codes = [head[0].split()[1] for head in heads]
        assert codes.count(b"200") >= 2
        assert codes.count(b"429") + codes.count(b"503") + codes.count(b"200") == 8
        refused = [head for head in heads if head[0].split()[1] != b"200"]
        assert refused
        assert all([line for line in head if line.startswith(b"Retry-After")] for head in refused)
        assert server.peers.received == 0

    play(tmp_path, scene)


def test_a_deadline_that_passes_in_the_queue_is_told(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.executor._free = 0  # every worker is busy, and the model too long for the loop
        server.reconciler.models["m"].default.predictable = False  # type: ignore[union-attr]
        server.front.timeout_ns = 80_000_000
        writer.write(request(1))
        head, body = await answer(reader)
        assert head[0].startswith(b"HTTP/1.1 504"), body
        assert b"waiting in the queue" in body
        server.executor._free = 1

    play(tmp_path, scene)


def test_a_client_that_leaves_takes_its_request_along(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        before = len(taken)
        writer.write(request(1))
        await until(lambda: len(taken) > before)
        # A reset, not the end of what it sends: it will not read the answer.
        reset = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()
        await until(lambda: taken[-1].cancelled)
        await until(server.executor.idle)
        assert server.peers.received == 0
        left = [c for counts in server.metrics.series.values() for c in counts.codes]
        assert "499" in left

    play(tmp_path, scene, **{"batching.delay_ms": 100})


def test_a_draining_server_answers_and_closes(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        before = len(taken)
        writer.write(request(5))
        await until(lambda: len(taken) > before)
        for connection in list(server.peers.open):
            connection.drain()
        head, body = await answer(reader)
        assert b"Connection: close" in head
        assert values(body) == [10] * WIDTH
        assert await reader.read() == b""

    play(tmp_path, scene, **{"batching.delay_ms": 100})


def test_who_logs_requests_sees_all_of_them(tmp_path: Path, taken: list[Express]) -> None:
    log = tmp_path / "requests.jsonl"

    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert server.request_log is not None
        await asyncio.to_thread(server.request_log.close)

    play(tmp_path, scene, **{"request_log.path": str(log), "request_log.sample": 1.0})
    assert len(log.read_text().splitlines()) == 3
    assert not taken


def test_grpc_goes_the_same_way(tmp_path: Path, taken: list[Express]) -> None:
    def body(value: float, rows: int = 1, identity: str = "") -> bytes:
        asked = message("inference.ModelInferRequest")(model_name="m", id=identity)
        asked.inputs.add(name="x", datatype="FP32", shape=[rows, WIDTH])
        asked.raw_input_contents.append(np.full((rows, WIDTH), value, np.float32).tobytes())
        return bytes(asked.SerializeToString())

    async def main() -> None:
        async with serving(tmp_path) as (server, _):
            listener = server.grpc()
            await listener.start(await listen_grpc("127.0.0.1", 0))
            async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
                infer = channel.unary_unary(
                    "/inference.GRPCInferenceService/ModelInfer",
                    response_deserializer=message("inference.ModelInferResponse").FromString,
                )
                for i in range(4):
                    for rows in (1, 3):
                        found = await infer(body(i, rows, f"id-{i}"), metadata=(("x-request-id", f"g-{i}"),))
                        assert found.id == f"id-{i}"
                        assert found.outputs[0].shape == [rows, WIDTH]
                        assert np.frombuffer(found.raw_output_contents[0], np.float32).tolist() == (
                            [2.0 * i] * rows * WIDTH
                        )
                    known = server.recorder.explain(f"g-{i}")
                    assert known is not None
                    assert (known["protocol"], known["code"]) == ("oip-grpc", "OK")
                assert len(taken) >= 4
                server.executor._free = 0
                server.reconciler.models["m"].default.predictable = False  # type: ignore[union-attr]
                with pytest.raises(grpc.aio.AioRpcError) as late:
                    await infer(body(1), timeout=0.2)
                assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                server.executor._free = 1
                await until(server.executor.idle)
            await listener.stop(1.0)

    asyncio.run(main())


def predict(body: bytes, *lines: str) -> bytes:
    """A predict request."""
    http = ["POST /v1/models/m:predict HTTP/1.1", "Host: here", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*http, "", ""]).encode() + body


PREDICTS = [
    ("rows", b'{"instances": [[1, 2.5], [3, 4]]}'),
    ("rows with names", b'{"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}'),
    ("columns", b'{"inputs": [[1, 2]]}'),
    ("named columns", b'{"inputs": {"x": [[1, 2]]}, "signature_name": "serving_default"}'),
    ("chosen outputs", b'{"instances": [[1]], "outputs": ["y"]}'),
    ("no rows", b'{"instances": []}'),
    ("rows without values", b'{"instances": [[], []]}'),
    ("numbers that JSON lacks", b'{"instances": [[NaN, Infinity]]}'),
    ("a long answer", b'{"instances": [[%b]]}' % b",".join([b"1.25"] * 5000)),
    ("a body that stops", b'{"instances": [[1, 2'),
    ("a ragged list", b'{"instances": [[1, 2], [3]]}'),
    ("text for numbers", b'{"instances": [["a"]]}'),
    ("true for a number", b'{"instances": [[true]]}'),
    ("neither form", b'{"rows": [[1]]}'),
    ("an unknown signature", b'{"instances": [[1]], "signature_name": "none"}'),
    ("an unknown output", b'{"instances": [[1]], "outputs": ["z"]}'),
    ("an array", b"[1]"),
]


@pytest.mark.parametrize(("what", "body"), PREDICTS, ids=[what for what, _ in PREDICTS])
@pytest.mark.parametrize("coded", ["identity", "gzip"])
def test_predict_answers_as_on_the_long_way(
    tmp_path: Path, taken: list[Express], what: str, body: bytes, coded: str
) -> None:
    good = b'{"instances": [[1, 2]]}'
    line = f"Accept-Encoding: {coded}"

    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        long, long_writer = await asyncio.open_connection(*writer.get_extra_info("peername"))
        long_writer.write(predict(body, line))
        before = len(taken)
        expected = await answer(long)
        assert len(taken) == before
        for _ in range(3):  # the same head, which opens the express way
            writer.write(predict(good, line))
            await answer(reader)
        opened = len(taken)
        writer.write(predict(body, line))
        assert await answer(reader) == expected
        assert opened > before
        if expected[0][0] == b"HTTP/1.1 200 OK":
            assert len(taken) == opened + 1
        assert server.peers.received == 0
        long_writer.close()

    play(tmp_path, scene)


def test_requests_of_all_lengths_go_the_express_way(tmp_path: Path, taken: list[Express]) -> None:
    """Numbers as text differ in length; and a proxy adds lines that differ, too."""

    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        long = 0
        for number in range(40):
            begun, value = len(taken), 1.5**number
            lines = f"X-Forwarded-For: 10.0.0.{number}", f"tracestate: t={value}", f"x-request-id: {number}"
            writer.write(predict(b'{"instances": [[%r]]}' % value, *lines))
            _, body = await answer(reader)
            assert json.loads(body)["predictions"] == [pytest.approx([2 * value])]
            long += len(taken) == begun
        assert long == 2

    play(tmp_path, scene)


def test_a_strict_server_reads_every_predict_request_the_long_way(
    tmp_path: Path, taken: list[Express]
) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        good, odd = b'{"instances": [[1.0]]}', b'{"instances": [[NaN]]}'
        for body in (good, good, good, odd):
            writer.write(predict(body))
            head, _ = await answer(reader)
        assert head[0].startswith(b"HTTP/1.1 200")
        before = len(taken)
        server._tfs.strict = True
        for body, code in ((good, b"200"), (odd, b"400")):
            writer.write(predict(body))
            head, _ = await answer(reader)
            assert head[0].split()[1] == code
        assert len(taken) == before

    play(tmp_path, scene)


def test_a_model_that_fails_tells_why_on_either_way(tmp_path: Path, taken: list[Express]) -> None:
    async def scene(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            writer.write(predict(b'{"instances": [[1.0]]}'))
            await answer(reader)
        before = len(taken)
        servable = server.reconciler.models["m"].default
        assert servable is not None

        def broken(*_: object, **__: object) -> None:
            raise ExecutionFailed("the model failed on these inputs", found="a broken operator")

        servable.compute = broken  # type: ignore[method-assign, assignment]
        writer.write(predict(b'{"instances": [[2.0]]}'))
        head, body = await answer(reader)
        assert len(taken) == before + 1
        assert head[0].split()[1] == b"500"
        assert b"a broken operator" in body

    play(tmp_path, scene)
