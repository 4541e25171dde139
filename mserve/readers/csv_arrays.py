"""A CSV file as inputs of a signature: a column for each input, or all columns for a matrix.

What a cell must be is known here, so nothing is guessed: whole numbers as the input's dtype can hold
them, numbers, true and false (or 1 and 0), text as it stands. A first line of numbers only is a row of
a numeric matrix; every other first line is a header.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any

from ..errors import InputError
from ..tensors import DTYPES, Array, Signature, TensorSpec
from .csv_rows import Row, check_header, check_width, rows

MAX_ROWS = 1 << 20
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|nan|[+-]?inf", re.I | re.ASCII)
_BOOLS = {"true": True, "false": False, "1": True, "0": False}


def read_csv(data: bytes, signature: Signature, where: str, delimiter: str = ",") -> dict[str, Array]:
    """The inputs that stand in a CSV file, by alias; columns that are no input are passed over.

    Raises InputError naming line and column: no tabular signature, a missing column, text where
    numbers belong, a number that the dtype cannot hold, more than MAX_ROWS rows.
    """
    matrix = _matrix(signature, where)
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    lines = rows(text, where, delimiter)
    _, header = first = next(lines, (0, []))
    if matrix is not None:
        alias, spec = matrix
        if spec.dtype != "string" and header and all(_NUMBER.fullmatch(cell) for cell in header):
            lines, header = chain([first], lines), [f"column {i + 1}" for i in range(len(header))]
        _check_matrix(spec, header, where)
        kept = _kept(lines, len(header), where)
        columns = [_column(spec, name, kept, i, where) for i, name in enumerate(header)]
        return {alias: _stacked(columns, spec)}
    check_header(header, where)
    given = _named(signature, header, where)
    kept = _kept(lines, len(header), where)
    return {
        alias: _column(spec, alias, kept, header.index(alias), where).reshape(
            -1, *[1] * (len(spec.shape or ()) - 1)
        )
        for alias, spec in given.items()
    }


def _matrix(signature: Signature, where: str) -> tuple[str, TensorSpec] | None:
    """The only input, if it has a row of values for each row; None where each input has one value."""
    for alias, spec in signature.inputs.items():
        shape = ("batch",) if spec.shape is None else spec.shape
        if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
            continue
        if len(shape) == 2 and len(signature.inputs) == 1:
            return alias, spec
        raise InputError(
            "the signature is not a table",
            where=where,
            expected="inputs [rows] or [rows, 1], or a single input [rows, N]",
            found=f"{alias!r}: {spec}",
            hint="give the inputs as npz or JSON",
        )
    return None


def _check_matrix(spec: TensorSpec, header: Sequence[str], where: str) -> None:
    width = (spec.shape or ("?", "?"))[1]
    if not header:
        raise InputError("the CSV file is empty", where=where, expected="a header line, or numbers")
    if isinstance(width, int) and len(header) != width:
        raise InputError(
            "the CSV file has too many or too few columns", where=where, expected=width, found=len(header)
        )


def _named(signature: Signature, header: Sequence[str], where: str) -> Mapping[str, TensorSpec]:
    """The inputs that have a column."""
    missing = [a for a, spec in signature.inputs.items() if a not in header and not spec.optional]
    if missing:
        near = get_close_matches(missing[0], header, 3)
        raise InputError(
            "the CSV file lacks a column",
            where=f"{where}: line 1",
            expected=", ".join(missing),
            found=", ".join(header)[:300],
            hint=f"is it {' or '.join(map(repr, near))}?" if near else "the first line names the columns",
        )
    return {a: spec for a, spec in signature.inputs.items() if a in header}


def _kept(lines: Iterator[Row], width: int, where: str) -> list[Row]:
    kept: list[Row] = []
    for row in lines:
        check_width(row, width, where)
        if len(kept) == MAX_ROWS:
            raise InputError("the CSV file has too many rows", where=where, expected=f"at most {MAX_ROWS:,}")
        kept.append(row)
    if not kept:
        raise InputError("the CSV file holds no rows", where=where, expected="a row of values a line")
    return kept


def _column(spec: TensorSpec, name: str, kept: Sequence[Row], index: int, where: str) -> Array:
    import numpy as np

    kind = DTYPES[spec.dtype].to_numpy()
    convert = _converter(spec.dtype)
    values: list[Any] = []
    for line, cells in kept:
        value = convert(cells[index])
        if value is None:
            raise InputError(
                "a value is missing" if not cells[index] else "a cell does not fit its input",
                where=f"{where}: line {line}, column {name!r}",
                expected=spec.dtype,
                found=repr(cells[index][:60]),
            )
        values.append(value)
    if spec.dtype == "string":
        column = np.empty(len(values), object)
        column[:] = values
        return column
    with np.errstate(over="ignore"):
        return np.array(values).astype(kind)


def _converter(dtype: str) -> Callable[[str], Any]:
    """What makes a value of a cell; None for a cell that holds none."""
    import numpy as np

    if dtype == "string":
        return str
    if dtype == "bool":
        return lambda cell: _BOOLS.get(cell.lower())
    if "int" in dtype:
        bits = DTYPES[dtype].bits
        limits = (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

        def whole(cell: str) -> int | None:
            value = int(cell) if _INTEGER.fullmatch(cell) else None
            return value if value is not None and limits[0] <= value <= limits[1] else None

        return whole
    kind = DTYPES[dtype].to_numpy()

    def number(cell: str) -> float | None:
        value = float(cell) if _NUMBER.fullmatch(cell) else None
        if value is None or "inf" in cell.lower():
            return value
        with np.errstate(over="ignore"):
            return None if np.isinf(np.asarray(value).astype(kind)) else value

    return number


def _stacked(columns: Sequence[Array], spec: TensorSpec) -> Array:
    import numpy as np

    return np.stack(columns, axis=1) if columns else np.empty((0, 0), DTYPES[spec.dtype].to_numpy())
