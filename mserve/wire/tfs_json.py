"""JSON bodies of TensorFlow Serving's REST predict call, to arrays and back.

Two forms. Row form: `{"instances": [row, ...]}`, answered `{"predictions": [row, ...]}`;
a row is a value for a signature with one input, and an object of named values otherwise.
Column form: `{"inputs": value or {name: value}}`, answered `{"outputs": ...}`, where
the sizes of axis 0 need not agree. `{"b64": "..."}` stands for a string's bytes.

Behaviour follows https://www.tensorflow.org/tfx/serving/api_rest, with defects mended:
numbers out of an integer dtype's range are refused instead of wrapped, unknown names are
refused in both forms, and text behind the JSON value is refused. NaN and Infinity, which
JSON lacks and clients of TensorFlow Serving send and expect, are read and written unless
the server is strict. A request may also name the outputs that it wants, in the list `outputs`.
Outputs whose alias ends in `_bytes` are answered as `{"b64": "..."}`.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from ..errors import RequestError
from ..sparse import Sparse
from ..tensors import Array, Ports, Signature, TensorSpec, check_names, show_shape
from . import sparse_json, tfs_serialised
from .json_values import check_values, is_b64, kind, to_array

BYTES = "_bytes"
_CHECK = "check what is sent"


def parse(body: bytes | bytearray, *, strict: bool = False) -> dict[str, Any]:
    """A request body as an object. Raises RequestError with the byte where it stops being JSON."""
    check_values(body)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        value = _parse_lenient(body, error, strict)
    if not isinstance(value, dict):
        raise RequestError(
            "the request is not a JSON object", expected='{"instances": [...]}', found=kind(value)
        )
    return value


def _parse_lenient(body: bytes | bytearray, error: orjson.JSONDecodeError, strict: bool) -> Any:
    """JSON with bare NaN, Infinity and -Infinity; anything else keeps the strict reader's complaint."""
    odd = b"NaN" in body or b"Infinity" in body
    if odd and not strict:
        try:
            value = json.loads(body)
            if b"\\u" in body:  # lone surrogates, which the strict reader refuses, are no text
                json.dumps(value, ensure_ascii=False).encode()
            return value
        except (ValueError, RecursionError):
            pass
    raise RequestError(
        "the request is not valid JSON",
        where=f"byte {error.pos}",
        found=error.msg,
        hint="this server is strict: NaN and Infinity are no JSON"
        if odd and strict
        else "check what is sent",
    ) from error


def signature_name(body: Mapping[str, Any]) -> str:
    """The `signature_name` of a request, "" if absent. Raises RequestError."""
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        raise RequestError("signature_name is not a string", found=kind(name))
    return name


def selected(body: Mapping[str, Any], signature: Signature) -> Sequence[str]:
    """The outputs that a predict request wants, in its order; all of them where it does not say.

    Raises RequestError.
    """
    names = body.get("outputs")
    if names is None:
        return list(signature.outputs)
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise RequestError(
            "the request's 'outputs' is not a list of names", expected=", ".join(signature.outputs)
        )
    return check_outputs(names, signature)


def check_outputs(names: Sequence[str], signature: Signature) -> Sequence[str]:
    """The names as they are, each once, all outputs of the signature. Raises RequestError."""
    for index, name in enumerate(names):
        if name not in signature.outputs:
            known = ",".join(sorted(signature.outputs))
            raise RequestError(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {{{known}}}."
            )
        if name in names[:index]:
            raise RequestError(f"duplicate output tensor alias: {name}")
    return names


def inputs_of(
    body: Mapping[str, Any], signature: Signature, *, booleans: bool = True
) -> tuple[dict[str, Array], bool]:
    """A predict request's arrays by alias, and whether it came in row form.

    `booleans` tells whether there may be any in the body. Raises RequestError.
    """
    rows, columns = body.get("instances"), body.get("inputs")
    if (rows is None) == (columns is None):
        raise RequestError(
            "a predict request needs exactly one of 'instances' and 'inputs'",
            found="both" if rows is not None else "neither",
        )
    if signature.examples and (found := tfs_serialised.of_json(rows, columns, signature)) is not None:
        return found, rows is not None
    if rows is not None:
        return _from_rows(rows, signature, booleans), True
    return _from_columns(columns, signature, booleans), False


def _from_rows(rows: Any, signature: Signature, booleans: bool) -> dict[str, Array]:
    if not isinstance(rows, list):
        raise RequestError("'instances' is not a list", found=kind(rows))
    ports = signature.ports() if signature.sparse else signature.inputs
    lone = next(iter(ports)) if len(ports) == 1 else ""
    named = bool(rows) and isinstance(rows[0], dict) and not is_b64(rows[0])
    if lone in signature.sparse:
        named = bool(rows) and not sparse_json.is_row(rows[0], lone, signature.sparse[lone])
    if not named and not lone:
        raise RequestError(
            "a row is not an object",
            expected=f"an object with the inputs {', '.join(ports)}",
            found=kind(rows[0]) if rows else "no rows",
        )
    if not named:
        return _column(rows, lone, signature, booleans)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RequestError(f"instance {index} is not an object as the first one is", found=kind(row))
        _check_names(signature, row, index, ports)
        if row.keys() != rows[0].keys():
            raise RequestError(
                f"instance {index} does not have the inputs of the first one",
                expected=", ".join(rows[0]),
                found=", ".join(row),
            )
    found: dict[str, Array] = {}
    for alias in ports:
        if alias in rows[0]:
            found |= _column([row[alias] for row in rows], alias, signature, booleans)
    return found


def _column(values: Any, alias: str, signature: Signature, booleans: bool) -> dict[str, Array]:
    """All rows of one input, as an array, or as the parts of a sparse one."""
    if alias in signature.sparse:
        return sparse_json.of_rows(values, alias, signature, booleans=booleans)
    return {alias: to_array(values, signature.inputs[alias], alias, booleans=booleans)}


def _check_names(
    signature: Signature,
    given: Mapping[str, object],
    index: int | None = None,
    ports: Ports | None = None,
) -> None:
    """Refuse wrong inputs in the words that TensorFlow Serving's clients know, with our facts behind.

    `ports` are the inputs by the names that may be given, where these are not the signature's.
    """
    ports = signature.inputs if ports is None else ports
    try:
        check_names(ports, given)
    except RequestError as error:
        lacks = [a for a, s in ports.items() if a not in given and not s.optional]
        extra = [a for a in given if a not in ports]
        if index is not None:
            keys = f"JSON object keys must be equal to: {','.join(sorted(ports))}"
            error.what = f"Failed to process element: {index} of 'instances' list. {keys}"
            error.where = f"instance {index}"
        elif lacks:
            error.what = f"Missing named input: {lacks[0]} in 'inputs' object."
        else:
            error.what = f"JSON object: does not have named input: {extra[0][:200]}"
        raise


def _from_columns(columns: Any, signature: Signature, booleans: bool) -> dict[str, Array]:
    if isinstance(columns, dict) and not is_b64(columns):
        ports = _given_ports(columns, signature) if signature.sparse else signature.inputs
        _check_names(signature, columns, None, ports)
        found: dict[str, Array] = {}
        for alias in ports:
            if alias in columns:
                found |= _column(columns[alias], alias, signature, booleans)
        return found
    ports = signature.ports() if signature.sparse else signature.inputs
    if len(ports) != 1:
        raise RequestError(
            "'inputs' is not an object",
            expected=f"an object with the inputs {', '.join(ports)}",
            found=kind(columns),
        )
    return _column(columns, next(iter(ports)), signature, booleans)


def _given_ports(columns: Mapping[str, Any], signature: Signature) -> Ports:
    """The inputs of a request in columns: a sparse one is given as a list of rows, or by its parts."""
    ports: dict[str, TensorSpec | Sparse] = {}
    for alias, port in signature.ports().items():
        names = port.names(alias).values() if isinstance(port, Sparse) and alias not in columns else ()
        by_parts = any(name in columns for name in names)
        ports |= {name: signature.inputs[name] for name in names} if by_parts else {alias: port}
    return ports


def encode(outputs: Mapping[str, Array], *, rows: bool, strict: bool = False) -> bytes:
    """The answer to a predict request, in the form it was asked in.

    Raises RequestError when the outputs have no common row count and row form was asked
    for; ExecutionFailed when a strict answer would hold NaN or Infinity.
    """
    if strict:
        _refuse_infinite(outputs)
    if rows and len(outputs) == 1:
        (array,) = outputs.values()
        if array.ndim and array.dtype.kind in "fiu" and array.dtype.itemsize > 2 and array.flags.c_contiguous:
            answer = orjson.dumps({"predictions": array}, option=orjson.OPT_SERIALIZE_NUMPY)
            if b"null" not in answer:  # which stands for NaN and Infinity
                return answer
    plain = not any(alias.endswith(BYTES) for alias in outputs)
    values = outputs if plain else {a: _as_bytes(x) if a.endswith(BYTES) else x for a, x in outputs.items()}
    if not rows:
        return _columns("outputs", values, bare=len(outputs) == 1)
    return _rows("predictions", values, bare=len(outputs) == 1)


def encode_classes(labels: Sequence[Sequence[str]], scores: Array, *, strict: bool = False) -> bytes:
    """The answer to a classify request: for each example its classes, as pairs of label and score."""
    return _results(
        {"scores": scores},
        strict,
        lambda rows: [
            [list(pair) for pair in zip(words, row, strict=True)]
            for words, row in zip(labels, rows, strict=True)
        ],
    )


def encode_values(values: Array, *, strict: bool = False) -> bytes:
    """The answer to a regress request: a value for each example."""
    return _results({"outputs": values}, strict, lambda rows: rows)


def _results(named: Mapping[str, Array], strict: bool, shape: Callable[[Any], Any]) -> bytes:
    if strict:
        _refuse_infinite(named)
    array = next(iter(named.values()))
    finite = _is_finite(array)
    return _dump("results", shape(_plain(array, finite)), finite)


def _refuse_infinite(outputs: Mapping[str, Array]) -> None:
    for alias, array in outputs.items():
        if not _is_finite(array):
            raise RequestError(
                f"output {alias!r} holds NaN or Infinity, which JSON lacks",
                hint="ask over gRPC, or have the server started without --strict-json",
            )


def _as_bytes(array: Array) -> Array:
    """Text as objects that hold its bytes in base64; other arrays as they are."""
    import numpy as np

    if array.dtype.kind != "O":
        return array
    wrapped = np.empty(array.size, object)
    wrapped[:] = [{"b64": b64encode(text.encode()).decode()} for text in array.ravel()]
    return wrapped.reshape(array.shape)


def encode_inputs(inputs: Mapping[str, Array], *, rows: bool, signature: Signature | None = None) -> bytes:
    """A predict request's body for the given arrays: the inverse of `inputs_of`.

    Parts of sparse inputs become rows where the `signature` tells what they are.
    """
    if signature is not None and signature.sparse:
        return _sparse_inputs(inputs, signature, rows=rows)
    return (
        _rows("instances", inputs, bare=len(inputs) == 1) if rows else _columns("inputs", inputs, bare=False)
    )


def _sparse_inputs(inputs: Mapping[str, Array], signature: Signature, *, rows: bool) -> bytes:
    columns = {
        alias: sparse_json.to_rows(alias, port, inputs)
        if isinstance(port, Sparse)
        else sparse_json.plain(inputs[alias])
        for alias, port in signature.ports().items()
    }
    finite = all(_is_finite(array) for array in inputs.values())
    if not rows:
        return _dump("inputs", columns, finite)
    instances = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return _dump("instances", instances, finite)


def _columns(key: str, arrays: Mapping[str, Array], *, bare: bool) -> bytes:
    finite = all(_is_finite(array) for array in arrays.values())
    values = {alias: _plain(array, finite) for alias, array in arrays.items()}
    return _dump(key, next(iter(values.values())) if bare else values, finite)


def _rows(key: str, arrays: Mapping[str, Array], *, bare: bool) -> bytes:
    counts = {array.shape[0] if array.ndim else -1 for array in arrays.values()}
    if len(counts) != 1 or -1 in counts:
        raise RequestError(
            "the arrays cannot be given in rows",
            expected="one size of axis 0",
            found=", ".join(f"{a}: {show_shape(array.shape)}" for a, array in arrays.items()),
            hint="use the column form: 'inputs' instead of 'instances'",
        )
    finite = all(_is_finite(array) for array in arrays.values())
    values = {alias: _plain(array, finite) for alias, array in arrays.items()}
    if bare:
        return _dump(key, next(iter(values.values())), finite)
    columns = {a: _row_values(v) for a, v in values.items()}
    return _dump(key, [{a: v[i] for a, v in columns.items()} for i in range(counts.pop())], finite)


def _row_values(value: Any) -> Any:
    """What can be taken apart row by row: orjson does not know all of numpy's integer scalars."""
    if isinstance(value, list) or value.ndim > 1 or value.dtype.kind == "f":
        return value
    return value.tolist()


def _is_finite(array: Array) -> bool:
    import numpy as np

    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _plain(array: Array, finite: bool) -> Any:
    """An array as something the writer knows: itself, or lists of Python values.

    Half-size floats are widened; a float32 keeps its shortest decimal form.
    """
    import numpy as np

    if array.dtype.kind not in "fiubO" or array.dtype == np.float16:
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not finite:
        return array.astype(str).astype(np.float64).tolist()
    if array.dtype.kind == "O" or array.ndim == 0 or not finite:
        return array.tolist()
    return np.ascontiguousarray(array)


def _dump(key: str, value: Any, finite: bool) -> bytes:
    """JSON; NaN and Infinity, which only the slower writer can express, make it lenient."""
    if not finite:
        return json.dumps({key: value}, ensure_ascii=False).encode()
    return orjson.dumps({key: value}, option=orjson.OPT_SERIALIZE_NUMPY)
