"""Serialised tf.Examples in a predict request, where the graph that was exported parsed them itself.

Its clients send one text input, each element a serialised `tensorflow.Example`. The parser
was cut out of the graph and the features are the inputs now, so the examples become these
inputs here. A signature says under which name (`Signature.examples`); in JSON they are
`{"b64": "..."}`, bare in row form where a model with one input would have them so.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import RequestError
from ..tensors import Array, Signature
from . import tfs_examples, tfs_proto
from .json_values import is_b64, kind


def of_json(rows: Any, columns: Any, signature: Signature) -> dict[str, Array] | None:
    """The inputs of a predict request in row or in column form that carries examples; None for others.

    Raises RequestError.
    """
    name, ports = signature.examples, list(signature.ports().values())
    given = rows if columns is None else columns
    named = False
    if isinstance(columns, dict) and columns.keys() == {name}:
        given, named = columns[name], True
    elif isinstance(rows, list) and rows and isinstance(rows[0], dict) and rows[0].keys() == {name}:
        given, named = [row.get(name) if isinstance(row, dict) else row for row in rows], True
    # A bare text may be the value of a lone input.
    may_be_bare = len(ports) != 1 or ports[0].dtype != "string"
    if not isinstance(given, list) or not given or not (named or (may_be_bare and is_b64(given[0]))):
        return None
    return of_bytes([_bytes(value, index) for index, value in enumerate(given)], signature)


def of_tensor(given: Mapping[str, Any], signature: Signature) -> dict[str, Array] | None:
    """The inputs of a PredictRequest's tensors where they are one vector of examples; None for others.

    Raises RequestError.
    """
    if not signature.examples or list(given) != [signature.examples]:
        return None
    tensor = given[signature.examples]
    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    if not tfs_proto.is_text(tensor) or sizes != [len(tensor.string_val)]:
        raise RequestError(
            f"input {signature.examples!r} is no vector of serialised examples",
            expected="DT_STRING, one dimension, an element of string_val for each",
            found=f"dtype {tensor.dtype}, shape {sizes}, {len(tensor.string_val)} element(s)",
        )
    return of_bytes(tensor.string_val, signature)


def of_bytes(serialised: Sequence[bytes], signature: Signature) -> dict[str, Array]:
    """The inputs of a signature, a row for each serialised example. Raises RequestError."""
    examples = [tfs_proto.example_of(data, f"example {i}") for i, data in enumerate(serialised)]
    return tfs_examples.to_inputs(examples, {}, signature, limit=0)


def _bytes(value: Any, index: int) -> bytes:
    if not is_b64(value):
        raise RequestError(
            f"example {index} is not serialised as the first one is",
            expected='{"b64": "..."}',
            found=kind(value),
        )
    try:
        return b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"example {index} has bad base64", found=error) from error
