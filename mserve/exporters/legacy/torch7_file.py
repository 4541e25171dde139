"""Torch7's files (`torch.save`), binary or ascii: Lua values, one after another.

Every value begins with a number that tells its type. Tables and objects also have a number
of their own: where it comes up again, the same value is meant, and nothing follows. So
files may hold cycles. An object has a version, the name of its class and then a table of
fields; tensors and storages have a layout of their own instead. A tensor is a view: sizes,
strides and an offset (from 1) into a storage. Functions are compiled Lua code: they are
stepped over and never run.

In the ascii form the same numbers stand as text between white space; bytes of text and of
storages of bytes stand as they are, and end with a line break.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError
from ...tensors import Array

NIL, NUMBER, STRING, TABLE, OBJECT, BOOLEAN, FUNCTION, OLD_FUNCTION, CODE = range(9)
MAX_DEPTH = 150
MAX_AXES = 32
MAX_NAME = 1 << 12
ELEMENTS = {
    "Float": "<f4", "Cuda": "<f4", "Double": "<f8", "CudaDouble": "<f8", "Half": "<f2", "CudaHalf": "<f2",
    "Long": "<i8", "CudaLong": "<i8", "Int": "<i4", "CudaInt": "<i4", "Short": "<i2", "CudaShort": "<i2",
    "Char": "<i1", "CudaChar": "<i1", "Byte": "<u1", "CudaByte": "<u1",
}  # fmt: skip


@dataclass(eq=False, slots=True)
class Thing:
    """An object: the name of its class, which is only a name here, and its fields."""

    name: str
    fields: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Storage:
    """Numbers in a row."""

    values: Array


@dataclass(eq=False, slots=True)
class View:
    """A tensor as it is stored; `array` checks it against its storage. `offset` counts from 0."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: Storage | None

    def array(self, where: str) -> Array:
        """The numbers, as an array of their own. Raises InputError for a view that leaves its storage."""
        import numpy as np

        if self.storage is None or 0 in (self.sizes or (0,)):
            return np.empty(0, np.float32)
        held = self.storage.values
        count, last = 1, self.offset
        for size, stride in zip(self.sizes, self.strides, strict=True):
            count *= size
            last += (size - 1) * stride
        fits = min(self.sizes) >= 0 and min(self.strides) >= 0 and count <= len(held)
        if not fits or not 0 <= self.offset <= last < len(held):
            found = f"sizes {list(self.sizes)[:8]}, strides {list(self.strides)[:8]}, offset {self.offset}"
            raise InputError(
                "a tensor leaves its storage", where=where, expected=f"{len(held)} numbers", found=found
            )
        # The stride of an axis of one number is never taken, and may be any.
        steps = [
            stride * held.itemsize if size > 1 else 0
            for size, stride in zip(self.sizes, self.strides, strict=True)
        ]
        view = np.lib.stride_tricks.as_strided(held[self.offset :], self.sizes, steps)
        return np.ascontiguousarray(view)


class Binary:
    """Reads the numbers of a binary file, little endian."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def fail(self, expected: str, found: object) -> InputError:
        where = f"{self.where}: byte {self.at}"
        return InputError("the file is truncated or malformed", where=where, expected=expected, found=found)

    def take(self, count: int) -> bytes:
        left = len(self.data) - self.at
        if not 0 <= count <= left:
            raise self.fail(f"at most {left} bytes", count)
        self.at += count
        return self.data[self.at - count : self.at]

    def integer(self) -> int:
        return int(struct.unpack("<i", self.take(4))[0])

    def longs(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}q", self.take(8 * count)) if count else ()

    def double(self) -> float:
        return float(struct.unpack("<d", self.take(8))[0])

    def text(self) -> bytes:
        return self.take(self.integer())

    def numbers(self, kind: str, count: int) -> Array:
        import numpy as np

        size = np.dtype(kind).itemsize
        if not 0 <= count <= (len(self.data) - self.at) // size:
            raise self.fail("numbers that are there", f"{count} of {size} bytes")
        return np.frombuffer(self.take(count * size), kind)


class Ascii(Binary):
    """Reads the numbers of an ascii file."""

    def word(self) -> str:
        data, end = self.data, len(self.data)
        while self.at < end and data[self.at] in b" \t\r\n":
            self.at += 1
        start = self.at
        while self.at < end and data[self.at] not in b" \t\r\n":
            self.at += 1
        if not 0 < self.at - start <= 40:
            raise self.fail("a number", data[start : start + 20])
        return data[start : self.at].decode("latin-1")

    def integer(self) -> int:
        word = self.word()
        if not word.removeprefix("-").isdecimal() or len(word) > 20:
            raise self.fail("a whole number", word)
        found = int(word)
        if not -(2**63) <= found < 2**63:
            raise self.fail("a whole number of 64 bits", word)
        return found

    def longs(self, count: int) -> tuple[int, ...]:
        return tuple(self.integer() for _ in range(count))

    def double(self) -> float:
        word = self.word()
        try:
            return float(word)
        except ValueError:
            raise self.fail("a number", word) from None

    def text(self) -> bytes:
        count = self.integer()
        self._break()
        found = self.take(count)
        self._break()
        return found

    def _break(self) -> None:
        if self.data[self.at : self.at + 1] == b"\n":
            self.at += 1

    def numbers(self, kind: str, count: int) -> Array:
        import numpy as np

        if kind in ("<i1", "<u1"):
            self._break()
            return np.frombuffer(self.take(count), kind)
        if not 0 <= count <= (len(self.data) - self.at + 1) // 2:  # a digit and a space each
            raise self.fail("numbers that are there", count)
        if kind[1] == "i":
            return np.array(self.longs(count), np.int64)
        with np.errstate(over="ignore"):  # too large for float32 is infinite, as in a binary file
            return np.array([self.double() for _ in range(count)], kind)


def parse(data: bytes, where: str) -> Any:
    """The first value of a file: numbers, texts (latin-1), dicts, Things, Views, or None.

    Raises InputError.
    """
    ascii_form = data[:1] in b"0123456789" and data[1:2] == b"\n"
    return _Values((Ascii if ascii_form else Binary)(data, where)).value(0)


class _Values:
    def __init__(self, reader: Binary) -> None:
        self.reader = reader
        self.known: dict[int, Any] = {}

    def value(self, depth: int) -> Any:
        reader = self.reader
        if depth > MAX_DEPTH:
            raise reader.fail(f"at most {MAX_DEPTH} values inside each other", "more")
        tag = reader.integer()
        if tag == NIL:
            return None
        if tag == NUMBER:
            return reader.double()
        if tag == STRING:
            return reader.text().decode("latin-1")
        if tag == BOOLEAN:
            return reader.integer() != 0
        if tag == FUNCTION:
            return self._function(depth)
        if tag not in (TABLE, OBJECT, OLD_FUNCTION, CODE):
            raise reader.fail("a type from 0 to 8", tag)
        index = reader.integer()
        if index in self.known:
            return self.known[index]
        if tag == TABLE:
            return self._table(index, depth)
        if tag == OBJECT:
            return self._object(index, depth)
        self.known[index] = None
        return self._function(depth)

    def _function(self, depth: int) -> None:
        self.reader.text()
        self.value(depth + 1)

    def _table(self, index: int, depth: int) -> dict[Any, Any]:
        table: dict[Any, Any] = {}
        self.known[index] = table
        count = self.reader.integer()
        for _ in range(count):  # each takes bytes: a wrong count ends with the file
            key = self.value(depth + 1)
            key = int(key) if isinstance(key, float) and key.is_integer() else key
            found = self.value(depth + 1)
            if isinstance(key, str | int | float):
                table[key] = found
        return table

    def _object(self, index: int, depth: int) -> Any:
        name = self._name()
        head, _, rest = name.partition(".")
        if head == "torch" and rest.endswith("Tensor") and rest[:-6] in ELEMENTS:
            return self._tensor(index, depth)
        if head == "torch" and rest.endswith("Storage") and rest[:-7] in ELEMENTS:
            count = self.reader.longs(1)[0]
            found = Storage(self.reader.numbers(ELEMENTS[rest[:-7]], count))
            self.known[index] = found
            return found
        thing = Thing(name)
        self.known[index] = thing
        fields = self.value(depth + 1)
        if isinstance(fields, dict):
            thing.fields = fields
        return thing

    def _name(self) -> str:
        name = self.reader.text()
        if name.startswith(b"V "):
            name = self.reader.text()
        if not 0 < len(name) <= MAX_NAME:
            raise self.reader.fail("the name of a class", name[:20])
        return name.decode("latin-1")

    def _tensor(self, index: int, depth: int) -> View:
        axes = self.reader.integer()
        if not 0 <= axes <= MAX_AXES:
            raise self.reader.fail(f"at most {MAX_AXES} axes", axes)
        sizes, strides = self.reader.longs(axes), self.reader.longs(axes)
        offset = self.reader.longs(1)[0] - 1
        view = View(sizes, strides, offset, None)
        self.known[index] = view
        storage = self.value(depth + 1)
        if not isinstance(storage, Storage | None):
            raise self.reader.fail("a storage", type(storage).__name__)
        view.storage = storage
        return view
