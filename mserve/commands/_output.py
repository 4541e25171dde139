"""What commands print: results on stdout, everything else on stderr.

Tables are drawn for people and become tab-separated rows when stdout is not a terminal.
User data never passes through Rich's markup, which would eat `[batch, 3]`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..numerics import show_bytes as size

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1

__all__ = ["SCHEMA", "drawn", "emit_json", "emitted", "line", "note", "on_terminal", "size", "table"]


_documents = 0


def emitted() -> bool:
    """Whether a JSON document was printed: a command prints one, its result or its error."""
    return _documents > 0


def emit_json(kind: str, value: dict[str, Any], indent: int | None = 2) -> None:
    """One JSON document on stdout: `{"schema": 1, "kind": ..., ...}`; one line without `indent`."""
    global _documents
    _documents += 1
    json.dump({"schema": SCHEMA, "kind": kind, **value}, sys.stdout, indent=indent, ensure_ascii=False)
    sys.stdout.write("\n")


def on_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout."""
    if not on_terminal():
        for row in rows:
            print("\t".join(_cell(value) for value in row))
        return
    from rich.console import Console

    Console().print(drawn(columns, rows))


def drawn(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table as a terminal shows it; what stands in the first column is not repeated."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        result.add_column(column, overflow="fold")
    above: Sequence[object] = ()
    for row in rows:
        first = "" if len(row) > 3 and above[:1] == row[:1] else _cell(row[0])
        result.add_row(Text(first), *(Text(_cell(value)) for value in row[1:]))
        above = row
    return result


def _cell(value: object) -> str:
    """A value that cannot break a row of tab-separated fields."""
    return printable(str(value).replace("\t", " ").replace("\n", " "))


def printable(text: str) -> str:
    """Text that cannot move the cursor: names come from files that anyone may have written."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def line(text: str = "") -> None:
    """A line of the result on stdout."""
    print(text)


def note(text: str) -> None:
    """A line for the person watching, on stderr."""
    print(text, file=sys.stderr, flush=True)
