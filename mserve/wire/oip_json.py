"""The Open Inference Protocol's REST bodies, to requests and back.

A body is JSON, and behind it the raw bytes of the tensors that say so, in the order of
the JSON; the header `Inference-Header-Content-Length` tells where the JSON ends. A
header of 0 means that the body is the raw bytes of a model's only input.

Answers hold flat data. JSON has no NaN and no Infinity: an output that has one must be
asked for as binary data, and so must half-size floats and text that is not UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..errors import RequestError
from ..tensors import Array
from .json_values import check_values
from .oip import (
    RAW_ONLY,
    Given,
    InferRequest,
    Output,
    Wanted,
    check_parameters,
    check_shape,
    check_unique,
    to_raw,
)
from .oip_texts import Buffer

HEADER = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
_SOURCES = ("data", "binary_data_size", "shared_memory_region")
_NO_SHM = "send the tensor with the request; this server maps no memory of its clients"


def parse(body: Buffer, header: bytes | None = None) -> InferRequest:
    """A request's body; `header` is the value of HEADER, None where there is none. Raises RequestError."""
    length = len(body) if header is None else header_length(header, len(body))
    if header is not None and length == 0:
        return InferRequest(body=body, binary=True)
    view = memoryview(body)
    message = load(view[:length], '{"inputs": [...]}')
    parameters = read_parameters(message, "the request")
    check_parameters(parameters)
    given = [_input(value) for value in _objects(message, "inputs", required=True)]
    check_unique([entry.name for entry, _ in given], "input")
    binary = _flag(parameters, "binary_data_output", False)
    outputs = [_output(value, binary) for value in _objects(message, "outputs")]
    check_unique([wanted.name for wanted in outputs], "output")
    _attach(given, view[length:])
    request_id = message.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise RequestError("the id is not a string", found=_kind(request_id))
    return InferRequest([entry for entry, _ in given], outputs, request_id, binary, None, parameters)


def load(body: Buffer, expected: str) -> dict[str, Any]:
    """A body as a JSON object. Raises RequestError with the byte where it stops being one."""
    check_values(body)
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            "the request is not valid JSON",
            where=f"byte {error.pos}",
            found=error.msg,
            hint="JSON has no NaN and no Infinity; send such values as binary data",
        ) from error
    if not isinstance(message, dict):
        raise RequestError("the request is not a JSON object", expected=expected, found=_kind(message))
    return message


def header_length(header: bytes, size: int) -> int:
    """The value of HEADER: how many bytes of a body of `size` are JSON. Raises RequestError."""
    if not header.isdigit() or len(header) > 18 or int(header) > size:
        raise RequestError(
            f"inference header size should be in range (0, {size})", found=header[:32].decode("latin-1")
        )
    return int(header)


def _objects(message: Mapping[str, Any], key: str, *, required: bool = False) -> list[dict[str, Any]]:
    values = message.get(key)
    if values is None and not required:
        return []
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise RequestError(
            f"the request has no list of {key}", expected=f'"{key}": [{{...}}, ...]', found=_kind(values)
        )
    return values


def read_parameters(owner: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The parameters of an object: strings, numbers, booleans. Raises RequestError."""
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise RequestError(f"the parameters of {what} are no object", found=_kind(parameters))
    for name, value in parameters.items():
        if not isinstance(value, str | bool | int | float):
            raise RequestError(
                f"bad parameter {name[:60]!r} of {what}",
                expected="a string, a number or a boolean",
                found=_kind(value),
            )
    return parameters


def _name(value: Mapping[str, Any], what: str) -> str:
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError(f"an {what} has no name", found=_kind(name))
    return name


def _input(value: Mapping[str, Any]) -> tuple[Given, int]:
    """One input, and how many bytes of the tail are its; -1 if it has data."""
    name = _name(value, "input")
    shape, datatype = value.get("shape"), value.get("datatype")
    if not isinstance(shape, list) or not isinstance(datatype, str):
        raise RequestError(f"input {name!r} lacks its shape or its datatype")
    parameters = read_parameters(value, f"input {name!r}")
    size = parameters.get("binary_data_size")
    sources = [
        value.get("data") is not None,
        size is not None,
        parameters.get("shared_memory_region") is not None,
    ]
    if sum(sources) != 1:
        found = [source for source, there in zip(_SOURCES, sources, strict=True) if there]
        raise RequestError(
            f"input {name!r} must have exactly one source of data",
            expected="'data', 'binary_data_size' or 'shared_memory_region'",
            found=" and ".join(found) or "none",
        )
    if sources[2]:
        raise RequestError(f"input {name!r} lies in shared memory", hint=_NO_SHM)
    if size is not None and (type(size) is not int or size < 0):
        raise RequestError(
            f"bad binary_data_size of input {name!r}", expected="bytes, 0 or more", found=repr(size)[:60]
        )
    given = Given(name, datatype, check_shape(shape, name), value.get("data"))
    return given, -1 if size is None else size


def _attach(given: Sequence[tuple[Given, int]], tail: memoryview) -> None:
    """Give each input that has no data its part of the tail."""
    at = 0
    for entry, size in given:
        if size < 0:
            continue
        if at + size > len(tail):
            missing = at + size - len(tail)
            raise RequestError(
                f"unexpected size for input {entry.name!r}, expecting {missing} additional bytes"
            )
        entry.raw = tail[at : at + size]
        at += size
    if at != len(tail):
        raise RequestError(
            "unexpected additional input data", expected=f"{at} bytes behind the JSON", found=len(tail)
        )


def _output(value: Mapping[str, Any], binary: bool) -> Wanted:
    name = _name(value, "output")
    parameters = read_parameters(value, f"output {name!r}")
    if parameters.get("shared_memory_region") is not None:
        raise RequestError(f"output {name!r} is wanted in shared memory", hint="take it from the answer")
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise RequestError(
            f"bad parameter classification of output {name!r}", expected="0 or more", found=repr(classes)[:60]
        )
    return Wanted(name, _flag(parameters, "binary_data", binary), classes)


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(f"bad parameter {name}", expected="true or false", found=repr(value)[:60])
    return value


def encode(head: Mapping[str, Any], outputs: Sequence[Output]) -> tuple[bytes, int | None]:
    """An answer's body, and the value of HEADER, or None where the body is all JSON.

    `head` holds what stands before the outputs. Raises RequestError for an output that
    JSON cannot express.
    """
    tail: list[bytes] = []
    entries: list[dict[str, Any]] = []
    for output in outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.array.shape),
        }
        if output.binary:
            tail.append(to_raw(output.array))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = _data(output)
        entries.append(entry)
    try:
        text = orjson.dumps({**head, "outputs": entries}, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise RequestError("an output is not UTF-8 text", found=error, hint=_ask_binary("")) from error
    data = b"".join(tail)
    return (text + data, len(text)) if data else (text, None)


def _data(output: Output) -> Any:
    """An array's elements as something the JSON writer knows."""
    import numpy as np

    array: Array = output.array
    if output.datatype in RAW_ONLY:
        raise RequestError(
            f"output {output.name!r} is {output.datatype}, which JSON does not carry",
            hint=_ask_binary(output.name),
        )
    if array.dtype.kind == "O":
        return [_text(word, output.name) for word in array.ravel().tolist()]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RequestError(
            f"output {output.name!r} has values that JSON does not have",
            found="NaN or Infinity",
            hint=_ask_binary(output.name),
        )
    return array.ravel()


def _text(word: Any, name: str) -> str:
    if isinstance(word, str):
        return word
    try:
        return str(word, "utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"output {name!r} has an element that is not UTF-8", found=error.reason, hint=_ask_binary(name)
        ) from error


def _ask_binary(name: str) -> str:
    which = f"{name!r} " if name else "it "
    return f'ask for {which}with the parameter "binary_data": true, or for all with "binary_data_output"'


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "nothing", bool: "a boolean"}
    return names.get(type(value), "a number")
