"""Examples, which TensorFlow Serving's classify and regress calls carry, to arrays.

An example is features by name, each a value or a flat list of values. The features'
names are those of the signature's inputs, and each holds one row of its input. Features
that are no inputs are passed over, as TensorFlow's parsers of examples do. The context's
features stand in every example that does not have them itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from ..errors import PayloadTooLarge, RequestError
from ..sparse import IDS, LENGTHS, VALUES, Sparse
from ..tensors import Array, Signature, TensorSpec, show_shape
from .json_values import check_texts, to_array
from .sparse_json import of_rows

MAX_EXAMPLES = 1 << 20
_ABSENT = object()

Features = Mapping[str, Any]


def of_body(body: Mapping[str, Any]) -> tuple[list[Features], Features]:
    """The examples of a JSON request, and their context. Raises RequestError."""
    examples, context = body.get("examples"), body.get("context", {})
    if not isinstance(examples, list):
        raise RequestError(
            "the request has no list of examples", expected='{"examples": [{"feature": value, ...}, ...]}'
        )
    for index, example in enumerate(examples):
        if not isinstance(example, dict):
            raise RequestError(f"example {index} is not an object", found=type(example).__name__)
    if not isinstance(context, dict):
        raise RequestError("the context is not an object", found=type(context).__name__)
    return examples, context


def check_count(examples: int) -> None:
    """Refuse more examples than one request may hold. Raises PayloadTooLarge."""
    if examples > MAX_EXAMPLES:
        raise PayloadTooLarge("too many examples", expected=f"at most {MAX_EXAMPLES}", found=examples)


def to_inputs(
    examples: Sequence[Features], context: Features, signature: Signature, limit: int
) -> dict[str, Array]:
    """A signature's inputs, a row for each example; those that all leave to their default are absent.

    `limit` bounds the bytes that the context takes when it is repeated. Raises RequestError
    naming the example and the feature, or PayloadTooLarge.
    """
    if not examples:
        raise RequestError("Input is empty.", expected="at least one example")
    check_count(len(examples))
    used = [alias for alias in (*signature.inputs, *signature.sparse) if alias in context]
    repeated = sum(_size(context[a]) * sum(a not in e for e in examples) for a in used)
    if repeated > limit:
        raise PayloadTooLarge(
            "the context is too large for so many examples",
            expected=f"at most {limit} bytes when it is repeated",
            found=f"{repeated} bytes",
        )
    found: dict[str, Array] = {}
    for alias, port in signature.ports().items():
        if isinstance(port, Sparse):
            found |= of_rows(_rows(alias, port, examples, context), alias, signature)
        elif (column := _column(alias, port, examples, context)) is not None:
            found[alias] = column
    return found


def _rows(alias: str, port: Sparse, examples: Sequence[Features], context: Features) -> list[Any]:
    """A sparse input's rows.

    As TensorFlow's parsers have it, an example without the feature has no entries; but where
    no example has it, somebody has spelt it otherwise, unless the input is optional. Raises RequestError.
    """
    rows = [_row({**context, **example}, alias, port) for example in examples]
    if all(row is None for row in rows) and not port.optional:
        names = [name for part, name in port.names(alias).items() if part != LENGTHS]
        raise RequestError(
            f"no example has a feature for {alias!r}",
            expected=f"{alias}, or {' and '.join(names)}",
            found=", ".join([*examples[0], *context]) or "no features",
        )
    empty: Any = {IDS: []} if port.kind == "sparse" else []
    return [empty if row is None else row for row in rows]


def _row(features: Features, alias: str, port: Sparse) -> Any:
    """One example's row: a feature called like the input is a row, or ids alone; one called like a part
    is that part. None where there is none.
    """
    row = features.get(alias)
    if row is not None:
        values = row if isinstance(row, list) else [row]
        if port.kind == "ragged":
            return values
        text = len(values) == 1 and isinstance(values[0], str | dict)
        return values[0] if text else {IDS: values}
    names = {part: name for part, name in port.names(alias).items() if name in features}
    parts = {part: features[name] for part, name in names.items() if part != LENGTHS}
    lists = {part: value if isinstance(value, list) else [value] for part, value in parts.items()}
    if not lists:
        return None
    return lists if port.kind == "sparse" else lists[VALUES]


def _size(value: Any) -> int:
    values = value if isinstance(value, list) else [value]
    return sum(8 + (len(str(v)) if isinstance(v, str | dict) else 0) for v in values)


def _column(alias: str, spec: TensorSpec, examples: Sequence[Features], context: Features) -> Array | None:
    shared = context.get(alias, _ABSENT)
    given = [e.get(alias, shared) for e in examples]
    if spec.default is not None:
        if all(value is _ABSENT for value in given):
            return None
        given = [spec.default if value is _ABSENT else value for value in given]
    if _ABSENT in given:
        index = given.index(_ABSENT)
        raise RequestError(
            f"example {index} has no feature {alias!r}",
            expected=f"{spec.dtype} {show_shape((spec.shape or ())[1:])}",
            found=", ".join([*examples[index], *context]) or "no features",
        )
    rows = [value if isinstance(value, list) else [value] for value in given]
    shape = _row_shape(alias, spec, given[0])
    count = math.prod(shape)
    for index, row in enumerate(rows):
        if len(row) != count:
            raise RequestError(
                f"example {index} has the wrong number of values in feature {alias!r}",
                expected=f"{count} for {show_shape(spec.shape)}",
                found=len(row),
            )
    check_texts(count * len(rows) if spec.dtype == "string" else 0)
    try:
        return _flat(list(chain.from_iterable(rows)), spec, alias).reshape(len(rows), *shape)
    except RequestError as error:
        error.where = _culprit(rows, spec, alias) or error.where
        raise


def _row_shape(alias: str, spec: TensorSpec, first: Any) -> tuple[int, ...]:
    """The shape of one row; a size that is open is what the first example says. Raises RequestError."""
    values = len(first) if isinstance(first, list) else 1
    if spec.shape is None:
        return (values,) if isinstance(first, list) else ()
    row = spec.shape[1:]
    fixed = math.prod(d for d in row if isinstance(d, int))
    if not spec.shape or len([d for d in row if not isinstance(d, int)]) > 1:
        raise RequestError(
            f"input {alias!r} cannot be given as a feature",
            expected="an axis of examples, and one open size behind it at most",
            found=show_shape(spec.shape),
            hint="ask with predict",
        )
    return tuple(d if isinstance(d, int) else values // max(1, fixed) for d in row)


def _flat(leaves: list[Any], spec: TensorSpec, alias: str) -> Array:
    """Values of one feature, one-dimensional; truth values and the integers 0 and 1 are the same."""
    if spec.dtype == "bool":
        leaves = [bool(x) if type(x) is int and x in (0, 1) else x for x in leaves]
    elif spec.dtype != "string":
        leaves = [int(x) if type(x) is bool else x for x in leaves]
    array = to_array(leaves, spec, alias)
    if array.ndim != 1:
        raise RequestError(f"feature {alias!r} holds lists in a list", expected="a value or a flat list")
    return array


def _culprit(rows: Sequence[list[Any]], spec: TensorSpec, alias: str) -> str:
    """Which example keeps a feature from being converted."""
    for index, row in enumerate(rows):
        try:
            _flat(row, spec, alias)
        except RequestError:
            return f"example {index}, feature {alias!r}"
    return ""
