"""Models that Spark saved: directories, read without Spark or Java.

`metadata/part-*` holds one line of JSON: the class, the version and the parameters, set ones
(`paramMap`) and defaults (`defaultParamMap`, beside them before 2.4). `data/*.parquet` holds
what was learned. A pipeline has its stages as directories in `stages/`, numbered; a tuned model
has the best one in `bestModel/`. Vectors are structs of a type (0 sparse, 1 dense), a size,
indices and values; matrices are stored by column unless they say that they are transposed.

Directories are found by listing, so that no name in a file leads elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import read_input
from ...tensors import Array
from ..documents import Doc
from ..legacy import networks

MAX_METADATA_BYTES = 64 << 20
MAX_DATA_BYTES = 1 << 31
MAX_ROWS = 50_000_000
MAX_NUMBERS = 1 << 28
MAX_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Stage:
    """One saved model or transformer. `name` is its class without the package; `ml` is false for MLlib's."""

    path: Path
    name: str
    package: str
    version: str
    params: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.path.name} ({self.name})"

    def param(self, name: str) -> Doc:
        """A parameter that must be there. Raises InputError."""
        return Doc(self.params, self.where) / name

    def text(self, name: str, default: str = "") -> str:
        return self.param(name).text() if name in self.params else default

    def number(self, name: str, default: float | None = None) -> float:
        """A number that float32 holds, or an infinite one. Raises InputError."""
        if name not in self.params and default is not None:
            return default
        where = f"{self.where}.{name}"
        return networks.parameter(float(Doc([self.param(name).value], where).floats(1)[0]), where)

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self.params.get(name, default)
        if not isinstance(value, bool):
            raise InputError("a parameter is not true or false", where=f"{self.where}.{name}", found=value)
        return value

    def texts(self, name: str) -> list[str]:
        return [one.text() for one in self.param(name).items()] if self.params.get(name) else []

    def columns(self, one: str, many: str) -> list[str]:
        """Names of columns: several where the stage has been told so, else one."""
        return self.texts(many) or [self.text(one)]

    def rows(self, directory: str = "data") -> list[dict[str, Any]]:
        """What was learned, as rows. Raises InputError."""
        return read_rows(self.path / directory)

    def row(self) -> Doc:
        """The single row of what was learned. Raises InputError."""
        rows = self.rows()
        if len(rows) != 1:
            raise InputError(
                "the model's data is malformed", where=self.where, expected="1 row", found=len(rows)
            )
        return Doc(rows[0], self.where)


def read_stage(path: Path) -> Stage:
    """The metadata of a saved model or transformer. Raises InputError."""
    files = _parts(path / "metadata", ("part-",), "")
    data = b"".join(read_input(file, MAX_METADATA_BYTES) for file in files)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(
            "the model's metadata is malformed", where=path, expected="a line of JSON", found=error
        ) from error
    doc = Doc(value, f"{path}: metadata")
    package, _, name = (doc / "class").text().rpartition(".")
    params = {}
    for key in ("defaultParamMap", "paramMap"):
        part = doc.value.get(key, {})
        params.update(part if isinstance(part, dict) else {})
    version = doc.value.get("sparkVersion", doc.value.get("version", ""))
    return Stage(path, name, package, str(version), params, doc.value)


def stages(path: Path) -> list[Stage]:
    """The stages of a pipeline in their order: directories whose names begin with numbers."""
    found: list[tuple[int, Path]] = []
    directory = path / "stages"
    for one in _listed(directory):
        number = one.name.partition("_")[0]
        if one.is_dir() and number.isdecimal():
            found.append((int(number), one))
    found.sort()
    if [number for number, _ in found] != list(range(len(found))) or not found:
        raise InputError(
            "the pipeline's stages are not all there",
            where=directory,
            expected="directories 0_..., 1_..., and so on",
            found=", ".join(str(number) for number, _ in found)[:80] or "none",
        )
    return [read_stage(one) for _, one in found]


def _listed(directory: Path) -> list[Path]:
    try:
        found = sorted(directory.iterdir())
    except OSError as error:
        raise InputError("a part of the model is missing", where=directory, found=error.strerror) from error
    if len(found) > MAX_FILES:
        raise InputError("too many files", where=directory, expected=f"at most {MAX_FILES}", found=len(found))
    return found


def _parts(directory: Path, starts: tuple[str, ...], end: str) -> list[Path]:
    found = [one for one in _listed(directory) if one.name.startswith(starts) and one.name.endswith(end)]
    if not found:
        raise InputError("a part of the model is missing", where=directory, expected=f"{starts[0]}*{end}")
    return found


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of a directory of parquet files. Raises InputError: missing, malformed, too many."""
    import pyarrow
    import pyarrow.parquet as parquet

    rows: list[dict[str, Any]] = []
    for file in _parts(directory, ("part-",), ".parquet"):
        data = read_input(file, MAX_DATA_BYTES)
        try:
            opened = parquet.ParquetFile(pyarrow.BufferReader(data))
            facts = opened.metadata
            size = sum(facts.row_group(i).total_byte_size for i in range(facts.num_row_groups))
            if facts.num_rows + len(rows) > MAX_ROWS or size > MAX_DATA_BYTES:
                found = f"{facts.num_rows} rows, {size} bytes"
                raise InputError(
                    "too much data", where=file, expected=f"at most {MAX_ROWS} rows", found=found
                )
            rows += opened.read().to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
            raise InputError(
                "the model's data is truncated or malformed", where=file, found=str(error)[:200]
            ) from error
    return rows


def vector(doc: Doc) -> Array:
    """A vector, float64 [size], dense or not. Raises InputError, also where a value is no number."""
    import numpy as np

    dense = (doc / "type").integer(0, 1) == 1
    values = (doc / "values").floats()
    if dense:
        return _finite(values, doc)
    size = (doc / "size").integer(0, MAX_NUMBERS)
    indices = (doc / "indices").integers(len(values))
    if len(indices) and not 0 <= indices.min() <= indices.max() < size:
        raise InputError("an index is out of range", where=doc.where, expected=f"0 to {size - 1}")
    found = np.zeros(size)
    found[indices] = values
    return _finite(found, doc)


def matrix(doc: Doc) -> Array:
    """A matrix, float64 [rows, columns], however it is stored. Raises InputError."""
    import numpy as np

    rows, columns = ((doc / key).integer(0, MAX_NUMBERS) for key in ("numRows", "numCols"))
    if rows * columns > MAX_NUMBERS:
        size = f"{rows} x {columns}"
        raise InputError("a matrix is too large", where=doc.where, expected=f"{MAX_NUMBERS}", found=size)
    turned = bool((doc / "isTransposed").value)
    major, minor = (rows, columns) if turned else (columns, rows)
    if (doc / "type").integer(0, 1) == 1:
        found = (doc / "values").floats(rows * columns).reshape(major, minor)
    else:
        values = (doc / "values").floats()
        starts = (doc / "colPtrs").integers(major + 1)
        inner = (doc / "rowIndices").integers(len(values))
        rising = bool((np.diff(starts) >= 0).all()) and starts[0] == 0 and starts[-1] == len(values)
        if not rising or (len(inner) and not 0 <= inner.min() <= inner.max() < minor):
            raise InputError("a sparse matrix is malformed", where=doc.where, expected="indices in range")
        found = np.zeros((major, minor))
        found[np.repeat(np.arange(major), np.diff(starts)), inner] = values
    return _finite(found if turned else found.T, doc)


def _finite(values: Array, doc: Doc) -> Array:
    import numpy as np

    if not np.isfinite(values).all():
        raise InputError("a weight is not a number", where=doc.where, found="NaN or infinity")
    return values
