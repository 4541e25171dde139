"""The Open Inference Protocol's protobuf messages, to requests and back.

A request's tensors are all raw, in `raw_input_contents`, or all typed, in `contents`;
never mixed. Answers are always raw: tritonclient reads nothing else but text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RequestError
from .messages import message
from .oip import (
    DATATYPES,
    Given,
    InferRequest,
    Output,
    Wanted,
    check_parameters,
    check_shape,
    check_unique,
)
from .oip_texts import text
from .parts import check_parts
from .protobuf import encode_varint

# The field that holds the values of each datatype; half-size floats have none.
_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def decode(name: str, body: bytes) -> Any:
    """A message of the service by its short name. Raises RequestError for bytes that are none."""
    from google.protobuf.message import DecodeError

    check_parts(message(f"inference.{name}"), body)
    try:
        return message(f"inference.{name}").FromString(body)
    except DecodeError as error:
        raise RequestError(f"not a {name} message", found=str(error)[:200]) from error


def encode(name: str, value: Mapping[str, Any]) -> bytes:
    """A message of the service from the same thing as JSON; keys that it has no field for are left out."""
    from google.protobuf.json_format import ParseDict

    filled = ParseDict(value, message(f"inference.{name}")(), ignore_unknown_fields=True)
    return bytes(filled.SerializeToString())


def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """A map of parameters as plain values; those without a value are left out."""
    choices = {name: value.WhichOneof("parameter_choice") for name, value in given.items()}
    return {name: getattr(given[name], choice) for name, choice in choices.items() if choice}


def request(asked: Any) -> InferRequest:
    """A ModelInferRequest as a request. Raises RequestError."""
    values = parameters(asked.parameters)
    check_parameters(values)
    check_unique([port.name for port in asked.inputs], "input")
    check_unique([port.name for port in asked.outputs], "output")
    raw: Sequence[bytes | None] = list(asked.raw_input_contents)
    if raw and len(raw) != len(asked.inputs):
        raise RequestError(
            "raw_input_contents must have an entry for each input", expected=len(asked.inputs), found=len(raw)
        )
    pieces = raw or [None] * len(asked.inputs)
    inputs = [_input(port, piece) for port, piece in zip(asked.inputs, pieces, strict=True)]
    outputs = [_output(port) for port in asked.outputs]
    return InferRequest(inputs, outputs, asked.id or None, True, None, values)


def _input(port: Any, raw: bytes | None) -> Given:
    name = port.name
    if not name:
        raise RequestError("an input has no name")
    if "shared_memory_region" in port.parameters:
        raise RequestError(f"input {name!r} lies in shared memory", hint="send the tensor with the request")
    given = Given(name, port.datatype, check_shape(list(port.shape), name), raw=raw)
    filled = [field.name for field, _ in port.contents.ListFields()] if port.HasField("contents") else []
    if raw is not None:
        if filled:
            raise RequestError(f"input {name!r} has contents beside raw_input_contents", expected="either")
        return given
    field = _FIELDS.get(port.datatype, "")
    if field and set(filled) - {field}:
        raise RequestError(
            f"input {name!r} has contents of another datatype", expected=field, found=", ".join(filled)
        )
    if field == "bytes_contents":
        given.values = [text(word, name) for word in port.contents.bytes_contents]
    elif port.datatype in DATATYPES:
        given.values = list(getattr(port.contents, field)) if field else []
    return given


def _output(port: Any) -> Wanted:
    values = parameters(port.parameters)
    if "shared_memory_region" in values:
        raise RequestError(f"output {port.name!r} is wanted in shared memory", hint="take it from the answer")
    classes = values.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise RequestError(
            f"bad parameter classification of output {port.name!r}",
            expected="0 or more",
            found=repr(classes)[:60],
        )
    return Wanted(port.name, True, classes)


def head(name: str, version: str, outputs: Sequence[Output]) -> bytes:
    """What a ModelInferResponse says of its outputs; goes before the id and the tensors."""
    answer = message("inference.ModelInferResponse")(model_name=name, model_version=version)
    for output in outputs:
        answer.outputs.add(name=output.name, datatype=output.datatype, shape=output.array.shape)
    return bytes(answer.SerializeToString())


def response(head: bytes, request_id: str, tensors: Sequence[bytes]) -> bytes:
    """A ModelInferResponse: its head, the id of the request if it has one, raw tensors."""
    pieces = [head]
    if request_id:
        data = request_id.encode()
        pieces += (b"\x1a", encode_varint(len(data)), data)
    for tensor in tensors:
        pieces += (b"\x32", encode_varint(len(tensor)), tensor)
    return b"".join(pieces)
