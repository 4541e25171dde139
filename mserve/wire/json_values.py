"""JSON values as arrays of an input's dtype.

Values are checked by type at the leaves, so `true` is not 1.0 and `"1.5"` is not 1.5.
`{"b64": "..."}` stands for a text's bytes.
"""

from __future__ import annotations

import binascii
import json
import struct
from base64 import b64decode
from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from typing import Any

from ..errors import PayloadTooLarge, RequestError
from ..tensors import DTYPES, Array, TensorSpec

MAX_DEPTH = 64
# Reading JSON holds Python's lock, in which nobody else is answered: about a second at most.
# A value takes twenty times and more of what it took on the wire, text in any form of request.
MAX_VALUES = 2_000_000
# What `struct` calls the numbers.
_CODES = {
    "float16": "e",
    "float32": "f",
    "float64": "d",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
}


def check_values(body: bytes | bytearray | memoryview) -> None:
    """Refuse a body of too many values before it is read. Raises PayloadTooLarge."""
    if len(body) <= MAX_VALUES:
        return
    data = body.tobytes() if isinstance(body, memoryview) else body
    count = sum(map(data.count, (b",", b"[", b"{", b":")))
    if count > MAX_VALUES:
        raise PayloadTooLarge(
            "the JSON body has too many values",
            expected=f"at most {MAX_VALUES:,}",
            found=f"about {count:,}",
            hint="send large tensors as binary data (Open Inference Protocol) or over gRPC",
        )


def check_texts(count: int) -> None:
    """Refuse tensors of so many texts before they are made. Raises PayloadTooLarge."""
    if count > MAX_VALUES:
        raise PayloadTooLarge(
            "the request has too many texts",
            expected=f"at most {MAX_VALUES:,}",
            found=f"{count:,}",
            hint="send fewer rows in a request",
        )


def without_booleans(body: bytes | bytearray | memoryview) -> bool:
    """Whether there can be no `true` and no `false` in a body. Most have not even the letters."""
    data = body.tobytes() if isinstance(body, memoryview) else body
    return not (b"u" in data and b"true" in data) and not (b"f" in data and b"false" in data)


def to_array(value: Any, spec: TensorSpec, alias: str, *, booleans: bool = True) -> Array:
    """A JSON value as an array of the input's dtype; its shape is what the value's nesting says.

    `booleans` tells whether there may be any in the value. Raises RequestError: ragged
    lists, values of another kind, integers out of range.
    """
    import numpy as np

    if not booleans and (quick := _packed(value, spec.dtype)) is not None:
        return quick
    leaves, shape = _flatten(value, alias)
    if not leaves:
        return np.empty(shape, DTYPES[spec.dtype].to_numpy())
    if spec.dtype == "string":
        array = np.empty(len(leaves), object)
        plain = set(map(type, leaves)) == {str}
        array[:] = leaves if plain else [_text(leaf, alias) for leaf in leaves]
        return array.reshape(shape)
    return _numbers(leaves, spec, alias).reshape(shape)


def _packed(value: Any, dtype: str) -> Array | None:
    """Nested lists of numbers the quick way; None for whatever is unusual, which the long way explains.

    `struct` takes only numbers, only as many as it was told, and only those in range; but it
    takes a boolean for a number.
    """
    import numpy as np

    code = _CODES.get(dtype)
    shape, first = list[int](), value
    while type(first) is list and first and len(shape) < MAX_DEPTH:
        shape.append(len(first))
        first = first[0]
    if code is None or not shape or type(first) not in (int, float):
        return None
    try:
        pack = _packer(code, shape[-1])
        if len(shape) == 1:
            data = pack(*value)
        else:
            rows = value
            for size in shape[1:-1]:
                if set(map(len, rows)) != {size}:
                    return None
                rows = list(chain.from_iterable(rows))
            data = b"".join([pack(*row) for row in rows])
    except (struct.error, OverflowError, TypeError):
        return None
    return np.frombuffer(data, DTYPES[dtype].to_numpy()).reshape(shape)


@lru_cache(maxsize=256)
def _packer(code: str, count: int) -> Callable[..., bytes]:
    return struct.Struct(f"={count}{code}").pack


def _flatten(value: Any, alias: str) -> tuple[list[Any], list[int]]:
    """The leaves of nested lists in order, and their shape. Raises RequestError when they are ragged."""
    level, shape = [value], list[int]()
    while level and isinstance(level[0], list):
        if len(shape) == MAX_DEPTH:
            raise RequestError(
                f"input {alias!r} is nested too deeply", expected=f"at most {MAX_DEPTH} levels"
            )
        if set(map(type, level)) != {list} or len(set(map(len, level))) != 1:
            found = sorted({f"a list of {len(x)}" if isinstance(x, list) else kind(x) for x in level})
            raise RequestError(
                f"input {alias!r} is ragged",
                where=f"level {len(shape)} of the nesting",
                expected=f"lists of {len(level[0])} everywhere",
                found=" and ".join(found[:3]),
            )
        shape.append(len(level[0]))
        level = list(chain.from_iterable(level))
    return level, shape


def _numbers(leaves: list[Any], spec: TensorSpec, alias: str) -> Array:
    import numpy as np

    target = DTYPES[spec.dtype].to_numpy()
    kinds = set(map(type, leaves))
    if target.kind == "b":
        allowed: set[type] = {bool}
    elif target.kind in "iu":
        allowed = {int}
    else:
        allowed = {int, float}
    if not kinds <= allowed:
        wrong = next(leaf for leaf in leaves if type(leaf) not in allowed)
        raise RequestError(
            f"input {alias!r} has a value of the wrong kind", expected=spec.dtype, found=_show(wrong)
        )
    if target.kind in "iu":
        limits = np.iinfo(target)
        low, high = min(leaves), max(leaves)
        if low < limits.min or high > limits.max:
            raise RequestError(
                f"input {alias!r} has a value out of range",
                expected=f"{spec.dtype}: {limits.min} to {limits.max}",
                found=low if low < limits.min else high,
            )
        return np.array(leaves, target)
    with np.errstate(over="ignore"):
        try:
            return np.array(leaves, target if target.kind == "b" else np.float64).astype(target)
        except OverflowError as error:
            raise RequestError(f"input {alias!r} has a number that no float holds") from error


def _text(leaf: Any, alias: str) -> str:
    if isinstance(leaf, str):
        return leaf
    if is_b64(leaf):
        try:
            return b64decode(leaf["b64"], validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise RequestError(
                f"input {alias!r} has a bad b64 value", expected="base64 of UTF-8 text", found=error
            ) from error
    raise RequestError(f"input {alias!r} has a value of the wrong kind", expected="string", found=_show(leaf))


def is_b64(value: Any) -> bool:
    """Whether a value is text given by its bytes in base64."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _show(value: Any) -> str:
    if isinstance(value, dict | list):
        return kind(value)
    return f"{json.dumps(value)[:60]} ({kind(value)})"


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a boolean"}
    return names.get(type(value), "a number")
