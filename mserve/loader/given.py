"""What people give to `run` for a sparse input: its parts, rows, or a sparse matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RequestError
from ..sparse import IDS, LENGTHS, VALUES, Sparse
from ..tensors import Array, Signature, plain_text
from ..wire.sparse_json import of_rows


def arrays_of(signature: Signature, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays of a request by name. Text may be numpy text, bytes or object arrays.

    A sparse input may be given by its parts (`features.ids`, ...), or under its own name: as
    rows like those of a JSON request, as a dict of its parts, or as a matrix of compressed
    rows (anything with `indptr`, `indices` and `data`, such as scipy's). Raises RequestError.
    """
    import numpy as np

    found: dict[str, Array] = {}
    for name, value in inputs.items():
        if (sparse := signature.sparse.get(name)) is None:
            found[name] = plain_text(np.asarray(value))
        else:
            found |= _parts(name, sparse, value, signature)
    return found


def _parts(alias: str, sparse: Sparse, value: Any, signature: Signature) -> dict[str, Array]:
    import numpy as np

    value = value.tocsr() if hasattr(value, "tocsr") else value
    if hasattr(value, "indptr"):
        value = {IDS: value.indices, VALUES: value.data, LENGTHS: np.diff(value.indptr)}
        value = {part: x for part, x in value.items() if part in sparse.parts()}
    elif not isinstance(value, dict):
        return of_rows([_plain_row(row) for row in value], alias, signature)
    names = sparse.names(alias)
    unknown = [part for part in value if part not in names]
    if unknown:
        raise RequestError(f"input {alias!r} has no such part", expected=", ".join(names), found=unknown[0])
    arrays = {names[part]: plain_text(np.asarray(x)) for part, x in value.items()}
    return {name: _converted(x, signature.inputs[name].dtype) for name, x in arrays.items()}


def _converted(array: Array, dtype: str) -> Array:
    """Whole numbers of another width, and floats of another one, as the dtype; others are refused later.

    Libraries choose the width of a matrix's numbers as they see fit; none of its values is lost.
    """
    import numpy as np

    target = np.dtype(dtype) if dtype.startswith(("int", "float")) and "8e" not in dtype else array.dtype
    if array.dtype.kind != target.kind or array.dtype == target:
        return array
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what does not fit is infinite, and refused
            return array.astype(target)
    limits = np.iinfo(target)
    fits = not array.size or (array.min() >= limits.min and array.max() <= limits.max)
    return array.astype(target) if fits else array


def _plain_row(row: Any) -> Any:
    """A row whose arrays are lists, as in JSON."""
    if isinstance(row, dict):
        return {key: _plain_list(value) for key, value in row.items()}
    return row if isinstance(row, str) else _plain_list(row)


def _plain_list(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    plain = isinstance(value, list | tuple)
    return [x.item() if hasattr(x, "item") else x for x in value] if plain else value
