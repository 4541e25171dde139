"""What commands print: results on stdout, everything else on stderr.

Tables are drawn for people and become tab-separated rows when stdout is not a terminal.
User data never passes through Rich's markup, which would eat `[batch, 3]`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

SCHEMA = 1


def emit_json(kind: str, value: dict[str, Any]) -> None:
    """One JSON document on stdout: `{"schema": 1, "kind": ..., ...}`."""
    json.dump({"schema": SCHEMA, "kind": kind, **value}, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout."""
    if not sys.stdout.isatty():
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
    for row in rows:
        drawn.add_row(*(Text(_cell(value)) for value in row))
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


def size(byte_count: int) -> str:
    """A size for people: `3.1 MB`."""
    value = float(byte_count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
