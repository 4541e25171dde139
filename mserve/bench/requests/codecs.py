"""The five protocols: a request as bytes, and what an answer's bytes say.

Each is a `Codec`, a row of CODECS. Requests are made once, before anything is measured;
answers are read only where they are verified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from ...errors import MserveError, RequestError, UsageError
from ...tensors import Array, dtype_of
from ...wire import oip, oip_json, oip_texts, protobuf, tfs_json, tfs_proto
from ...wire.messages import message
from ..load.client import request_bytes
from ..targets.endpoint import Endpoint

ANSWER_BYTES_MAX = 1 << 30
_OIP_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_TFS_METHOD = "/tensorflow.serving.PredictionService/Predict"


@dataclass(frozen=True, slots=True)
class Asked:
    """Which model is asked: `version` is "", "/versions/N" or "/labels/L"; `signature` "" for the default.

    `rows` tells whether the inputs have rows, which JSON of TensorFlow Serving's writes one by one.
    """

    model: str
    version: str = ""
    signature: str = ""
    rows: bool = True

    @property
    def version_name(self) -> str:
        """The version's number or label alone."""
        return self.version.rsplit("/", 1)[-1]


Encode = Callable[[Endpoint, Asked, Mapping[str, Array]], bytes]
Decode = Callable[[bytes, bytes | None], dict[str, Array]]


@dataclass(frozen=True, slots=True)
class Codec:
    """One protocol. `encode` makes a whole HTTP request, or the message of a call.

    `decode` reads the outputs of an answer's body (for HTTP with the value of the header that
    says how much of it is JSON) and raises RequestError; `method` is the path of gRPC's.
    """

    title: str
    encode: Encode
    decode: Decode
    method: str = ""


def tfs_path(asked: Asked) -> str:
    """Where TensorFlow Serving's REST API has the model."""
    return f"/v1/models/{quote(asked.model, safe='')}{asked.version}"


def oip_path(asked: Asked) -> str:
    """Where Open Inference has the model."""
    version = f"/versions/{asked.version_name}" if asked.version else ""
    return f"/v2/models/{quote(asked.model, safe='')}{version}"


# TensorFlow Serving's REST API


def tfs_body(asked: Asked, arrays: Mapping[str, Array]) -> bytes:
    """A predict request's body."""
    return named(tfs_json.encode_inputs(arrays, rows=asked.rows), asked.signature)


def tfs_request(endpoint: Endpoint, asked: Asked, body: bytes) -> bytes:
    """The HTTP request of a body."""
    return request_bytes(endpoint.authority, f"{tfs_path(asked)}:predict", body, endpoint.headers)


def _tfs_encode(endpoint: Endpoint, asked: Asked, arrays: Mapping[str, Array]) -> bytes:
    return tfs_request(endpoint, asked, tfs_body(asked, arrays))


def named(body: bytes, signature: str) -> bytes:
    """A body of JSON with a signature's name in it, if one was asked for."""
    if not signature:
        return body
    return b'{"signature_name":' + orjson.dumps(signature) + b"," + body.lstrip()[1:]


def _tfs_decode(body: bytes, _: bytes | None) -> dict[str, Array]:
    """Outputs by name; of a single output, whose name JSON leaves out, under "".

    Numbers become float64: JSON does not tell what they were.
    """
    value = tfs_json.parse(body)
    if "predictions" in value:
        rows = value["predictions"]
        if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "b64" not in rows[0]:
            return {name: values([row[name] for row in rows]) for name in rows[0]}
        return {"": values(rows)}
    if "outputs" not in value:
        raise RequestError("the answer has neither predictions nor outputs", found=", ".join(value)[:80])
    columns = value["outputs"]
    if isinstance(columns, dict) and "b64" not in columns:
        return {name: values(column) for name, column in columns.items()}
    return {"": values(columns)}


def values(nested: Any) -> Array:
    """Nested lists as an array of float64, of truth values, or of text. Raises RequestError."""
    import numpy as np

    try:
        array: Array = np.asarray(nested)
    except ValueError as error:  # lists of different lengths
        raise RequestError("the answer holds lists that are no array", found=error) from error
    if array.dtype.kind in "iuf":
        return array.astype(np.float64)
    return array if array.dtype.kind == "b" else np.asarray(nested, object)


# the Open Inference Protocol over REST


def _oip_entry(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "datatype": oip.Output(name, array).datatype, "shape": list(array.shape)}


def _oip_parameters(asked: Asked, **others: Any) -> dict[str, Any]:
    given = {"signature_name": asked.signature} if asked.signature else {}
    parameters = given | others
    return {"parameters": parameters} if parameters else {}


def oip_request(endpoint: Endpoint, asked: Asked, body: bytes) -> bytes:
    """The HTTP request of a JSON body."""
    return request_bytes(endpoint.authority, f"{oip_path(asked)}/infer", body, endpoint.headers)


def _oip_encode(endpoint: Endpoint, asked: Asked, arrays: Mapping[str, Array]) -> bytes:
    import numpy as np

    entries = []
    for name, array in arrays.items():
        entry = _oip_entry(name, array)
        if entry["datatype"] in oip.RAW_ONLY or (array.dtype.kind == "f" and not np.isfinite(array).all()):
            raise UsageError(
                "JSON does not carry the input",
                where=name,
                found=f"{dtype_of(array)}, or NaN",
                hint="--protocol oip-binary",
            )
        plain = array.dtype.kind in "fiub"
        entries.append(entry | {"data": np.ravel(array) if plain else array.ravel().tolist()})
    body = {"inputs": entries, **_oip_parameters(asked)}
    return oip_request(endpoint, asked, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))


def _oip_binary(endpoint: Endpoint, asked: Asked, arrays: Mapping[str, Array]) -> bytes:
    raw = {name: oip.to_raw(array) for name, array in arrays.items()}
    entries = [
        _oip_entry(name, array) | {"parameters": {"binary_data_size": len(raw[name])}}
        for name, array in arrays.items()
    ]
    head = orjson.dumps({"inputs": entries, **_oip_parameters(asked, binary_data_output=True)})
    headers = (*endpoint.headers, (oip_json.HEADER, str(len(head))))
    path, body = f"{oip_path(asked)}/infer", head + b"".join(raw.values())
    return request_bytes(endpoint.authority, path, body, headers, oip_json.BINARY)


def _oip_decode(body: bytes, header: bytes | None) -> dict[str, Array]:
    length = len(body) if header is None else oip_json.header_length(header, len(body))
    answer = oip_json.load(body[:length], '{"outputs": [...]}')
    outputs, tail, at = {}, body[length:], 0
    try:
        for output in answer["outputs"]:
            name, shape = str(output["name"]), oip.check_shape(output["shape"], str(output["name"]))
            size = (output.get("parameters") or {}).get("binary_data_size")
            if size is None:
                outputs[name] = values(output["data"]).reshape(shape)
            else:
                outputs[name] = oip.from_raw(tail[at : at + size], _dtype(output["datatype"]), shape, name)
                at += size
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError("the answer is not Open Inference's", found=repr(error)[:100]) from error
    return outputs


def _dtype(datatype: str) -> str:
    if datatype not in oip.DATATYPES:
        raise RequestError("an output has an unknown datatype", found=datatype[:32])
    return oip.DATATYPES[datatype]


# gRPC


def _grpc_encode(_: Endpoint, asked: Asked, arrays: Mapping[str, Array]) -> bytes:
    request = message("inference.ModelInferRequest")(model_name=asked.model, model_version=asked.version_name)
    if asked.signature:
        request.parameters["signature_name"].string_param = asked.signature
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=oip.Output(name, array).datatype, shape=array.shape)
        request.raw_input_contents.append(oip.to_raw(array))
    return bytes(request.SerializeToString())


_CONTENTS = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def _grpc_decode(body: bytes, _: bytes | None) -> dict[str, Array]:
    from google.protobuf.message import DecodeError

    try:
        answer = message("inference.ModelInferResponse").FromString(body)
    except DecodeError as error:
        raise RequestError("the answer is no ModelInferResponse", found=error) from error
    outputs, raw = {}, list(answer.raw_output_contents)
    for index, port in enumerate(answer.outputs):
        shape, dtype = oip.check_shape(list(port.shape), port.name), _dtype(port.datatype)
        if index < len(raw):
            outputs[port.name] = oip.from_raw(raw[index], dtype, shape, port.name)
            continue
        found = list(getattr(port.contents, _CONTENTS.get(port.datatype, "bytes_contents")))
        if dtype == "string":
            found = [oip_texts.text(word, port.name) for word in found]
        try:
            outputs[port.name] = values(found).reshape(shape)
        except ValueError as error:
            raise RequestError("an output does not fit its shape", where=port.name, found=error) from error
    return outputs


def _tfs_grpc_encode(_: Endpoint, asked: Asked, arrays: Mapping[str, Array]) -> bytes:
    request = message("tensorflow.serving.PredictRequest")()
    spec = request.model_spec
    spec.name, spec.signature_name = asked.model, asked.signature
    if asked.version.startswith("/labels/"):
        spec.version_label = asked.version_name
    elif asked.version:
        spec.version.value = int(asked.version_name)
    for name, array in arrays.items():
        tfs_proto.write(request.inputs[name], array)
    return bytes(request.SerializeToString())


def _tfs_grpc_decode(body: bytes, _: bytes | None) -> dict[str, Array]:
    answer = tfs_proto.read("tensorflow.serving.PredictResponse", body)
    return tfs_proto.to_arrays(answer.outputs, ANSWER_BYTES_MAX)


def version_of(body: bytes) -> bytes:
    """The version that an answer of gRPC says it comes from, b"" where it does not.

    Both services have it in field 2: text, or a model's description with a number in field 2.
    """
    try:
        for field in protobuf.fields(body):
            if field.number == 2 and field.wire_type == protobuf.BYTES:
                text = body[field.start : field.end]
                return text if text.isdigit() else _number_in(text)
    except protobuf.Malformed:
        pass
    return b""


def _number_in(spec: bytes) -> bytes:
    for field in protobuf.fields(spec):
        if field.number == 2 and field.wire_type == protobuf.BYTES:
            for inner in protobuf.fields(spec, field.start, field.end):
                return b"%d" % protobuf.integer(inner)
    return b""


CODECS = {
    "tfs": Codec("TensorFlow Serving REST", _tfs_encode, _tfs_decode),
    "oip": Codec("Open Inference REST, JSON", _oip_encode, _oip_decode),
    "oip-binary": Codec("Open Inference REST, binary tensors", _oip_binary, _oip_decode),
    "grpc": Codec("Open Inference gRPC", _grpc_encode, _grpc_decode, _OIP_METHOD),
    "tfs-grpc": Codec("TensorFlow Serving gRPC", _tfs_grpc_encode, _tfs_grpc_decode, _TFS_METHOD),
}
PROTOCOLS = ("auto", *CODECS)


def check_protocol(name: str, endpoint: Endpoint) -> None:
    """Refuse a protocol that does not exist, or that the URL's scheme does not carry. Raises UsageError."""
    if name not in PROTOCOLS:
        raise UsageError("no such protocol", expected=", ".join(PROTOCOLS), found=name)
    if name == "auto" or bool(CODECS[name].method) == endpoint.is_grpc:
        return
    scheme = "http" if endpoint.is_grpc else "grpc"
    raise UsageError(
        f"--protocol {name} does not go over {endpoint.scheme}://",
        found=endpoint.url,
        hint=f"gRPC has a port of its own: give its URL, {scheme}://HOST:PORT",
    )


def readable(error: MserveError) -> str:
    """An error of decoding as the message of a wrong result."""
    return f"the answer cannot be read: {error}"
