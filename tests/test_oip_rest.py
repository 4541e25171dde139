"""The Open Inference Protocol over REST, as tritonclient and plain sockets meet it."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from oip_tools import IN_JSON, LABELS, VALUES, port, publish, same
from server_tools import Answer, Running, serving

from mserve import __version__
from mserve.errors import NotFound, Unimplemented
from mserve.server.oip_rest import Route, parse_path
from mserve.wire.oip import to_raw

http = pytest.importorskip("tritonclient.http")
aio = pytest.importorskip("tritonclient.http.aio")
grpc = pytest.importorskip("tritonclient.grpc")
from tritonclient.utils import InferenceServerException  # noqa: E402

HEADER = "Inference-Header-Content-Length"
MIB = 1 << 20
BOMB = gzip.compress(b" " * 2 * MIB)
PAIR = [[[1.0, 2.0]], [[3.0, 4.0]]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("oip")
    with serving(publish(root), root / "log", "--admin", "--max-body", "1MiB") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with http.InferenceServerClient(f"127.0.0.1:{server.port}") as made:
        yield made


def infer(server: Running, model: str, request: Any, tail: bytes = b"", **headers: str) -> Answer:
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if tail:
        named.setdefault(HEADER, str(len(text)))
    return server.ask("POST", f"/v2/models/{model}/infer", text + tail, named)


def given(name: str, data: Any, shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def pair(**rest: Any) -> dict[str, Any]:
    return {"inputs": [given("a", PAIR[0], [1, 2]), given("b", PAIR[1], [1, 2])], **rest}


def scalar(value: float, **rest: Any) -> dict[str, Any]:
    return {"inputs": [given("x", [value], [])], **rest}


def one(data: Any, shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return {"inputs": [given("x", data, shape, datatype)]}


# what tritonclient does


@pytest.mark.parametrize("datatype", VALUES)
def test_every_datatype_in_binary(client: Any, datatype: str) -> None:
    array = VALUES[datatype]
    result = client.infer(datatype, [port(http, "x", array, datatype)])
    assert same(result.as_numpy("y"), array, datatype)
    assert result.get_response()["model_version"] == "1"


@pytest.mark.parametrize(("there", "back"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("datatype", IN_JSON)
def test_every_datatype_in_json(client: Any, datatype: str, there: bool, back: bool) -> None:
    array = VALUES[datatype]
    sent = port(http, "x", array, datatype, binary_data=there)
    result = client.infer(datatype, [sent], outputs=[http.InferRequestedOutput("y", binary_data=back)])
    assert same(result.as_numpy("y"), array, datatype)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES", "INT64", "BOOL"])
def test_tensors_without_rows(client: Any, datatype: str, binary: bool) -> None:
    empty = VALUES[datatype][:0]
    sent = port(http, "x", empty, datatype, binary_data=binary)
    result = client.infer(datatype, [sent], outputs=[http.InferRequestedOutput("y", binary_data=binary)])
    assert result.as_numpy("y").shape == (0, 3)


def test_scalars(client: Any) -> None:
    for binary in (True, False):
        sent = port(http, "x", np.array(2.5, np.float32), "FP32", binary_data=binary)
        found = client.infer("scalar", [sent]).as_numpy("y")
        assert (found.shape, float(found)) == ((), 2.5)


def test_bytes_that_are_no_text_are_refused_by_name(client: Any) -> None:
    tensor = http.InferInput("x", [1, 3], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"\xff\xfe", b"a", b"b"]], object))
    with pytest.raises(InferenceServerException, match="'x' has an element that is not UTF-8"):
        client.infer("BYTES", [tensor])


def test_outputs_come_in_the_order_of_the_request_mixed_as_asked(client: Any) -> None:
    sent = [port(http, n, np.array(v, np.float32), "FP32") for n, v in zip("ab", PAIR, strict=True)]
    asked = [
        http.InferRequestedOutput("difference", binary_data=True),
        http.InferRequestedOutput("log", binary_data=False),
        http.InferRequestedOutput("sum", binary_data=True),
    ]
    result = client.infer("pair", sent, outputs=asked, request_id="αβ-1")
    assert [o["name"] for o in result.get_response()["outputs"]] == ["difference", "log", "sum"]
    assert result.as_numpy("sum").tolist() == [[4, 6]]
    assert result.as_numpy("difference").tolist() == [[-2, -2]]
    assert np.allclose(result.as_numpy("log"), np.log([[4, 6]]))
    assert result.get_response()["id"] == "αβ-1"
    both = client.infer("pair", list(reversed(sent)))
    assert [o["name"] for o in both.get_response()["outputs"]] == ["sum", "difference", "log"]
    assert "id" not in both.get_response()


@pytest.mark.parametrize("back", ["gzip", "deflate", None])
@pytest.mark.parametrize("there", ["gzip", "deflate", None])
def test_compression_both_ways(client: Any, there: str | None, back: str | None) -> None:
    array = np.tile(VALUES["FP32"], (2000, 1))
    result = client.infer(
        "FP32",
        [port(http, "x", array, "FP32")],
        request_compression_algorithm=there,
        response_compression_algorithm=back,
    )
    assert same(result.as_numpy("y"), array, "FP32")


def test_the_header_of_a_compressed_answer_counts_what_was_there_before(server: Running) -> None:
    array = np.zeros((5000, 3), np.float32)
    raw = to_raw(array)
    request = {
        "name": "x",
        "shape": [5000, 3],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    text = json.dumps({"inputs": [request], "parameters": {"binary_data_output": True}}).encode()
    headers = {HEADER: str(len(text)), "Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    packed = gzip.compress(text + raw)
    assert len(text) > len(packed) // 2
    answer = server.ask("POST", "/v2/models/FP32/infer", packed, headers)
    assert answer.headers["Content-Encoding"] == "gzip"
    body = gzip.decompress(answer.body)
    head = json.loads(body[: int(answer.headers[HEADER])])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": len(raw)}
    assert body.endswith(raw)


def test_several_at_once_and_asynchronously(server: Running, client: Any) -> None:
    sent = port(http, "x", VALUES["FP32"], "FP32")
    waiting = [client.async_infer("FP32", [sent], request_id=str(i)) for i in range(8)]
    assert [w.get_result().get_response()["id"] for w in waiting] == [str(i) for i in range(8)]

    async def ask() -> None:
        async with aio.InferenceServerClient(f"127.0.0.1:{server.port}") as made:
            assert await made.is_server_live()
            assert await made.is_model_ready("FP32", "1")
            for datatype in VALUES:
                tensor = port(aio, "x", VALUES[datatype], datatype)
                result = await made.infer(datatype, [tensor], request_compression_algorithm="gzip")
                found = result.as_numpy("y")
                assert same(found, VALUES[datatype], datatype)
            assert (await made.get_model_metadata("FP32"))["name"] == "FP32"

    asyncio.run(ask())


def test_health_and_metadata(server: Running, client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("FP32")
    assert client.is_model_ready("FP32", "1")
    assert not client.is_model_ready("FP32", "2")
    assert not client.is_model_ready("nothing")
    about = client.get_server_metadata()
    assert (about["name"], about["version"]) == ("mserve", __version__)
    assert {"binary_tensor_data", "classification", "statistics"} <= set(about["extensions"])
    assert client.get_model_metadata("BYTES", "1") == {
        "name": "BYTES",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": [-1, 3]}],
        "outputs": [{"name": "y", "datatype": "BYTES", "shape": [-1, 3]}],
    }
    assert set(client.get_model_metadata("animals")["signatures"]) == {"serving_default", "other"}
    assert server.get("/v2/health/ready").json() == {"ready": True, "live": True}
    assert server.get("/v2/models").json()["models"] == sorted([*VALUES, "animals", "pair", "scalar", "wide"])


def test_the_configuration_in_tritons_words(client: Any) -> None:
    config = client.get_model_config("animals")
    assert config["max_batch_size"] == 128
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    assert config["output"][0]["label_filename"] == "labels.txt"
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    alone = client.get_model_config("wide")
    assert (alone["max_batch_size"], alone["input"][0]["dims"]) == (0, [2, -1])
    kinds = [client.get_model_config(d)["input"][0]["data_type"] for d in ("BYTES", "BF16", "UINT8")]
    assert kinds == ["TYPE_STRING", "TYPE_BF16", "TYPE_UINT8"]


@pytest.mark.parametrize("binary", [True, False])
def test_classification(client: Any, binary: bool) -> None:
    rows = np.array([[0.5, 2, -1, 2], [9, 0, 8, 7]], np.float32)
    asked = http.InferRequestedOutput("y", binary_data=binary, class_count=3)
    result = client.infer("animals", [port(http, "x", rows, "FP32")], outputs=[asked])
    found = [[w if isinstance(w, str) else w.decode() for w in row] for row in result.as_numpy("y")]
    assert result.get_output("y")["datatype"] == "BYTES"
    assert found == [
        [f"2.000000:1:{LABELS[1]}", f"2.000000:3:{LABELS[3]}", f"0.500000:0:{LABELS[0]}"],
        [f"9.000000:0:{LABELS[0]}", f"8.000000:2:{LABELS[2]}", f"7.000000:3:{LABELS[3]}"],
    ]


def test_another_signature_by_a_parameter(client: Any) -> None:
    sent = port(http, "in", np.ones((1, 4), np.float32), "FP32")
    result = client.infer("animals", [sent], parameters={"signature_name": "other"})
    assert result.as_numpy("out").tolist() == [[1, 1, 1, 1]]
    with pytest.raises(InferenceServerException, match="no such signature"):
        client.infer("animals", [sent], parameters={"signature_name": "third"})


def test_priority_timeout_and_sequences_are_taken(client: Any) -> None:
    sent = port(http, "x", VALUES["FP32"], "FP32")
    client.infer("FP32", [sent], priority=1, timeout=5_000_000, sequence_id=7, sequence_start=True)
    with pytest.raises(InferenceServerException, match="deadline"):
        client.infer("FP32", [sent], timeout=1)


def test_statistics_only_grow_and_agree(client: Any) -> None:
    def of_model() -> dict[str, Any]:
        (entry,) = client.get_inference_statistics("INT16", "1")["model_stats"]
        return dict(entry)

    before = of_model()
    sent = port(http, "x", VALUES["INT16"], "INT16")
    for _ in range(3):
        client.infer("INT16", [sent])
    with pytest.raises(InferenceServerException):
        client.infer("INT16", [port(http, "x", VALUES["INT8"], "INT8")])
    after = of_model()
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["execution_count"] - before["execution_count"] == 3
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        grown = after["inference_stats"][part]["count"] - before["inference_stats"][part]["count"]
        assert (part, grown) == (part, 3)
        assert after["inference_stats"][part]["ns"] > before["inference_stats"][part]["ns"]
    assert after["inference_stats"]["fail"]["count"] - before["inference_stats"]["fail"]["count"] == 1
    assert after["inference_stats"]["fail"]["ns"] > before["inference_stats"]["fail"]["ns"]
    assert after["last_inference"] >= before["last_inference"] > 0 or before["last_inference"] == 0
    assert sum(b["compute_infer"]["count"] for b in after["batch_stats"]) == after["execution_count"]
    names = [e["name"] for e in client.get_inference_statistics()["model_stats"]]
    assert set(names) >= set(VALUES)


def test_the_repository(server: Running, client: Any) -> None:
    def state(name: str, made: Any) -> str:
        return next(e["state"] for e in made.get_model_repository_index() if e["name"] == name)

    sent = port(http, "x", VALUES["UINT32"], "UINT32")
    client.infer("UINT32", [sent])
    before = client.get_inference_statistics("UINT32")["model_stats"][0]
    assert state("UINT32", client) == "READY"
    client.unload_model("UINT32", unload_dependents=True)
    assert state("UINT32", client) == "UNAVAILABLE"
    ready = server.ask("POST", "/v2/repository/index", b'{"ready":true}').json()
    assert "UINT32" not in [e["name"] for e in ready]
    assert not client.is_model_ready("UINT32")
    assert client.is_server_ready(), "it was unloaded on purpose"
    assert server.get("/readyz").status == 200
    with pytest.raises(InferenceServerException, match="it was unloaded"):
        client.infer("UINT32", [sent])
    client.load_model("UINT32")
    assert client.is_model_ready("UINT32")
    client.load_model("UINT32")  # again: a look at the base path
    client.infer("UINT32", [sent])
    after = client.get_inference_statistics("UINT32")["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as other:
        other.unload_model("UINT32")
        assert not other.is_model_ready("UINT32")
        other.load_model("UINT32")
        assert other.is_model_ready("UINT32")
        with pytest.raises(InferenceServerException, match="config"):
            other.load_model("UINT32", config="{}")
    for how, part in [
        ({"config": "{}"}, "config"),
        ({"config": "{}", "files": {"file:1/a": b""}}, "is not taken"),
    ]:
        with pytest.raises(InferenceServerException, match=part):
            client.load_model("UINT32", **how)
    with pytest.raises(InferenceServerException, match="nothing"):
        client.load_model("nothing")


def test_a_model_that_cannot_be_loaded(server: Running, client: Any) -> None:
    base = next(b for b in (server.log_path.parent / "models").iterdir() if b.name == "UINT16")
    client.unload_model("UINT16")
    meta = next(base.glob("*/export.meta"))
    good = meta.read_bytes()
    meta.chmod(0o644)
    meta.write_bytes(good[:-1] + b"!")
    with pytest.raises(InferenceServerException, match="'UINT16' cannot be loaded"):
        client.load_model("UINT16")
    meta.write_bytes(good)
    client.load_model("UINT16")
    assert client.is_model_ready("UINT16")


def test_shared_memory_is_not_there(client: Any) -> None:
    assert client.get_system_shared_memory_status() == []
    client.unregister_system_shared_memory()
    for ask in (
        lambda: client.register_system_shared_memory("r", "/k", 8),
        lambda: client.update_trace_settings("FP32", {"trace_level": ["OFF"]}),
        client.get_log_settings,
    ):
        with pytest.raises(InferenceServerException, match="does not have this part"):
            ask()


# what else comes over the wire

TEXT_CLASSES = {
    **one(["a", "b", "c"], [1, 3], "BYTES"),
    "outputs": [{"name": "y", "parameters": {"classification": 1}}],
}
BAD: list[tuple[str, str, Any, bytes, dict[str, str], int, list[str]]] = [
    # why, model, request, tail, headers, status, parts of the message
    ("an unknown model", "nothing", pair(), b"", {}, 404, ["'nothing'"]),
    ("an unknown version", "pair/versions/9", pair(), b"", {}, 404, ["Specific(pair, 9)", "1"]),
    ("a version beyond numbers", f"pair/versions/{'9' * 30}", pair(), b"", {}, 400, ["too large"]),
    ("a version that is a name", "pair/versions/v10", pair(), b"", {}, 400, ["v10", "label"]),
    ("an unknown label", "pair/labels/canary", pair(), b"", {}, 400, ["canary", "label"]),
    ("text that is no JSON", "pair", b"{", b"", {}, 400, ["not valid JSON"]),
    ("an unknown output", "pair", pair(outputs=[{"name": "z"}]), b"", {}, 400, ["'z'", "difference"]),
    ("a missing input", "pair", {"inputs": pair()["inputs"][:1]}, b"", {}, 400, ["missing 'b'"]),
    ("an input too many", "scalar", pair(), b"", {}, 400, ["missing 'x'", "unknown 'a'"]),
    ("an input twice", "pair", {"inputs": pair()["inputs"] * 2}, b"", {}, 400, ["'a' stands twice"]),
    ("a wrong datatype", "scalar", one([1], [], "INT8"), b"", {}, 400, ["'x'", "FP32"]),
    (
        "a wrong rank",
        "FP32",
        {"inputs": [given("x", [1, 2, 3], [3])]},
        b"",
        {},
        400,
        ["'x'", ", 3]", "[3]"],
    ),
    ("a wrong size", "FP32", one([1, 2], [1, 2]), b"", {}, 400, ["'x'", "[1, 2]"]),
    (
        "data that is too short",
        "FP32",
        {"inputs": [given("x", [1], [1, 3])]},
        b"",
        {},
        400,
        ["'x'", "3 elements"],
    ),
    (
        "numbers out of range",
        "INT8",
        {"inputs": [given("x", [300] * 3, [1, 3], "INT8")]},
        b"",
        {},
        400,
        ["'x'"],
    ),
    (
        "101 levels",
        "scalar",
        b'{"inputs":[{"name":"x","shape":[],"datatype":"FP32","data":' + b"[" * 101 + b"]" * 101 + b"}]}",
        b"",
        {},
        400,
        ["'x'", "nested too deeply"],
    ),
    ("2000 levels somewhere", "scalar", b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}", b"", {}, 400, ["JSON"]),
    ("no number as header", "pair", pair(), b"", {HEADER: "x"}, 400, ["inference header size", "x"]),
    ("a negative header", "pair", pair(), b"", {HEADER: "-1"}, 400, ["inference header size"]),
    ("a header beyond the body", "pair", pair(), b"", {HEADER: "99999"}, 400, ["inference header size"]),
    ("a header that cuts the JSON", "pair", pair(), b"", {HEADER: "20"}, 400, ["not valid JSON"]),
    ("a tail that nobody asked for", "pair", pair(), b"1234", {}, 400, ["additional input data"]),
    ("an output of NaN in JSON", "scalar", scalar(1e39), b"", {}, 400, ["'y'", "Infinity", "binary_data"]),
    ("NaN as a number", "scalar", b'{"inputs":[NaN]}', b"", {}, 400, ["not valid JSON", "NaN"]),
    (
        "FP16 in JSON",
        "FP16",
        {"inputs": [given("x", [1] * 3, [1, 3], "FP16")]},
        b"",
        {},
        400,
        ["'x'", "binary"],
    ),
    ("a bad timeout", "scalar", scalar(1, parameters={"timeout": -5}), b"", {}, 400, ["timeout"]),
    ("a reserved parameter", "scalar", scalar(1, parameters={"triton_a": 1}), b"", {}, 400, ["reserved"]),
    ("an unknown encoding", "scalar", scalar(1), b"", {"Content-Encoding": "br"}, 415, ["gzip", "br"]),
    (
        "what is not gzip",
        "scalar",
        scalar(1),
        b"",
        {"Content-Encoding": "gzip"},
        400,
        ["not compressed"],
    ),
    (
        "a gzip bomb",
        "scalar",
        gzip.compress(b" " * 2 * MIB),
        b"",
        {"Content-Encoding": "gzip"},
        413,
        ["inflated"],
    ),
    ("too large a body", "scalar", b" " * (MIB + 1), b"", {}, 413, ["too large"]),
    ("a raw body for two inputs", "pair", b"1234", b"", {HEADER: "0"}, 400, ["one input"]),
    ("classes of text", "BYTES", TEXT_CLASSES, b"", {}, 400, ["numbers"]),
]


@pytest.mark.parametrize(
    ("model", "request_", "tail", "headers", "status", "parts"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_what_is_refused(
    server: Running,
    model: str,
    request_: Any,
    tail: bytes,
    headers: dict[str, str],
    status: int,
    parts: list[str],
) -> None:
    answer = infer(server, model, request_, tail, **headers)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert [part for part in parts if part not in answer.error] == []


def test_the_output_of_infinity_can_be_had_in_binary(server: Running) -> None:
    answer = infer(server, "scalar", scalar(1e39, parameters={"binary_data_output": True}))
    assert struct.unpack("<f", answer.body[int(answer.headers[HEADER]) :]) == (float("inf"),)
    assert answer.headers["Content-Type"] == "application/octet-stream"


def test_an_answer_without_bytes_behind_its_json_has_no_header(server: Running) -> None:
    none = {"inputs": [given("x", [], [0, 3])], "parameters": {"binary_data_output": True}}
    for answer in (infer(server, "scalar", scalar(1)), infer(server, "FP32", none)):
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        assert HEADER not in answer.headers


def test_a_request_of_more_rows_than_a_batch_is_answered(client: Any) -> None:
    array = np.tile(VALUES["FP32"], (200, 1))
    assert same(client.infer("FP32", [port(http, "x", array, "FP32")]).as_numpy("y"), array, "FP32")


def test_raw_bodies(client: Any, server: Running) -> None:
    answer = server.ask("POST", "/v2/models/FP32/infer", to_raw(VALUES["FP32"][:1]), {HEADER: "0"})
    assert answer.body[int(answer.headers[HEADER]) :] == to_raw(VALUES["FP32"][:1])


PAGES = [
    ("GET", "/v2", 200),
    ("GET", "/v2/", 200),
    ("HEAD", "/v2/health/live", 200),
    ("GET", "/v2/health/live/", 200),
    ("GET", "/v2/models/FP32/versions/1/config", 200),
    ("GET", "/v2/models/FP32/versions/1/stats", 200),
    ("GET", "/v2/models/F%50%33%32", 200),
    ("GET", "/v2/models/a%2F..%2Fb", 404),
    ("GET", "/v2/models/a%00b/ready", 404),
    ("GET", "/v2/models/nothing/config", 404),
    ("GET", "/v2/models/nothing/stats", 404),
    ("GET", "/v2x", 404),
    ("GET", "/v2/nothing", 404),
    ("GET", "/v2/models/FP32/nothing", 404),
    ("GET", "/v2/models/FP32/infer", 405),
    ("OPTIONS", "/v2", 405),
    ("POST", "/v2/models/FP32", 405),
    ("PUT", "/v2/health/live", 405),
    ("GET", "/v2/repository/index", 405),
    ("GET", "/v2/repository/models/FP32/load", 405),
    ("POST", "/v2/repository/mine/index", 501),
    ("POST", "/v2/repository/mine/models/FP32/load", 501),
    ("POST", "/v2/models/FP32/generate", 501),
    ("GET", "/v2/models/FP32/trace/setting", 501),
    ("POST", "/v2/logging", 501),
    ("POST", "/v2/cudasharedmemory/region/r/register", 501),
]


@pytest.mark.parametrize(("method", "path", "status"), PAGES)
def test_pages(server: Running, method: str, path: str, status: int) -> None:
    answer = server.ask(method, path)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/json"
    if status >= 400:
        assert answer.error


def test_paths_name_versions_and_labels() -> None:
    assert parse_path(b"/v2/models/a%20b/versions/3/infer?x=1") == Route("infer", "a b", "3")
    assert parse_path(b"/v2/models/m/labels/canary/ready") == Route("ready", "m", "canary")
    assert parse_path(b"/v2/models/m/versions/canary") == Route("metadata", "m", "canary")
    assert parse_path(b"/v2/models/stats") == Route("/v2/models/stats")
    with pytest.raises(NotFound):
        parse_path(b"/v2/models/a/b/c")
    with pytest.raises(Unimplemented):
        parse_path(b"/v2/models/m/versions/1/generate_stream")


def exchange(server: Running, data: bytes, until: bytes) -> bytes:
    """Send bytes on a fresh connection and read until some have come."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(data)
        got = b""
        while until not in got:
            piece = raw.recv(65536)
            assert piece, got
            got += piece
        return got


def test_chunked_and_pipelined_requests_and_one_that_waits_for_100(server: Running) -> None:
    text = json.dumps(scalar(4.5, id="last")).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (text[:10], text[10:])) + b"0\r\n\r\n"
    post = b"POST /v2/models/scalar/infer HTTP/1.1\r\nHost: a\r\n"
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
    assert b"4.5" in exchange(server, chunked, b'"data"')
    first = json.dumps(scalar(1.5, id="first")).encode()
    both = b"".join(post + b"Content-Length: %d\r\n\r\n%s" % (len(t), t) for t in (first, text))
    got = exchange(server, both, b'"last"')
    assert got.index(b'"first"') < got.index(b'"last"')
    waits = post + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(text)
    assert exchange(server, waits, b"\r\n\r\n").startswith(b"HTTP/1.1 100")


def test_deflate_is_zlibs(server: Running) -> None:
    packed = zlib.compress(json.dumps(scalar(2)).encode())
    assert infer(server, "scalar", packed, Content_Encoding="deflate").json()["outputs"][0]["data"] == [2]
