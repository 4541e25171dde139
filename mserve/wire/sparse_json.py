"""Sparse and ragged inputs in JSON: a row at a time, as people write it, to parts and back.

A row of a sparse input is `{"ids": [3, 17], "values": [1, 0.5]}`, where values that are left
out are 1, or a line of text as LIBSVM and libFM have it: "3:1 17:0.5", which may begin with
a label and end in a comment; both are passed over. A row of a ragged input is the list of its values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from ..errors import PayloadTooLarge, RequestError
from ..sparse import IDS, LENGTHS, VALUES, Sparse
from ..tensors import Array, Signature, TensorSpec
from .json_values import MAX_VALUES, kind, to_array

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_PAIR = re.compile(rf"(\d{{1,19}}):({_NUMBER})", re.ASCII)
_LABEL = re.compile(rf"{_NUMBER}(?:,{_NUMBER})*", re.ASCII)
_LINE = '"3:1 17:0.5"'
Row = tuple[list[Any], list[Any] | None]


def is_row(value: Any, alias: str, sparse: Sparse) -> bool:
    """Whether a value is a row of the lone input `alias`, and not an object of named inputs."""
    if not isinstance(value, dict) or sparse.kind == "ragged":
        return not isinstance(value, dict)
    named = set(value) == {alias} and not isinstance(value[alias], list)
    return value.keys() <= {IDS, VALUES} and not named


def of_rows(rows: Any, alias: str, signature: Signature, *, booleans: bool = True) -> dict[str, Array]:
    """A list of rows as the parts of a sparse input. Raises RequestError naming the row, PayloadTooLarge."""
    sparse = signature.sparse[alias]
    if not isinstance(rows, list):
        raise RequestError(f"input {alias!r} is not a list of rows", found=kind(rows))
    read = _sparse_row if sparse.kind == "sparse" else _ragged_row
    ids, values, lengths, total = list[list[Any]](), list[list[Any]](), list[int](), 0
    for index, row in enumerate(rows):
        try:
            given, numbers = read(row, alias, sparse)
        except RequestError as error:
            error.where = f"row {index}"
            raise
        ids.append(given)
        values.append([1] * len(given) if numbers is None else numbers)
        lengths.append(len(given))
        total += len(given)
        _check_count(total)
    columns = {IDS: ids, VALUES: values}
    return {
        name: _array(lengths if part == LENGTHS else columns[part], part, alias, signature, booleans)
        for part, name in sparse.names(alias).items()
    }


def _array(column: Any, part: str, alias: str, signature: Signature, booleans: bool) -> Array:
    """One part's array; of each row there is a list, but of lengths."""
    name = signature.sparse[alias].names(alias)[part]
    spec = signature.inputs[name]
    flat = column if part == LENGTHS else list(chain.from_iterable(column))
    try:
        array = to_array(flat, spec, alias, booleans=booleans)
    except RequestError as error:
        error.where = _culprit(column, spec, alias) or error.where
        raise
    # Of no entries nobody can tell the sizes.
    return array if flat else array.reshape(0, *signature.sparse[alias].shape[2:] if part == VALUES else ())


def _check_count(entries: int) -> None:
    """What is not counted where JSON is read: text can hide its pairs from that."""
    if entries > MAX_VALUES:
        raise PayloadTooLarge(
            "the rows have too many entries",
            expected=f"at most {MAX_VALUES:,}",
            found=f"{entries:,} and more",
            hint="send the ids, values and lengths as arrays",
        )


def _culprit(column: Any, spec: TensorSpec, alias: str) -> str:
    """Which row keeps a part from being converted."""
    for index, row in enumerate(column):
        try:
            odd = bool(row) and to_array(row, spec, alias).ndim != len(spec.shape or ())
        except RequestError:
            odd = True
        if odd:
            return f"row {index}"
    return ""


def _sparse_row(row: Any, alias: str, sparse: Sparse) -> Row:
    if isinstance(row, str):
        return _line(row, alias, sparse)
    if not isinstance(row, dict) or IDS not in row or not row.keys() <= {IDS, VALUES}:
        expected = f'{{"ids": [...], "values": [...]}} or {_LINE}'
        found = f"an object with {', '.join(map(str, row))}"[:200] if isinstance(row, dict) else kind(row)
        raise RequestError(f"input {alias!r} has no sparse row", expected=expected, found=found)
    ids, values = row[IDS], row.get(VALUES)
    if not isinstance(ids, list) or not (values is None or isinstance(values, list)):
        found = kind(ids if not isinstance(ids, list) else values)
        raise RequestError(f"input {alias!r} has ids or values that are no list", found=found)
    if values is not None and not sparse.has_values:
        raise RequestError(f"input {alias!r} takes ids alone", found="values")
    if values is not None and len(values) != len(ids):
        raise RequestError(f"input {alias!r} needs a value for each id", expected=len(ids), found=len(values))
    return ids, values


def _ragged_row(row: Any, alias: str, _: Sparse) -> Row:
    if not isinstance(row, list):
        raise RequestError(f"input {alias!r} has a row that is no list of values", found=kind(row))
    return row, row


def _line(text: str, alias: str, sparse: Sparse) -> Row:
    """A line of LIBSVM's or libFM's text: label (passed over), id:value, ... # comment."""
    ids, values = list[Any](), list[Any]()
    words = text.partition("#")[0].split()
    _check_count(len(words))
    for at, word in enumerate(words):
        pair = _PAIR.fullmatch(word)
        if pair is None:
            if at == 0 and _LABEL.fullmatch(word):
                continue
            raise RequestError(
                f"input {alias!r} has a line that is not of pairs",
                expected=f"{_LINE}: whole ids, and finite numbers",
                found=word[:60],
            )
        number = float(pair[2])
        ids.append(int(pair[1]))
        values.append(int(number) if "int" in sparse.dtype and number.is_integer() else number)
    return ids, values if sparse.has_values else None


def to_rows(alias: str, sparse: Sparse, inputs: Mapping[str, Array]) -> list[Any]:
    """The parts of a sparse input as rows: the inverse of `of_rows`."""
    names, rows, at = sparse.names(alias), list[Any](), 0
    columns = {part: plain(inputs[name]) for part, name in names.items()}
    for length in columns[LENGTHS]:
        row = {part: x[at : at + length] for part, x in columns.items() if part != LENGTHS}
        rows.append(row if sparse.kind == "sparse" else row[VALUES])
        at += length
    return rows


def plain(array: Array) -> list[Any]:
    """An array as lists; a float32 keeps its shortest decimal form, and short floats are widened."""
    import numpy as np

    if array.dtype.kind not in "iubO":
        wide = array if array.dtype.itemsize > 2 and array.dtype.kind == "f" else array.astype(np.float32)
        array = wide.astype(str).astype(np.float64) if wide.size else wide
    values: list[Any] = array.tolist()
    return values
