"""gRPC with several serving processes: calls of every kind, whichever process a channel has reached."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from server_tools import Running
from test_processes import publish, sample, several

from mserve.wire.messages import message

OIP = "inference.GRPCInferenceService/"
MANY = 8


@contextmanager
def channels(server: Running, count: int = MANY) -> Iterator[list[grpc.Channel]]:
    """Channels with a connection each, spread over the processes."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    opened = [grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) for _ in range(count)]
    try:
        yield opened
    finally:
        for channel in opened:
            channel.close()


def call(channel: grpc.Channel, method: str, request: str, answer: str, /, **fields: Any) -> Any:
    """One unary call; messages by their full names."""
    stub = channel.unary_unary(
        f"/{method}",
        request_serializer=lambda m: m.SerializeToString(),
        response_deserializer=message(answer).FromString,
    )
    return stub(message(request)(**fields), timeout=30)


def infer(channel: grpc.Channel) -> Any:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32_contents": [1.0]}}
    kinds = "inference.ModelInferRequest", "inference.ModelInferResponse"
    return call(channel, f"{OIP}ModelInfer", *kinds, model_name="m", inputs=[tensor])


def oip(channel: grpc.Channel, method: str, /, **fields: Any) -> Any:
    return call(channel, OIP + method, f"inference.{method}Request", f"inference.{method}Response", **fields)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with several(tmp_path_factory.mktemp("grpc"), "", "--admin") as running:
        yield running


def test_every_process_infers_and_the_statistics_are_their_sum(server: Running) -> None:
    with channels(server) as opened:
        assert {infer(c).model_version for _ in range(3) for c in opened} == {"1"}
        sums = {oip(c, "ModelStatistics", name="m").model_stats[0].inference_count for c in opened}
        assert sums == {3 * MANY}
    assert sample(server, "mserve_requests_total", protocol="oip-grpc", code="OK") == 3 * MANY
    assert all(sample(server, "mserve_process_requests_total", process=n) for n in "01")


PAGES: list[tuple[str, dict[str, Any]]] = [
    ("ServerLive", {}),
    ("ServerReady", {}),
    ("ServerMetadata", {}),
    ("ModelReady", {"name": "m"}),
    ("ModelMetadata", {"name": "m"}),
    ("ModelConfig", {"name": "m"}),
    ("RepositoryIndex", {}),
]


@pytest.mark.parametrize(("name", "fields"), PAGES, ids=[name for name, _ in PAGES])
def test_pages_are_the_same_from_every_process(server: Running, name: str, fields: dict[str, Any]) -> None:
    with channels(server) as opened:
        assert len({oip(c, name, **fields).SerializeToString() for c in opened}) == 1


def test_load_and_unload_reach_every_process_before_they_are_answered(server: Running) -> None:
    with channels(server) as opened:
        oip(opened[0], "RepositoryModelUnload", model_name="m")
        for channel in opened:
            with pytest.raises(grpc.RpcError) as refused:
                infer(channel)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "it was unloaded" in refused.value.details()
        oip(opened[1], "RepositoryModelLoad", model_name="m")
        assert {infer(c).model_version for c in opened} == {"1"}


def test_errors_of_the_parent_keep_their_status(server: Running) -> None:
    with channels(server, 4) as opened:
        for channel in opened:
            with pytest.raises(grpc.RpcError) as missing:
                oip(channel, "ModelMetadata", name="other")
            assert missing.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_list_of_models_holds_in_every_process(tmp_path: Path) -> None:
    """HandleReloadConfigRequest: answered when every process has the models; health is that of the whole."""
    with several(tmp_path, "", "--admin") as running, channels(running) as opened:
        listed = {"name": "n", "base_path": str(tmp_path / "m"), "model_platform": "tensorflow"}
        request = {"config": {"model_config_list": {"config": [listed]}}}
        service = "tensorflow.serving."
        kinds = f"{service}ReloadConfigRequest", f"{service}ReloadConfigResponse"
        answer = call(opened[0], f"{service}ModelService/HandleReloadConfigRequest", *kinds, **request)
        assert answer.status.error_message == ""
        for channel in opened:
            assert oip(channel, "ModelReady", name="n").ready
            kinds = "grpc.health.v1.HealthCheckRequest", "grpc.health.v1.HealthCheckResponse"
            assert call(channel, "grpc.health.v1.Health/Check", *kinds, service="n").status == 1
            with pytest.raises(grpc.RpcError) as gone:
                infer(channel)
            assert gone.value.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE)


def test_tokens_hold_for_calls_that_the_parent_answers(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("secret\n")
    (tmp_path / "admins").write_text("admin\n")
    tables = '[auth]\ntokens = "tokens"\nadmin_tokens = "admins"\n'

    def unload(token: str) -> grpc.StatusCode:
        stub = channel.unary_unary(f"/{OIP}RepositoryModelUnload")
        body = message("inference.RepositoryModelUnloadRequest")(model_name="m").SerializeToString()
        try:
            stub(body, timeout=30, metadata=[("authorization", f"Bearer {token}")])
        except grpc.RpcError as error:
            return error.code()  # type: ignore[no-any-return, attr-defined]
        return grpc.StatusCode.OK

    with several(tmp_path, tables, "--admin") as running, channels(running, 1) as (channel,):
        assert unload("guess") == grpc.StatusCode.UNAUTHENTICATED
        assert unload("secret") == grpc.StatusCode.PERMISSION_DENIED
        assert unload("admin") == grpc.StatusCode.OK


def test_publish_and_stop_under_load_fail_no_call(tmp_path: Path) -> None:
    """No call fails while versions change; SIGTERM ends connections behind their last answer."""
    with several(tmp_path) as running, channels(running, 4) as opened:
        over, seen = threading.Event(), [[] for _ in opened]  # type: list[list[int]]
        failed: list[grpc.StatusCode] = []

        def ask(channel: grpc.Channel, versions: list[int]) -> None:
            while not over.is_set():
                try:
                    versions.append(int(infer(channel).model_version))
                except grpc.RpcError as error:
                    failed.append(error.code())  # type: ignore[attr-defined]
                    return

        threads = [threading.Thread(target=ask, args=pair) for pair in zip(opened, seen, strict=True)]
        for thread in threads:
            thread.start()
        publish(tmp_path, 2)
        running.wait_until(lambda: all(v and v[-1] == 2 for v in seen))
        assert failed == []
        assert all(v == sorted(v) for v in seen)
        assert running.stop() == 0
        over.set()
        for thread in threads:
            thread.join(30)
        # New connections are refused; that is all that a client sees of the end.
        assert set(failed) <= {grpc.StatusCode.UNAVAILABLE}
