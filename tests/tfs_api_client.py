"""Every call of the package tensorflow-serving-api against a server; run by `test_tfs_api.py`, not by pytest.

    python tests/tfs_api_client.py HOST:PORT BASE_PATH

The server has the model `flowers` in versions 1 and 2, of which 2 multiplies by 10, and
the model `echo`. BASE_PATH is that of `flowers`.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

A, B = np.array([1, 0], np.float32), np.array([[2, 3], [1, 1]], np.float32)
KINDS = "float16 float32 float64 int8 int16 int32 int64 uint8 uint32 uint64 bool string".split()


def predict_request(model: str, inputs: dict[str, Any]) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    for alias, array in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
    return request


def check_predict(service: Any) -> None:
    request = predict_request("flowers", {"a": A, "b": B})
    request.model_spec.version.value = 1
    answer = service.Predict(request, 30)
    assert tf.make_ndarray(answer.outputs["scores"]).tolist() == [[6, 18, 12], [2, 6, 4]]
    assert list(answer.outputs["value"].float_val) == [6, 2]
    assert (answer.model_spec.version.value, answer.model_spec.signature_name) == (1, "serving_default")
    request.inputs["a"].CopyFrom(tf.make_tensor_proto(1.0, shape=[2]))  # one value for two elements
    assert list(service.Predict(request, 30).outputs["value"].float_val) == [6, 3]


def check_dtypes(service: Any) -> None:
    words = np.array([["ä".encode(), b""], [b"x", b"y"]], object)
    values = {k: words if k == "string" else np.array([[0, 1], [1, 0]]).astype(k) for k in KINDS}
    answer = service.Predict(predict_request("echo", {f"in_{k}": v for k, v in values.items()}), 30)
    for kind, value in values.items():
        found = tf.make_ndarray(answer.outputs[f"out_{kind}"])
        assert (found.dtype, found.tolist()) == (value.dtype, value.tolist()), kind


def example(a: float, b: list[float]) -> Any:
    def floats(values: list[float]) -> Any:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    return tf.train.Example(features=tf.train.Features(feature={"a": floats([a]), "b": floats(b)}))


def check_examples(service: Any) -> None:
    classify = classification_pb2.ClassificationRequest()
    classify.model_spec.name, classify.model_spec.signature_name = "flowers", "named"
    classify.input.example_list.examples.extend([example(1, [2, 3]), example(0, [1, 1])])
    first = service.Classify(classify, 30).result.classifications[0]
    assert [(c.label, c.score) for c in first.classes] == [("iris", 60), ("tulip", 180), ("rose", 120)]
    regress = regression_pb2.RegressionRequest(input=classify.input)
    regress.model_spec.name = "flowers"
    assert [r.value for r in service.Regress(regress, 30).result.regressions] == [60, 20]
    several = inference_pb2.MultiInferenceRequest(input=classify.input)
    for signature, method in (("ranked", "classify"), ("price", "regress")):
        task = several.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "flowers", signature
    results = [r.WhichOneof("result") for r in service.MultiInference(several, 30).results]
    assert results == ["classification_result", "regression_result"]


def check_pages(service: Any, models: Any) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "flowers"
    found = get_model_metadata_pb2.SignatureDefMap()
    assert service.GetModelMetadata(request, 30).metadata["signature_def"].Unpack(found)
    assert tf.make_ndarray(found.signature_def["price"].defaults["b"]).tolist() == [0.5, 1.5]
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "flowers"
    versions = models.GetModelStatus(status, 30).model_version_status
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert [(v.version, v.state, v.status.error_code) for v in versions] == [
        (2, available, 0),
        (1, available, 0),
    ]


def check_reload(service: Any, models: Any, base_path: str) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    listed = request.config.model_config_list.config
    model = listed.add(name="flowers", base_path=base_path, model_platform="tensorflow")
    model.model_version_policy.all.SetInParent()
    model.version_labels["stable"] = 1
    answer = models.HandleReloadConfigRequest(request, 30)
    assert (answer.status.error_code, answer.status.error_message) == (0, "")
    asked = predict_request("flowers", {"a": A, "b": B})
    asked.model_spec.version_label = "stable"
    assert service.Predict(asked, 30).model_spec.version.value == 1


def main(address: str, base_path: str) -> None:
    with grpc.insecure_channel(address) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        check_predict(service)
        check_dtypes(service)
        check_examples(service)
        check_pages(service, models)
        check_reload(service, models, base_path)
    print("all calls answered")


if __name__ == "__main__":
    main(*sys.argv[1:])
