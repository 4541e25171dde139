"""Universal Binary JSON, as XGBoost writes it: values marked by a letter, numbers big-endian.

An array or object may say how many values follow (`#`) and that all are of one type (`$`);
arrays of numbers of one type are then plain bytes, and become numpy arrays. Every count is
held against the bytes that are left before anything is made of it, and nesting is limited.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from ...errors import InputError

MAX_DEPTH = 64
# Marker: struct's letter and numpy's.
_NUMBERS = {
    b"i": (">b", "i1"),
    b"U": (">B", "u1"),
    b"I": (">h", ">i2"),
    b"l": (">i", ">i4"),
    b"L": (">q", ">i8"),
    b"d": (">f", ">f4"),
    b"D": (">d", ">f8"),
}
_CONSTANTS = {b"Z": None, b"T": True, b"F": False}


def parse(data: bytes, path: Path) -> Any:
    """The value that the bytes hold. Raises InputError naming the byte where they make no sense."""
    reader = _Reader(data, path)
    value = reader.value(reader.marker(), 0)
    if reader.at != len(data):
        raise reader.bad("the end of the file", f"{len(data) - reader.at} more bytes")
    return value


class _Reader:
    def __init__(self, data: bytes, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def bad(self, expected: str, found: object) -> InputError:
        end = self.at >= len(self.data)
        what = "the UBJSON file is truncated" if end else "the UBJSON file is malformed"
        return InputError(what, where=f"{self.path}, byte {self.at}", expected=expected, found=found)

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise self.bad(f"{count} bytes", f"{len(self.data) - self.at} bytes")
        self.at += count
        return self.data[self.at - count : self.at]

    def marker(self) -> bytes:
        return self.take(1)

    def number(self, marker: bytes) -> int | float:
        form = _NUMBERS[marker][0]
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value  # type: ignore[no-any-return]

    def length(self) -> int:
        marker = self.marker()
        size = self.number(marker) if marker in _NUMBERS else -1
        if not isinstance(size, int) or size < 0:
            raise self.bad("a length", marker)
        return size

    def text(self) -> str:
        return self.take(self.length()).decode(errors="replace")

    def value(self, marker: bytes, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.bad(f"at most {MAX_DEPTH} levels", "more")
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker in _NUMBERS:
            return self.number(marker)
        if marker in b"SH" and marker:
            return self.text()
        if marker == b"C":
            return self.take(1).decode("latin-1")
        if marker == b"[":
            return self.array(depth)
        if marker == b"{":
            return self.object(depth)
        raise self.bad("a value", marker)

    def header(self) -> tuple[bytes, int]:
        """The type of all values ("" if each has its own) and their number (-1: to the closing mark)."""
        kind, count = b"", -1
        if self.data[self.at : self.at + 1] == b"$":
            self.at += 1
            kind = self.marker()
            if self.data[self.at : self.at + 1] != b"#":
                raise self.bad("a number of values", self.data[self.at : self.at + 1])
        if self.data[self.at : self.at + 1] == b"#":
            self.at += 1
            count = self.length()
        if count > len(self.data) - self.at:  # every value that we read takes a byte at least
            raise self.bad(f"{count} values", f"{len(self.data) - self.at} bytes")
        return kind, count

    def array(self, depth: int) -> Any:
        import numpy as np

        kind, count = self.header()
        if kind in _NUMBERS:
            form = np.dtype(_NUMBERS[kind][1])
            return np.frombuffer(self.take(count * form.itemsize), form).astype(form.newbyteorder("="))
        if kind in _CONSTANTS:
            raise self.bad("an array that takes bytes", kind)
        values: list[Any] = []
        while count < 0 or len(values) < count:
            marker = kind or self.marker()
            if count < 0 and marker == b"]":
                break
            values.append(self.value(marker, depth + 1))
        return values

    def object(self, depth: int) -> dict[str, Any]:
        kind, count = self.header()
        found: dict[str, Any] = {}
        entries = 0
        while count < 0 or entries < count:
            if count < 0 and self.data[self.at : self.at + 1] == b"}":
                self.at += 1
                break
            name = self.text()
            found[name] = self.value(kind or self.marker(), depth + 1)
            entries += 1
        return found
