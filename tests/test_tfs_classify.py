"""classify, regress and the finer points of predict over TensorFlow Serving's REST API, on a real socket."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_tools import Running, serving
from tfs_models import export_flowers

import mserve
from mserve.errors import PayloadTooLarge, RequestError
from mserve.server.tfs_methods import fit
from mserve.tensors import Signature, TensorSpec
from mserve.wire.tfs_examples import MAX_EXAMPLES, to_inputs


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("classify")
    export_flowers(root / "flowers")
    with serving(root / "flowers", root / "log", "--name", "flowers") as server:
        yield server


def post(server: Running, verb: str, body: Any, where: str = "") -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.ask("POST", f"/v1/models/flowers{where}:{verb}", data)


A, B = {"a": 1.0, "b": [2, 3]}, {"a": 0, "b": [1.0, 1.0]}
RANKED = [[["tulip", 18.0], ["rose", 12.0], ["iris", 6.0]], [["tulip", 6.0], ["rose", 4.0], ["iris", 2.0]]]

GOOD = [
    (
        "a signature with classes and scores",
        "classify",
        {"signature_name": "ranked", "examples": [A, B]},
        RANKED,
    ),
    (
        "labels from the file of labels",
        "classify",
        {"signature_name": "named", "examples": [B]},
        [[["iris", 2.0], ["tulip", 6.0], ["rose", 4.0]]],
    ),
    ("the only regress signature, unnamed", "regress", {"examples": [A, B]}, [6.0, 2.0]),
    ("a default for a feature that no example has", "regress", {"examples": [{"a": 1}]}, [3.0]),
    (
        "a default for one example only",
        "regress",
        {"examples": [{"a": 1}, A]},
        [3.0, 6.0],
    ),
    (
        "the context stands in every example, and examples go before it",
        "regress",
        {"context": {"b": [2, 3], "a": 9}, "examples": [{"a": 1}, {"a": 0, "b": [1, 1]}, {}]},
        [6.0, 2.0, 14.0],
    ),
    ("a list of one for a scalar", "regress", {"examples": [{"a": [1.0], "b": [2, 3]}]}, [6.0]),
    ("a truth value is 0 or 1", "regress", {"examples": [{"a": True, "b": [2, 3]}]}, [6.0]),
    ("a feature that is no input is passed over", "regress", {"examples": [A | {"id": "x"}]}, [6.0]),
]


@pytest.mark.parametrize(("why", "verb", "body", "results"), GOOD, ids=[g[0] for g in GOOD])
def test_examples_are_answered(flowers: Running, why: str, verb: str, body: Any, results: Any) -> None:
    answer = post(flowers, verb, body)
    assert answer.json() == {"results": results}, why
    assert answer.headers["mserve-model-version"] == "1"


BAD = [
    ("no examples", "regress", {}, ["no list of examples"]),
    ("an empty list of examples", "regress", {"examples": []}, ["Input is empty."]),
    ("an example that is a list", "regress", {"examples": [A, [1]]}, ["example 1", "not an object"]),
    ("a context that is a list", "regress", {"examples": [A], "context": [1]}, ["context", "not an object"]),
    ("a feature is missing", "regress", {"examples": [A, {"b": [1, 2]}]}, ["example 1", "'a'", "found: b"]),
    ("too few values", "regress", {"examples": [A, A | {"b": [1]}]}, ["example 1", "'b'", "expected: 2"]),
    ("a list where a scalar belongs", "regress", {"examples": [A | {"a": [1, 2]}]}, ["example 0", "'a'"]),
    ("text among numbers", "regress", {"examples": [A, A | {"a": "x"}]}, ["example 1, feature 'a'", '"x"']),
    ("null", "regress", {"examples": [A, A | {"a": None}]}, ["example 1, feature 'a'", "null"]),
    ("a list in a list", "regress", {"examples": [A | {"b": [[1], [2]]}]}, ["example 0, feature 'b'"]),
    ("an object", "regress", {"examples": [A | {"a": {"x": 1}}]}, ["example 0, feature 'a'", "an object"]),
    (
        "two classify signatures, none named",
        "classify",
        {"examples": [A]},
        ["no signature is the one to answer classify", "'ranked'", "'named'"],
    ),
    (
        "a regress signature asked to classify",
        "classify",
        {"signature_name": "price", "examples": [A]},
        [
            "Expected classification signature method_name to be tensorflow/serving/classify. "
            "Was: tensorflow/serving/regress",
            "'price'",
            "'ranked'",
            "'named'",
        ],
    ),
    (
        "a predict signature asked to regress",
        "regress",
        {"signature_name": "serving_default", "examples": [A]},
        [
            "Expected regression signature method_name to be tensorflow/serving/regress. "
            "Was: tensorflow/serving/predict",
            "one of the signatures 'price'",
        ],
    ),
    (
        "an unknown signature",
        "classify",
        {"signature_name": "nope", "examples": [A]},
        ['Serving signature name: "nope" not found in signature def', "ranked"],
    ),
    ("no JSON", "classify", b"{", ["not valid JSON"]),
]


@pytest.mark.parametrize(("why", "verb", "body", "parts"), BAD, ids=[b[0] for b in BAD])
def test_bad_examples_are_refused(flowers: Running, why: str, verb: str, body: Any, parts: list[str]) -> None:
    answer = post(flowers, verb, body)
    assert answer.status == 400, why
    for part in parts:
        assert part in answer.error, (why, answer.error)


FLOATS = TensorSpec("v", "float32", ("batch", 2))
TEXTS = TensorSpec("s", "string", ("batch", 2))
WHOLE = TensorSpec("i", "int64", ("batch",))

FITS = [
    ("scores and classes", "classify", {"scores": FLOATS, "classes": TEXTS}, ("scores", "classes")),
    ("classes alone", "classify", {"classes": TEXTS}, ("", "classes")),
    ("scores alone", "classify", {"scores": FLOATS}, ("scores", "")),
    ("a predict signature, whatever its outputs", "predict", {"scores": FLOATS, "classes": TEXTS}, None),
    ("outputs of other names", "classify", {"p": FLOATS}, None),
    ("another method", "regress", {"scores": FLOATS}, None),
]


@pytest.mark.parametrize(("why", "method", "outputs", "expected"), FITS, ids=[f[0] for f in FITS])
def test_which_signatures_answer_classify(why: str, method: str, outputs: Any, expected: Any) -> None:
    assert fit(Signature(method, {}, outputs), "classify") == expected, why


def test_a_repeated_context_and_a_crowd_of_examples_are_bounded() -> None:
    signature = Signature("classify", {"v": TensorSpec("v", "float32", ("batch", "n"))}, {"s": FLOATS})
    context = {"v": [0.0] * 1000}
    assert to_inputs([{}] * 3, context, signature, 24_000)["v"].shape == (3, 1000)
    with pytest.raises(PayloadTooLarge, match="24000 bytes when it is repeated"):
        to_inputs([{}] * 4, context, signature, 24_000)
    with pytest.raises(PayloadTooLarge, match="too many examples"):
        to_inputs([{}] * (MAX_EXAMPLES + 1), {"v": 1}, signature, 1 << 60)


def test_features_of_text_and_of_open_width() -> None:
    ports = {
        "s": TensorSpec("s", "string", ("batch",)),
        "v": TensorSpec("v", "int64", ("batch", 2, "n")),
        "f": TensorSpec("f", "bool", None),
    }
    rows = [{"s": "x", "v": [1, 2, 3, 4], "f": 1}, {"s": {"b64": "w6Q="}, "v": [5, 6, 7, True], "f": False}]
    found = to_inputs(rows, {}, Signature("classify", ports, {"s": FLOATS}), 1000)
    assert {a: x.tolist() for a, x in found.items()} == {
        "s": ["x", "ä"],
        "v": [[[1, 2], [3, 4]], [[5, 6], [7, 1]]],
        "f": [True, False],
    }


def test_an_input_with_two_open_sizes_is_no_feature() -> None:
    signature = Signature("classify", {"v": TensorSpec("v", "float32", ("batch", "n", "m"))}, {"s": FLOATS})
    with pytest.raises(RequestError, match="cannot be given as a feature"):
        to_inputs([{"v": [1]}], {}, signature, 1000)


ROWS = {"a": [1.0, 2.0], "b": [[1.0, 2.0], [3.0, 4.0]]}
SELECTIONS: list[tuple[str, dict[str, Any], Any]] = [
    ("one output is answered bare", {"inputs": ROWS, "outputs": ["value"]}, {"outputs": [[4.0], [9.0]]}),
    (
        "in the order of the request",
        {"inputs": ROWS, "outputs": ["scores", "value"]},
        {"outputs": {"scores": [[4, 12, 8], [9, 27, 18]], "value": [[4.0], [9.0]]}},
    ),
    (
        "in rows",
        {"instances": [{"a": 1, "b": [1, 2]}], "outputs": ["value"]},
        {"predictions": [[4.0]]},
    ),
]


@pytest.mark.parametrize(("why", "body", "expected"), SELECTIONS, ids=[s[0] for s in SELECTIONS])
def test_predict_answers_the_outputs_that_are_asked_for(
    flowers: Running, why: str, body: Any, expected: Any
) -> None:
    answer = post(flowers, "predict", body).json()
    assert answer == expected, why
    if isinstance(expected.get("outputs"), dict):
        assert list(answer["outputs"]) == list(expected["outputs"])


@pytest.mark.parametrize(
    ("outputs", "part"),
    [
        (["nope"], "output tensor alias not found in signature: nope"),
        (["value", "value"], "duplicate output tensor alias: value"),
        ("value", "not a list of names"),
        ([], "not a list of names"),
        ([1], "not a list of names"),
    ],
)
def test_bad_selections_are_refused(flowers: Running, outputs: Any, part: str) -> None:
    answer = post(flowers, "predict", {"inputs": ROWS, "outputs": outputs})
    assert answer.status == 400
    assert part in answer.error


NAMES_WRONG = [
    ({"inputs": {"a": [1]}}, "Missing named input: b in 'inputs' object."),
    ({"inputs": ROWS | {"c": 1}}, "JSON object: does not have named input: c"),
    (
        {"instances": [{"a": 1, "b": [1, 2]}, {"a": 1}]},
        "Failed to process element: 1 of 'instances' list. JSON object keys must be equal to: a,b",
    ),
]


@pytest.mark.parametrize(("body", "text"), NAMES_WRONG)
def test_wrong_inputs_are_refused_in_known_words(flowers: Running, body: Any, text: str) -> None:
    answer = post(flowers, "predict", body)
    assert answer.status == 400
    assert answer.error.startswith(text)
    assert "expected: a, b" in answer.error


def test_outputs_called_bytes_are_base64_and_others_text(flowers: Running) -> None:
    words = ["ä", ""]
    sent = [{"b64": b64encode(w.encode()).decode()} for w in words]
    columns = post(flowers, "predict", {"signature_name": "words", "inputs": sent}).json()
    assert columns == {"outputs": {"echo": words, "echo_bytes": sent}}
    rows = post(flowers, "predict", {"signature_name": "words", "instances": words}).json()
    assert rows == {"predictions": [{"echo": w, "echo_bytes": b} for w, b in zip(words, sent, strict=True)]}


def test_a_lenient_server_takes_and_answers_what_json_lacks(flowers: Running) -> None:
    body = b'{"signature_name": "inverse", "inputs": [0, Infinity, NaN]}'
    answer = post(flowers, "predict", body)
    assert b"Infinity" in answer.body
    assert np.array_equal(answer.json()["outputs"]["inverse"], [np.inf, 0, np.nan], equal_nan=True)


def test_a_strict_server_does_not(tmp_path: Path) -> None:
    export_flowers(tmp_path / "flowers")
    with serving(tmp_path / "flowers", tmp_path / "log", "--strict-json") as server:
        asked = post(server, "predict", b'{"signature_name": "inverse", "inputs": [NaN]}')
        assert asked.status == 400
        assert "this server is strict" in asked.error
        answered = post(server, "predict", {"signature_name": "inverse", "inputs": [0, 1]})
        assert answered.status == 400
        assert "without --strict-json" in answered.error
        assert "output 'inverse' holds NaN or Infinity" in answered.error
        named = {"signature_name": "inverse", "inputs": [0, 1], "outputs": ["negative"]}
        assert post(server, "predict", named).json() == {"outputs": [-0.0, -1.0]}
        huge = post(server, "regress", {"examples": [{"a": 3e38, "b": [3e38, 0]}]})
        assert huge.status == 400
        huge = post(server, "classify", {"signature_name": "named", "examples": [{"a": 3e38, "b": [0, 0]}]})
        assert huge.status == 400


PATHS = [
    ("a call to a version", "POST", "/v1/models/flowers/versions/1:regress", 200, "results"),
    ("any case", "POST", "/V1/Models/flowers/VERSIONS/1:Regress", 200, "results"),
    ("an unknown label", "POST", "/v1/models/flowers/labels/x:regress", 400, "Unrecognized servable version"),
    ("the status of an unknown label", "GET", "/v1/models/flowers/labels/x", 400, "Unrecognized servable"),
    ("the status of an unknown model", "GET", "/v1/models/x", 404, "Could not find any versions of model x"),
    (
        "the status of an unknown version",
        "GET",
        "/v1/models/flowers/versions/7",
        404,
        "Could not find version 7",
    ),
    ("an unknown model", "POST", "/v1/models/x:classify", 404, "Servable not found for request: Latest(x)"),
    ("the metadata of a version", "GET", "/v1/models/flowers/versions/1/metadata", 200, "regress"),
]


@pytest.mark.parametrize(("why", "method", "path", "status", "part"), PATHS, ids=[p[0] for p in PATHS])
def test_paths(flowers: Running, why: str, method: str, path: str, status: int, part: str) -> None:
    answer = flowers.ask(method, path, json.dumps({"examples": [A]}).encode() if method == "POST" else None)
    assert answer.status == status, why
    assert part in answer.body.decode()


def test_a_wrong_verb_is_told_the_right_one(flowers: Running) -> None:
    call = flowers.ask("GET", "/v1/models/flowers:classify")
    assert (call.status, call.headers["Allow"]) == (405, "POST")
    page = flowers.ask("DELETE", "/v1/models/flowers")
    assert (page.status, page.headers["Allow"]) == (405, "GET")
    assert flowers.ask("HEAD", "/v1/models/flowers:predict").status == 405
    assert flowers.ask("OPTIONS", "/v1/models/flowers:predict").headers["Allow"] == "POST, OPTIONS"
    assert flowers.ask("OPTIONS", "/v1/models/flowers").headers["Allow"] == "GET, HEAD, OPTIONS"
    head = flowers.ask("HEAD", "/v1/models/flowers")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(flowers.get("/v1/models/flowers").body))


def test_classes_that_do_not_pair_with_scores(tmp_path: Path) -> None:
    """One name for three scores is an error that says so; without the method, the model is not asked."""
    import builders
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Identity", ["x"], ["p"]),
        helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["names", "best"], ["name"]),
    ]
    names = helper.make_tensor("names", TensorProto.STRING, [3], [b"u", b"v", b"w"])
    real, text = TensorProto.FLOAT, TensorProto.STRING
    model = builders.model(
        nodes, [("x", real, ["N", 3])], [("p", real, ["N", 3]), ("name", text, ["N"])], [names]
    )
    toml = "[signatures.best]\nmethod = 'classify'\ninputs.x = {}\n"
    toml += "outputs = { scores = { tensor = 'p' }, classes = { tensor = 'name' } }\n"
    (tmp_path / "s.toml").write_text(toml)
    mserve.export(model, tmp_path / "flowers")
    with serving(tmp_path / "flowers", tmp_path / "log", "--name", "flowers") as server:
        plain = post(server, "classify", {"examples": [{"x": [1, 2, 3]}]})
        mserve.export(model, tmp_path / "flowers", signatures=tmp_path / "s.toml")
        server.wait_until(lambda: server.version("flowers") == "2")
        answer = post(server, "classify", {"examples": [{"x": [1, 2, 3]}]})
    assert plain.status == 400
    assert "method = 'classify'" in plain.error
    assert answer.status == 500
    assert "'classes' and 'scores' do not go together" in answer.error
    assert "[1, 1] and [1, 3]" in answer.error
