"""Sparse and ragged inputs: rows that have any number of entries.

A sparse input's entries are ids with values, a ragged one's are values. In a request such an
input is plain arrays, its parts, in which the rows stand one behind the other:

    NAME.ids       int64 [entries]         sparse: first_id <= id < size, in any order
    NAME.values    [entries, ...]          finite; of a sparse input 1 where they are left out
    NAME.lengths   int64 [rows]            how many entries each row has

Nothing in the parts counts rows from the beginning, so requests are joined by joining their
parts, and a row without entries is a length of 0. What a graph takes instead (the number of
the row of each entry, say) is made from the parts for each run; ROLES are its names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import RequestError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

KINDS = ("sparse", "ragged")
IDS, VALUES, LENGTHS = "ids", "values", "lengths"
ENTRIES_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Sparse:
    """How an input with entries is given to a graph.

    `tensors` has the graph's inputs by role (a key of ROLES). `shape` is that of the dense
    input it stands for: rows; the number of ids (or "?", for any id) or "?" for a ragged one;
    the sizes of one entry's value. `dtype` is that of the values, int64 where a graph takes
    ids alone. A row has at most `max_length` entries, where that is not 0. A request may leave out
    an `optional` input, whose rows then have no entries. Ids count from `first_id`: where a model's own
    text files count from 1, an id of 0 is a sign that all ids of a row are wrong by one.
    """

    kind: str
    dtype: str
    tensors: Mapping[str, str]
    shape: tuple[int | str, ...]
    max_length: int = 0
    doc: str = ""
    range: tuple[float, float] | None = field(default=None)
    optional: bool = False
    first_id: int = 0

    @property
    def size(self) -> int:
        """Ids are below it; 0 where any will do."""
        return self.shape[1] if isinstance(self.shape[1], int) else 0

    @property
    def has_values(self) -> bool:
        """Whether entries have values."""
        return VALUES in self.tensors

    def parts(self) -> tuple[str, ...]:
        """Which parts a request has."""
        ids = (IDS,) if self.kind == "sparse" else ()
        return (*ids, *((VALUES,) if self.has_values else ()), LENGTHS)

    def names(self, alias: str) -> dict[str, str]:
        """The parts' names in a request."""
        return {part: f"{alias}.{part}" for part in self.parts()}

    def to_json(self) -> dict[str, Any]:
        extra: dict[str, Any] = {"max_length": self.max_length, "doc": self.doc, "optional": self.optional}
        extra["range"] = list(self.range) if self.range else None
        extra["first_id"] = self.first_id
        return {
            "kind": self.kind,
            "tensor": dict(self.tensors),
            "dtype": self.dtype,
            "shape": list(self.shape),
        } | {key: value for key, value in extra.items() if value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], dtypes: Collection[str]) -> Sparse:
        """Read what `to_json` wrote. Raises ValueError saying what was expected."""
        kind, dtype, tensors, shape = (value.get(key) for key in ("kind", "dtype", "tensor", "shape"))
        if kind not in KINDS:
            raise ValueError(f"a kind that is {' or '.join(KINDS)}")
        if not isinstance(dtype, str) or dtype not in dtypes:
            raise ValueError("a known dtype")
        if not isinstance(tensors, dict) or not all(
            isinstance(name, str) and name for name in tensors.values()
        ):
            raise ValueError("the graph's tensors by role")
        if not isinstance(shape, list) or len(shape) < 2 or not _is_shape(shape):
            raise ValueError('a shape such as ["batch", 1000000]')
        doc, longest, span = value.get("doc", ""), value.get("max_length", 0), value.get("range")
        if not isinstance(doc, str) or type(longest) is not int or not 0 <= longest <= ENTRIES_MAX:
            raise ValueError("doc as text, and max_length as a number of entries")
        if span is not None and not (isinstance(span, list) and _is_range(span)):
            raise ValueError("a range [low, high]")
        limits = (span[0], span[1]) if span else None
        optional = value.get("optional", False)
        if type(optional) is not bool:
            raise ValueError("optional as true or false")
        first = value.get("first_id", 0)
        if type(first) is not int or not 0 <= first < 2**63:
            raise ValueError("first_id as a whole number from 0 on")
        found = cls(kind, dtype, tensors, tuple(shape), longest, doc, limits, optional, first)
        if problem := found.problem():
            raise ValueError(problem)
        return found

    def problem(self) -> str:
        """What a graph needs that `tensors` does not give it, as what would be expected; or ""."""
        roles, entry = set(self.tensors), self.shape[2:]
        unknown = roles - ROLES.keys()
        if unknown or len(set(self.tensors.values())) != len(roles):
            return f"a tensor of its own for some of the roles {', '.join(ROLES)}"
        if self.kind == "sparse" and not roles & {IDS, "indices"}:
            return "a tensor for ids or indices"
        if self.kind == "ragged" and (VALUES not in roles or IDS in roles or self.shape[1] != "?"):
            return 'a tensor for values, none for ids, and "?" as the second size'
        if not roles & {"rows", "indices", "lengths", "splits"}:
            return "a tensor that tells the rows of entries: rows, indices, lengths or splits"
        if not roles & {"lengths", "splits", "shape", "count"}:
            return "a tensor that tells the number of rows: lengths, splits, shape or count"
        if self.kind == "sparse" and (entry or self.dtype in ("string", "bool")):
            return "values that are single numbers"
        if self.first_id and (self.kind == "ragged" or 0 < self.size <= self.first_id):
            return "a first_id for a sparse input alone, and below the number of ids"
        if not self.has_values and self.dtype != "int64":
            return "dtype int64, that of the ids, where there are no values"
        if not all(isinstance(size, int) and size > 0 for size in entry):
            return "an entry of sizes above 0"
        return ""


def _is_shape(shape: list[Any]) -> bool:
    rows, width = shape[:2]
    named = isinstance(rows, str) and rows != "" and (width == "?" or type(width) is int)
    return named and all(type(d) is int for d in shape[2:]) and (width == "?" or 0 < width < 2**63)


def _is_range(span: list[Any]) -> bool:
    return len(span) == 2 and all(type(x) in (int, float) for x in span) and span[0] <= span[1]


def entry_names(inputs: Mapping[str, Sparse]) -> frozenset[str]:
    """The parts of some inputs whose axis 0 is not the rows but the entries."""
    return frozenset(
        name for alias, s in inputs.items() for part, name in s.names(alias).items() if part != LENGTHS
    )


def length_names(inputs: Mapping[str, Sparse]) -> frozenset[str]:
    """The parts of some inputs that are lengths."""
    return frozenset(s.names(alias)[LENGTHS] for alias, s in inputs.items())


def starts(lengths: Array) -> Array:
    """Where each row's entries begin, and where the last one's end: int64 [rows + 1]."""
    import numpy as np

    found = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=found[1:])
    return found


def _rows(parts: Mapping[str, Array], _: Sparse) -> Array:
    import numpy as np

    lengths = parts[LENGTHS]
    return np.repeat(np.arange(len(lengths)), lengths)


def _indices(parts: Mapping[str, Array], sparse: Sparse) -> Array:
    import numpy as np

    rows = _rows(parts, sparse)
    if IDS in parts:
        return np.stack([rows, parts[IDS]], axis=1)
    return np.stack([rows, np.arange(len(rows)) - starts(parts[LENGTHS])[rows]], axis=1)


def _shape(parts: Mapping[str, Array], sparse: Sparse) -> Array:
    import numpy as np

    lengths = parts[LENGTHS]
    longest = sparse.size if IDS in parts else int(lengths.max(initial=0))
    return np.array([len(lengths), longest], np.int64)


def _count(parts: Mapping[str, Array], _: Sparse) -> Array:
    import numpy as np

    return np.array([len(parts[LENGTHS])], np.int64)


# What a graph may take, from the parts. All but values are int64: `indices` [entries, 2] are
# the row and the id (the place in the row, for ragged inputs) of each entry, `shape` [2] what
# they are below (0 for the ids where any will do), `splits` [rows + 1] where rows begin and end.
ROLES: Mapping[str, Callable[[Mapping[str, Array], Sparse], Array]] = {
    IDS: lambda parts, _: parts[IDS],
    VALUES: lambda parts, _: parts[VALUES],
    LENGTHS: lambda parts, _: parts[LENGTHS],
    "rows": _rows,
    "splits": lambda parts, _: starts(parts[LENGTHS]),
    "indices": _indices,
    "shape": _shape,
    "count": _count,
}
RANKS = {IDS: 1, LENGTHS: 1, "rows": 1, "splits": 1, "indices": 2, "shape": 1, "count": 1}


def graph_tensors(alias: str, sparse: Sparse, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """What a graph is fed with for one input, by the names of its tensors; parts that were checked."""
    parts = {part: inputs[name] for part, name in sparse.names(alias).items()}
    return {tensor: ROLES[role](parts, sparse) for role, tensor in sparse.tensors.items()}


def check_entries(alias: str, sparse: Sparse, inputs: Mapping[str, Array]) -> None:
    """Check the values of parts whose dtypes and shapes are right. Raises RequestError."""
    import numpy as np

    names = sparse.names(alias)
    lengths, entries = inputs[names[LENGTHS]], len(inputs[next(iter(names.values()))])
    if lengths.size and not (lengths.min() >= 0 and lengths.max() <= entries):
        row = int(np.flatnonzero((lengths < 0) | (lengths > entries))[0])
        raise RequestError(
            f"input {names[LENGTHS]!r} has an impossible length",
            where=f"row {row}",
            expected=f"0 to {entries}, the number of entries",
            found=int(lengths[row]),
        )
    if int(lengths.sum()) != entries:
        raise RequestError(
            f"input {names[LENGTHS]!r} does not add up",
            expected=f"{entries}, the number of entries",
            found=int(lengths.sum()),
        )
    if sparse.max_length and lengths.size and lengths.max() > sparse.max_length:
        row = int(np.argmax(lengths))
        expected = f"at most {sparse.max_length}"
        raise RequestError(
            f"input {alias!r} has too many entries in a row",
            where=f"row {row}",
            expected=expected,
            found=int(lengths[row]),
        )
    if IDS in names and entries:
        ids = inputs[names[IDS]]
        first = sparse.first_id
        if ids.min() < first or (sparse.size and ids.max() >= sparse.size):
            wrong = (ids < first) | (ids >= sparse.size) if sparse.size else ids < first
            below = f" to {sparse.size - 1}" if sparse.size else " or more"
            count = ", as ids count from there" if first else ""
            _refuse(f"input {alias!r} has an id out of range", f"{first}{below}{count}", wrong, ids, lengths)
    values = inputs.get(names.get(VALUES, ""))
    if values is not None and values.dtype.kind not in "iubO" and not np.isfinite(values).all():
        wrong = ~np.isfinite(values)
        what = f"input {alias!r} has a value that is no finite number"
        _refuse(what, "numbers; leave out what is missing", wrong, values, lengths)


def _refuse(what: str, expected: str, wrong: Array, found: Array, lengths: Array) -> NoReturn:
    """Name the first entry that is wrong, and its row."""
    import numpy as np

    first = np.argwhere(wrong)[0]
    row = int(np.searchsorted(starts(lengths), first[0], "right")) - 1
    raise RequestError(what, where=f"row {row}", expected=expected, found=found[tuple(first)])
