"""What a table is exported from: CSV files, npz archives, arrays; and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import words
from hypothesis import given, settings
from hypothesis import strategies as st

import mserve
from mserve.errors import (
    InputError,
    UsageError,
)
from mserve.exporters.tables.columns import Text
from mserve.exporters.tables.csv_file import read_csv
from mserve.loader.servable import Servable


def exported(source: Any, base: Path, **options: Any) -> Servable:
    return mserve.load(mserve.export(source, base, **options).path)


def csv_of(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        (["1", "-2", "0"], "int64", [1, -2, 0]),
        (["1", "9223372036854775807", "-9223372036854775808"], "int64", [1, 2**63 - 1, -(2**63)]),
        (["1", "9223372036854775808", "2"], "string", ["1", "9223372036854775808", "2"]),
        (["1", "1.5", "-2e3"], "float32", [1.0, 1.5, -2000.0]),
        (["1", "inf", "-INF"], "float32", [1.0, np.inf, -np.inf]),
        (["true", "False", "TRUE"], "bool", [True, False, True]),
        (["1", "true", "0"], "string", ["1", "true", "0"]),
        (["007", "1", "2"], "string", ["007", "1", "2"]),
        (["1", " 2", "3"], "string", ["1", " 2", "3"]),
        (["1", "2_0", "3"], "string", ["1", "2_0", "3"]),
        (["1", "\u0663", "3"], "string", ["1", "\u0663", "3"]),
        (["x", "", "z"], "string", ["x", "", "z"]),
        (["", "", ""], "string", ["", "", ""]),
        (['"a,b"', '"say ""x"""', '"two\nlines"'], "string", ["a,b", 'say "x"', "two\nlines"]),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_types_of_csv_columns(cells: list[str], dtype: str, values: list[Any], tmp_path: Path) -> None:
    path = csv_of(tmp_path, "id,v\n" + "".join(f"k{i},{cell}\n" for i, cell in enumerate(cells)))
    result = mserve.export(path, tmp_path / "base")
    assert result.metagraph.signatures["serving_default"].outputs["v"].dtype == dtype
    answer = mserve.load(result.path).run({"key": words("k0", "k1", "k2")})
    assert answer["v"].tolist() == values
    assert result.notes == (f"columns: id string (the key), v {dtype}",)


@pytest.mark.parametrize(
    ("text", "key", "dtype"),
    [
        ("a,key\n1,2\n", "", "int64"),
        ("a,b\n1,2\n", "b", "int64"),
        ("a,b\n1.5,2\n", "", "string"),
        ("\ufeffa,b\r\n1,2\r\n\r\n3,4\r\n", "", "int64"),
        ("a\n1\n2", "", "int64"),
    ],
    ids=["called-key", "named", "numbers-are-text", "bom-crlf-and-blank-lines", "keys-alone"],
)
def test_the_key_column_of_a_csv_file(text: str, key: str, dtype: str, tmp_path: Path) -> None:
    metagraph = mserve.export(csv_of(tmp_path, text), tmp_path / "base", key=key).metagraph
    assert metagraph.signatures["serving_default"].inputs["key"].dtype == dtype
    assert metagraph.provenance["source"]["kind"] == "table"
    assert "onnxruntime" not in metagraph.provenance["versions"]


BAD_CSV: list[tuple[str, str | bytes, str]] = [
    ("empty", "", "the CSV file is empty"),
    ("a header alone", "key,v\n", "the table has no rows"),
    ("a short row", "key,v\na,1\nb\n", "table.csv: line 3; expected: 2 cells"),
    ("a long row", "key,v\na,1\n\nb,1,2\n", "table.csv: line 4; expected: 2 cells"),
    (
        "a missing number",
        "key,v\na,1\nb,\n",
        "missing (where: {}: line 3, column 'v'; expected: int64",
    ),
    ("a missing boolean", "key,v\na,\nb,true\n", "line 2, column 'v'; expected: bool"),
    ("a missing key", "key,v\na,1\n,2\n", "a value is missing (where: {}: line 3, column 'key'"),
    ("a key twice", "key,v\na,1\nb,2\na,3\n", "a key stands twice (where: {}: lines 2 and 4, column 'key'"),
    ("an integer twice", 'key,v\n1,"x\ny"\n5,2\n1,3\n', "lines 2 and 5"),
    ("a column twice", "key,v,v\na,1,2\n", "found: 'v' twice"),
    ("a column without a name", "key,\na,1\n", "a column without a name"),
    ("not UTF-8", b"key,v\na,\xff\n", "not UTF-8"),
    ("an open quote", 'key,v\na,"1\n', "the CSV file is malformed"),
    ("text behind a quote", 'key,v\na,1\nb,"1"2\n', "malformed (where: {}: line 3"),
    ("beyond float32", "key,v\na,1.5\nb,1e39\n", "line 3, column 'v'; expected: at most 3.40"),
    ("beyond float64", "key,v\na,1.5\nb,1e999\n", "too large for float32"),
    ("a cell beyond all bounds", "key,v\na," + "x" * 200_000, "field larger than field limit"),
    ("a column called found", "key,found\na,1\n", "a column cannot have this name"),
    ("a colon", "key,a:b\na,1\n", "a column cannot have this name"),
]


@pytest.mark.parametrize(("why", "text", "said"), BAD_CSV, ids=[row[0] for row in BAD_CSV])
def test_bad_csv_files(why: str, text: str | bytes, said: str, tmp_path: Path) -> None:
    path = csv_of(tmp_path, text)
    with pytest.raises(InputError) as caught:
        mserve.export(path, tmp_path / "base")
    assert said.format(path) in str(caught.value), why
    assert not list((tmp_path / "base").glob("*"))


CELLS = st.one_of(
    st.integers(-(2**65), 2**65).map(str),
    st.floats().map(repr),
    st.sampled_from(["true", "FALSE", "True", "", "-0", "00", "1e5", "nan", ".5", "5.", "+1", "1 "]),
    st.text(st.characters(codec="utf-8"), max_size=4),
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_cell_of_a_csv_file_changes_its_meaning(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever type a column gets, each value says what its cell says; else the file is refused."""
    kind = data.draw(st.sampled_from([CELLS, st.integers().map(str), st.floats(width=32).map(repr)]))
    cells = data.draw(st.lists(kind, min_size=1, max_size=6))
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["key", "v"], *((f"k{i}", cell) for i, cell in enumerate(cells))])
    try:
        columns = read_csv(path, "").columns
    except InputError as error:
        missing, large = error.what == "a value is missing", error.what == "a number is too large for float32"
        assert (missing and "" in cells) or (large and any(abs(float(c)) > 3.4e38 for c in cells))
        return
    column = columns["v"]
    if isinstance(column, Text):
        assert [word.decode() for word in column.words(np.arange(len(cells)))] == cells
        return
    says = {"i": int, "b": lambda cell: cell.lower() == "true", "f": np.float32}[column.dtype.kind]
    assert np.array_equal(
        column, np.array([says(cell) for cell in cells]), equal_nan=column.dtype.kind == "f"
    )


KEY = np.array([1, 2])
BAD_ARRAYS: list[tuple[str, dict[Any, Any], str]] = [
    ("no key column", {"a": KEY}, "no such key column (where: the arrays; expected: 'key'; found: a)"),
    ("no columns", {}, "found: no columns"),
    ("an empty table", {"key": np.array([], np.int64)}, "not a column (where: the arrays: key"),
    ("a scalar", {"key": KEY, "v": np.float32(1)}, "not a column (where: the arrays: v"),
    ("rows without values", {"key": KEY, "v": np.zeros((2, 0))}, "not a column"),
    ("columns of two lengths", {"key": KEY, "v": np.zeros(3)}, "expected: 2 rows, as 'key' has; found: 3"),
    ("keys of numbers", {"key": np.array([1.0])}, "the keys are neither integers nor text"),
    ("keys of booleans", {"key": np.array([True])}, "the keys are neither integers nor text"),
    ("keys in two dimensions", {"key": np.array([["a"]])}, "expected: [rows]; found: string [1, 1]"),
    ("a key beyond int64", {"key": np.array([2**63], np.uint64)}, "a key does not fit int64"),
    ("keys that are not UTF-8", {"key": np.array([b"\xff"])}, "text is not UTF-8"),
    ("half a surrogate pair", {"key": words("\ud800")}, "text is not UTF-8"),
    ("objects", {"key": KEY, "v": np.array([None, {}])}, "an array of objects holds no text"),
    ("complex numbers", {"key": KEY, "v": np.zeros(2, complex)}, "found: complex128"),
    ("times", {"key": KEY, "v": np.zeros(2, "M8[s]")}, "found: datetime64"),
    ("ragged rows", {"key": KEY, "v": [[1], [1, 2]]}, "not a column"),
    (
        "a key twice",
        {"key": np.array([5, 1, 5])},
        "rows 0 and 2, column 'key'; expected: each key once",
    ),
    ("a word twice", {"key": np.array(["a", "b", "b"])}, "rows 1 and 2"),
    ("a column called key", {"id": KEY, "key": KEY}, "a column cannot have this name"),
    ("a name that is no text", {"key": KEY, 7: KEY}, "a column cannot have this name"),
]


@pytest.mark.parametrize(("why", "table", "said"), BAD_ARRAYS, ids=[row[0] for row in BAD_ARRAYS])
def test_bad_arrays(why: str, table: dict[Any, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        mserve.export(table, tmp_path / "base", key="id" if "id" in table else "")
    assert said in str(caught.value), why


def test_npz_archives(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez(path, sku=np.array(["a", "b"]), price=np.array([1.5, 2.5]))
    assert exported(path, tmp_path / "base", key="sku").run({"key": ["b"]})["price"].tolist() == [2.5]
    with pytest.raises(InputError, match="no such key column") as caught:
        mserve.export(path, tmp_path / "base")
    assert caught.value.hint == "name it with --key"
    np.savez(path, key=np.array([{}], object))
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        mserve.export(path, tmp_path / "base")
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="cannot read the npz archive"):
        mserve.export(path, tmp_path / "base")


@pytest.mark.parametrize(
    ("file", "options", "error", "said"),
    [
        ("table.csv", {"kind": "sausage"}, UsageError, "expected: onnx, table, .*; found: sausage"),
        ("table.csv", {"partitioned": {"w": "*"}}, UsageError, "partitioned says nothing about a table"),
        ("table.csv", {"kind": "onnx"}, InputError, "not an ONNX file"),
        ("model.onnx", {"kind": "table"}, InputError, "expected: a .csv or .npz file; found: model.onnx"),
        ("model.onnx", {"key": "id"}, UsageError, "key says nothing about an ONNX file"),
        ("none.csv", {}, InputError, "No such file"),
    ],
)
def test_options_that_do_not_fit_the_source(
    file: str, options: dict[str, Any], error: type[Exception], said: str, mlp_file: Path, tmp_path: Path
) -> None:
    csv_of(tmp_path, "key,v\na,1\n")
    (tmp_path / "model.onnx").write_bytes(mlp_file.read_bytes())
    with pytest.raises(error, match=said):
        mserve.export(tmp_path / file, tmp_path / "base", **options)


def test_signatures_may_name_some_of_the_columns(tmp_path: Path) -> None:
    toml = tmp_path / "s.toml"
    toml.write_text(
        '[signatures.price]\ninputs.sku = { tensor = "key" }\noutputs.euros = { tensor = "price" }\n'
        '[signatures.known]\ninputs.sku = { tensor = "key" }\noutputs.there = { tensor = "found" }\n'
    )
    table = {"key": words("a"), "price": np.array([2.0]), "title": words("A")}
    servable = exported(table, tmp_path / "base", signatures=toml)
    assert servable.run({"sku": words("a")}, "price")["euros"].tolist() == [2.0]
    assert servable.run({"sku": words("b")}, "known")["there"].tolist() == [False]
    assert servable.signatures["price"].batch_axis == 0
