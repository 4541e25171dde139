"""`--input NAME:DTYPE[DIMS]` and `--output NAME[=TENSOR]`, and arrays that fit such inputs.

A dimension is a number or a symbol; the symbol `batch` in front says that rows are independent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from ..tensors import ANY_DIM, DTYPES, Array, Dim, TensorSpec

BATCH = "batch"
_INPUT = re.compile(r"(?P<name>[^:\[\]=]+):(?P<dtype>\w+)\[(?P<dims>[^\[\]]*)\]")
_BRIEF = re.compile(r"(?P<name>[^:\[\]=]+)(:(?P<dtype>\w+))?(\[(?P<dims>[^\[\]]*)\])?")
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
# What "int" and the like mean to those who do not count bits.
_SHORT = {"float": "float32", "double": "float64", "int": "int32", "long": "int64", "str": "string"}
MAX_RANK = 16


@dataclass(frozen=True, slots=True)
class Port:
    """An input: name, dtype (a key of DTYPES) and dimensions, each a size or a symbol."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}[{','.join(map(str, self.dims))}]"


def parse_inputs(texts: Sequence[str], *, brief: bool = False) -> tuple[Port, ...]:
    """The ports of `--input` flags, in their order. Raises UsageError.

    Where `brief`, a dtype that is left out is float32, dimensions that are left out are [batch],
    and `?` is any size.
    """
    ports = tuple(_port(text.strip(), brief) for text in texts)
    names = [port.name for port in ports]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError("an input is described twice", where=f"--input {twice}")
    return ports


def specs(texts: Sequence[str]) -> dict[str, TensorSpec]:
    """Brief ports as specs, by name. Raises UsageError."""
    return {p.name: TensorSpec(p.name, p.dtype, p.dims) for p in parse_inputs(texts, brief=True)}


def only_known(given: Mapping[str, TensorSpec], known: Sequence[str], where: object) -> None:
    """Refuse descriptions of inputs that the model does not have. Raises UsageError."""
    if unknown := [name for name in given if name not in known]:
        raise UsageError(
            "--input describes what the model does not have",
            where=where,
            expected=", ".join(known),
            found=", ".join(unknown),
        )


def _port(text: str, brief: bool) -> Port:
    match = (_BRIEF if brief else _INPUT).fullmatch(text)
    shape = BATCH if match and match["dims"] is None else match["dims"] if match else ""
    words = [w.strip() for w in shape.split(",") if w.strip()]
    dims = tuple(int(w) if w.isascii() and w.isdigit() and len(w) < 10 else w for w in words)
    named = (match["dtype"] or "float32") if match else ""
    dtype = _SHORT.get(named, named)
    known = [isinstance(d, int) or _SYMBOL.fullmatch(d) or (brief and d == ANY_DIM) for d in dims]
    good = all(known) and len(dims) <= MAX_RANK and not (brief and 0 in dims)
    if match is None or not good or dtype not in DTYPES:
        raise UsageError(
            "bad --input",
            expected="NAME:DTYPE[DIMS] such as x:float32[batch,28,28], with a dtype of "
            + ", ".join(name for name, known in DTYPES.items() if known.numpy == name),
            found=text,
        )
    return Port(match["name"].strip(), dtype, dims)


def parse_outputs(texts: Sequence[str]) -> dict[str, str]:
    """Output aliases and the tensor of each, "" where none is given. Raises UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        alias, _, tensor = text.partition("=")
        if not alias or alias in found:
            raise UsageError("bad --output", expected="NAME or NAME=TENSOR, each name once", found=text)
        found[alias] = tensor
    return found


def described(arrays: Mapping[str, Array]) -> tuple[Port, ...]:
    """Ports of example inputs: axis 0 is the batch where every array has the same number of rows."""
    from ..tensors import dtype_of

    rows = {array.shape[0] if array.ndim else None for array in arrays.values()}
    batched = len(rows) == 1 and None not in rows
    return tuple(
        Port(name, dtype_of(x), (BATCH, *x.shape[1:]) if batched else x.shape) for name, x in arrays.items()
    )


def has_batch(ports: Sequence[Port]) -> bool:
    """Whether the rows of axis 0 are promised to be independent."""
    return bool(ports) and all(port.dims[:1] == (BATCH,) for port in ports)


def drawn(ports: Sequence[Port], rows: int, *, grown: int = 1) -> dict[str, Array]:
    """Arrays for ports: normal floats, integers of 0 and 1 (every table has these entries).

    Other symbols than the batch take sizes of their own, all different, times `grown`.
    """
    import numpy as np

    rng = np.random.default_rng(rows)
    symbols = dict.fromkeys(d for port in ports for d in port.dims if isinstance(d, str) and d != BATCH)
    sizes = {name: 8 * (2 + index) * grown for index, name in enumerate(symbols)} | {BATCH: rows}
    found: dict[str, Array] = {}
    for port in ports:
        shape = tuple(d if isinstance(d, int) else sizes[d] for d in port.dims)
        kind = DTYPES[port.dtype].to_numpy()
        whole = kind.kind in "biu"
        values = rng.integers(0, 2, shape) if whole else rng.standard_normal(shape)
        found[port.name] = np.asarray(values).astype(kind)
    return found


def repeated(arrays: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """Example arrays with their rows taken in turn until there are `rows`."""
    import numpy as np

    return {name: array[np.arange(rows) % len(array)] for name, array in arrays.items()}
