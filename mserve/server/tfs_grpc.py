"""TensorFlow Serving's gRPC API, as a codec over the Front.

PredictionService: Predict, Classify, Regress, MultiInference, GetModelMetadata.
ModelService: GetModelStatus here, HandleReloadConfigRequest in `tfs_reload`.

Source: https://github.com/tensorflow/serving/tree/master/tensorflow_serving/apis
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

from ..errors import FailedPrecondition, MserveError, NotFound, RequestError, Unimplemented
from ..front import Query
from ..loader.servable import Servable
from ..tensors import Array, Signature
from ..wire import tfs_examples, tfs_json, tfs_proto, tfs_serialised
from ..wire.messages import message
from . import tfs_methods
from .calls import Call, Calls
from .exchange import Cancel
from .peers import Peers
from .rpc import Methods, Rpc, RpcReply, Unary
from .tfs_pages import find, statuses

_PACKAGE = "tensorflow.serving."
_METHOD_NAMES = {f"tensorflow/serving/{m}": m for m in ("classify", "regress")}
_RESULTS = {"classify": "classification_result", "regress": "regression_result"}


class TfsGrpc:
    """The methods of TensorFlow Serving's services."""

    def __init__(self, calls: Calls, limits: Peers) -> None:
        self._calls = calls
        self._front = calls.front
        self._limits = limits

    def methods(self) -> Methods:
        """Every method but HandleReloadConfigRequest, by its full name."""
        kinds: dict[str, type[TfsCall]] = {
            "Predict": Predict,
            "Classify": Classify,
            "Regress": Regress,
            "MultiInference": MultiInference,
        }
        unary: dict[str, Unary] = {n: partial(self._infer, kind) for n, kind in kinds.items()}
        unary["GetModelMetadata"] = self._metadata
        named = {f"{_PACKAGE}PredictionService/{name}": handler for name, handler in unary.items()}
        return Methods({**named, f"{_PACKAGE}ModelService/GetModelStatus": self._status}, {})

    def _infer(self, kind: type[TfsCall], rpc: Rpc, reply: RpcReply) -> Cancel:
        return self._calls.begin(kind(rpc, reply, self._limits.body_max), len(rpc.message))

    def _metadata(self, rpc: Rpc, reply: RpcReply) -> None:
        request = tfs_proto.read(f"{_PACKAGE}GetModelMetadataRequest", rpc.message)
        servable = self._front.resolve(*address(request))
        if not request.metadata_field:
            raise RequestError("the request names no metadata_field", expected="signature_def")
        for field in request.metadata_field:
            if field != "signature_def":
                raise RequestError(f"Metadata field {field} is not supported", expected="signature_def")
        response = message(f"{_PACKAGE}GetModelMetadataResponse")()
        response.model_spec.CopyFrom(_spec(request.model_spec.name, servable, ""))
        signatures = message(f"{_PACKAGE}SignatureDefMap")()
        for name, signature in servable.signatures.items():
            signatures.signature_def[name].CopyFrom(tfs_proto.signature_def(signature))
        response.metadata["signature_def"].Pack(signatures)
        reply(response.SerializeToString())

    def _status(self, rpc: Rpc, reply: RpcReply) -> None:
        request = tfs_proto.read(f"{_PACKAGE}GetModelStatusRequest", rpc.message)
        name, version, label = address(request)
        response = message(f"{_PACKAGE}GetModelStatusResponse")()
        for found in statuses(find(self._front.models, name), version, label):
            entry = response.model_version_status.add(version=found.version)
            entry.state = entry.State.Value(found.state)
            entry.status.CopyFrom(status_proto(found.code, found.reason))
        reply(response.SerializeToString())


def status_proto(code: str, text: str = "") -> Any:
    """A StatusProto; `code` is the name of a gRPC status."""
    status = message(f"{_PACKAGE}StatusProto")(error_message=text)
    codes = status.DESCRIPTOR.fields_by_name["error_code"].enum_type.values_by_name
    status.error_code = codes[code].number
    return status


def address(request: Any) -> tuple[str, int | None, str | None]:
    """The model, and the version or the label, that a request is for. Raises RequestError."""
    if not request.HasField("model_spec"):
        raise RequestError("Missing ModelSpec")
    spec = request.model_spec
    if not spec.name:
        raise RequestError("ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    return spec.name, version, spec.version_label if choice == "version_label" else None


def _spec(model: str, servable: Servable, signature: str) -> Any:
    """Which model, version and signature have answered."""
    spec = message(f"{_PACKAGE}ModelSpec")(name=model, signature_name=signature)
    spec.version.value = servable.version
    return spec


class TfsCall(Call):
    """A call of PredictionService."""

    protocol = "tfs-grpc"
    request: ClassVar[str]

    def __init__(self, rpc: Rpc, reply: RpcReply, limit: int) -> None:
        super().__init__(rpc.context, reply)
        self._bytes = rpc.message
        self._limit = limit

    def parse(self) -> None:
        self._message = tfs_proto.read(f"{_PACKAGE}{self.request}", self._bytes)
        self._bytes = b""
        self.model, self.version, self.label = self.address()

    def address(self) -> tuple[str, int | None, str | None]:
        """The model, and the version or the label, that is asked for. Raises RequestError."""
        return address(self._message)

    def signature_of(self, index: int = 0) -> Signature:
        """The signature of a query."""
        return self.servable.signatures[self.queried[index].signature]

    def named(self, results: Sequence[Sequence[Array]], index: int = 0) -> dict[str, Array]:
        """A query's outputs by alias."""
        return dict(zip(self.signature_of(index).outputs, results[index], strict=True))

    def spec(self, index: int = 0) -> Any:
        """What has answered a query."""
        return _spec(self.model, self.servable, self.queried[index].signature)

    @abstractmethod
    def response(self, results: Sequence[Sequence[Array]]) -> Any:
        """The answer as a message."""

    def encode(self, results: Sequence[Sequence[Array]]) -> bytes:
        answer: bytes = self.response(results).SerializeToString()
        return answer

    def refuse(self, error: MserveError) -> MserveError:
        return error

    def code(self, error: MserveError | None) -> str:
        return error.grpc_status if error else "OK"


class Predict(TfsCall):
    """Predict: tensors in, tensors out."""

    request = "PredictRequest"

    def queries(self) -> Sequence[Query]:
        wanted = self._message.model_spec.signature_name
        try:
            name, signature = self.servable.signature(wanted)
        except NotFound as error:
            raise _unknown(wanted, error) from error
        tfs_json.check_outputs(self._message.output_filter, signature)
        arrays = tfs_serialised.of_tensor(self._message.inputs, signature)
        if arrays is None:
            _check_aliases(self._message.inputs, signature)
            arrays = tfs_proto.to_arrays(self._message.inputs, self._limit)
        return (Query(name, arrays),)

    def response(self, results: Sequence[Sequence[Array]]) -> Any:
        answer = message(f"{_PACKAGE}PredictResponse")(model_spec=self.spec())
        outputs = self.named(results)
        for alias in self._message.output_filter or outputs:
            tfs_proto.write(answer.outputs[alias], outputs[alias])
        return answer


class OnExamples(TfsCall):
    """A call that is asked with examples."""

    def on_examples(self, asked: Sequence[tuple[Any, str]]) -> list[Query]:
        """The examples as the inputs of the signatures that answer: a ModelSpec and a method for each.

        Raises RequestError.
        """
        chosen: dict[str, Signature] = {}
        for spec, method in asked:
            try:
                name, signature = tfs_methods.choose(self.servable, method, spec.signature_name)
            except NotFound as error:
                raise _unknown(spec.signature_name, error) from error
            if name in chosen:
                raise RequestError(f"Duplicate evaluation of signature: {name}")
            chosen[name] = signature
        examples, context = tfs_proto.examples_of(self._message.input)
        return [
            Query(name, tfs_examples.to_inputs(examples, context, signature, self._limit))
            for name, signature in chosen.items()
        ]

    def classes(self, results: Sequence[Sequence[Array]], index: int = 0) -> Any:
        """A query's outputs as a ClassificationResult."""
        named, result = self.named(results, index), message(f"{_PACKAGE}ClassificationResult")()
        labels, scores = tfs_methods.classes(self.servable, self.queried[index].signature, named)
        for words, row in zip(labels, scores.tolist(), strict=True):
            classes = result.classifications.add().classes
            for label, score in zip(words, row, strict=True):
                classes.add(label=label, score=score)
        return result

    def values(self, results: Sequence[Sequence[Array]], index: int = 0) -> Any:
        """A query's outputs as a RegressionResult."""
        result = message(f"{_PACKAGE}RegressionResult")()
        for value in tfs_methods.values(self.signature_of(index), self.named(results, index)).tolist():
            result.regressions.add(value=value)
        return result


class Classify(OnExamples):
    """Classify: examples in, labels with scores out."""

    request = "ClassificationRequest"

    def queries(self) -> Sequence[Query]:
        return self.on_examples([(self._message.model_spec, "classify")])

    def response(self, results: Sequence[Sequence[Array]]) -> Any:
        result = self.classes(results)
        return message(f"{_PACKAGE}ClassificationResponse")(result=result, model_spec=self.spec())


class Regress(OnExamples):
    """Regress: examples in, a value for each out."""

    request = "RegressionRequest"

    def queries(self) -> Sequence[Query]:
        return self.on_examples([(self._message.model_spec, "regress")])

    def response(self, results: Sequence[Sequence[Array]]) -> Any:
        result = self.values(results)
        return message(f"{_PACKAGE}RegressionResponse")(result=result, model_spec=self.spec())


class MultiInference(OnExamples):
    """MultiInference: the same examples to several signatures of one version."""

    request = "MultiInferenceRequest"

    def address(self) -> tuple[str, int | None, str | None]:
        """What all tasks are for. Raises RequestError, Unimplemented."""
        tasks = self._message.tasks
        if not tasks:
            raise RequestError("the request has no tasks")
        first = address(tasks[0])
        for task in tasks:
            if address(task) != first:
                raise RequestError(
                    "All ModelSpecs in a MultiInferenceRequest must access the same model name",
                    expected="one model, and one version or label, for all tasks",
                    found=f"{first[0]} and {task.model_spec.name}",
                )
            if task.method_name not in _METHOD_NAMES:
                raise Unimplemented(
                    f"Unsupported signature method_name: {task.method_name}",
                    expected=" or ".join(_METHOD_NAMES),
                )
        return first

    def queries(self) -> Sequence[Query]:
        return self.on_examples([(t.model_spec, _METHOD_NAMES[t.method_name]) for t in self._message.tasks])

    def response(self, results: Sequence[Sequence[Array]]) -> Any:
        answer = message(f"{_PACKAGE}MultiInferenceResponse")()
        for index, task in enumerate(self._message.tasks):
            method = _METHOD_NAMES[task.method_name]
            result = (self.classes if method == "classify" else self.values)(results, index)
            answer.results.add(model_spec=self.spec(index), **{_RESULTS[method]: result})
        return answer


def _check_aliases(inputs: Any, signature: Signature) -> None:
    """The inputs are those of the signature, as far as they have no defaults. Raises RequestError."""
    missing = [a for a, s in signature.inputs.items() if a not in inputs and not s.optional]
    extra = [a for a in inputs if a not in signature.inputs]
    if missing or extra:
        sent, needed = _names(inputs), _names(signature.inputs)
        raise RequestError(
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)} "
            f"len({{{sent}}}) != len({{{needed}}}). Sent extra: {{{_names(extra)}}}. "
            f"Missing but required: {{{_names(missing)}}}."
        )


def _names(names: Iterable[str]) -> str:
    return ",".join(sorted(names))[:400]


def _unknown(name: str, error: NotFound) -> FailedPrecondition:
    return FailedPrecondition(f'Serving signature key "{name}" not found.', expected=error.expected)
