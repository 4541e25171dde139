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
from ..tensors import Array, Signature, check_names, show_shape
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
    if rows is not None:
        return _from_rows(rows, signature, booleans), True
    return _from_columns(columns, signature, booleans), False


def _from_rows(rows: Any, signature: Signature, booleans: bool) -> dict[str, Array]:
    if not isinstance(rows, list):
        raise RequestError("'instances' is not a list", found=kind(rows))
    named = bool(rows) and isinstance(rows[0], dict) and not is_b64(rows[0])
    if not named and len(signature.inputs) != 1:
        raise RequestError(
            "a row is not an object",
            expected=f"an object with the inputs {', '.join(signature.inputs)}",
            found=kind(rows[0]) if rows else "no rows",
        )
    if not named:
        alias, spec = next(iter(signature.inputs.items()))
        return {alias: to_array(rows, spec, alias, booleans=booleans)}
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RequestError(f"instance {index} is not an object as the first one is", found=kind(row))
        _check_names(signature, row, index)
        if row.keys() != rows[0].keys():
            raise RequestError(
                f"instance {index} does not have the inputs of the first one",
                expected=", ".join(rows[0]),
                found=", ".join(row),
            )
    given = {a: spec for a, spec in signature.inputs.items() if a in rows[0]}
    return {a: to_array([row[a] for row in rows], s, a, booleans=booleans) for a, s in given.items()}


def _check_names(signature: Signature, given: Mapping[str, object], index: int | None = None) -> None:
    """Refuse wrong inputs in the words that TensorFlow Serving's clients know, with our facts behind."""
    try:
        check_names(signature, given)
    except RequestError as error:
        lacks = [a for a, s in signature.inputs.items() if a not in given and not s.optional]
        extra = [a for a in given if a not in signature.inputs]
        if index is not None:
            keys = f"JSON object keys must be equal to: {','.join(sorted(signature.inputs))}"
            error.what = f"Failed to process element: {index} of 'instances' list. {keys}"
            error.where = f"instance {index}"
        elif lacks:
            error.what = f"Missing named input: {lacks[0]} in 'inputs' object."
        else:
            error.what = f"JSON object: does not have named input: {extra[0][:200]}"
        raise


def _from_columns(columns: Any, signature: Signature, booleans: bool) -> dict[str, Array]:
    if isinstance(columns, dict) and not is_b64(columns):
        _check_names(signature, columns)
        given = {a: spec for a, spec in signature.inputs.items() if a in columns}
        return {a: to_array(columns[a], s, a, booleans=booleans) for a, s in given.items()}
    if len(signature.inputs) != 1:
        raise RequestError(
            "'inputs' is not an object",
            expected=f"an object with the inputs {', '.join(signature.inputs)}",
            found=kind(columns),
        )
    alias, spec = next(iter(signature.inputs.items()))
    return {alias: to_array(columns, spec, alias, booleans=booleans)}


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


def encode_inputs(inputs: Mapping[str, Array], *, rows: bool) -> bytes:
    """A predict request's body for the given arrays: the inverse of `inputs_of`."""
    return (
        _rows("instances", inputs, bare=len(inputs) == 1) if rows else _columns("inputs", inputs, bare=False)
    )


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
