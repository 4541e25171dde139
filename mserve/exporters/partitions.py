"""Weights whose values lie in several files: `--partitioned NAME=GLOB`.

Training jobs save a large table in parts, each part some of its rows. The parts are read
one at a time and written, one after the other, into one dataset; the table is never
whole in memory.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import open_input
from ..format.shards import chunked
from ..tensors import DTYPES, Array, dtype_of

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class PartitionedTensor:
    """A weight in parts: rows of `parts`, one after the other, make a tensor of `shape`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Path, ...]

    def chunks(self) -> Iterable[memoryview]:
        """The bytes of all parts in order; one part at a time is in memory."""
        import numpy as np

        for path in self.parts:
            array = np.ascontiguousarray(_open(path))
            yield from chunked(array.reshape(-1).view(np.uint8).data)


def find(globs: Mapping[str, str]) -> dict[str, PartitionedTensor]:
    """The parts of each named weight, in natural order of their file names ("part-2" before "part-10").

    Raises InputError: no file, files that are not arrays, parts of different dtype or width.
    """
    return {name: _tensor(name, pattern) for name, pattern in globs.items()}


def _tensor(name: str, pattern: str) -> PartitionedTensor:
    paths = tuple(Path(p) for p in sorted(glob.glob(pattern), key=_natural))
    if not paths:
        raise InputError(
            "no part of the weight was found", where=name, expected=f"files that match {pattern}"
        )
    rows, first = 0, None
    for path in paths:
        array = _open(path)
        kind = (dtype_of(array), array.shape[1:])
        first = first or kind
        if kind != first or array.ndim == 0 or kind[0] not in DTYPES or kind[0] == "string":
            raise InputError(
                "a part does not fit the others",
                where=path,
                expected=f"{first[0]} [rows, {', '.join(map(str, first[1]))}]",
                found=f"{kind[0]} {list(array.shape)}",
            )
        rows += array.shape[0]
    assert first is not None  # there is at least one path
    return PartitionedTensor(name, first[0], (rows, *first[1]), paths)


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _open(path: Path) -> Array:
    """A part: an npy file, mapped, or the only array of an npz file, read. Raises InputError."""
    import numpy as np

    try:
        open_input(path).close()
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded as archive:
            if len(archive.files) != 1:
                raise InputError(
                    "a part holds more than one array",
                    where=path,
                    expected="one",
                    found=", ".join(archive.files),
                )
            return np.asarray(archive[archive.files[0]])
    except (OSError, ValueError, EOFError) as error:
        raise InputError("cannot read a part", where=path, found=error) from error
