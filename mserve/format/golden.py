"""Golden samples: recorded inputs and the outputs that the exported model gave for them.

They lie in `assets/mserve/golden.npz`, a plain numpy archive without pickles, under
`<signature>/inputs/<alias>` and `<signature>/outputs/<alias>`. Strings are stored as
numpy's unicode arrays. They are what `validate` proves a version with, and what warms
it up before it answers anyone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError, MetaGraphMalformed
from ..files import open_input
from ..tensors import DTYPES, SHORT_TYPES, Array, Signature, dtype_of

MAX_UNPACKED_BYTES = 1 << 30
SIDES = ("inputs", "outputs")


@dataclass(frozen=True, slots=True)
class Golden:
    """One signature's recorded inputs and outputs, by alias."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def pack(samples: Mapping[str, Golden]) -> bytes:
    """The bytes of a golden file; the same samples always give the same bytes."""
    import numpy as np

    arrays = {
        f"{name}/{side}/{alias}": storable(array)
        for name, golden in samples.items()
        for side, ports in zip(SIDES, (golden.inputs, golden.outputs), strict=True)
        for alias, array in ports.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def storable(array: Array) -> Array:
    """An array as numpy's files take it: they have no word for text objects, which become unicode arrays,
    nor for short types, which become bytes.

    Raises InputError for text that such an array cannot hold: it ends in NUL.
    """
    import numpy as np

    if array.dtype.name in SHORT_TYPES:
        return array.view(f"V{array.dtype.itemsize}")
    if dtype_of(array) != "string":
        return array
    stored = array.astype(str)
    if not np.array_equal(stored.astype(object), array):
        raise InputError("text ends in NUL, which an npz archive cannot hold")
    return stored


def unpack(path: Path, signatures: Mapping[str, Signature]) -> dict[str, Golden]:
    """Read a golden file for the given signatures. Raises MetaGraphMalformed when it does not fit them."""
    try:
        arrays = read_npz(path)
    except InputError as error:
        raise MetaGraphMalformed(
            "the golden samples cannot be read", where=path, found=error.found or error.what
        ) from error
    samples = {}
    for name, signature in signatures.items():
        sides = []
        for side, ports in zip(SIDES, (signature.inputs, signature.outputs), strict=True):
            found = {alias: f"{name}/{side}/{alias}" for alias in ports}
            if any(key not in arrays for key in found.values()):
                break
            sides.append({a: restored(arrays[key], ports[a].dtype) for a, key in found.items()})
        if len(sides) == len(SIDES):
            samples[name] = Golden(*sides)
    if not samples:
        raise MetaGraphMalformed("the golden samples fit no signature", where=path, found=", ".join(arrays))
    return samples


def restored(array: Array, dtype: str) -> Array:
    """An array of a golden file as it was, given its dtype (a key of DTYPES)."""
    kind = DTYPES[dtype].to_numpy()
    if dtype == "string":
        return array.astype(object)
    if array.dtype.kind == "V" and array.dtype.itemsize == kind.itemsize:
        return array.view(kind)
    return array


def read_npz(path: Path, limit: int = MAX_UNPACKED_BYTES) -> dict[str, Array]:
    """All arrays of an npz archive of at most `limit` bytes, unpacked; no pickles. Raises InputError."""
    with open_input(path) as file:
        return npz_arrays(file, path, limit)


def npz_arrays(file: BinaryIO, where: object, limit: int = MAX_UNPACKED_BYTES) -> dict[str, Array]:
    """As `read_npz`, from an open file."""
    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise InputError("not an npz archive", where=where, found="a single npy array")
            size = sum(info.file_size for info in archive.zip.infolist())
            if size > limit:
                raise InputError(
                    "the npz archive unpacks to too much",
                    where=where,
                    expected=f"at most {limit} bytes",
                    found=size,
                )
            arrays = {name: archive[name] for name in archive.files}
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise InputError(
            "cannot read the npz archive",
            where=where,
            found=_reason(error),
            hint="write it with numpy.savez, strings as numpy text arrays, not objects",
        ) from error
    strange = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if strange:
        raise InputError("the npz archive holds more than arrays", where=where, found=", ".join(strange[:5]))
    empty = [name for name, array in arrays.items() if array.size and not array.itemsize]
    if empty:  # as many as a file of 200 bytes says, and each becomes an object
        raise InputError("the npz archive holds values of no bytes", where=where, found=", ".join(empty[:5]))
    return arrays


def _reason(error: Exception) -> Any:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    # numpy takes whatever it does not know for a pickle, and says how to run it.
    return "not an npz archive" if text.startswith("This file contains pickled") else text
