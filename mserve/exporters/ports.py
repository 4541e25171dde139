"""Inputs that the user describes, as `--input NAME:DTYPE[DIMS]` says them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..errors import UsageError
from ..tensors import DTYPES, Dim, TensorSpec

_PORT = re.compile(r"(?P<name>[^:\[\]]+)(:(?P<dtype>\w+))?(\[(?P<dims>[^\[\]]*)\])?")
_ALIASES = {"float": "float32", "double": "float64", "int": "int32", "long": "int64", "str": "string"}
_MOST = 1 << 31


def parse(texts: Sequence[str]) -> dict[str, TensorSpec]:
    """The described tensors by name. No dtype is float32; no dims are [batch]. Raises UsageError."""
    found = {}
    for text in texts:
        match = _PORT.fullmatch(text.strip())
        dtype = _ALIASES.get(match["dtype"] or "float", match["dtype"] or "") if match else ""
        dims = _dims(match["dims"]) if match else None
        if match is None or dtype not in DTYPES or dims is None or match["name"] in found:
            raise UsageError("bad --input", expected="NAME:DTYPE[DIMS], each once", found=text[:80])
        found[match["name"]] = TensorSpec(match["name"], dtype, dims)
    return found


def _dims(text: str | None) -> tuple[Dim, ...] | None:
    if text is None:
        return ("batch",)
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if not all(word.isidentifier() or word == "?" or (word.isdecimal() and len(word) < 11) for word in words):
        return None
    dims = tuple(int(word) if word.isdecimal() else word for word in words)
    return dims if all(isinstance(dim, str) or 0 < dim < _MOST for dim in dims) else None


def only_known(given: Mapping[str, TensorSpec], known: Sequence[str], where: object) -> None:
    """Refuse descriptions of inputs that the model does not have. Raises UsageError."""
    if unknown := [name for name in given if name not in known]:
        raise UsageError(
            "--input describes what the model does not have",
            where=where,
            expected=", ".join(known),
            found=", ".join(unknown),
        )
