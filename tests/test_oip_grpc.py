"""The Open Inference Protocol over gRPC, as tritonclient and bare channels meet it."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from oip_tools import LABELS, VALUES, port, publish, same
from server_tools import Running, serving

from mserve.errors import MserveError, RequestError
from mserve.wire import oip_proto
from mserve.wire.messages import message
from mserve.wire.oip import to_raw

grpc = pytest.importorskip("grpc")
triton = pytest.importorskip("tritonclient.grpc")
aio = pytest.importorskip("tritonclient.grpc.aio")
http = pytest.importorskip("tritonclient.http")
from tritonclient.utils import InferenceServerException  # noqa: E402

SERVICE = "/inference.GRPCInferenceService/"
TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("oip")
    with serving(publish(root), root / "log", "--max-body", "1MiB") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as made:
        yield made


def asked(model: str, *inputs: dict[str, Any], **rest: Any) -> Any:
    """A ModelInferRequest."""
    return message("inference.ModelInferRequest")(model_name=model, inputs=inputs, **rest)


def call(server: Running, method: str, body: bytes, **how: Any) -> bytes:
    """One call on a channel of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        return bytes(channel.unary_unary(SERVICE + method)(body, timeout=30, **how))


@pytest.mark.parametrize("datatype", VALUES)
def test_every_datatype(client: Any, datatype: str) -> None:
    array = VALUES[datatype]
    result = client.infer(datatype, [port(triton, "x", array, datatype)], request_id="é7")
    assert same(result.as_numpy("y"), array, datatype)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("é7", datatype, "1")


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_contents_are_answered_raw(server: Running, datatype: str) -> None:
    array = VALUES[datatype]
    words = [w.encode() if isinstance(w, str) else w for w in array.ravel().tolist()]
    given = {"name": "x", "datatype": datatype, "shape": array.shape, "contents": {TYPED[datatype]: words}}
    body = call(server, "ModelInfer", asked(datatype, given).SerializeToString())
    answer = message("inference.ModelInferResponse").FromString(body)
    assert list(answer.raw_output_contents) == [to_raw(array)]
    assert list(answer.outputs[0].shape) == list(array.shape)


@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "BF16", "BOOL"])
def test_tensors_without_rows(client: Any, datatype: str) -> None:
    result = client.infer(datatype, [port(triton, "x", VALUES[datatype][:0], datatype)])
    assert result.as_numpy("y").shape == (0, 3)


def test_scalars(client: Any) -> None:
    found = client.infer("scalar", [port(triton, "x", np.array(2.5, np.float32), "FP32")]).as_numpy("y")
    assert (found.shape, float(found)) == ((), 2.5)


def test_outputs_come_in_the_order_of_the_request(client: Any) -> None:
    sent = [port(triton, n, np.array([[v, v]], np.float32), "FP32") for n, v in (("b", 1), ("a", 3))]
    names = ["difference", "log", "sum"]
    result = client.infer("pair", sent, outputs=[triton.InferRequestedOutput(n) for n in names])
    assert [o.name for o in result.get_response().outputs] == names
    assert result.as_numpy("difference").tolist() == [[2, 2]]
    assert result.as_numpy("sum").tolist() == [[4, 4]]


def test_parameters_of_every_kind(client: Any) -> None:
    sent = port(triton, "in", np.ones((1, 4), np.float32), "FP32")
    mine = {"signature_name": "other", "f": 1.5, "i": 2, "b": True}
    result = client.infer("animals", [sent], parameters=mine, priority=1, timeout=5_000_000, sequence_id=3)
    assert result.as_numpy("out").tolist() == [[1, 1, 1, 1]]
    with pytest.raises(InferenceServerException, match="deadline") as caught:
        client.infer("animals", [sent], parameters=mine, timeout=1)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: Any, algorithm: str) -> None:
    array = np.tile(VALUES["FP32"], (2000, 1))
    result = client.infer("FP32", [port(triton, "x", array, "FP32")], compression_algorithm=algorithm)
    assert same(result.as_numpy("y"), array, "FP32")


def test_classification(client: Any) -> None:
    rows = np.array([[0.5, 2, -1, 2]], np.float32)
    wanted = triton.InferRequestedOutput("y", class_count=2)
    result = client.infer("animals", [port(triton, "x", rows, "FP32")], outputs=[wanted])
    expected = [[f"2.000000:1:{LABELS[1]}".encode(), f"2.000000:3:{LABELS[3]}".encode()]]
    assert result.as_numpy("y").tolist() == expected


def test_health_metadata_and_configuration(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("FP32", "1")
    assert not client.is_model_ready("FP32", "2")
    assert not client.is_model_ready("FP32", "canary")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata().name == "mserve"
    metadata = client.get_model_metadata("BF16", as_json=True)
    assert metadata["inputs"] == [{"name": "x", "datatype": "BF16", "shape": ["-1", "3"]}]
    config = client.get_model_config("animals").config
    assert (config.name, config.max_batch_size, config.backend) == ("animals", 128, "onnxruntime")
    assert [(p.name, p.data_type, list(p.dims)) for p in config.input] == [("x", 11, [4])]
    assert config.output[0].label_filename == "labels.txt"
    index = client.get_model_repository_index().models
    assert {m.name: m.state for m in index}["FP32"] == "READY"


def test_statistics_are_those_of_rest(server: Running, client: Any) -> None:
    sent = port(triton, "x", VALUES["INT16"], "INT16")
    (before,) = client.get_inference_statistics("INT16", "1").model_stats
    for _ in range(3):
        client.infer("INT16", [sent])
    (found,) = client.get_inference_statistics("INT16", "1").model_stats
    (page,) = server.get("/v2/models/INT16/stats").json()["model_stats"]
    assert found.inference_count == page["inference_count"] == before.inference_count + 6
    succeeded = before.inference_stats.success.count + 3
    assert found.inference_stats.success.count == page["inference_stats"]["success"]["count"] == succeeded
    assert found.inference_stats.compute_infer.ns == page["inference_stats"]["compute_infer"]["ns"] > 0
    assert found.batch_stats[0].batch_size == 2


def test_loading_needs_an_administrator(server: Running, client: Any) -> None:
    with http.InferenceServerClient(f"127.0.0.1:{server.port}") as rest:
        for made in (client, rest):
            for ask in (made.load_model, made.unload_model):
                with pytest.raises(InferenceServerException, match="administrative calls are not allowed"):
                    ask("FP32")
    assert client.is_model_ready("FP32")


def test_what_triton_has_besides(client: Any) -> None:
    assert len(client.get_system_shared_memory_status().regions) == 0
    assert len(client.get_cuda_shared_memory_status().regions) == 0
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    asks = (
        client.get_trace_settings,
        client.get_log_settings,
        lambda: client.register_system_shared_memory("r", "/k", 8),
        lambda: client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 8),
    )
    for ask in asks:
        with pytest.raises(InferenceServerException, match="does not have this part") as caught:
            ask()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def given(name: str = "x", datatype: str = "FP32", shape: Any = (1, 3), **contents: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "contents": contents}


HUGE = [b"\0" * (1 << 20)]
RAW = {"raw_input_contents": [b"\0" * 12]}
SHARED = {"shared_memory_region": {"string_param": "r"}}
FLOATS = {"fp32_contents": [1, 2, 3]}
INVALID = "INVALID_ARGUMENT"
BAD: list[tuple[str, Any, str, str]] = [
    # why, request, status, part of the message
    ("an unknown model", asked("nothing", given(**FLOATS)), "NOT_FOUND", "'nothing'"),
    ("an unknown version", asked("FP32", given(**FLOATS), model_version="9"), "NOT_FOUND", "(FP32, 9)"),
    ("an unknown label", asked("FP32", given(**FLOATS), model_version="v10"), INVALID, "v10"),
    ("a version beyond numbers", asked("FP32", model_version="9" * 30), INVALID, "too large"),
    ("no input", asked("FP32"), INVALID, "missing 'x'"),
    ("an input without a name", asked("FP32", given("")), INVALID, "no name"),
    ("an input twice", asked("FP32", given(), given()), INVALID, "'x' stands twice"),
    (
        "an output twice",
        asked("FP32", given(**FLOATS), outputs=[{"name": "y"}] * 2),
        INVALID,
        "'y'",
    ),
    ("an unknown output", asked("FP32", given(**FLOATS), outputs=[{"name": "z"}]), INVALID, "'z'"),
    ("both contents", asked("FP32", given(**FLOATS), **RAW), INVALID, "beside raw_input_contents"),
    (
        "raw contents for one of two",
        asked("pair", given("a"), given("b"), **RAW),
        INVALID,
        "each input",
    ),
    ("another's contents", asked("FP32", given(int_contents=[1])), INVALID, "fp32_contents"),
    ("too few elements", asked("FP32", given(fp32_contents=[1])), INVALID, "3 elements"),
    ("a negative size", asked("FP32", given(shape=[-1, 3], **FLOATS)), INVALID, "bad shape"),
    ("sizes that overflow", asked("FP32", given(shape=[2**62, 4])), INVALID, "too large a shape"),
    ("a wrong datatype", asked("FP32", given(datatype="INT8")), INVALID, "'x'"),
    ("an unknown datatype", asked("FP32", given(datatype="FP4")), INVALID, "FP4"),
    ("a wrong shape", asked("FP32", given(shape=[3], **FLOATS)), INVALID, "'x'"),
    ("a wrong number of bytes", asked("FP32", given(shape=[2, 3]), **RAW), INVALID, "24 for FP32"),
    (
        "numbers out of range",
        asked("INT8", given("x", "INT8", int_contents=[1, 2, 300])),
        INVALID,
        "127",
    ),
    ("FP16 as values", asked("FP16", given(datatype="FP16", fp32_contents=[1])), INVALID, "raw"),
    (
        "no text",
        asked("BYTES", given("x", "BYTES", bytes_contents=[b"\xff"] * 3)),
        INVALID,
        "UTF-8",
    ),
    (
        "shared memory",
        asked("FP32", {"name": "x", "parameters": SHARED}),
        INVALID,
        "shared memory",
    ),
    (
        "an output in shared memory",
        asked("FP32", given(**FLOATS), outputs=[{"name": "y", "parameters": SHARED}]),
        INVALID,
        "shared memory",
    ),
    (
        "a classification that is text",
        asked(
            "FP32",
            given(**FLOATS),
            outputs=[{"name": "y", "parameters": {"classification": {"string_param": "2"}}}],
        ),
        INVALID,
        "classification",
    ),
    (
        "a reserved parameter",
        asked("FP32", given(**FLOATS), parameters={"triton_x": {"bool_param": True}}),
        INVALID,
        "reserved",
    ),
    (
        "too large a message",
        asked("FP32", given(), raw_input_contents=[b"\0" * (1 << 20)]),
        "RESOURCE_EXHAUSTED",
        "",
    ),
]


@pytest.mark.parametrize(("request_", "status", "part"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_what_is_refused(server: Running, request_: Any, status: str, part: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(server, "ModelInfer", request_.SerializeToString())
    assert caught.value.code().name == status
    assert part in caught.value.details()


def test_bytes_that_are_no_message(server: Running) -> None:
    for method in ("ModelInfer", "ModelMetadata", "RepositoryModelLoad"):
        with pytest.raises(grpc.RpcError) as caught:
            call(server, method, b"\xff\xff")
        assert caught.value.code().name == "INVALID_ARGUMENT"


@pytest.mark.parametrize("method", ["RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"])
def test_there_is_one_repository_without_a_name(server: Running, method: str) -> None:
    body = message(f"inference.{method}Request")(repository_name="mine").SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        call(server, method, body)
    assert caught.value.code().name == "UNIMPLEMENTED"


def test_every_client_at_once(server: Running) -> None:
    async def ask() -> None:
        async with aio.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as made:
            assert await made.is_server_ready()
            assert await made.is_model_ready("FP32")
            names = list(VALUES)
            waiting = [made.infer(n, [port(aio, "x", VALUES[n], n)], request_id=n) for n in names * 3]
            for name, result in zip(names * 3, await asyncio.gather(*waiting), strict=True):
                assert result.get_response().id == name
                assert same(result.as_numpy("y"), VALUES[name], name)

    asyncio.run(ask())


# streams


def test_a_stream_answers_in_order_with_an_error_for_each_that_fails(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    many = 200
    for number in range(many):
        array = np.full((1, 3), number, np.float32)
        model = "nothing" if number % 10 == 7 else "FP32"
        client.async_stream_infer(model, [port(triton, "x", array, "FP32")], request_id=str(number))
    client.stop_stream()
    assert answers.qsize() == many
    for number in range(many):
        result, error = answers.get()
        if number % 10 == 7:
            assert "'nothing'" in error.message()
        else:
            assert result.get_response().id == str(number)
            assert result.get_response().parameters["triton_final_response"].bool_param
            assert result.as_numpy("y").tolist() == [[number] * 3]


def test_a_stream_from_asyncio_and_one_that_its_client_leaves(server: Running) -> None:
    async def requests(count: int) -> AsyncIterator[dict[str, Any]]:
        for number in range(count):
            array = np.full((1, 3), number, np.float32)
            yield {"model_name": "FP32", "inputs": [port(aio, "x", array, "FP32")], "request_id": str(number)}

    async def ask() -> None:
        async with aio.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as made:
            seen = [r.get_response().id async for r, e in made.stream_infer(requests(100)) if e is None]
            assert seen == [str(n) for n in range(100)]
            endless = made.stream_infer(requests(10**9))
            async for result, _ in endless:
                if result.get_response().id == "50":
                    break
            endless.cancel()

    asyncio.run(ask())

    def in_flight() -> str:
        lines = server.get("/metrics").body.decode().splitlines()
        return next(line for line in lines if line.startswith('mserve_in_flight{model="FP32"')).split()[-1]

    server.wait_until(lambda: in_flight() == "0.0")
    assert "Traceback" not in server.log()


def test_what_cannot_be_read_in_a_stream_is_one_error(server: Running) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        good = asked("FP32", given(**FLOATS), id="good").SerializeToString()
        stream = channel.stream_stream(SERVICE + "ModelStreamInfer")(iter([b"\xff", good, b""]), timeout=30)
        kind = message("inference.ModelStreamInferResponse")
        first, second, third = (kind.FromString(body) for body in stream)
    assert "not a ModelInferRequest" in first.error_message
    assert (second.error_message, second.infer_response.id) == ("", "good")
    assert "''" in third.error_message


# the codec alone


def test_parameters_without_a_value_are_left_out() -> None:
    request = asked("m", parameters={"a": {}, "b": {"uint64_param": 2**63}, "c": {"double_param": 1.5}})
    assert oip_proto.parameters(request.parameters) == {"b": 2**63, "c": 1.5}


def test_truncated_messages_are_refused_or_read_and_nothing_else() -> None:
    whole = asked("m", given(**FLOATS), outputs=[{"name": "y"}], **RAW).SerializeToString()
    refused = 0
    for size in range(len(whole)):
        try:
            oip_proto.request(oip_proto.decode("ModelInferRequest", whole[:size]))
        except MserveError:
            refused += 1
    assert refused > len(whole) // 2
    with pytest.raises(RequestError, match="beside raw_input_contents"):
        oip_proto.request(oip_proto.decode("ModelInferRequest", whole))
