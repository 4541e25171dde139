"""What commands print: results on stdout, everything else on stderr.

Tables are drawn for people and become tab-separated rows when stdout is not a terminal.
User data never passes through Rich's markup, which would eat `[batch, 3]`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from ..numerics import show_bytes as size

SCHEMA = 1

__all__ = ["SCHEMA", "emit_json", "emitted", "line", "note", "size", "table"]


_documents = 0


def emitted() -> bool:
    """Whether a JSON document was printed: a command prints one, its result or its error."""
    return _documents > 0


def emit_json(kind: str, value: dict[str, Any]) -> None:
    """One JSON document on stdout: `{"schema": 1, "kind": ..., ...}`."""
    global _documents
    _documents += 1
    json.dump({"schema": SCHEMA, "kind": kind, **value}, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout."""
    if sys.stdout is None or not sys.stdout.isatty():
        for row in rows:
            print("\t".join(_cell(value) for value in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    above: Sequence[object] = ()
    for row in rows:
        first = "" if len(row) > 3 and above[:1] == row[:1] else _cell(row[0])
        drawn.add_row(Text(first), *(Text(_cell(value)) for value in row[1:]))
        above = row
    Console().print(drawn)


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
