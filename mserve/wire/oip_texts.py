"""BYTES tensors of the Open Inference Protocol: elements one after the other, each behind its length.

A length is four bytes, little-endian, so that one element must be read to find the next.
But most columns of text are ids, hashes and names: ASCII, not empty, shorter than 128.
Then nothing but the lengths holds zeros, three each, so that numpy finds them all at once,
checks them, and cuts the elements. They become numpy's own text, which the engine takes
like objects and which costs a third of them to make. All else is read one by one.
"""

from __future__ import annotations

import struct

from ..errors import RequestError
from ..tensors import Array

Buffer = bytes | bytearray | memoryview

_LENGTH = struct.Struct("<I")
# Numpy's text takes four bytes for each character of the longest element, for every element.
WIDE_BYTES, WIDER = 1 << 22, 8


def texts_of(raw: Buffer, count: int, name: str) -> Array:
    """The elements of a BYTES tensor as text [count]. Raises RequestError naming the input."""
    if 4 * count > len(raw):
        raise RequestError(
            f"input {name!r} has too few bytes", expected=f"{count} lengths of 4 bytes", found=len(raw)
        )
    data = bytes(raw)
    # The lengths, too, are ASCII where they are short.
    is_ascii = data.isascii()
    if is_ascii and (array := _at_once(data, count)) is not None:
        return array
    return _one_by_one(data, count, name, data.decode("ascii") if is_ascii else "")


def text(raw: Buffer, name: str) -> str:
    """An element of BYTES as text. Raises RequestError where it is not UTF-8."""
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"input {name!r} has an element that is not UTF-8",
            found=error.reason,
            hint="ONNX strings are text; send bytes as a UINT8 tensor, or encode them",
        ) from error


def _at_once(data: bytes, count: int) -> Array | None:
    """The elements of ASCII data; None where some hold zeros, are empty or too different, or do not fit."""
    import numpy as np

    if not count or data.count(0) != 3 * count:
        return None
    octets = np.frombuffer(data, np.uint8)
    zeros = np.flatnonzero(octets == 0)
    lengths_at = zeros[::3] - 1
    if lengths_at[0] or (zeros[2::3] - zeros[::3] != 2).any():
        return None
    sizes = octets[lengths_at].astype(np.int64)
    starts = lengths_at + 4
    ends = starts + sizes
    longest = int(sizes.max())
    fits = ends[-1] == len(data) and bool((ends[:-1] == lengths_at[1:]).all())
    if not fits or 4 * longest * count > min(WIDE_BYTES, WIDER * len(data)):
        return None
    column = np.arange(longest)
    letters = octets[np.minimum(starts[:, None] + column, len(data) - 1)]
    letters[column >= sizes[:, None]] = 0
    array: Array = letters.astype(np.uint32).view(f"U{longest}")[:, 0]
    return array


def _one_by_one(data: bytes, count: int, name: str, whole: str) -> Array:
    """The elements, cut from `whole` where that is all of the data as text."""
    import numpy as np

    length_at = _LENGTH.unpack_from
    words: list[str] = []
    at, last = 0, len(data) - 4
    while len(words) < count:
        start = at + 4
        end = start + length_at(data, at)[0] if at <= last else last + 5
        if end > len(data):
            raise RequestError(f"input {name!r} ends inside element {len(words)}", found=f"{len(data)} bytes")
        words.append(whole[start:end] if whole else text(data[start:end], name))
        at = end
    if at != len(data):
        raise RequestError(
            f"input {name!r} has bytes behind its last element", expected=f"{at} bytes", found=len(data)
        )
    array = np.empty(count, object)
    array[:] = words
    return array
