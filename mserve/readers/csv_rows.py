"""The lines of a CSV file: UTF-8, commas, strict quotes."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import TextIO

from ..errors import InputError

Row = tuple[int, list[str]]


def rows(file: TextIO, where: object, delimiter: str = ",") -> Iterator[Row]:
    """The rows of a file, each with the line in which it begins; empty lines are passed over.

    Raises InputError at quotes and bytes that make no sense.
    """
    reader, line = csv.reader(file, strict=True, delimiter=delimiter), 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError("the CSV file is malformed", where=f"{where}: line {line}", found=error) from error
    except UnicodeDecodeError as error:
        raise InputError(
            "the CSV file is not UTF-8", where=f"{where}: after line {line}", found=error
        ) from error


def check_header(header: Sequence[str], where: object) -> None:
    """Refuse a header that does not name each column, once. Raises InputError."""
    if not header:
        raise InputError("the CSV file is empty", where=where, expected="a header line")
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled or "" in header:
        found = f"{', '.join(map(repr, doubled))} twice" if doubled else "a column without a name"
        raise InputError("bad header", where=f"{where}: line 1", expected="names, each once", found=found)


def check_width(row: Row, width: int, where: object) -> None:
    """Refuse a row that has not as many cells as it must. Raises InputError."""
    line, cells = row
    if len(cells) != width:
        raise InputError(
            "a row has too many or too few cells",
            where=f"{where}: line {line}",
            expected=f"{width} cells, as in the first line",
            found=len(cells),
        )
