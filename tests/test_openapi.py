"""The OpenAPI document: it is valid, complete and true, as a validator and a generator of requests find."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_models
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from server_tools import Running, serving

import mserve
from mserve.server import app, oip_rest, openapi, tfs_rest

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
# How many requests are made to each operation. A longer run:
#     MSERVE_EXAMPLES=500 sh tests/run.sh tests/test_openapi.py --timeout 3600
EXAMPLES = int(os.environ.get("MSERVE_EXAMPLES", "8"))
MODELS = ("echo", "flowers", "pick", "scalar", "sparse", "words")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("openapi")
    with serving(fuzz_models.publish(root / "models"), root / "log") as running:
        yield running


@pytest.fixture(scope="module")
def document(server: Running) -> Any:
    answer = server.get("/openapi.json")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    return answer.json()


def test_the_document_is_valid(document: Any) -> None:
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == mserve.__version__


def test_without_models_it_is_valid_too() -> None:
    OpenAPIV31SpecValidator(openapi.document({})).validate()


def test_operation_ids_are_unique(document: Any) -> None:
    ids = [made["operationId"] for methods in document["paths"].values() for made in methods.values()]
    assert len(ids) == len(set(ids))


def test_every_page_of_the_codecs_is_described(document: Any) -> None:
    """What the Open Inference Protocol's codec answers, and every verb and page of TensorFlow Serving's."""
    paths = document["paths"]
    pages = {page.rsplit("/", 1)[-1] for page in paths} | {page.rsplit(":", 1)[-1] for page in paths}
    aside = {
        "metadata",
        "status",
        "unregister",
    }  # the model's own path; regions of memory, which there are not
    for page, method in oip_rest._METHODS.items():
        if page not in aside:
            assert any(method.lower() in paths[p] for p in paths if p.endswith(page)), page
    assert pages >= {*tfs_rest._VERBS, "metadata", "example"}


def test_pages_for_probes_carry_no_token() -> None:
    found = openapi.document({}, tokens=True)
    open_paths = {p for p, m in found["paths"].items() if all("security" not in made for made in m.values())}
    assert open_paths == {page.decode() for page in app.OPEN_PAGES}
    assert found["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    OpenAPIV31SpecValidator(found).validate()
    assert "securitySchemes" not in openapi.document({})["components"]


def test_only_administration_may_need_a_token() -> None:
    found = openapi.document({}, admin_tokens=True)["paths"]
    secured = {path for path, methods in found.items() if "security" in str(methods)}
    assert secured == {f"/v2/repository/models/{{model}}/{verb}" for verb in ("load", "unload")}


def test_the_document_needs_a_token_like_other_pages(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("secret\n")
    config = tmp_path / "mserve.toml"
    config.write_text('[auth]\ntokens = "tokens"\n')
    with serving(f"--config={config}", tmp_path / "log", ready=False) as server:
        assert server.get("/openapi.json").status == 401
        answer = server.ask("GET", "/openapi.json", headers={"Authorization": "Bearer secret"})
    assert answer.json()["paths"]["/v1/models"]["get"]["security"] == [{"bearer": []}]


@pytest.mark.parametrize("model", MODELS)
def test_each_model_says_what_it_takes(server: Running, document: Any, model: str) -> None:
    """The example that the server makes fits the schema that it publishes, and is answered."""
    example = server.get(f"/v1/models/{model}/example").json()
    content = document["paths"][f"/v1/models/{model}:predict"]["post"]["requestBody"]["content"]
    content = content["application/json"]
    jsonschema.validate(example, content["schema"])
    assert content["examples"]["one"]["value"] == example
    assert server.predict(model, example).status == 200


def body_schema(document: Any, path: str) -> Any:
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


ROW = {"a": 1, "b": [2, 3]}
PREDICT = [
    ("rows of named values", {"instances": [ROW]}, True),
    ("columns", {"inputs": {"a": [1], "b": [[2, 3]]}}, True),
    ("another signature by name", {"signature_name": "words", "instances": ["x", {"b64": "eA=="}]}, True),
    ("an input of another signature, unnamed", {"instances": [{"w": "x"}]}, False),
    ("a fixed size that is wrong", {"instances": [{"a": 1, "b": [2, 3, 4]}]}, False),
    ("text for a number", {"instances": [{"a": "1", "b": [2, 3]}]}, False),
    ("an input that is missing", {"instances": [{"a": 1}]}, False),
    ("an input with a default left out", {"signature_name": "price", "instances": [{"a": 1}]}, True),
    ("both forms", {"instances": [ROW], "inputs": {"a": [1], "b": [[2, 3]]}}, False),
    ("an output that there is not", {"instances": [ROW], "outputs": ["nothing"]}, False),
]


@pytest.mark.parametrize(("why", "body", "good"), PREDICT, ids=[p[0] for p in PREDICT])
def test_schema_and_server_agree_on_predict(
    server: Running, document: Any, why: str, body: Any, good: bool
) -> None:
    schema = body_schema(document, "/v1/models/flowers:predict")
    assert jsonschema.Draft202012Validator(schema).is_valid(body) is good, why
    assert server.predict("flowers", body).status == (200 if good else 400), why


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> Any:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


AB = [tensor("a", "FP32", [1], [1]), tensor("b", "FP32", [1, 2], [2, 3])]
INFER = [
    ("all inputs", {"inputs": AB}, True),
    ("null where something may be left out", {"inputs": AB, "id": None, "outputs": None}, True),
    ("another signature", {"inputs": AB, "parameters": {"signature_name": "price"}}, True),
    ("too few inputs", {"inputs": AB[:1]}, False),
    ("another datatype", {"inputs": [tensor("a", "INT32", [1], [1]), AB[1]]}, False),
    ("another rank", {"inputs": [tensor("a", "FP32", [1, 1], [1]), AB[1]]}, False),
    ("an output that there is not", {"inputs": AB, "outputs": [{"name": "nothing"}]}, False),
]


@pytest.mark.parametrize(("why", "body", "good"), INFER, ids=[i[0] for i in INFER])
def test_schema_and_server_agree_on_infer(
    server: Running, document: Any, why: str, body: Any, good: bool
) -> None:
    schema = body_schema(document, "/v2/models/flowers/infer")
    assert jsonschema.Draft202012Validator(schema).is_valid(body) is good, why
    answer = server.ask("POST", "/v2/models/flowers/infer", json.dumps(body).encode())
    assert answer.status == (200 if good else 400), answer.body


def test_integers_have_the_limits_of_their_dtype(document: Any) -> None:
    row = body_schema(document, "/v1/models/echo:predict")["properties"]["instances"]["items"]
    limits = {alias: port["items"] for alias, port in row["properties"].items()}
    assert limits["in_int8"] == {"type": "integer", "minimum": -128, "maximum": 127}
    assert limits["in_uint64"] == {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}
    assert limits["in_float16"] == {"type": "number"}


@pytest.mark.timeout(0 if EXAMPLES > 50 else 120)
def test_generated_requests_are_answered_as_the_document_says(server: Running, tmp_path: Path) -> None:
    """Good and bad requests to every operation: no server error, no answer that is not described."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--checks", ",".join(CHECKS), "--max-examples", str(EXAMPLES), "--seed", "1"),
            *("--phases", "examples,coverage,fuzzing", "--request-timeout", "30", "--workers", "2"),
            *("--generation-database", "none", "--no-color", "--suppress-health-check", "all"),
            *("--continue-on-failure", "--warnings", "off"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"(\d+) generated", done.stdout), done.stdout
    assert "our bug" not in server.log()
    assert server.predict("words", {"instances": ["a"]}).status == 200
