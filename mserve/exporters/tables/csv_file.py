"""CSV files as columns: UTF-8, commas, a header line.

The file is read twice, so that memory holds the table and never its text: first each
column's type is settled from all of its cells, then the cells are converted. Types are
inferred strictly, because a wrong guess would change values: a column is int64 if every
cell is an integer as JSON writes it (`007` is text, and so is an integer that int64
cannot hold), float32 if every cell is a number, bool if every cell is true or false,
and text otherwise. An empty cell is text, and an error in a column of anything else.
"""

from __future__ import annotations

import io
import itertools
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import open_input
from ...readers.csv_rows import Row, check_header, check_width
from ...readers.csv_rows import rows as rows_of
from ...tensors import Array
from .columns import Columns, Text

INTEGER, NUMBER, BOOL, TEXT = "int64", "float32", "bool", "string"
BLOCK_ROWS = 1 << 14
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|nan|[+-]?inf", re.IGNORECASE)
_INFINITE = re.compile(r"[+-]?inf", re.IGNORECASE)
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}

_CONVERT: dict[str, Callable[[str], Any]] = {INTEGER: int, NUMBER: float, BOOL: _BOOLS.__getitem__}


def read_csv(path: Path, key: str) -> Columns:
    """The columns of a CSV file; `key` is the key's name, "" for `key` or else the first column.

    Raises InputError naming line and column: no header, a cell too many or too few, a
    missing value, a number that float32 cannot hold, quotes or bytes that make no sense.
    """
    with io.TextIOWrapper(open_input(path), "utf-8-sig", newline="") as file:
        rows = rows_of(file, path)
        _, header = next(rows, (0, []))
        check_header(header, path)
        key = key or ("key" if "key" in header else header[0])
        kinds, lines = _survey(rows, header, key, path)
        file.seek(0)
        columns = _convert(itertools.islice(rows_of(file, path), 1, None), header, kinds, len(lines), path)
    import numpy as np

    return Columns(key, columns, str(path), np.frombuffer(lines, np.int64), "line")


def _survey(rows: Iterator[Row], header: list[str], key: str, path: Path) -> tuple[list[str], array[int]]:
    """The type of each column, and the line of each row."""
    kinds, empty = [""] * len(header), [0] * len(header)
    lines = array("q")
    for line, cells in rows:
        check_width((line, cells), len(header), path)
        lines.append(line)
        for i, cell in enumerate(cells):
            if not cell:
                empty[i] = empty[i] or line
            elif kinds[i] != TEXT:
                kinds[i] = _join(kinds[i], _kind(cell))
    for i, name in enumerate(header):
        if name == key and kinds[i] != INTEGER:
            kinds[i] = TEXT
        if empty[i] and (kinds[i] not in (TEXT, "") or name == key):
            where = f"{path}: line {empty[i]}, column {name!r}"
            raise InputError("a value is missing", where=where, expected="text" if name == key else kinds[i])
    return [kind or TEXT for kind in kinds], lines


def _kind(cell: str) -> str:
    if _INTEGER.fullmatch(cell):
        return INTEGER if len(cell) <= 20 and -(2**63) <= int(cell) < 2**63 else TEXT
    if _NUMBER.fullmatch(cell):
        return NUMBER
    return BOOL if cell in _BOOLS else TEXT


def _join(one: str, other: str) -> str:
    """The type of a column that holds values of two types; "" is that of no value."""
    if one in ("", other):
        return other
    return NUMBER if {one, other} == {INTEGER, NUMBER} else TEXT


@dataclass(slots=True)
class _Numbers:
    """A column of numbers or booleans, filled block by block."""

    values: Array
    kind: str

    def add(self, at: int, cells: Sequence[str]) -> int | None:
        """Take the cells from row `at` on; returns which one float32 cannot hold, if any."""
        import numpy as np

        convert = _CONVERT[self.kind]
        with np.errstate(over="ignore"):
            block = np.array([convert(cell) for cell in cells]).astype(self.kind)
        self.values[at : at + len(cells)] = block
        infinite = np.flatnonzero(np.isinf(block)).tolist() if self.kind == NUMBER else []
        return next((i for i in infinite if not _INFINITE.fullmatch(cells[i])), None)

    def column(self) -> Array:
        return self.values


@dataclass(slots=True)
class _Words:
    """A column of text, filled block by block. `offsets` holds lengths until it is full."""

    offsets: Array
    data: bytearray

    def add(self, at: int, cells: Sequence[str]) -> None:
        words = [cell.encode() for cell in cells]
        self.offsets[at + 1 : at + 1 + len(words)] = [len(word) for word in words]
        self.data += b"".join(words)

    def column(self) -> Text:
        import numpy as np

        return Text(np.cumsum(self.offsets), self.data, (len(self.offsets) - 1,))


def _convert(
    rows: Iterator[Row], header: list[str], kinds: list[str], count: int, path: Path
) -> dict[str, Array | Text]:
    """The cells as values. Raises InputError where float32 cannot hold one."""
    import numpy as np

    columns: list[_Numbers | _Words] = [
        _Words(np.zeros(count + 1, np.int64), bytearray()) if k == TEXT else _Numbers(np.empty(count, k), k)
        for k in kinds
    ]
    done = 0
    try:
        while block := list(itertools.islice(rows, BLOCK_ROWS)):
            by_column = zip(*(cells for _, cells in block), strict=True)
            for name, column, cells in zip(header, columns, by_column, strict=True):
                if (wrong := column.add(done, cells)) is not None:
                    raise InputError(
                        "a number is too large for float32",
                        where=f"{path}: line {block[wrong][0]}, column {name!r}",
                        expected=f"at most {np.finfo(np.float32).max}",
                        found=cells[wrong][:40],
                    )
            done += len(block)
        if done != count:
            raise ValueError(f"{count} rows, then {done}")
    except (ValueError, KeyError, IndexError) as error:
        raise InputError("the CSV file changed while it was read", where=path, found=error) from error
    return {name: column.column() for name, column in zip(header, columns, strict=True)}
