"""The columns of a table before it is sorted: numbers in an array, or text in UTF-8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import InputError, RequestError
from ...format.graph import MAX_DIMS
from ...format.shards import Tensor
from ...tensors import DTYPES, Array, dtype_of, plain_text

PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Text:
    """Words in row-major order: word i is bytes offsets[i] to offsets[i + 1] of `data`, UTF-8.

    `shape` begins with the number of rows.
    """

    offsets: Array
    data: bytes | bytearray
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Words in a row."""
        return (len(self.offsets) - 1) // max(1, self.shape[0])

    def words(self, index: Array) -> list[bytes]:
        """The words at the given places."""
        spans = zip(self.offsets[index].tolist(), self.offsets[index + 1].tolist(), strict=True)
        return [bytes(self.data[start:end]) for start, end in spans]


@dataclass(frozen=True, slots=True)
class Columns:
    """A table as its source has it. `places` says where each row stands there, such as its line."""

    key: str
    columns: Mapping[str, Array | Text]
    where: str
    places: Array
    place_name: str


def text_of(words: Sequence[bytes], shape: tuple[int, ...]) -> Text:
    """Words, already UTF-8, as a column."""
    import numpy as np

    offsets = np.zeros(len(words) + 1, np.int64)
    np.cumsum([len(word) for word in words], out=offsets[1:])
    return Text(offsets, b"".join(words), shape)


def column(given: Any, where: str) -> Array | Text:
    """An array as a column. Raises InputError: no rows, a dtype that requests cannot carry, bad text."""
    import numpy as np

    try:
        array = np.asarray(given)
    except ValueError as error:  # rows of different length
        raise InputError("not a column", where=where, found=error) from error
    if array.ndim == 0 or array.size == 0 or array.ndim > MAX_DIMS:
        expected = f"[rows, ...] with at least one value, and at most {MAX_DIMS} dimensions"
        raise InputError("not a column", where=where, expected=expected, found=f"shape {list(array.shape)}")
    name = dtype_of(array)
    if name == "string":
        try:
            words = [word.encode() for word in plain_text(array).ravel().tolist()]
        except RequestError as error:
            raise InputError(error.what, where=where, expected=error.expected, found=error.found) from error
        except UnicodeEncodeError as error:
            raise InputError("text is not UTF-8", where=where, found=error) from error
        return text_of(words, array.shape)
    if name not in DTYPES or DTYPES[name].bits < 8:
        raise InputError("a column has a dtype that cannot be served", where=where, found=name)
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def sorted_column(name: str, one: Array | Text, order: Array) -> list[Tensor]:
    """A column's rows in the given order, as its weights."""
    if isinstance(one, Text):
        return sorted_text(name, one, order)
    return [sorted_numbers(f"{name}:values", one, order)]


def sorted_numbers(name: str, array: Array, order: Array) -> Tensor:
    """The rows of an array in the given order, as a weight."""
    import numpy as np

    step = max(1, PIECE_BYTES * len(array) // max(1, array.nbytes))

    def chunks() -> Iterator[memoryview]:
        for at in range(0, len(order), step):
            yield np.ascontiguousarray(array[order[at : at + step]]).reshape(-1).view(np.uint8).data

    return Tensor(name, dtype_of(array), (len(order), *array.shape[1:]), chunks)


def sorted_text(name: str, text: Text, order: Array) -> list[Tensor]:
    """The rows of a text column in the given order, as two weights: offsets and bytes."""
    import numpy as np

    index = (order[:, None] * text.width + np.arange(text.width)).ravel()
    offsets = np.zeros(len(index) + 1, np.int64)
    np.cumsum(np.diff(text.offsets)[index], out=offsets[1:])

    def chunks() -> Iterator[bytes]:
        for at in range(0, len(index), 1 << 16):
            yield b"".join(text.words(index[at : at + (1 << 16)]))

    rising = sorted_numbers(f"{name}:offsets", offsets, np.arange(len(offsets)))
    return [rising, Tensor(f"{name}:bytes", "uint8", (int(offsets[-1]),), chunks)]
