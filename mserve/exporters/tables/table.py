"""Tables: keys to rows, from a CSV file, an npz archive or a mapping of arrays.

The rows are sorted by key, or by the hash of a text key, and become the weights of a
graph of one node (FORMAT.md, section 5; `runtime.table` looks things up in it). From
there a table is exported as any other model.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...format.digests import file_digest
from ...format.golden import read_npz
from ...format.shards import Tensor
from ...runtime import table as engine
from ...tensors import DEFAULT_SIGNATURE, DTYPES, Array, Signature, TensorSpec, dtype_of
from ..kinds import Kind, Source
from ..onnx_model import INLINE_BYTES
from .columns import Columns, Text, column, sorted_column, sorted_numbers, sorted_text
from .csv_file import read_csv

if TYPE_CHECKING:
    import onnx

KEY, FOUND = "key", "found"
IR_VERSION = 10
GOLDEN_ROWS = 5
MAX_NPZ_BYTES = 1 << 40
SUFFIXES = (".csv", ".npz")


def is_table(source: Any) -> bool:
    """Whether a source is a table: a mapping of arrays, or the path of a .csv or .npz file."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source).lower().endswith(SUFFIXES)
    return isinstance(source, Mapping)


def read(source: Any, key: str = "") -> Source:
    """A table, ready to be written: sorted, as the weights of a `Lookup`.

    `key` names the key column; unless given it is `key`, and in a CSV file without such a
    column the first one. Raises InputError: no such column, keys that are neither integers
    nor text, a key that stands twice, columns of different length, no rows, bad names.
    """
    table = _columns(source, key)
    keys = table.columns[table.key]
    values = {name: c for name, c in table.columns.items() if name != table.key}
    _check(table, keys, values)
    order, tensors = _sorted_keys(table, keys)
    for name, one in values.items():
        tensors += sorted_column(name, one, order)
    signature = _signature(table.key, keys, values)
    model, stored = _model(signature, tensors)
    parts = Source(model, stored, {"kind": "table"}, "", {DEFAULT_SIGNATURE: signature})
    parts.draw, parts.golden_rows = lambda rows: _draw(keys, values, rows), GOLDEN_ROWS
    if not isinstance(source, Mapping):
        path = Path(source)
        file = path.name.encode("utf-8", "replace").decode()
        parts.origin |= {"file": file, "sha256": file_digest(path)}
        parts.name = path.stem
        if path.suffix.lower() == ".csv":  # its types are inferred, so the user should see them
            dtypes = [f"{name} {spec.dtype}" for name, spec in signature.outputs.items() if name != FOUND]
            key_type = f"{table.key} {signature.inputs[KEY].dtype} (the key)"
            parts.notes = (f"columns: {', '.join([key_type, *dtypes])}",)
    return parts


def _columns(source: Any, key: str) -> Columns:
    import numpy as np

    if not isinstance(source, Mapping):
        path = Path(source)
        if not path.name.lower().endswith(SUFFIXES):
            raise InputError("not a table", where=path, expected="a .csv or .npz file", found=path.name)
        if path.suffix.lower() == ".csv":
            return _with_key(read_csv(path, key))
        arrays, where = read_npz(path, MAX_NPZ_BYTES), str(path)
    else:
        arrays, where = dict(source), "the arrays"
    named = Columns(key or KEY, arrays, where, np.empty(0, np.int64), "row")
    _with_key(named)
    columns = {name: column(array, f"{where}: {name}") for name, array in arrays.items()}
    rows = np.arange(_rows(columns[named.key]))
    return Columns(named.key, columns, where, rows, "row")


def _with_key(table: Columns) -> Columns:
    if table.key not in table.columns:
        raise InputError(
            "the table has no such key column",
            where=table.where,
            expected=repr(table.key),
            found=", ".join(map(str, table.columns))[:500] or "no columns",
            hint="name it with --key",
        )
    return table


def _rows(one: Array | Text) -> int:
    return int(one.shape[0])


def _check(table: Columns, keys: Array | Text, values: Mapping[str, Array | Text]) -> None:
    """Names can be told apart, every column has a row for each key, and keys are integers or text."""
    for name, one in values.items():
        where = f"{table.where}: {name}"
        if not isinstance(name, str) or not name.isprintable() or ":" in name or name in ("", KEY, FOUND):
            expected = f"a printable name without ':', other than {KEY!r} and {FOUND!r}"
            raise InputError("a column cannot have this name", where=where, expected=expected, found=name)
        if _rows(one) != _rows(keys):
            expected = f"{_rows(keys)} rows, as {table.key!r} has"
            raise InputError("columns of different length", where=where, expected=expected, found=_rows(one))
    where = f"{table.where}: {table.key}"
    if _rows(keys) == 0:
        raise InputError("the table has no rows", where=table.where)
    integers = not isinstance(keys, Text) and keys.dtype.kind in "iu"
    if len(keys.shape) != 1 or not (integers or isinstance(keys, Text)):
        kind = f"{'string' if isinstance(keys, Text) else keys.dtype} {list(keys.shape)}"
        raise InputError("the keys are neither integers nor text", where=where, expected="[rows]", found=kind)
    if not isinstance(keys, Text) and keys.dtype.kind == "u" and int(keys.max()) >= 2**63:
        raise InputError("a key does not fit int64", where=where, found=int(keys.max()))


def _sorted_keys(table: Columns, keys: Array | Text) -> tuple[Array, list[Tensor]]:
    """The order of the rows, and the weights of the keys. Raises InputError for a key that stands twice."""
    import numpy as np

    if not isinstance(keys, Text):
        integers = keys.astype("<i8", copy=False)
        order = np.argsort(integers, kind="stable")
        equal = np.flatnonzero(integers[order[1:]] == integers[order[:-1]])
        if len(equal):
            _refuse_twice(table, order[equal[0]], order[equal[0] + 1], int(integers[order[equal[0]]]))
        return order, [sorted_numbers(f"{KEY}:values", integers, order)]
    hashes = engine.hash_words(keys.words(np.arange(_rows(keys))))
    order = np.argsort(hashes, kind="stable")
    in_order = hashes[order]
    for at in np.flatnonzero(in_order[1:] == in_order[:-1]).tolist():
        run = order[np.searchsorted(in_order, in_order[at]) : at + 2]
        *before, word = keys.words(run)
        if word in before:
            _refuse_twice(table, run[before.index(word)], run[-1], word.decode())
    return order, [sorted_numbers(f"{KEY}:hashes", hashes, order), *sorted_text(KEY, keys, order)]


def _refuse_twice(table: Columns, first: int, second: int, key: object) -> None:
    places = f"{table.place_name}s {table.places[first]} and {table.places[second]}"
    where = f"{table.where}: {places}, column {table.key!r}"
    raise InputError("a key stands twice", where=where, expected="each key once", found=repr(key)[:100])


def _signature(key: str, keys: Array | Text, values: Mapping[str, Array | Text]) -> Signature:
    def spec(name: str, one: Array | Text) -> TensorSpec:
        dtype = "string" if isinstance(one, Text) else dtype_of(one)
        return TensorSpec(name, dtype, ("batch", *one.shape[1:]))

    dtype, doc = "string" if isinstance(keys, Text) else "int64", "" if key == KEY else f"the column {key!r}"
    outputs = {name: spec(name, one) for name, one in values.items()}
    outputs[FOUND] = TensorSpec(FOUND, "bool", ("batch",), doc="whether the table has the key")
    return Signature("predict", {KEY: TensorSpec(KEY, dtype, ("batch",), doc=doc)}, outputs, 0)


def _model(signature: Signature, tensors: list[Tensor]) -> tuple[onnx.ModelProto, list[Tensor]]:
    """The graph, with small weights inline; and the weights to store."""
    from onnx import TensorProto, helper

    weights = [TensorProto(name=t.name, data_type=DTYPES[t.dtype].onnx, dims=t.shape) for t in tensors]
    for proto, tensor in zip(weights, tensors, strict=True):
        if tensor.byte_size < INLINE_BYTES:
            proto.raw_data = b"".join(tensor.chunks())
    inputs, outputs = [*signature.inputs.values()], [*signature.outputs.values()]
    node = helper.make_node(
        engine.OPERATOR,
        [s.name for s in inputs] + [t.name for t in tensors],
        [s.name for s in outputs],
        domain=engine.DOMAIN,
    )
    graph = helper.make_graph([node], "table", _ports(inputs), _ports(outputs), weights)
    opsets = [helper.make_opsetid(engine.DOMAIN, engine.VERSION)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets)
    return model, [t for t in tensors if t.byte_size >= INLINE_BYTES]


def _ports(specs: list[TensorSpec]) -> list[onnx.ValueInfoProto]:
    from onnx import helper

    return [helper.make_tensor_value_info(s.name, DTYPES[s.dtype].onnx, s.shape) for s in specs]


def _draw(keys: Array | Text, values: Mapping[str, Array | Text], rows: int) -> dict[str, Array]:
    """Keys to record answers for: some that the table has, and, last, one that it has not.

    Rows whose text ends in NUL are passed over: an npz archive cannot hold them.
    """
    import numpy as np

    texts = [c for c in (keys, *values.values()) if isinstance(c, Text)]
    spread = np.unique(np.linspace(0, _rows(keys) - 1, max(1, rows - 1)).astype(np.int64))
    at = [row for row in spread.tolist() if not any(_ends_in_nul(text, row) for text in texts)]
    if not isinstance(keys, Text):
        some = [int(keys[row]) for row in at]
        integers = [*some, _absent_integer(keys)] if rows > 1 or not some else some
        return {KEY: np.array(integers, np.int64)}
    words = [word.decode() for word in keys.words(np.array(at, np.int64))]
    if rows > 1 or not words:
        words.append(_absent_word(keys))
    return {KEY: np.array(words, dtype=object)}


def _ends_in_nul(text: Text, row: int) -> bool:
    import numpy as np

    index = row * text.width + np.arange(text.width)
    return any(word.endswith(b"\0") for word in text.words(index))


def _absent_word(keys: Text) -> str:
    """A text that is not among the keys."""
    import numpy as np

    lengths = np.diff(keys.offsets)
    for i in itertools.count():
        word = f"no such key {i}"
        if word.encode() not in keys.words(np.flatnonzero(lengths == len(word))):
            break
    return word


def _absent_integer(keys: Array) -> int:
    """An integer that is not among the keys: the smallest that is not negative."""
    import numpy as np

    known = np.unique(keys[keys >= 0])
    gap = np.flatnonzero(known != np.arange(len(known)))
    return int(gap[0]) if len(gap) else len(known)


KIND = Kind(
    name="table",
    what="a table (.csv or .npz)",
    matches=lambda seen: is_table(seen.text),
    read=lambda source, options: read(source, options.key),
    options=("key",),
    accepts=is_table,
)
