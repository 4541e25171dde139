"""A document of a foreign format, read value by value: each is checked, and named where it is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..tensors import Array


def _is_utf8(text: str) -> bool:
    """Whether a text can be written: JSON can name halves of characters, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Doc:
    """A value of a JSON-like document and the place where it stands."""

    value: Any
    where: str

    def __truediv__(self, key: str) -> Doc:
        """The value of a key. Raises InputError when there is none."""
        if not isinstance(self.value, dict) or key not in self.value:
            found = (
                ", ".join(list(self.value)[:12])
                if isinstance(self.value, dict)
                else type(self.value).__name__
            )
            raise InputError("the model lacks a part", where=self.where, expected=key, found=found)
        return Doc(self.value[key], f"{self.where}.{key}")

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def text(self) -> str:
        if not isinstance(self.value, str) or not _is_utf8(self.value):
            raise self._wrong("text")
        return self.value

    def integer(self, low: int, high: int) -> int:
        """A whole number within bounds, which may stand as text."""
        try:
            number = int(self.value) if isinstance(self.value, int | str) else None
        except ValueError:
            number = None
        if number is None or not low <= number <= high:
            raise self._wrong(f"a whole number from {low} to {high}")
        return number

    def items(self) -> list[Doc]:
        if not isinstance(self.value, list):
            raise self._wrong("a list")
        return [Doc(one, f"{self.where}[{index}]") for index, one in enumerate(self.value)]

    def floats(self, count: int | None = None) -> Array:
        """Numbers, float64 [count]."""
        import numpy as np

        return self._numbers("biuf", count).astype(np.float64)

    def integers(self, count: int | None = None) -> Array:
        """Whole numbers, int64 [count]."""
        import numpy as np

        return self._numbers("biu", count).astype(np.int64)

    def _numbers(self, kinds: str, count: int | None) -> Array:
        import numpy as np

        if not isinstance(self.value, list | np.ndarray):
            raise self._wrong("numbers")
        try:
            array = np.asarray(self.value)
        except (ValueError, OverflowError):
            array = np.empty(0, object)
        if array.size == 0 and array.dtype != object:
            array = np.empty(0, np.uint8)
        if array.ndim != 1 or array.dtype.kind not in kinds or (count is not None and len(array) != count):
            raise self._wrong("numbers" if count is None else f"{count} numbers")
        return array

    def _wrong(self, expected: str) -> InputError:
        found = repr(self.value) if not hasattr(self.value, "__len__") else f"{type(self.value).__name__}"
        size = f" of {len(self.value)}" if isinstance(self.value, list) else ""
        text = repr(self.value)[:60] if isinstance(self.value, str) else f"{found[:60]}{size}"
        return InputError(
            "a part of the model is not what it must be", where=self.where, expected=expected, found=text
        )
