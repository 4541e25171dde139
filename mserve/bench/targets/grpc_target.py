"""What a server tells of its models over gRPC, before one is measured: by either of the two services."""

from __future__ import annotations

from typing import Any

from ...errors import EnvironmentProblem, InputError, MserveError, NotFound, UsageError
from ...tensors import Signature
from ...wire.grpc_answer import status_name
from ...wire.grpc_wire import STATUS
from ...wire.messages import message
from ..requests.codecs import Asked
from . import oip_target, tfs_target
from .endpoint import Endpoint, unknown_protocol
from .grpc_asking import OIP, OK, TFS, UNIMPLEMENTED, ask
from .tfs_target import GIVE_INPUTS, READY_HINT

# A name that is asked for only to see whether the service answers.
_NOBODY = "mserve-bench"
_SIGNATURE_DEF = "signature_def"


def speaks_oip(endpoint: Endpoint) -> bool:
    """Whether the server has Open Inference's service. Raises EnvironmentProblem where it has no gRPC."""
    asked = message("inference.ServerReadyRequest")()
    return ask(endpoint, f"{OIP}/ServerReady", asked, "inference.ServerReadyResponse")[0] != UNIMPLEMENTED


def speaks_tfs(endpoint: Endpoint) -> bool:
    """Whether the server has TensorFlow Serving's service."""
    return _tfs_metadata(endpoint, Asked(_NOBODY))[0] != UNIMPLEMENTED


def _tfs_metadata(endpoint: Endpoint, asked: Asked) -> tuple[int, Any]:
    request = message("tensorflow.serving.GetModelMetadataRequest")(metadata_field=[_SIGNATURE_DEF])
    request.model_spec.name = asked.model
    if asked.version.startswith("/labels/"):
        request.model_spec.version_label = asked.version_name
    elif asked.version:
        request.model_spec.version.value = int(asked.version_name)
    answer = "tensorflow.serving.GetModelMetadataResponse"
    return ask(endpoint, f"{TFS}/GetModelMetadata", request, answer)


def _refused(endpoint: Endpoint, asked: Asked, code: int, text: str) -> MserveError:
    """The server does not tell of a model."""
    if code in (STATUS["NOT_FOUND"], STATUS["INVALID_ARGUMENT"]):
        return NotFound("the server does not know the model", where=endpoint.url, found=text)
    if code == UNIMPLEMENTED:
        return unknown_protocol(endpoint, "a call for a model's metadata", text)
    return EnvironmentProblem(
        f"model {asked.model!r} is not ready",
        where=endpoint.url,
        found=f"{status_name(code)}: {text}",
        hint=READY_HINT,
    )


class OipGrpcApi:
    """The models of a server that speaks Open Inference over gRPC."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def models(self) -> list[str] | None:
        """The names of the server's models, None where it does not list them."""
        asked = message("inference.RepositoryIndexRequest")()
        answer = "inference.RepositoryIndexResponse"
        code, index = ask(self._endpoint, f"{OIP}/RepositoryIndex", asked, answer)
        return sorted({model.name for model in index.models}) if code == OK else None

    def check_ready(self, asked: Asked) -> None:
        """Refuse a model that the server does not know, or that cannot answer yet."""
        request = message("inference.ModelReadyRequest")(name=asked.model, version=asked.version_name)
        answer = "inference.ModelReadyResponse"
        code, found = ask(self._endpoint, f"{OIP}/ModelReady", request, answer)
        if code == OK and found.ready:
            return
        if code == OK:
            self._metadata(asked)  # whether it is known at all
            code, found = STATUS["UNAVAILABLE"], "ready: false"
        raise _refused(self._endpoint, asked, code, found)

    def _metadata(self, asked: Asked) -> Any:
        request = message("inference.ModelMetadataRequest")(name=asked.model, version=asked.version_name)
        answer = "inference.ModelMetadataResponse"
        code, found = ask(self._endpoint, f"{OIP}/ModelMetadata", request, answer)
        if code != OK:
            raise _refused(self._endpoint, asked, code, found)
        return found

    def signature(self, asked: Asked) -> Signature:
        """The signature that is asked for; its inputs only. Raises MserveError."""
        if asked.signature:  # this service tells of the default one only; ours has the other, too
            code, found = _tfs_metadata(self._endpoint, asked)
            if code == OK:
                return tfs_target.signature_of(_page(found), asked.signature)
            raise UsageError(
                "the server tells of its default signature only", found=asked.signature, hint=GIVE_INPUTS
            )
        ports = [
            {"name": port.name, "datatype": port.datatype, "shape": list(port.shape)}
            for port in self._metadata(asked).inputs
        ]
        return oip_target.signature_of({"inputs": ports}, "")

    def example(self, asked: Asked) -> bytes | None:
        """Nobody offers one over gRPC."""
        return None


class TfsGrpcApi(OipGrpcApi):
    """The models of a server that speaks TensorFlow Serving's gRPC; ours lists them by the other service."""

    def check_ready(self, asked: Asked) -> None:
        """Refuse a model that the server does not know, or that cannot answer yet."""
        code, found = _tfs_metadata(self._endpoint, asked)
        if code != OK:
            raise _refused(self._endpoint, asked, code, found)

    def signature(self, asked: Asked) -> Signature:
        """The signature that is asked for; its inputs only. Raises MserveError."""
        code, found = _tfs_metadata(self._endpoint, asked)
        if code != OK:
            raise _refused(self._endpoint, asked, code, found)
        return tfs_target.signature_of(_page(found), asked.signature)


def _page(found: Any) -> dict[str, Any]:
    """A GetModelMetadataResponse as the REST API has it. Raises InputError."""
    from google.protobuf.message import DecodeError

    try:
        signatures = message("tensorflow.serving.SignatureDefMap").FromString(
            found.metadata[_SIGNATURE_DEF].value
        )
    except DecodeError as error:
        raise InputError("the server's metadata is not understood", found=error, hint=GIVE_INPUTS) from error
    defs = {
        name: {"inputs": {alias: _info(info) for alias, info in signature.inputs.items()}}
        for name, signature in signatures.signature_def.items()
    }
    return {"metadata": {"signature_def": {"signature_def": defs}}}


def _info(info: Any) -> dict[str, Any]:
    kinds = message("tensorflow.TensorProto").DESCRIPTOR.fields_by_name["dtype"].enum_type.values_by_number
    shape = info.tensor_shape
    page = {"unknown_rank": shape.unknown_rank, "dim": [{"size": d.size} for d in shape.dim]}
    kind = kinds[info.dtype].name if info.dtype in kinds else str(info.dtype)
    return {"name": info.name, "dtype": kind, "tensor_shape": page}
