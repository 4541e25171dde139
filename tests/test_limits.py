"""Limits that hold whatever a client sends: bytes held, names, trailers, time to end. Real sockets."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import builders
import fuzz_models
import grpc
import pytest
from server_tools import Running, serving

import mserve
from mserve.wire.messages import message

CONFIG = """
[models.pick]
base_path = "pick"
[server]
grace = 60
[limits]
body = 1_000_000
buffered = 2_000_000
idle = 1
[batching]
delay_ms = 1500
"""
BODY = b'{"instances":[1]}'
PREDICT = b"POST /v1/models/pick:predict HTTP/1.1\r\nHost: x\r\n"
INFER = "/inference.GRPCInferenceService/Model"
HEALTH = "/grpc.health.v1.Health/"
TOO_MANY = "too many request bodies"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("limits")
    mserve.export(fuzz_models.pick(), root / "pick")
    (root / "mserve.toml").write_text(CONFIG)
    return root


@pytest.fixture(scope="module")
def slow(folder: Path) -> Iterator[Running]:
    """A server that answers late, and holds two bodies of the largest size at most."""
    with serving(f"--config={folder / 'mserve.toml'}", folder / "log") as running:
        yield running


@pytest.fixture
def channel(slow: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{slow.grpc_port}") as open_channel:
        yield open_channel


def connect(server: Running, port: int = 0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port or server.port), timeout=30)


def everything(link: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    while chunk := link.recv(65536):
        received += chunk
    return received


def in_flight(server: Running, count: int) -> None:
    metric(server, "in_flight", count)


def metric(server: Running, name: str, value: float) -> None:
    """Wait until it has this value."""
    line = f'{name}{{model="pick",version="1"}} {value:.1f}'.encode()
    server.wait_until(lambda: line in server.get("/metrics").body)


def test_what_comes_out_of_a_compressed_body_counts(slow: Running) -> None:
    """A kilobyte on the wire may be a megabyte in memory."""
    body = gzip.compress(BODY + b" " * 900_000)
    request = PREDICT + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    headers = {"Content-Encoding": "gzip"}
    with connect(slow) as first, connect(slow) as second:
        first.sendall(request)
        second.sendall(request)
        metric(slow, "queue_rows", 2)  # in flight they are as soon as their heads are read
        third = slow.ask("POST", "/v1/models/pick:predict", body, headers)
        assert (third.status, TOO_MANY in third.error) == (429, True)
        assert {link.recv(12) for link in (first, second)} == {b"HTTP/1.1 200"}
    assert slow.ask("POST", "/v1/models/pick:predict", body, headers).status == 200


def infer(padding: int) -> bytes:
    request = message("inference.ModelInferRequest")(model_name="pick")
    request.parameters["padding"].string_param = "x" * padding
    tensor = request.inputs.add(name="index", datatype="INT64", shape=[1])
    tensor.contents.int64_contents.append(1)
    return bytes(request.SerializeToString())


def test_messages_of_a_stream_count_until_they_are_answered(slow: Running, channel: grpc.Channel) -> None:
    stream = channel.stream_stream(INFER + "StreamInfer")
    kind = message("inference.ModelStreamInferResponse")

    def errors(count: int) -> list[str]:
        answers = stream(iter([infer(900_000)] * count), timeout=30)
        return [kind.FromString(body).error_message for body in answers]

    first, second, third = errors(3)
    assert (first, second) == ("", "")
    assert TOO_MANY in third
    assert errors(2) == ["", ""], "what was answered no longer counts"


def test_a_stream_whose_client_leaves_counts_no_longer(slow: Running, channel: grpc.Channel) -> None:
    for _ in range(4):
        stream = channel.stream_stream(INFER + "StreamInfer")(iter([infer(900_000)] * 2), timeout=30)
        in_flight(slow, 2)
        stream.cancel()
        in_flight(slow, 0)
    assert channel.unary_unary(INFER + "Infer")(infer(900_000), timeout=30)


def status(call: Any, *arguments: Any, **named: Any) -> str:
    """How a call ends."""
    try:
        answer = call(*arguments, timeout=30, **named)
        if isinstance(answer, bytes):
            return "OK"
        for _ in answer:
            pass
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def test_a_compressed_message_is_measured_by_what_comes_out(channel: grpc.Channel) -> None:
    call = channel.unary_unary(INFER + "Infer")
    assert status(call, infer(900_000), compression=grpc.Compression.Gzip) == "OK"
    assert status(call, infer(1_100_000), compression=grpc.Compression.Gzip) == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("size", [257, 900_000])
def test_health_is_not_asked_for_by_a_long_name(channel: grpc.Channel, size: int) -> None:
    """A watch would hold it for as long as it likes."""
    asked = message("grpc.health.v1.HealthCheckRequest")(service="x" * size).SerializeToString()
    assert status(channel.unary_unary(HEALTH + "Check"), asked) == "INVALID_ARGUMENT"
    assert status(channel.unary_stream(HEALTH + "Watch"), asked) == "INVALID_ARGUMENT"
    longest = message("grpc.health.v1.HealthCheckRequest")(service="x" * 256).SerializeToString()
    assert status(channel.unary_unary(HEALTH + "Check"), longest) == "NOT_FOUND"


def test_an_idle_connection_of_grpc_is_closed(slow: Running) -> None:
    with connect(slow, slow.grpc_port) as link:
        link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        assert everything(link)


CHUNKED = PREDICT + b"Transfer-Encoding: chunked\r\nConnection: close\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n" % (len(BODY), BODY)
ODD_HEADERS = [
    (
        "an id among the headers is echoed",
        CHUNKED + b"x-request-id: a\r\n\r\n" + CHUNKS + b"\r\n",
        b"200",
        True,
    ),
    ("one in the trailer is none", CHUNKED + b"\r\n" + CHUNKS + b"x-request-id: a\r\n\r\n", b"200", False),
    (
        "a trailer line without end",
        CHUNKED + b"\r\n" + CHUNKS + b"a: " + b"x" * 4_000_000,
        b"431",
        False,
    ),
    (
        "two tokens: who looks at one may not see the other",
        b"GET /livez HTTP/1.1\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
        b"400",
        False,
    ),
]


@pytest.mark.parametrize(("why", "data", "code", "echoed"), ODD_HEADERS, ids=[o[0] for o in ODD_HEADERS])
def test_fields_that_come_late_or_twice(
    slow: Running, why: str, data: bytes, code: bytes, echoed: bool
) -> None:
    with connect(slow) as link:
        writer = threading.Thread(target=_send, args=(link, data))
        writer.start()
        head = link.recv(65536).lower()
        assert head.split(b" ")[1] == code, why
        assert (b"x-request-id: a" in head) == echoed
        link.shutdown(socket.SHUT_RDWR)
        writer.join()


def _send(link: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # refused before its end, as it should be
        link.sendall(data)


def test_two_tokens_in_one_grpc_call_are_refused(channel: grpc.Channel) -> None:
    twice = (("authorization", "Bearer a"), ("authorization", "Bearer b"))
    assert status(channel.unary_unary(HEALTH + "Check"), b"", metadata=twice) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("value", ["0.5", "0", "soon"])
def test_a_timeout_that_is_no_number_of_milliseconds(slow: Running, value: str) -> None:
    answer = slow.ask("POST", "/v1/models/pick:predict", BODY, {"mserve-timeout-ms": value})
    assert answer.status == 400
    assert f"expected: a whole number of milliseconds, above 0; found: {value})" in answer.error


def test_the_end_does_not_wait_for_who_sends_nothing(folder: Path) -> None:
    """Half a head, an upload that stands still, a stream without a request; what was accepted is answered."""
    with serving(f"--config={folder / 'mserve.toml'}", folder / "log2") as server:
        address = f"127.0.0.1:{server.grpc_port}"
        with connect(server) as half, connect(server) as upload, grpc.insecure_channel(address) as channel:
            half.sendall(PREDICT)
            upload.sendall(PREDICT + b"Content-Length: 900\r\n\r\n{")
            over = threading.Event()

            def requests(first: list[bytes]) -> Iterator[bytes]:
                yield from first
                over.wait(60)

            call = channel.stream_stream(INFER + "StreamInfer")
            idle, busy = call(requests([])), call(requests([infer(1)]))
            in_flight(server, 1)
            server.process.send_signal(signal.SIGTERM)
            kind = message("inference.ModelStreamInferResponse")
            assert kind.FromString(next(busy)).error_message == ""
            for stream in (idle, busy):
                with pytest.raises(grpc.RpcError) as caught:
                    next(stream)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            for link in (half, upload):
                answer = everything(link)
                assert answer.startswith(b"HTTP/1.1 408"), answer
                assert "shutting down" in json.loads(answer.split(b"\r\n\r\n")[1])["error"]
            assert server.process.wait(timeout=40) == 0  # the grace time is longer
            over.set()


def test_runs_of_clients_that_left_make_room_for_others(tmp_path: Path) -> None:
    """Two runs without an end take both workers; their clients have only ended their side."""
    mserve.export(builders.endless(), tmp_path / "endless", golden=0)
    body = json.dumps({"instances": [2**60]}).encode()
    request = PREDICT.replace(b"pick", b"endless") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with serving(tmp_path / "endless", tmp_path / "log") as server:
        for _ in range(8):
            with socket.create_connection(("127.0.0.1", server.port)) as link:
                link.sendall(request)
                link.shutdown(socket.SHUT_WR)
        headers = {"mserve-timeout-ms": "20000"}
        answer = server.ask("POST", "/v1/models/endless:predict", b'{"instances": [3]}', headers)
        assert answer.status == 200, answer.body
