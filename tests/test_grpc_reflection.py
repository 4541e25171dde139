"""gRPC's server reflection on a real socket: a client that knows nothing learns how to ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from server_tools import Running, serving
from test_server import constant_model

import mserve
from mserve.wire.messages import message

PACKAGES = ("grpc.reflection.v1", "grpc.reflection.v1alpha")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("reflection")
    mserve.export(constant_model(1), root / "m")
    (root / "tokens").write_text("secret\n")
    config = root / "mserve.toml"
    config.write_text('[models.m]\nbase_path = "m"\n[auth]\ntokens = "tokens"\n')
    with serving(f"--config={config}", root / "log") as running:
        yield running


def ask(server: Running, package: str, *asked: dict[str, Any], token: str = "Bearer secret") -> list[Any]:
    """The answers to questions, in one stream."""
    questions = [message(f"{package}.ServerReflectionRequest")(**one).SerializeToString() for one in asked]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.stream_stream(f"/{package}.ServerReflection/ServerReflectionInfo")
        answers = call(iter(questions), timeout=30, metadata=(("authorization", token),))
        return [message(f"{package}.ServerReflectionResponse").FromString(a) for a in answers]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_client_that_knows_nothing(server: Running, package: str) -> None:
    """It lists the services, takes the description of one, and calls what it finds there."""
    (listed,) = ask(server, package, {"list_services": "*"})
    names = {s.name for s in listed.list_services_response.service}
    assert names == {
        "inference.GRPCInferenceService",
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
        *(f"{p}.ServerReflection" for p in PACKAGES),
    }
    for name, answer in zip(
        names, ask(server, package, *({"file_containing_symbol": n} for n in names)), strict=True
    ):
        pool = DescriptorPool()
        files = [
            FileDescriptorProto.FromString(f) for f in answer.file_descriptor_response.file_descriptor_proto
        ]
        for file in reversed(files):
            pool.Add(file)  # type: ignore[no-untyped-call]
        assert pool.FindServiceByName(name).methods, name  # type: ignore[no-untyped-call]
        if name == "inference.GRPCInferenceService":
            method = pool.FindServiceByName(name).methods_by_name["ModelReady"]  # type: ignore[no-untyped-call]
    request = GetMessageClass(method.input_type)(name="m").SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
        answer = call(request, timeout=30, metadata=(("authorization", "Bearer secret"),))
    assert GetMessageClass(method.output_type).FromString(answer).ready


@pytest.mark.parametrize("package", PACKAGES)
def test_what_there_is_not(server: Running, package: str) -> None:
    nothing, unknown, extension, file = ask(
        server,
        package,
        {"host": "h"},
        {"file_containing_symbol": "no.such.Service"},
        {"all_extension_numbers_of_type": "inference.ModelInferRequest"},
        {"file_by_filename": "health.proto"},
    )
    assert (nothing.error_response.error_code, nothing.valid_host) == (3, "h")
    assert (unknown.error_response.error_code, extension.error_response.error_code) == (5, 5)
    assert unknown.original_request.file_containing_symbol == "no.such.Service"
    assert len(file.file_descriptor_response.file_descriptor_proto) == 1


def test_it_needs_a_token_where_calls_do_and_a_message(server: Running) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(server, PACKAGES[0], {"list_services": ""}, token="Bearer other")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.stream_stream(f"/{PACKAGES[0]}.ServerReflection/ServerReflectionInfo")
        with pytest.raises(grpc.RpcError) as caught:
            next(call(iter([b"\xff"]), timeout=30, metadata=(("authorization", "Bearer secret"),)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
