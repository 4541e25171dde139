"""gRPC's health service on a real socket: the server, its services, and each model."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from server_tools import Running, serving
from test_server import constant_model

import mserve
from mserve.wire.messages import message

Request = message("grpc.health.v1.HealthCheckRequest")
Response = message("grpc.health.v1.HealthCheckResponse")
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """Two models, of which `late` has no version yet."""
    mserve.export(constant_model(1), tmp_path / "good")
    (tmp_path / "late").mkdir()
    config = tmp_path / "mserve.toml"
    config.write_text('[models.good]\nbase_path = "good"\n[models.late]\nbase_path = "late"\n')
    with serving(f"--config={config}", tmp_path / "log", ready=False) as running:
        running.wait_until(lambda: running.get("/v1/models/good/metadata").status == 200)
        yield running


@pytest.fixture
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as open_channel:
        yield open_channel


def check(channel: grpc.Channel, service: str) -> int:
    call = channel.unary_unary("/grpc.health.v1.Health/Check", Request.SerializeToString, Response.FromString)
    return int(call(Request(service=service), timeout=10).status)


def watch(channel: grpc.Channel, service: str) -> Any:
    call = channel.unary_stream(
        "/grpc.health.v1.Health/Watch", Request.SerializeToString, Response.FromString
    )
    return call(Request(service=service), timeout=60)


def test_the_server_and_each_model(server: Running, channel: grpc.Channel, tmp_path: Path) -> None:
    """A server with a model that cannot answer is not ready, as /readyz says; its other models are."""
    services = ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")
    assert {name: check(channel, name) for name in services} == dict.fromkeys(services, NOT_SERVING)
    assert (check(channel, "good"), check(channel, "late")) == (SERVING, NOT_SERVING)
    mserve.export(constant_model(2), tmp_path / "late")
    server.wait_until(lambda: check(channel, "late") == SERVING)
    assert {name: check(channel, name) for name in services} == dict.fromkeys(services, SERVING)


def test_an_unknown_name(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(channel, "nope")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "'nope'" in caught.value.details()
    assert "good" not in caught.value.details()  # who has no token learns no names
    stream = watch(channel, "nope")
    assert next(stream).status == SERVICE_UNKNOWN
    stream.cancel()


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/grpc.health.v1.Health/Check")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_watch_tells_of_changes_and_ends_with_the_server(
    server: Running, channel: grpc.Channel, tmp_path: Path
) -> None:
    late, whole = watch(channel, "late"), watch(channel, "")
    assert (next(late).status, next(whole).status) == (NOT_SERVING, NOT_SERVING)
    mserve.export(constant_model(2), tmp_path / "late")
    assert (next(late).status, next(whole).status) == (SERVING, SERVING)
    assert server.stop(signal.SIGTERM) == 0
    assert [r.status for r in late] == [NOT_SERVING]
    assert [r.status for r in whole] == [NOT_SERVING]
