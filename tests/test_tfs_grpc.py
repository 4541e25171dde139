"""TensorFlow Serving's gRPC API on a real socket, asked with other people's stubs and our own messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import builders
import grpc
import numpy as np
import pytest
from server_tools import Running, serving
from tfs_models import KINDS, NAMES, SHORT_KINDS, echo, expected_value, export_flowers

import mserve
from mserve.tensors import DTYPES
from mserve.wire.messages import message, methods
from mserve.wire.tfs_proto import from_array, to_arrays

A, B = np.array([1, 0], np.float32), np.array([[2, 3], [1, 1]], np.float32)
SERVING = "tensorflow.serving."


def ours(kind: str, /, **fields: Any) -> Any:
    return message(SERVING + kind)(**fields)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`flowers` in two versions, and `echo`."""
    root = tmp_path_factory.mktemp("grpc")
    export_flowers(root / "models" / "flowers", version=1)
    export_flowers(root / "models" / "flowers", version=2, factor=10)
    mserve.export(echo(), root / "models" / "echo")
    mserve.export(echo(SHORT_KINDS), root / "models" / "short")
    config = root / "mserve.toml"
    config.write_text(
        '[models.flowers]\nbase_path = "models/flowers"\nversions = "all"\n'
        'labels = { stable = 1, canary = 2, gone = 7 }\n[models.echo]\nbase_path = "models/echo"\n'
        '[models.short]\nbase_path = "models/short"\n'
    )
    with serving(f"--config={config}", root / "log") as running:
        running.wait_until(lambda: running.get("/v1/models/flowers/versions/1/metadata").status == 200)
        yield running


@pytest.fixture(scope="module")
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as open_channel:
        yield open_channel


def ask(channel: grpc.Channel, name: str, request: Any, **options: Any) -> Any:
    """One call by its short name, with our own messages."""
    service = "ModelService" if name in methods(SERVING + "ModelService") else "PredictionService"
    answer = message(methods(SERVING + service)[name].output_type.full_name)
    call = channel.unary_unary(
        f"/{SERVING}{service}/{name}", lambda m: m.SerializeToString(), answer.FromString
    )
    return call(request, timeout=options.pop("timeout", 30), **options)


def refused(channel: grpc.Channel, name: str, request: Any, **options: Any) -> tuple[str, str]:
    """The status and the text of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, name, request, **options)
    return caught.value.code().name, caught.value.details()


def spec(model: str = "flowers", signature: str = "", **choice: Any) -> Any:
    made = ours("ModelSpec", name=model, signature_name=signature)
    if "version" in choice:
        made.version.value = choice["version"]
    if "label" in choice:
        made.version_label = choice["label"]
    return made


def predict(model_spec: Any, outputs: tuple[str, ...] = (), **inputs: Any) -> Any:
    request = ours("PredictRequest", model_spec=model_spec, output_filter=outputs)
    for alias, array in inputs.items():
        request.inputs[alias].CopyFrom(from_array(array))
    return request


def example(**features: Any) -> Any:
    made = message("tensorflow.Example")()
    for name, values in features.items():
        kind = {float: "float_list", int: "int64_list", bytes: "bytes_list"}[type(values[0])]
        getattr(made.features.feature[name], kind).value.extend(values)
    return made


def given(*examples: Any, context: Any = None) -> Any:
    if context is None:
        return ours("Input", example_list={"examples": examples})
    return ours("Input", example_list_with_context={"examples": examples, "context": context})


ROWS = (example(a=[1.0], b=[2.0, 3.0]), example(a=[0], b=[1, 1]))


# Other people's stubs


@pytest.fixture(scope="module")
def stubs() -> Any:
    """The messages and stubs of the package tensorflow-protobuf, without TensorFlow."""
    pytest.importorskip("tensorflow_serving")
    from tensorflow.core.framework import tensor_pb2
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        inference_pb2,
        predict_pb2,
        prediction_service_pb2_grpc,
        regression_pb2,
    )

    return SimpleNamespace(
        tensor=tensor_pb2,
        predict=predict_pb2,
        classification=classification_pb2,
        regression=regression_pb2,
        inference=inference_pb2,
        metadata=get_model_metadata_pb2,
        Stub=prediction_service_pb2_grpc.PredictionServiceStub,
    )


def stub_tensor(stubs: Any, array: Any, *, typed: bool) -> Any:
    """A float tensor as clients make it: bytes, as tf.make_tensor_proto does, or values."""
    made = stubs.tensor.TensorProto(dtype=1)
    for size in array.shape:
        made.tensor_shape.dim.add(size=size)
    if typed:
        made.float_val.extend(array.ravel().tolist())
    else:
        made.tensor_content = array.tobytes()
    return made


@pytest.mark.parametrize("typed", [False, True], ids=["bytes", "values"])
def test_predict_with_other_peoples_stubs(channel: grpc.Channel, stubs: Any, typed: bool) -> None:
    """Answers stand in `float_val`, which is what clients read, whichever way they asked."""
    request = stubs.predict.PredictRequest()
    request.model_spec.name = "flowers"
    request.model_spec.signature_name = "serving_default"
    request.model_spec.version.value = 1
    request.inputs["a"].CopyFrom(stub_tensor(stubs, A, typed=typed))
    request.inputs["b"].CopyFrom(stub_tensor(stubs, B, typed=typed))
    answer = stubs.Stub(channel).Predict(request, 10.0)
    assert list(answer.outputs["value"].float_val) == expected_value(A, B).tolist()
    assert [d.size for d in answer.outputs["scores"].tensor_shape.dim] == [2, 3]
    assert (answer.model_spec.name, answer.model_spec.version.value) == ("flowers", 1)
    assert answer.model_spec.signature_name == "serving_default"


def stub_examples(target: Any) -> None:
    for row in (A[0:1], B[0]), (A[1:2], B[1]):
        features = target.input.example_list.examples.add().features.feature
        features["a"].float_list.value.extend(row[0].tolist())
        features["b"].float_list.value.extend(row[1].tolist())


def test_examples_with_other_peoples_stubs(channel: grpc.Channel, stubs: Any) -> None:
    service = stubs.Stub(channel)
    classify = stubs.classification.ClassificationRequest()
    classify.model_spec.name, classify.model_spec.signature_name = "flowers", "named"
    classify.model_spec.version.value = 1
    stub_examples(classify)
    found = service.Classify(classify).result.classifications
    assert [[(c.label, c.score) for c in one.classes] for one in found] == [
        list(zip(NAMES, (6.0, 18.0, 12.0), strict=True)),
        list(zip(NAMES, (2.0, 6.0, 4.0), strict=True)),
    ]
    regress = stubs.regression.RegressionRequest()
    regress.model_spec.name = "flowers"
    stub_examples(regress)
    assert [r.value for r in service.Regress(regress).result.regressions] == [60.0, 20.0]
    several = stubs.inference.MultiInferenceRequest()
    for signature, method in (("price", "regress"), ("ranked", "classify")):
        task = several.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "flowers", signature
    stub_examples(several)
    price, ranked = service.MultiInference(several).results
    assert [r.value for r in price.regression_result.regressions] == [60.0, 20.0]
    assert [c.label for c in ranked.classification_result.classifications[0].classes] == [
        "tulip",
        "rose",
        "iris",
    ]
    assert (price.model_spec.signature_name, ranked.model_spec.version.value) == ("price", 2)


def test_metadata_with_other_peoples_stubs(channel: grpc.Channel, stubs: Any) -> None:
    request = stubs.metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "flowers"
    answer = stubs.Stub(channel).GetModelMetadata(request)
    assert answer.model_spec.version.value == 2
    signatures = stubs.metadata.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["named"].method_name == "tensorflow/serving/classify"
    b = signatures.signature_def["price"].inputs["b"]
    assert (b.name, b.dtype, [d.size for d in b.tensor_shape.dim]) == ("b", 1, [-1, 2])


@pytest.fixture
def status_stubs(stubs: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package lacks the module of status codes, which is one enumeration: ours stands in for it."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    source = message(SERVING + "StatusProto").DESCRIPTOR.fields_by_name["error_code"].enum_type.file
    file = descriptor_pb2.FileDescriptorProto.FromString(source.serialized_pb)
    file.name = "tensorflow/tsl/protobuf/error_codes.proto"
    descriptor_pool.Default().Add(file)
    for name in ("tensorflow.tsl", "tensorflow.tsl.protobuf", "tensorflow.tsl.protobuf.error_codes_pb2"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    from tensorflow_serving.apis import get_model_status_pb2

    return get_model_status_pb2


def test_status_with_other_peoples_messages(channel: grpc.Channel, status_stubs: Any) -> None:
    request = status_stubs.GetModelStatusRequest()
    request.model_spec.name = "flowers"
    call = channel.unary_unary(
        f"/{SERVING}ModelService/GetModelStatus",
        status_stubs.GetModelStatusRequest.SerializeToString,
        status_stubs.GetModelStatusResponse.FromString,
    )
    found = [(v.version, v.state, v.status.error_code) for v in call(request).model_version_status]
    assert found == [(2, status_stubs.ModelVersionStatus.AVAILABLE, 0), (1, 30, 0)]


# Fields that TensorFlow has got since the stubs were made.
NEWER = {"TensorProto": {"float8_val"}, "SignatureDef": {"defaults"}}


def test_our_descriptions_say_what_theirs_say(stubs: Any) -> None:
    """Every field of ours that they have too has the same number and type there."""
    from google.protobuf.descriptor_pb2 import DescriptorProto
    from google.protobuf.descriptor_pool import Default

    def fields(found: Any) -> dict[str, tuple[int, int, int]]:
        proto = DescriptorProto()
        found.CopyToProto(proto)
        return {f.name: (f.number, f.type, f.label) for f in proto.field}

    names = "TensorProto TensorShapeProto Example Features Feature SignatureDef TensorInfo".split()
    names += [f"serving.{m.name}" for m in serving_messages()]
    for name in names:
        mine = fields(message(f"tensorflow.{name}").DESCRIPTOR)
        theirs = fields(Default().FindMessageTypeByName(f"tensorflow.{name}"))
        known = {key: theirs[key] for key in mine if key in theirs}
        assert known == {key: mine[key] for key in known}, name
        assert set(mine) - set(known) <= NEWER.get(name, set()), name


def serving_messages() -> list[Any]:
    """What PredictionService takes and gives, and what that holds."""
    service = methods(SERVING + "PredictionService")["Predict"].containing_service
    skipped = ("Reload", "Status")
    return [m for n, m in service.file.message_types_by_name.items() if not any(s in n for s in skipped)]


# Our own messages


@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_there_and_back(channel: grpc.Channel, kind: str) -> None:
    """All inputs of `echo` are required, so each call sends them all; one output is asked for."""
    numbers, words = [[0, 1], [1, 0]], [["ä", ""], ["x", "y"]]
    values = {k: np.array(words if k == "string" else numbers, DTYPES[k].to_numpy()) for k in KINDS}
    request = predict(spec("echo"), (f"out_{kind}",), **{f"in_{k}": v for k, v in values.items()})
    answer = ask(channel, "Predict", request)
    assert list(answer.outputs) == [f"out_{kind}"]
    found = to_arrays(answer.outputs, 1 << 20)[f"out_{kind}"]
    assert found.dtype == values[kind].dtype
    assert found.tolist() == values[kind].tolist()


def test_short_floats_there_and_back(channel: grpc.Channel) -> None:
    values = {k: np.array([[0.5, -2], [1, 0]], DTYPES[k].to_numpy()) for k in SHORT_KINDS}
    answer = ask(channel, "Predict", predict(spec("short"), **{f"in_{k}": v for k, v in values.items()}))
    found = to_arrays(answer.outputs, 1 << 20)
    for kind, value in values.items():
        assert found[f"out_{kind}"].tobytes() == value.tobytes()


def test_a_large_tensor(channel: grpc.Channel) -> None:
    """Over the size that is parsed and encoded on a thread."""
    rows = 100_000
    a, b = np.arange(rows, dtype=np.float32), np.ones((rows, 2), np.float32)
    answer = ask(channel, "Predict", predict(spec(version=1), ("value",), a=a, b=b))
    found = to_arrays(answer.outputs, 1 << 30)["value"]
    assert np.array_equal(found[:, 0], expected_value(a, b))


VERSIONS = [
    ("the newest", {}, 2),
    ("a version", {"version": 1}, 1),
    ("a label", {"label": "stable"}, 1),
    ("another label", {"label": "canary"}, 2),
]


@pytest.mark.parametrize(("why", "choice", "version"), VERSIONS, ids=[v[0] for v in VERSIONS])
def test_the_version_that_answers_is_told(
    channel: grpc.Channel, why: str, choice: dict[str, Any], version: int
) -> None:
    answer = ask(channel, "Predict", predict(spec(**choice), a=A, b=B))
    assert answer.model_spec.version.value == version, why
    assert answer.model_spec.signature_name == "serving_default"
    assert not answer.model_spec.version_label
    expected = expected_value(A, B, 10.0 if version == 2 else 1.0)
    assert list(answer.outputs["value"].float_val) == expected.tolist()
    metadata = ours("GetModelMetadataRequest", model_spec=spec(**choice), metadata_field=["signature_def"])
    assert ask(channel, "GetModelMetadata", metadata).model_spec.version.value == version


def test_defaults_fill_what_is_absent(channel: grpc.Channel) -> None:
    answer = ask(channel, "Predict", predict(spec(signature="price", version=1), a=A))
    assert list(answer.outputs["outputs"].float_val) == [3.0, 2.0]


REQUESTS: list[tuple[str, str, Callable[[], Any], str, str]] = [
    ("no model spec", "Predict", lambda: ours("PredictRequest"), "INVALID_ARGUMENT", "Missing ModelSpec"),
    (
        "no name",
        "Predict",
        lambda: predict(spec("")),
        "INVALID_ARGUMENT",
        "ModelSpec has no name specified.",
    ),
    (
        "an unknown model",
        "Predict",
        lambda: predict(spec("x")),
        "NOT_FOUND",
        "Servable not found for request: Latest(x)",
    ),
    (
        "a name that is longer than any answer",
        "Predict",
        lambda: predict(spec("ä" * 500_000)),
        "NOT_FOUND",
        "Servable not found for request: Latest(ää",
    ),
    (
        "a hundred thousand inputs",
        "Predict",
        lambda: ours("PredictRequest", model_spec=spec(), inputs={str(i): {} for i in range(100_000)}),
        "INVALID_ARGUMENT",
        "input size does not match signature: 100000!=2",
    ),
    (
        "an unknown version",
        "Regress",
        lambda: ours("RegressionRequest", model_spec=spec(version=7)),
        "NOT_FOUND",
        "Servable not found for request: Specific(flowers, 7)",
    ),
    (
        "an unknown label",
        "Predict",
        lambda: predict(spec(label="x")),
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: x",
    ),
    (
        "a label whose version is not there",
        "Predict",
        lambda: predict(spec(label="gone")),
        "UNAVAILABLE",
        "label 'gone' of model 'flowers' names version 7",
    ),
    (
        "an unknown signature",
        "Predict",
        lambda: predict(spec(signature="x")),
        "FAILED_PRECONDITION",
        'Serving signature key "x" not found.',
    ),
    (
        "an unknown signature to classify",
        "Classify",
        lambda: ours("ClassificationRequest", model_spec=spec(signature="x")),
        "FAILED_PRECONDITION",
        'Serving signature key "x" not found.',
    ),
    (
        "an input too many",
        "Predict",
        lambda: predict(spec(), a=A, b=B, c=A),
        "INVALID_ARGUMENT",
        "input size does not match signature: 3!=2 len({a,b,c}) != len({a,b}). Sent extra: {c}. Missing",
    ),
    (
        "an input that is missing",
        "Predict",
        lambda: predict(spec(), a=A),
        "INVALID_ARGUMENT",
        "Missing but required: {b}.",
    ),
    (
        "the wrong dtype",
        "Predict",
        lambda: predict(spec(), a=A.astype(np.float64), b=B),
        "INVALID_ARGUMENT",
        "input 'a' has the wrong dtype",
    ),
    (
        "the wrong shape",
        "Predict",
        lambda: predict(spec(), a=A, b=A),
        "INVALID_ARGUMENT",
        "input 'b' has the wrong shape",
    ),
    (
        "a trillion rows of one value",
        "Predict",
        lambda: ours(
            "PredictRequest",
            model_spec=spec(signature="inverse"),
            inputs={
                "a": message("tensorflow.TensorProto")(
                    dtype=1, float_val=[1], tensor_shape={"dim": [{"size": 10**12}]}
                )
            },
        ),
        "RESOURCE_EXHAUSTED",
        "the inputs are too large",
    ),
    (
        "an unknown output",
        "Predict",
        lambda: predict(spec(), ("x",), a=A, b=B),
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: x Outputs expected to be in the set {scores,value}.",
    ),
    (
        "an output twice",
        "Predict",
        lambda: predict(spec(), ("value", "value"), a=A, b=B),
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: value",
    ),
    (
        "no examples",
        "Regress",
        lambda: ours("RegressionRequest", model_spec=spec()),
        "INVALID_ARGUMENT",
        "Input is empty.",
    ),
    (
        "an empty list of examples",
        "Regress",
        lambda: ours("RegressionRequest", model_spec=spec(), input=given()),
        "INVALID_ARGUMENT",
        "Input is empty.",
    ),
    (
        "an example without a feature",
        "Regress",
        lambda: ours("RegressionRequest", model_spec=spec(), input=given(ROWS[0], example(b=[1.0, 2.0]))),
        "INVALID_ARGUMENT",
        "example 1 has no feature 'a'",
    ),
    (
        "text that is not UTF-8",
        "Regress",
        lambda: ours("RegressionRequest", model_spec=spec(), input=given(example(a=[b"\xff"]))),
        "INVALID_ARGUMENT",
        "example 0, feature 'a'",
    ),
    (
        "text among numbers",
        "Regress",
        lambda: ours("RegressionRequest", model_spec=spec(), input=given(ROWS[0], example(a=[b"x"]))),
        "INVALID_ARGUMENT",
        "example 1, feature 'a'",
    ),
    (
        "a signature of another method",
        "Classify",
        lambda: ours("ClassificationRequest", model_spec=spec(signature="price"), input=given(*ROWS)),
        "INVALID_ARGUMENT",
        "Expected classification signature method_name to be tensorflow/serving/classify. "
        "Was: tensorflow/serving/regress",
    ),
    ("no tasks", "MultiInference", lambda: ours("MultiInferenceRequest"), "INVALID_ARGUMENT", "no tasks"),
    (
        "tasks for two models",
        "MultiInference",
        lambda: multi((spec(signature="price"), "regress"), (spec("echo"), "regress")),
        "INVALID_ARGUMENT",
        "must access the same model name",
    ),
    (
        "tasks for two versions",
        "MultiInference",
        lambda: multi((spec(version=1), "regress"), (spec(version=2), "regress")),
        "INVALID_ARGUMENT",
        "one version or label, for all tasks",
    ),
    (
        "one signature twice",
        "MultiInference",
        lambda: multi((spec(), "regress"), (spec(signature="price"), "regress")),
        "INVALID_ARGUMENT",
        "Duplicate evaluation of signature: price",
    ),
    (
        "predict as a task",
        "MultiInference",
        lambda: multi((spec(), "predict")),
        "UNIMPLEMENTED",
        "Unsupported signature method_name: tensorflow/serving/predict",
    ),
    (
        "metadata of nothing",
        "GetModelMetadata",
        lambda: ours("GetModelMetadataRequest", model_spec=spec()),
        "INVALID_ARGUMENT",
        "metadata_field",
    ),
    (
        "metadata that there is not",
        "GetModelMetadata",
        lambda: ours("GetModelMetadataRequest", model_spec=spec(), metadata_field=["x"]),
        "INVALID_ARGUMENT",
        "Metadata field x is not supported",
    ),
    (
        "the status of an unknown model",
        "GetModelStatus",
        lambda: ours("GetModelStatusRequest", model_spec=spec("x")),
        "NOT_FOUND",
        "Could not find any versions of model x",
    ),
    (
        "the status of an unknown version",
        "GetModelStatus",
        lambda: ours("GetModelStatusRequest", model_spec=spec(version=9)),
        "NOT_FOUND",
        "Could not find version 9 of model flowers",
    ),
    (
        "a reload that nobody allowed",
        "HandleReloadConfigRequest",
        lambda: ours("ReloadConfigRequest"),
        "PERMISSION_DENIED",
        "administrative calls are not allowed",
    ),
]


def multi(*tasks: tuple[Any, str]) -> Any:
    request = ours("MultiInferenceRequest", input=given(*ROWS))
    for model_spec, method in tasks:
        request.tasks.add(model_spec=model_spec, method_name=f"tensorflow/serving/{method}")
    return request


@pytest.mark.parametrize(("why", "name", "make", "status", "part"), REQUESTS, ids=[r[0] for r in REQUESTS])
def test_bad_requests_are_refused(
    channel: grpc.Channel, why: str, name: str, make: Callable[[], Any], status: str, part: str
) -> None:
    found, text = refused(channel, name, make())
    assert (found, part in text) == (status, True), (why, text)


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    for name in ("Predict", "Classify", "GetModelMetadata"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/{SERVING}PredictionService/{name}")(b"\xff\xff", timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVING}SessionService/SessionRun")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_classes_by_name_and_the_context(channel: grpc.Channel) -> None:
    request = ours(
        "ClassificationRequest",
        model_spec=spec(signature="ranked", label="stable"),
        input=given(example(a=[1.0]), context=example(a=[9.0], b=[2.0, 3.0])),
    )
    answer = ask(channel, "Classify", request)
    assert [(c.label, c.score) for c in answer.result.classifications[0].classes] == [
        ("tulip", 18.0),
        ("rose", 12.0),
        ("iris", 6.0),
    ]
    assert answer.model_spec.signature_name == "ranked"


@pytest.mark.parametrize(
    ("choice", "versions"), [({}, [2, 1]), ({"version": 1}, [1]), ({"label": "canary"}, [2])]
)
def test_status(channel: grpc.Channel, choice: dict[str, Any], versions: list[int]) -> None:
    request = ours("GetModelStatusRequest", model_spec=spec(**choice))
    found = ask(channel, "GetModelStatus", request).model_version_status
    assert [(v.version, v.state, v.status.error_code) for v in found] == [(v, 30, 0) for v in versions]


def test_status_by_label_over_rest(server: Running) -> None:
    def versions(label: str) -> list[str]:
        page = server.get(f"/v1/models/flowers/labels/{label}").json()
        return [v["version"] for v in page["model_version_status"]]

    assert (versions("stable"), versions("canary")) == (["1"], ["2"])
    assert "version 7" in server.get("/v1/models/flowers/labels/gone").error
    page = server.get("/v1/models/flowers/labels/stable/metadata").json()
    assert page["model_spec"]["version"] == "1"


def test_a_deadline_ends_the_work_on_the_server_too(tmp_path: Path) -> None:
    """A run that would never end is ended when its client has stopped waiting."""
    mserve.export(builders.endless(), tmp_path / "endless", golden=0)
    with serving(tmp_path / "endless", tmp_path / "log") as slow:
        with grpc.insecure_channel(f"127.0.0.1:{slow.grpc_port}") as channel:
            request = predict(spec("endless"), x=np.array([2**60]))
            status, _ = refused(channel, "Predict", request, timeout=0.5)
        assert status == "DEADLINE_EXCEEDED"
        ended = [f'code="{code}",model="endless"' for code in ("DEADLINE_EXCEEDED", "CANCELLED")]
        idle = 'mserve_in_flight{model="endless",version="1"} 0'

        def gone() -> bool:
            text = slow.get("/metrics").body.decode()
            return idle in text and any(e in text for e in ended)

        slow.wait_until(gone)


def test_a_request_does_not_wait_for_others_until_its_deadline_has_passed(tmp_path: Path) -> None:
    """The server lets requests wait a minute for others; one whose client waits less is answered before."""
    export_flowers(tmp_path / "flowers")
    flags = ("--name", "flowers", "--batch-delay", "60000")
    with (
        serving(tmp_path / "flowers", tmp_path / "log", *flags) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        for _ in range(20):  # a machine that is held up may answer one too late
            with suppress(grpc.RpcError):
                ask(channel, "Predict", predict(spec(), a=A, b=B), timeout=1)
                return
    pytest.fail("all were too late")


def test_calls_are_counted(server: Running, channel: grpc.Channel) -> None:
    ask(channel, "Predict", predict(spec(version=1), a=A, b=B))
    refused(channel, "Predict", predict(spec("x")))
    text = server.get("/metrics").body.decode()
    for labels in (
        'code="OK",model="flowers",protocol="tfs-grpc",signature="serving_default",version="1"',
        'code="NOT_FOUND",model="",protocol="tfs-grpc",signature="",version=""',
    ):
        assert f"mserve_requests_total{{{labels}}}" in text
