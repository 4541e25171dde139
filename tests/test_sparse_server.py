"""Sparse inputs through a real server: every protocol, everybody's clients, and hostile requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import builders
import grpc
import jsonschema
import numpy as np
import oip_tools
import pytest
import sparse_models
from bench_tools import bench_json
from openapi_spec_validator import OpenAPIV31SpecValidator
from server_tools import Running, serving
from sparse_models import Row, draw, objects, parts, sigmoid
from test_sparse_batches import inputs_of
from test_tfs_grpc import ask, example, given, ours, spec

from mserve.exporters.build import ML, Graph
from mserve.exporters.sparse_graph import row_dots, sparse_input
from mserve.sparse import Sparse
from mserve.tensors import Signature, TensorSpec
from mserve.wire.tfs_proto import from_array

http = pytest.importorskip("tritonclient.http")
triton = pytest.importorskip("tritonclient.grpc")
from tritonclient.utils import InferenceServerException  # noqa: E402

SIZE = 1_000_000
WEIGHTS = builders.floats(SIZE, 1)
MIXED = builders.floats(200, 1)
ROWS = draw(9, SIZE, 40)
DATATYPES = {"int64": "INT64", "float32": "FP32", "float64": "FP64", "int32": "INT32", "bool": "BOOL"}
PREDICTION = "tensorflow.serving.PredictionService/"


def expected(rows: Any) -> Any:
    return sigmoid(sparse_models.dots(rows, WEIGHTS))


def close(found: Any, answers: Any) -> None:
    np.testing.assert_allclose(found, answers, rtol=1e-4, atol=1e-4)


def scores(base: Path) -> None:
    """Signatures that classify and regress: a sparse input, and a ragged one of words."""
    graph, port = Graph(), sparse_input("f", 100)
    dots = row_dots(graph, port, builders.floats(100, 2))
    graph.add("Softmax", dots, name="p", axis=1)
    outputs = {"scores": TensorSpec("p", "float32", ("batch", 2))}
    signature = Signature.of("classify", {"f": port}, outputs, 0)
    sparse_models.publish(graph, signature, base)


def words(base: Path) -> None:
    """`count`: how many of a row's words are "a", from a ragged input of text."""
    names = {role: role for role in ("values", "lengths", "rows")}
    port, graph = Sparse("ragged", "string", names, ("batch", "?")), Graph()
    table: dict[str, Any] = {"keys_strings": ["a"], "values_floats": [1.0], "default_float": 0.0}
    hits = graph.add("LabelEncoder", "values", domain=ML, **table)
    zeros = graph.add("Mul", graph.add("Cast", "lengths", to=1), graph.weight(np.zeros(1, np.float32)))
    graph.add("ScatterElements", zeros, "rows", hits, name="count", axis=0, reduction="add")
    outputs = {"outputs": TensorSpec("count", "float32", ("batch",))}
    sparse_models.publish(graph, Signature.of("regress", {"words": port}, outputs, 0), base)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("sparse")
    sparse_models.logistic(root / "models" / "lr", WEIGHTS)
    sparse_models.mixed(root / "models" / "mixed", MIXED, golden=0)
    scores(root / "models" / "scores")
    words(root / "models" / "words")
    with serving(root / "models", root / "log", "--max-batch", "16") as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as made:
        yield made


# --- answers ---


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"instances": objects(ROWS)}, id="rows"),
        pytest.param({"instances": [{"features": row} for row in objects(ROWS)]}, id="named rows"),
        pytest.param({"inputs": {"features": objects(ROWS)}}, id="a column of rows"),
        pytest.param({"inputs": {name: x.tolist() for name, x in parts(ROWS).items()}}, id="parts"),
    ],
)
def test_tensorflow_servings_rest(server: Running, body: Any) -> None:
    answer = server.predict("lr", body)
    assert answer.status == 200, answer.body
    found = answer.json()["predictions" if "instances" in body else "outputs"]
    close(found, expected(ROWS))


def test_lines_of_text(server: Running) -> None:
    answer = server.predict("lr", {"instances": ["3:1 17:0.5", "", "1 999999:2 # label 1"]})
    rows: list[Row] = [([3, 17], [1, 0.5]), ([], []), ([999999], [2])]
    close(answer.json()["predictions"], expected(rows))


def test_no_rows_is_an_answer_of_no_rows(server: Running) -> None:
    assert server.predict("lr", {"instances": []}).json() == {"predictions": []}
    found = over_rest(server, parts([]))
    assert found.shape == (0, 1)


def over_rest(server: Running, inputs: dict[str, Any], binary: bool = True) -> Any:
    with http.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        ports = [
            oip_tools.port(http, name, x, DATATYPES.get(x.dtype.name, "BYTES"), binary_data=binary)
            for name, x in inputs.items()
        ]
        return client.infer("lr", ports).as_numpy("y")


def over_grpc(server: Running, inputs: dict[str, Any]) -> Any:
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        ports = [
            oip_tools.port(triton, name, x, DATATYPES.get(x.dtype.name, "BYTES"))
            for name, x in inputs.items()
        ]
        return client.infer("lr", ports).as_numpy("y")


def over_tfs(channel: grpc.Channel, inputs: dict[str, Any], model: str = "lr") -> Any:
    request = ours("PredictRequest", model_spec=spec(model))
    for name, x in inputs.items():
        request.inputs[name].CopyFrom(from_array(x))
    return ask(channel, "Predict", request)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_tritonclient_over_rest(server: Running, binary: bool) -> None:
    for _ in range(3):  # what is known of a request must not be taken for its values
        close(over_rest(server, parts(ROWS), binary), expected(ROWS))
    other = [(ids[::-1], values) for ids, values in ROWS]
    close(over_rest(server, parts(other), binary), expected(other))


def test_tritonclient_over_grpc(server: Running) -> None:
    for rows in (ROWS, ROWS[::-1]):
        for _ in range(2):
            close(over_grpc(server, parts(rows)), expected(rows))


def test_tensorflow_servings_grpc(channel: grpc.Channel) -> None:
    found = over_tfs(channel, parts(ROWS)).outputs["y"]
    close(list(found.float_val), expected(ROWS)[:, 0])


def test_values_may_be_left_out_everywhere(server: Running, channel: grpc.Channel) -> None:
    inputs = {"features.ids": np.array([3, 17, 3]), "features.lengths": np.array([2, 0, 1])}
    ones = expected([([3, 17], [1, 1]), ([], []), ([3], [1])])
    for found in (over_rest(server, inputs), over_grpc(server, inputs)):
        close(found, ones)
    close(list(over_tfs(channel, inputs).outputs["y"].float_val), ones[:, 0])


def test_sparse_dense_and_ragged_inputs_in_one_request(server: Running, channel: grpc.Channel) -> None:
    inputs, answers = inputs_of(40, 7)  # more than a batch
    rows = [{"x": {"ids": [], "values": []}, "d": d.tolist(), "r": []} for d in inputs["d"]]  # type: list[dict[str, Any]]
    at, place = 0, 0
    for row, length, count in zip(rows, inputs["x.lengths"], inputs["r.lengths"], strict=True):
        row["x"] = {"ids": inputs["x.ids"][at : at + length].tolist(),
                    "values": inputs["x.values"][at : at + length].tolist()}  # fmt: skip
        row["r"] = inputs["r.values"][place : place + count].tolist()
        at, place = at + length, place + count
    found = server.predict("mixed", {"instances": rows}).json()["predictions"]
    close(found, answers)
    found = over_tfs(channel, inputs, "mixed").outputs["y"].float_val
    close(found, answers[:, 0])


def test_examples_feed_sparse_inputs(server: Running, channel: grpc.Channel) -> None:
    rows = [([3, 9], [1, 0.5]), ([], []), ([7], [1])]
    wide = np.zeros((3, 100))
    for at, (ids, values) in enumerate(rows):
        wide[at, ids] = values
    logits = wide @ builders.floats(100, 2)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    examples = [{"f.ids": [3, 9], "f.values": [1, 0.5]}, {}, {"f": [7]}]
    for forms in (examples, [{"f": "3:1 9:0.5"}, {"f": {"ids": []}}, {"f": 7}]):
        body = json.dumps({"examples": forms}).encode()
        answer = server.ask("POST", "/v1/models/scores:classify", body)
        assert answer.status == 200, answer.body
        found = [[score for _, score in row] for row in answer.json()["results"]]
        close(found, chances)
    made = given(example(**{"f.ids": [3, 9], "f.values": [1.0, 0.5]}), example(z=[1]), example(f=[b"7:1"]))
    request = ours("ClassificationRequest", model_spec=spec("scores"), input=made)
    classes = ask(channel, "Classify", request).result.classifications
    close([[c.score for c in row.classes] for row in classes], chances)


def test_examples_feed_ragged_inputs(server: Running, channel: grpc.Channel) -> None:
    body = json.dumps({"examples": [{"words": ["a", "b", "a"]}, {"words": []}, {}, {"words": "a"}]}).encode()
    assert server.ask("POST", "/v1/models/words:regress", body).json()["results"] == [2, 0, 0, 1]
    made = given(example(words=[b"a", b"b"]), example(z=[1]))
    request = ours("RegressionRequest", model_spec=spec("words"), input=made)
    assert [r.value for r in ask(channel, "Regress", request).result.regressions] == [1, 0]
    body = json.dumps({"examples": [{"word": ["a"]}]}).encode()
    answer = server.ask("POST", "/v1/models/words:regress", body)
    assert answer.status == 400
    assert "no example has a feature for 'words'" in answer.error


# --- pages ---


def test_pages_show_the_parts(server: Running) -> None:
    page = server.get("/v2/models/lr").json()["inputs"]
    assert page == [
        {"name": "features.ids", "datatype": "INT64", "shape": [-1]},
        {"name": "features.values", "datatype": "FP32", "shape": [-1]},
        {"name": "features.lengths", "datatype": "INT64", "shape": [-1]},
    ]
    config = server.get("/v2/models/lr/config").json()
    assert config["max_batch_size"] == 0
    assert [port["dims"] for port in config["input"]] == [[-1]] * 3
    told = server.get("/v1/models/lr/metadata").json()["metadata"]["signature_def"]["signature_def"]
    assert list(told["serving_default"]["inputs"]) == ["features.ids", "features.values", "features.lengths"]
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.get_model_metadata("lr").inputs[0].name == "features.ids"
        assert client.get_model_config("lr").config.max_batch_size == 0


@pytest.mark.parametrize("model", ["lr", "mixed"])
def test_the_example_can_be_posted_and_fits_the_document(server: Running, model: str) -> None:
    shown = server.get(f"/v1/models/{model}/example").json()
    assert server.predict(model, shown).status == 200
    document = server.get("/openapi.json").json()
    OpenAPIV31SpecValidator(document).validate()
    content = document["paths"][f"/v1/models/{model}:predict"]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    jsonschema.validate(shown, schema)
    assert content["application/json"]["examples"]["one"]["value"] == shown
    if model == "lr":
        jsonschema.validate({"instances": ["3:1 17:0.5", {"ids": [1]}]}, schema)
        for row in ({"ids": [-1]}, {"ids": [SIZE]}, {"ids": [1], "weights": [2]}, "3", 5):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({"instances": [row]}, schema)


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("protocol", ["tfs", "oip", "oip-binary", "grpc", "tfs-grpc"])
def test_bench_asks_the_server(server: Running, protocol: str, rows: int) -> None:
    """Requests are made up like the server's example, whichever protocol tells what they hold."""
    url = f"grpc://127.0.0.1:{server.grpc_port}" if "grpc" in protocol else server.url
    flags = ("--model", "lr", "--protocol", protocol, "--duration", 0.3, "--warmup", 0.1, "--rows", rows)
    told = bench_json(url, *flags)["reports"][0]
    assert told["target"]["rows"] == rows
    assert told["requests"]["ok"] == told["requests"]["total"] > 0


def test_bench_sends_arrays_of_a_file(server: Running, tmp_path: Path) -> None:
    """One row with one id: as many rows as entries, and still no row form."""
    for rows in (ROWS, [([3], [1])]):
        np.savez(tmp_path / "in.npz", **parts(rows))  # type: ignore[arg-type]
        flags = ("--model", "lr", "--inputs", tmp_path / "in.npz", "--duration", 0.2, "--warmup", 0.1)
        told = bench_json(server.url, *flags)["reports"][0]
        assert told["requests"]["ok"] == told["requests"]["total"] > 0
        assert told["target"]["rows"] == len(rows)


def test_values_to_be_kept_out_of_the_log_are_kept_out_by_the_inputs_name(tmp_path: Path) -> None:
    """`redact` names the input; what the log would hold are its parts. A request is logged by them, too."""
    sparse_models.mixed(tmp_path / "models" / "mixed", MIXED, golden=0)
    config = tmp_path / "mserve.toml"
    config.write_text(
        '[models.mixed]\nbase_path = "models/mixed"\n'
        '[request_log]\npath = "requests.jsonl"\nsample = 1\nredact = ["x", "r.values"]\n'
    )
    with serving(f"--config={config}", tmp_path / "log") as server:
        row = {"x": "3:1 9:0.5", "d": [1, 2, 3], "r": [[1, 2]]}
        assert server.predict("mixed", {"instances": [row]}).status == 200
        assert "redact" not in server.log()
        assert server.stop() == 0
    inputs = json.loads((tmp_path / "requests.jsonl").read_text())["inputs"]
    hidden = {"redacted": True}
    assert inputs == {
        "x.ids": hidden, "x.values": hidden, "x.lengths": hidden,
        "d": [[1, 2, 3]], "r.values": hidden, "r.lengths": [1],
    }  # fmt: skip


# --- hostile requests ---

IDS, VALUES, LENGTHS = np.array([3, 17, 5]), np.array([1, 0.5, 2], np.float32), np.array([2, 0, 1])


def broken(**changes: Any) -> dict[str, Any]:
    whole = {"ids": IDS, "values": VALUES, "lengths": LENGTHS, **changes}
    return {f"features.{part}": np.asarray(x) for part, x in whole.items() if x is not None}


HOSTILE = [
    ("a negative id", broken(ids=[3, -1, 5])),
    ("an id that is the size", broken(ids=[3, SIZE, 5])),
    ("the largest id there is", broken(ids=[3, 2**63 - 1, 5])),
    ("the lowest id there is", broken(ids=[-(2**63), 17, 5])),
    ("lengths that are too short", broken(lengths=[1, 0, 1])),
    ("lengths that are too long", broken(lengths=[2, 2, 2])),
    ("a negative length", broken(lengths=[4, -2, 1])),
    ("lengths whose sum overflows to the right one", broken(lengths=[2**62, 2**62, 2**62, 2**62, 3])),
    ("no lengths of some ids", broken(lengths=np.zeros(0, np.int64))),
    ("more values than ids", broken(values=np.ones(4, np.float32))),
    ("fewer values than ids", broken(values=np.ones(2, np.float32))),
    ("a value that is no number", broken(values=np.array([1, np.nan, 2], np.float32))),
    ("an infinite value", broken(values=np.array([1, 2, -np.inf], np.float32))),
    ("ids as floats", broken(ids=[3.0, 17.0, 5.0])),
    ("ids as text", broken(ids=np.array(["3", "17", "5"], object))),
    ("ids as booleans", broken(ids=[True, False, True])),
    ("ids of half the width", broken(ids=np.array([3, 17, 5], np.int32))),
    ("ids in a matrix", broken(ids=[[3], [17], [5]])),
    ("no ids", broken(ids=None)),
    ("no lengths", broken(lengths=None)),
]
WAYS: dict[str, Callable[[Running, grpc.Channel, dict[str, Any]], tuple[bool, str]]] = {}


def way(name: str) -> Callable[[Any], Any]:
    """A protocol: what sends arrays, and tells whether the client was blamed, and the words."""

    def note(function: Any) -> Any:
        WAYS[name] = function
        return function

    return note


@way("TFS REST")
def _(server: Running, _: grpc.Channel, inputs: dict[str, Any]) -> tuple[bool, str]:
    answer = server.predict("lr", json.dumps({"inputs": {a: x.tolist() for a, x in inputs.items()}}).encode())
    return answer.status == 400, answer.error


@way("OIP REST")
def _(server: Running, _: grpc.Channel, inputs: dict[str, Any]) -> tuple[bool, str]:
    with pytest.raises(InferenceServerException) as caught:
        over_rest(server, inputs)
    return caught.value.status() == "400", str(caught.value)


@way("OIP gRPC")
def _(server: Running, _: grpc.Channel, inputs: dict[str, Any]) -> tuple[bool, str]:
    with pytest.raises(InferenceServerException) as caught:
        over_grpc(server, inputs)
    return caught.value.status() == "StatusCode.INVALID_ARGUMENT", str(caught.value)


@way("TFS gRPC")
def _(_: Running, channel: grpc.Channel, inputs: dict[str, Any]) -> tuple[bool, str]:
    with pytest.raises(grpc.RpcError) as caught:
        over_tfs(channel, inputs)
    return caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()


@pytest.mark.parametrize("protocol", list(WAYS))
def test_hostile_requests_are_refused_and_neighbours_unharmed(
    server: Running, channel: grpc.Channel, protocol: str
) -> None:
    """Good requests go on all the while, on connections of their own, and share the server's batches."""
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(server.predict, "lr", {"instances": objects(ROWS)}) for _ in range(60)]
        for what, inputs in HOSTILE:
            if protocol == "TFS REST" and what == "ids of half the width":
                continue  # JSON has one kind of whole number
            blamed, text = WAYS[protocol](server, channel, inputs)
            assert blamed, what
            assert "features" in text, what
        for answer in [one.result() for one in good]:
            close(answer.json()["predictions"], expected(ROWS))
    assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    ("instances", "words"),
    [
        ('[{"ids": [1e3]}]', "wrong kind"),
        ('[{"ids": [true]}]', "wrong kind"),
        ('[{"ids": ["3"]}]', "wrong kind"),
        ('[{"ids": [36893488147419103232]}]', "wrong kind"),
        ('[{"ids": [9223372036854775808]}]', "out of range"),
        ('[{"ids": [1], "values": [1, 2]}]', "a value for each id"),
        ('[{"ids": [1], "values": [NaN]}]', "no finite number"),
        ('[{"ids": [1], "values": [1e39]}]', "no finite number"),
        ('[{"ids": [[1]]}]', "wrong shape"),
        ('["1:1", "x:1"]', "not of pairs"),
        ('[{"ids": [1]}, {"ids": [1000000]}]', "row 1"),
    ],
)
def test_bad_rows_are_named(server: Running, instances: str, words: str) -> None:
    answer = server.predict("lr", b'{"instances": %b}' % instances.encode())
    assert answer.status == 400
    assert words in answer.error


def test_too_many_ids_in_a_row_are_refused(server: Running) -> None:
    row = {"x": {"ids": [1] * 51}, "d": [0, 0, 0], "r": []}
    answer = server.predict("mixed", {"instances": [row]})
    assert answer.status == 400
    assert "too many entries in a row" in answer.error
    row["x"] = {"ids": [1] * 50}
    assert server.predict("mixed", {"instances": [row]}).status == 200


def test_a_large_body_is_read_on_a_thread_and_answered(server: Running) -> None:
    """Beyond 256 KiB bodies are parsed elsewhere; the request is split into many batches."""
    rows = draw(1500, SIZE, 40, seed=9)
    body = {"instances": objects(rows)}
    assert len(json.dumps(body)) > 512 << 10
    close(server.predict("lr", body).json()["predictions"], expected(rows))
    close(over_rest(server, parts(rows)), expected(rows))
