"""Serialised tf.Examples in predict requests, over REST and gRPC, and what the commands say of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from server_tools import Running, serving
from test_commands import run
from tf_examples import packed, serialised
from tfs_models import flowers

import mserve
from mserve.errors import UsageError
from mserve.wire.messages import message
from mserve.wire.tfs_proto import to_arrays

SIGNATURES = """
[signatures.serving_default]
examples = "examples"
inputs = { a = {}, b = { default = [0.5, 1.5] } }
outputs = { value = {} }

[signatures.words]
examples = "inputs"
inputs = { w = {} }
outputs = { echo = {} }
"""
Case = tuple[str, str, dict[str, Any], dict[str, Any]]


def example(**features: list[Any]) -> bytes:
    return serialised(features)


A, B = example(a=[1.0], b=[2, 3]), example(a=[0.0])
WORD = example(w=["tulip"], unknown=[1.0])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serialised")
    (root / "signatures.toml").write_text(SIGNATURES)
    mserve.export(flowers(), root / "flowers", signatures=root / "signatures.toml")
    return root / "flowers"


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[Running]:
    with serving(base, base.parent / "log", "--name", "flowers") as running:
        yield running


VALUES = [[6.0], [2.0]]
ANSWERED: list[Case] = [
    ("bare rows", "", {"instances": [packed(A), packed(B)]}, {"predictions": VALUES}),
    ("named rows", "", {"instances": [{"examples": packed(A)}]}, {"predictions": VALUES[:1]}),
    ("a column", "", {"inputs": [packed(A), packed(B)]}, {"outputs": VALUES}),
    ("a named column", "", {"inputs": {"examples": [packed(B)]}}, {"outputs": VALUES[1:]}),
    ("the inputs themselves", "", {"instances": [{"a": 1, "b": [2, 3]}]}, {"predictions": VALUES[:1]}),
    ("text of an only input", "words", {"instances": [packed(b"rose")]}, {"predictions": ["rose"]}),
    ("a name beside it", "words", {"instances": [{"inputs": packed(WORD)}]}, {"predictions": ["tulip"]}),
]


@pytest.mark.parametrize(("why", "signature", "body", "expected"), ANSWERED, ids=[c[0] for c in ANSWERED])
def test_rest(server: Running, why: str, signature: str, body: Any, expected: Any) -> None:
    for _ in range(2):  # the second time, the request's head is known
        answer = server.predict("flowers", body | {"signature_name": signature or "serving_default"})
        assert (answer.status, answer.json()) == (200, expected), why


REFUSED = [
    ("no example", {"instances": [packed(b"\xff\xff")]}, "example 0"),
    ("a feature that is missing", {"instances": [packed(A), packed(example(b=[1, 2]))]}, "example 1 has no"),
    ("too few values", {"instances": [packed(example(a=[1.0], b=[1]))]}, "wrong number of values"),
    ("the second not packed", {"instances": [packed(A), {"a": 1}]}, "example 1 is not serialised"),
    ("no base64", {"instances": [{"b64": "?"}]}, "example 0 has bad base64"),
    ("none at all", {"inputs": {"examples": []}}, "named input"),
    ("no list", {"inputs": {"examples": packed(A)}}, "named input"),
    (
        "examples beside an input",
        {"instances": [{"examples": packed(A), "a": 1}]},
        "Failed to process element",
    ),
]


@pytest.mark.parametrize(("why", "body", "text"), REFUSED, ids=[c[0] for c in REFUSED])
def test_what_is_no_example_is_refused(server: Running, why: str, body: Any, text: str) -> None:
    answer = server.predict("flowers", body)
    assert answer.status == 400, why
    assert text in answer.error


def predict(server: Running, **tensor: Any) -> Any:
    request = message("tensorflow.serving.PredictRequest")(model_spec={"name": "flowers"})
    request.inputs["examples"].MergeFrom(message("tensorflow.TensorProto")(**tensor))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        return message("tensorflow.serving.PredictResponse").FromString(
            call(request.SerializeToString(), timeout=30)
        )


def test_grpc(server: Running) -> None:
    """As tensorflow_serving's clients send them: a vector of strings."""
    shape = {"dim": [{"size": 2}]}
    answer = predict(server, dtype=7, tensor_shape=shape, string_val=[A, B])
    assert np.array_equal(to_arrays(answer.outputs, 1000)["value"], VALUES)
    for tensor in ({"dtype": 1, "float_val": [1.0]}, {"dtype": 7, "string_val": [A]}):  # no vector
        with pytest.raises(grpc.RpcError) as caught:
            predict(server, **tensor, tensor_shape=shape)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "no vector of serialised examples" in caught.value.details()


def test_the_commands_know_them(base: Path, tmp_path: Path) -> None:
    version = next(base.iterdir())
    assert "or serialised examples" in run("inspect", version).stdout
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"instances": [packed(A)]}))
    assert json.loads(run("run", version, "--inputs", request).stdout) == {"predictions": VALUES[:1]}
    (tmp_path / "s.toml").write_text(SIGNATURES.replace('examples = "examples"\n', ""))
    plain = mserve.export(flowers(), tmp_path / "plain", signatures=tmp_path / "s.toml").path
    changed = run("diff", version, plain)
    assert (changed.returncode, "examples-removed" in changed.stdout) == (0, True)
    assert run("diff", version, plain, "--fail-on", "breaking").returncode == 1
    assert run("diff", plain, version, "--fail-on", "breaking").returncode == 0


@pytest.mark.parametrize("name", ['"a"', "1"])
def test_a_name_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "s.toml").write_text(SIGNATURES.replace('"examples"', name))
    with pytest.raises(UsageError, match="bad examples"):
        mserve.export(flowers(), tmp_path / "base", signatures=tmp_path / "s.toml")
