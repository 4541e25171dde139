"""Sparse and ragged inputs by themselves: what a signature says of them, checks, rows, graphs, commands."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import builders
import numpy as np
import pytest
import sparse_models
from bench_tools import bench_json
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from sparse_models import draw, objects, parts, sigmoid
from test_commands import run

import mserve
from mserve.checks import validate
from mserve.errors import MetaGraphMalformed, ModelRefused, PayloadTooLarge, RequestError, UsageError
from mserve.examples import generate, swayed
from mserve.exporters.build import Graph
from mserve.exporters.sparse_graph import row_dots, sparse_input
from mserve.format import GOLDEN_FILE, open_bundle
from mserve.format.golden import read_npz
from mserve.loader.servable import Servable
from mserve.rows import Cuts, first, join, row_count, take
from mserve.runtime.engines import open_engines
from mserve.sparse import RANKS, ROLES, Sparse, graph_tensors
from mserve.tensors import Signature, TensorSpec, check_inputs
from mserve.wire import sparse_json, tfs_json

SIZE = 1000
WEIGHTS = builders.floats(SIZE, 1)
ROWS = draw(12, SIZE, 9)

# three rows: 7:0.5 2:1 | (none) | 3:3
PARTS = {
    "f.ids": np.array([7, 2, 3]),
    "f.values": np.array([0.5, 1, 3], np.float32),
    "f.lengths": np.array([2, 0, 1]),
}


def port(kind: str = "sparse", **changes: Any) -> Sparse:
    """A sparse input of ten ids, or a ragged one."""
    tensors = {"values": "v", "lengths": "l", **({"ids": "i"} if kind == "sparse" else {})}
    fields = {"tensors": tensors, "shape": ("batch", 10 if kind == "sparse" else "?"), "dtype": "float32"}
    return Sparse(**{"kind": kind, **fields, **changes})


def signature(*ports: Sparse, axis: int | None = 0) -> Signature:
    """A signature with the inputs f, g and so on."""
    named = dict(zip("fgh", ports, strict=False))
    return Signature.of("predict", named, {"y": TensorSpec("y", "float32", ("batch",))}, axis)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A logistic regression over a thousand features."""
    servable = mserve.load(sparse_models.logistic(tmp_path_factory.mktemp("lr"), WEIGHTS, 0.25))
    yield servable
    servable.close()


# --- what a graph is given ---


@pytest.mark.parametrize(
    ("kind", "role", "expected"),
    [
        ("sparse", "ids", [7, 2, 3]),
        ("sparse", "values", [0.5, 1, 3]),
        ("sparse", "lengths", [2, 0, 1]),
        ("sparse", "rows", [0, 0, 2]),
        ("sparse", "splits", [0, 2, 2, 3]),
        ("sparse", "indices", [[0, 7], [0, 2], [2, 3]]),
        ("sparse", "shape", [3, 10]),
        ("sparse", "count", [3]),
        ("ragged", "values", [0.5, 1, 3]),
        ("ragged", "rows", [0, 0, 2]),
        ("ragged", "indices", [[0, 0], [0, 1], [2, 0]]),
        ("ragged", "shape", [3, 2]),
    ],
)
def test_a_graph_takes_what_it_names(kind: str, role: str, expected: list[Any]) -> None:
    sparse = port(kind, tensors={"values": "v", role: "named"})
    given = {name: x for name, x in PARTS.items() if kind == "sparse" or name != "f.ids"}
    found = graph_tensors("f", sparse, given)["named"]
    assert found.tolist() == expected
    assert role == "values" or found.dtype == np.int64
    nothing = graph_tensors("f", sparse, {name: x[:0] for name, x in given.items()})["named"]
    assert len(nothing) == {"splits": 1, "shape": 2, "count": 1}.get(role, 0)


def test_format_md_lists_the_roles(root: Path) -> None:
    text = (root / "mserve" / "format" / "FORMAT.md").read_text().split("| role |")[1]
    told = re.findall(r"^\| (\w+) \| .* \| .*? \[(.*)\] \|$", text, re.MULTILINE)
    assert [role for role, _ in told] == list(ROLES)
    ranks = {role: shape.count(",") + 1 for role, shape in told if role != "values"}
    assert ranks == RANKS


# --- what a signature says ---


def test_a_signature_is_read_as_it_was_written() -> None:
    mixed = Signature.of(
        "predict",
        {
            "a": port(max_length=5, doc="words", range=(0, 2), optional=True, first_id=1),
            "x": TensorSpec("x", "float32", ("batch", 3)),
            "b": port("ragged", shape=("batch", "?", 4, 2), dtype="string"),
            "c": port(tensors={"indices": "i", "count": "n"}, dtype="int64", shape=("batch", "?")),
        },
        {"y": TensorSpec("y", "float32", ("batch",))},
        0,
    )
    told = json.loads(json.dumps(mixed.to_json()))
    assert Signature.from_json(told, "here") == mixed
    assert told["inputs"]["a"]["shape"] == ["batch", 10]
    assert list(mixed.ports()) == ["a", "x", "b", "c"]
    assert list(mixed.inputs) == [
        "a.ids", "a.values", "a.lengths", "x", "b.values", "b.lengths", "c.ids", "c.lengths",
    ]  # fmt: skip


RAGGED = {"kind": "ragged", "tensor": {"values": "v", "lengths": "l"}}
GOOD = {
    "kind": "sparse",
    "tensor": {"ids": "i", "values": "v", "lengths": "l"},
    "dtype": "float32",
    "shape": ["batch", 10],
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "dense"}, "a kind that is sparse or ragged"),
        ({"kind": 1}, "a kind"),
        ({"dtype": "float31"}, "a known dtype"),
        ({"dtype": "string"}, "single numbers"),
        ({"tensor": {"ids": "i", "values": "v", "lengths": 3}}, "tensors by role"),
        ({"tensor": {"ids": "i", "values": "v", "length": "l"}}, "some of the roles"),
        ({"tensor": {"ids": "i", "values": "i", "lengths": "l"}}, "a tensor of its own"),
        ({"tensor": {"values": "v", "lengths": "l"}}, "ids or indices"),
        ({"tensor": {"ids": "i", "values": "v"}}, "rows of entries"),
        ({"tensor": {"ids": "i", "values": "v", "rows": "r"}}, "number of rows"),
        ({"tensor": {"ids": "i", "lengths": "l"}}, "dtype int64"),
        ({"shape": ["batch"]}, "a shape such as"),
        ({"shape": ["batch", 0]}, "a shape such as"),
        ({"shape": ["batch", True]}, "a shape such as"),
        ({"shape": [3, 10]}, "a shape such as"),
        ({"shape": ["batch", 10, 2]}, "single numbers"),
        ({"kind": "ragged"}, "none for ids"),
        ({"kind": "ragged", "tensor": {"lengths": "l"}, "shape": ["batch", "?"]}, "values"),
        ({**RAGGED, "shape": ["batch", 10]}, '"?" as the second size'),
        ({**RAGGED, "shape": ["batch", "?", 0]}, "above 0"),
        ({"max_length": -1}, "max_length"),
        ({"max_length": True}, "max_length"),
        ({"range": [2, 1]}, "a range"),
        ({"doc": 5}, "doc as text"),
        ({"optional": 1}, "optional as true or false"),
        ({"first_id": -1}, "first_id as a whole number"),
        ({"first_id": True}, "first_id as a whole number"),
        ({"first_id": 10}, "below the number of ids"),
        ({**RAGGED, "shape": ["batch", "?"], "first_id": 1}, "first_id for a sparse input alone"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], words: str) -> None:
    outputs = {"y": {"tensor": "y", "dtype": "float32", "shape": ["batch"]}}
    told = {"method": "predict", "batch_axis": 0, "inputs": {"f": {**GOOD, **changes}}, "outputs": outputs}
    with pytest.raises(MetaGraphMalformed, match="bad sparse input") as caught:
        Signature.from_json(told, "here")
    assert words in str(caught.value)


def test_format_md_says_what_a_signature_may_say(root: Path) -> None:
    text = (
        (root / "mserve" / "format" / "FORMAT.md").read_text().partition("### 2.1")[2].partition("## 3.")[0]
    )
    keys = port(max_length=5, doc="words", range=(0, 2), optional=True, first_id=1).to_json()
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_a_part_has_no_other_inputs_name() -> None:
    dense = TensorSpec("x", "float32", ("batch",))
    for ports in ({"f": port(), "f.ids": dense}, {"f.ids": dense, "f": port()}):
        with pytest.raises(ValueError, match=r"f\.ids"):
            Signature.of("predict", ports, {})


def test_keys_that_format_1_ignores_are_ignored() -> None:
    spec = {"tensor": "x", "dtype": "float32", "shape": ["batch"], "kind": "sparse", "size": 3}
    told = {"method": "predict", "batch_axis": 0, "inputs": {"x": spec}, "outputs": {"y": spec}}
    assert Signature.from_json(told, "here").inputs["x"] == TensorSpec("x", "float32", ("batch",))


def props(version: Path) -> dict[str, str]:
    import onnx

    found = onnx.load(version / "export.meta", load_external_data=False)
    return {p.key: p.value for p in found.metadata_props}


def test_only_sparse_inputs_need_format_2(model: Servable, tmp_path: Path) -> None:
    """Readers of format 1 refuse the bundle by its number, and go on reading all others."""
    assert props(model.bundle.path)["mserve.format"] == "2"
    assert props(mserve.export(builders.mlp(), tmp_path / "mlp").path)["mserve.format"] == "1"


def test_a_sparse_input_in_format_1_is_refused(model: Servable, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model.bundle.path, tmp_path / "00000001"))
    builders.reseal(copy, lambda m: builders.set_prop(m, "mserve.format", "1"))
    with pytest.raises(MetaGraphMalformed, match="has no sparse inputs"):
        open_bundle(copy)


def test_a_tensor_that_the_graph_lacks_is_named(model: Servable, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model.bundle.path, tmp_path / "00000001"))
    text = props(copy)["mserve.signatures"].replace('"features.rows"', '"other"')
    builders.reseal(copy, lambda m: builders.set_prop(m, "mserve.signatures", text))
    with pytest.raises(MetaGraphMalformed, match="other"):
        open_bundle(copy)


# --- checks ---


def changed(**parts: Any) -> dict[str, Any]:
    given = {f"f.{part}": np.asarray(x) for part, x in parts.items()}
    return {**PARTS, **{name: x.astype(PARTS[name].dtype) for name, x in given.items()}}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (changed(ids=[7, -1, 3]), "'f' has an id out of range (where: row 0; expected: 0 to 9; found: -1)"),
        (changed(ids=[7, 2, 10]), "row 2; expected: 0 to 9; found: 10"),
        (changed(ids=[2**63 - 1, 2, 3]), "found: 9223372036854775807"),
        (changed(lengths=[2, 0, 2]), "'f.lengths' does not add up (expected: 3"),
        (changed(lengths=[2, 0, 0]), "does not add up"),
        (changed(lengths=[3, -1, 1]), "impossible length (where: row 1; expected: 0 to 3"),
        (changed(lengths=[2**62, 2**62, 2**62]), "impossible length (where: row 0"),
        (changed(lengths=[-(2**63), 0, 3]), "impossible length (where: row 0"),
        (changed(lengths=[]), "does not add up"),
        (changed(values=[0.5, np.nan, 3]), "'f' has a value that is no finite number (where: row 0"),
        (changed(values=[0.5, 1, -np.inf]), "no finite number (where: row 2"),
        (changed(values=[0.5, 1]), "wrong shape"),
        (changed(ids=[7]), "wrong shape"),
        (changed(ids=[[7], [2], [3]]), "wrong shape"),
        (changed(lengths=[[2, 0, 1]]), "wrong shape"),
        ({**PARTS, "f.ids": np.array([7.0, 2, 3])}, "wrong dtype"),
        ({**PARTS, "f.ids": np.array([7, 2, 3], np.int32)}, "wrong dtype"),
        ({**PARTS, "f.ids": np.array([True, False, True])}, "wrong dtype"),
        ({**PARTS, "f.lengths": np.array(["2", "0", "1"])}, "wrong dtype"),
        ({**PARTS, "f.more": PARTS["f.ids"]}, "unknown 'f.more'"),
        ({"f.ids": PARTS["f.ids"], "f.values": PARTS["f.values"]}, "missing 'f.lengths'"),
    ],
)
def test_a_bad_request_is_refused(inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_inputs(signature(port()), inputs)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "1 to 9, as ids count from there"),
        ({"shape": ("batch", "?")}, "1 or more, as ids count from there"),
    ],
    ids=["so many ids", "any id"],
)
def test_an_id_below_the_first_is_refused(changes: dict[str, Any], words: str) -> None:
    """Rows that count from 0, for a model whose files count from 1, would get wrong answers."""
    told = signature(port(first_id=1, **changes))
    assert check_inputs(told, changed(ids=[1, 2, 3])) == 3
    with pytest.raises(RequestError) as caught:
        check_inputs(told, changed(ids=[7, 2, 0]))
    assert f"'f' has an id out of range (where: row 2; expected: {words}; found: 0)" in str(caught.value)


def test_a_row_has_no_more_entries_than_it_may() -> None:
    assert check_inputs(signature(port(max_length=2)), PARTS) == 3
    with pytest.raises(RequestError, match="too many entries in a row") as caught:
        check_inputs(signature(port(max_length=1)), PARTS)
    assert "row 0" in str(caught.value)


def test_rows_are_those_of_the_lengths() -> None:
    assert check_inputs(signature(port()), PARTS) == 3
    assert check_inputs(signature(port()), {name: x[:0] for name, x in PARTS.items()}) == 0
    two = {**PARTS, **{name.replace("f", "g", 1): x for name, x in PARTS.items()}}
    assert check_inputs(signature(port(), port()), two) == 3
    two |= {"g.lengths": np.array([3])}
    with pytest.raises(RequestError, match=r"'g.lengths' has the wrong shape"):
        check_inputs(signature(port(), port()), two)
    other = signature(port(), port(shape=("N", 10)))
    with pytest.raises(RequestError, match="number of rows") as caught:
        check_inputs(other, two)
    assert "f.lengths: 3, g.lengths: 1" in str(caught.value)


# --- rows ---


@given(seed=st.integers(0, 99), count=st.integers(0, 6), data=st.data())
def test_rows_are_picked_cut_and_joined(seed: int, count: int, data: st.DataObject) -> None:
    spec, rows = signature(port()), draw(count, 10, 4, seed)
    whole = parts(rows, "f")
    assert row_count(spec, whole) == count
    picks = data.draw(st.lists(st.integers(0, max(0, count - 1)), max_size=8)) if count else []
    same(take(spec, whole, picks), parts([rows[i] for i in picks], "f"))
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    same(Cuts(spec, whole).rows(start, stop), parts(rows[start:stop], "f"))
    same(join([Cuts(spec, whole).rows(0, start), Cuts(spec, whole).rows(start, count)]), whole)
    same(first(spec, whole), parts(rows[:1], "f"))


def same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize("rows", [1, 7])
def test_made_up_rows_are_valid(rows: int) -> None:
    spec = signature(port(max_length=3), port("ragged", shape=("batch", "?", 2)))
    made = generate(spec, rows, seed=3)
    assert check_inputs(spec, made) == rows
    assert made["f.lengths"][0] > 0
    assert made["g.values"].shape[1:] == (2,)
    same(made, generate(spec, rows, seed=3))


@pytest.mark.parametrize("size", [10, "?"])
def test_made_up_rows_count_from_the_first_id(size: int | str) -> None:
    spec = signature(port(first_id=4, shape=("batch", size)))
    tried = []

    def model(inputs: Any) -> dict[str, Any]:
        assert check_inputs(spec, inputs) == 6
        tried.append(inputs)
        return {"y": inputs["f.lengths"].astype(np.float32)}

    assert list(swayed(spec, generate(spec, 6, seed=1), model)) == []
    assert len(tried) > 2


# --- JSON ---


@pytest.mark.parametrize(
    ("body", "rows"),
    [
        ({"instances": [{"ids": [7, 2], "values": [0.5, 1]}, {"ids": []}]}, [([7, 2], [0.5, 1]), ([], [])]),
        ({"instances": [{"f": {"ids": [3]}}]}, [([3], [1])]),
        ({"instances": ["7:0.5 2:1", "", "+1 3:-2e1", "# nothing"]},
         [([7, 2], [0.5, 1]), ([], []), ([3], [-20]), ([], [])]),
        ({"instances": [{"f": "2:1  7:.5 # a comment 8:1"}]}, [([2, 7], [1, 0.5])]),
        ({"instances": []}, []),
        ({"inputs": {"f": [{"ids": [3], "values": [2]}, "4:1"]}}, [([3], [2]), ([4], [1])]),
        ({"inputs": ["4:1"]}, [([4], [1])]),
        ({"inputs": {"f.ids": [7, 2, 3], "f.values": [0.5, 1, 3], "f.lengths": [2, 0, 1]}},
         [([7, 2], [0.5, 1]), ([], []), ([3], [3])]),
    ],
)  # fmt: skip
def test_json_gives_rows(body: Any, rows: Any) -> None:
    spec = signature(port())
    found, in_rows = tfs_json.inputs_of(body, spec)
    same(found, parts(rows, "f"))
    assert in_rows == ("instances" in body)
    assert check_inputs(spec, found) == len(rows)


@pytest.mark.parametrize("alias", ["ids", "values", "lengths", "f"])
@pytest.mark.parametrize("kind", ["sparse", "ragged"])
def test_an_input_may_have_any_name(alias: str, kind: str) -> None:
    spec = Signature.of("predict", {alias: port(kind)}, {"y": TensorSpec("y", "float32", ("batch",))}, 0)
    row: Any = {"ids": [3], "values": [2]} if kind == "sparse" else [2]
    bare, _ = tfs_json.inputs_of({"instances": [row]}, spec)
    named, _ = tfs_json.inputs_of({"instances": [{alias: row}]}, spec)
    same(bare, named)
    assert bare[f"{alias}.values"].tolist() == [2]


def test_ids_alone_and_ragged_rows_in_json() -> None:
    alone = signature(port(tensors={"ids": "i", "lengths": "l"}, dtype="int64"))
    found, _ = tfs_json.inputs_of({"instances": [{"ids": [3, 4]}, "5:1"]}, alone)
    same(found, {"f.ids": np.array([3, 4, 5]), "f.lengths": np.array([2, 1])})
    with pytest.raises(RequestError, match="takes ids alone"):
        tfs_json.inputs_of({"instances": [{"ids": [3], "values": [1]}]}, alone)
    ragged = signature(port("ragged", shape=("batch", "?", 2)))
    found, _ = tfs_json.inputs_of({"instances": [[[1, 2], [3, 4]], []]}, ragged)
    same(found, {"f.values": np.array([[1, 2], [3, 4]], np.float32), "f.lengths": np.array([2, 0])})
    found, _ = tfs_json.inputs_of({"instances": [[], []]}, ragged)
    assert check_inputs(ragged, found) == 2
    words = signature(port("ragged", dtype="string"))
    found, _ = tfs_json.inputs_of({"instances": [["a", "b"], [], ["c"]]}, words)
    assert found["f.values"].tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"ids": [1.0]}, "wrong kind"),
        ({"ids": [True]}, "wrong kind"),
        ({"ids": ["1"]}, "wrong kind"),
        ({"ids": [None]}, "wrong kind"),
        ({"ids": [2**63]}, "out of range"),
        ({"ids": [[1]]}, "wrong kind"),
        ({"ids": 1}, "no list"),
        ({"ids": [1], "values": 1}, "no list"),
        ({"ids": [1], "values": []}, "a value for each id"),
        ({"ids": [1], "values": [1, 2]}, "a value for each id"),
        ({"ids": [1], "values": ["1"]}, "wrong kind"),
        ({"ids": [1], "values": [True]}, "wrong kind"),
        ({"ids": [1], "values": [1e39]}, "no finite number"),
        ({"ids": [1], "values": [float("nan")]}, "no finite number"),
        ({"values": [1]}, "no sparse row"),
        ({"f": {"ids": [1], "weights": [1]}}, "no sparse row"),
        ({"f": 3}, "no sparse row"),
        ([1, 2], "no sparse row"),
        (3, "no sparse row"),
        (None, "no sparse row"),
        ("-1:1", "not of pairs"),
        ("1:nan", "not of pairs"),
        ("1:inf", "not of pairs"),
        ("1:1e999", "no finite number"),
        ("1:1_0", "not of pairs"),
        ("1.0:1", "not of pairs"),
        ("1: 1", "not of pairs"),
        ("3:1 1", "not of pairs"),
        ("1 qid:3 4:1", "not of pairs"),
        ("99999999999999999999:1", "not of pairs"),
        ("9999999999999999999:1", "out of range"),
        ("\u0661:1", "not of pairs"),
    ],
)
def test_a_bad_row_is_named(row: Any, words: str) -> None:
    spec = signature(port())
    named = isinstance(row, dict) and "f" in row
    rows = [{"f": "1:1"}, row] if named else ["1:1", row]
    with pytest.raises(RequestError) as caught:
        check_inputs(spec, tfs_json.inputs_of({"instances": rows}, spec)[0])
    assert words in str(caught.value)
    assert "row 1" in str(caught.value) or "shape" in words


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"instances": [{"g": {"ids": [1]}}]}, "must be equal to: f"),
        ({"inputs": {"g": ["1:1"]}}, "Missing named input: f"),
        ({"inputs": {"f": "1:1"}}, "not a list of rows"),
        ({"inputs": {"f.ids": [1], "f.values": [1]}}, "Missing named input: f.lengths"),
        ({"inputs": {"f": ["1:1"], "f.ids": [1]}}, "does not have named input: f.ids"),
        ({"instances": {"ids": [1]}}, "not a list"),
    ],
)
def test_a_request_of_another_form_is_refused(body: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        tfs_json.inputs_of(body, signature(port()))
    assert words in str(caught.value)


@pytest.mark.parametrize("rows", [["1:1 2:1 3:1"], ["1:1", "2:1 3:1"], [{"ids": [1]}, {"ids": [2, 3]}]])
def test_entries_are_counted_however_they_are_written(monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
    monkeypatch.setattr(sparse_json, "MAX_VALUES", 2)
    with pytest.raises(PayloadTooLarge, match="too many entries"):
        tfs_json.inputs_of({"instances": rows}, signature(port()))


@given(st.text(max_size=30))
def test_no_line_of_text_breaks_the_reader(line: str) -> None:
    try:
        found, _ = tfs_json.inputs_of({"instances": [line]}, signature(port(shape=("batch", "?"))))
    except RequestError:
        return
    assert len(found["f.ids"]) == found["f.lengths"].sum()


@pytest.mark.parametrize("rows", [True, False])
def test_what_is_encoded_is_read_back(rows: bool) -> None:
    spec = Signature.of(
        "predict",
        {"f": port(), "x": TensorSpec("x", "float32", ("batch", 2)), "r": port("ragged", dtype="int64")},
        {"y": TensorSpec("y", "float32", ("batch",))},
        0,
    )
    made = generate(spec, 5)
    body = tfs_json.encode_inputs(made, rows=rows, signature=spec)
    found, in_rows = tfs_json.inputs_of(tfs_json.parse(body), spec)
    same({name: found[name] for name in made}, made)
    assert in_rows == rows


# --- a bundle ---


def line(ids: Any, values: Any) -> str:
    return " ".join(f"{i}:{v}" for i, v in zip(ids, values, strict=True))


class Matrix:
    """What a matrix of compressed rows looks like."""

    def __init__(self, rows: Any) -> None:
        whole = parts(rows)
        self.indptr = np.concatenate([[0], np.cumsum(whole["features.lengths"])]).astype(np.int32)
        self.indices = whole["features.ids"].astype(np.int32)
        self.data = whole["features.values"].astype(np.float64)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(parts(ROWS), id="parts"),
        pytest.param({"features": objects(ROWS)}, id="rows"),
        pytest.param({"features": [{"ids": i, "values": v} for i, v in ROWS]}, id="rows of arrays"),
        pytest.param({"features": tuple(line(*row) for row in ROWS)}, id="lines"),
        pytest.param({"features": Matrix(ROWS)}, id="compressed rows"),
        pytest.param({"features": SimpleNamespace(tocsr=lambda: Matrix(ROWS))}, id="another matrix"),
        pytest.param({"features": {k.split(".")[1]: x for k, x in parts(ROWS).items()}}, id="dict of parts"),
    ],
)
def test_run_takes_what_people_have(model: Servable, form: Any) -> None:
    expected = sigmoid(sparse_models.dots(ROWS, WEIGHTS) + 0.25)
    np.testing.assert_allclose(model.run(form)["y"], expected, rtol=1e-5)


def test_run_takes_matrices_of_scipy(model: Servable) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.zeros((3, SIZE), np.float32)
    dense[0, [5, 900]], dense[2, 7] = [1.5, -2], 3
    expected = sigmoid(dense @ WEIGHTS + 0.25)
    for kind in (sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix, sparse.csr_array):
        np.testing.assert_allclose(model.run({"features": kind(dense)})["y"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([{"ids": [1.5]}], "wrong kind"),
        ([{"ids": [SIZE]}], "out of range"),
        ({"ids": np.array([1.5]), "lengths": np.array([1])}, "wrong dtype"),
        ({"ids": np.array([2**63], np.uint64), "lengths": np.array([1])}, "wrong dtype"),
        ({"ids": np.array([1]), "length": np.array([1])}, "no such part"),
        ({"ids": np.array([1]), "values": np.array([1e39]), "lengths": np.array([1])}, "no finite number"),
    ],
)
def test_run_refuses_what_makes_no_sense(model: Servable, value: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        model.run({"features": value})
    assert words in str(caught.value)


def test_values_that_are_left_out_are_1(model: Servable) -> None:
    ones = model.run({"features": [{"ids": [3, 9]}, {"ids": []}]})["y"]
    np.testing.assert_array_equal(ones, model.run({"features": ["3:1 9:1", ""]})["y"])
    arrays = {"features.ids": np.array([3, 9]), "features.lengths": np.array([2, 0])}
    np.testing.assert_array_equal(ones, model.run(arrays)["y"])


def test_an_id_may_stand_twice_and_rows_need_no_order(model: Servable) -> None:
    once, twice = model.run({"features": [{"ids": [9, 3], "values": [2, 1]}, {"ids": [3, 9, 9]}]})["y"]
    assert once == pytest.approx(twice)


def test_ids_beyond_the_weights_count_nothing_where_any_may_come(tmp_path: Path) -> None:
    weights = builders.floats(5, 3)
    with_any = mserve.load(sparse_models.logistic(tmp_path, weights, size=0))
    found = with_any.run({"features": ["4:2 5:100 99999999999:3", "0:1"]})["y"]
    expected = sigmoid(sparse_models.dots([([4], [2]), ([0], [1])], weights))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with_any.close()


def test_a_factorisation_machine(tmp_path: Path) -> None:
    single, factors = builders.floats(300, seed=1), builders.floats(300, 8, seed=2) * np.float32(0.3)
    rows = draw(20, 300, 30, seed=5)
    servable = mserve.load(sparse_models.machine(tmp_path, 0.5, single, factors))
    found = servable.run({"features": objects(rows)})["y"]
    np.testing.assert_allclose(found, sparse_models.fm(rows, 0.5, single, factors), rtol=1e-4, atol=1e-3)
    servable.close()


def test_the_recorded_request_is_kept_in_parts(model: Servable) -> None:
    record = model.bundle.metagraph.golden
    assert record is not None
    stored = read_npz(model.bundle.file(record))
    names = ("features.ids", "features.values", "features.lengths")
    assert [key for key in stored if "/inputs/" in key] == [f"serving_default/inputs/{n}" for n in names]
    assert stored["serving_default/inputs/features.lengths"].shape == (1,)
    assert check_inputs(model.signatures["serving_default"], model.example()) == 1


@pytest.mark.parametrize("golden", [6, parts(ROWS), {"features": objects(ROWS)}], ids=["6", "parts", "rows"])
def test_golden_rows_may_be_given(tmp_path: Path, golden: Any) -> None:
    version = sparse_models.logistic(tmp_path, WEIGHTS, golden=golden)
    servable = mserve.load(version)
    inputs = servable.golden["serving_default"].inputs
    assert row_count(servable.signatures["serving_default"], inputs) == (golden if golden == 6 else len(ROWS))
    servable.close()
    assert validate(open_bundle(version), full=True) == []


def test_a_row_that_reads_its_neighbours_is_found_out(tmp_path: Path) -> None:
    graph, ports = Graph(), {"features": sparse_input("features", SIZE)}
    dots = row_dots(graph, ports["features"], WEIGHTS)
    graph.add("Sub", dots, graph.add("ReduceMax", dots, keepdims=1), name="y")
    told = Signature.of("predict", ports, sparse_models.answers())
    found = mserve.export(graph.model(told), tmp_path, signatures={"serving_default": told})
    assert found.metagraph.signatures["serving_default"].batch_axis is None
    assert "not independent" in found.notes[0]
    insisted = Signature.of("predict", ports, sparse_models.answers(), 0)
    found = mserve.export(graph.model(told), tmp_path, signatures={"serving_default": insisted}, golden=4)
    findings = validate(open_bundle(found.path), full=True)
    assert "batch-neighbours" in {finding.code for finding in findings}


def test_a_version_that_answers_otherwise_is_found_out(tmp_path: Path) -> None:
    version = sparse_models.logistic(tmp_path, WEIGHTS, golden=4)
    stored = read_npz(version / GOLDEN_FILE)
    stored["serving_default/outputs/y"] += np.float32(0.3)
    buffer = io.BytesIO()
    np.savez(buffer, **stored)  # type: ignore[arg-type]
    builders.overwrite(version / GOLDEN_FILE, buffer.getvalue())
    facts = {"size": len(buffer.getvalue()), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    builders.reseal(version, lambda m: builders.set_json(m, "mserve.golden", lambda old: old | facts))
    assert [finding.code for finding in validate(open_bundle(version))] == ["golden-outputs"]
    with pytest.raises(ModelRefused, match="not the recorded ones"):
        mserve.load(version)


def test_sums_are_added_by_one_thread(tmp_path: Path) -> None:
    """Several threads of ONNX Runtime add without locking: terms were lost in one run of four."""
    single, factors = builders.floats(100, seed=1), builders.floats(100, 4, seed=2)
    bundle = open_bundle(sparse_models.machine(tmp_path / "fm", 0.5, single, factors))
    assert {engine.threads for engine in open_engines(bundle, threads=4).values()} == {1}
    bundle = open_bundle(sparse_models.logistic(tmp_path / "lr", WEIGHTS))
    assert {engine.threads for engine in open_engines(bundle, threads=4).values()} == {4}
    node = helper.make_node("ScatterND", ["x", "at", "one"], ["y"])
    constants = [builders.weight("at", np.array([[0]])), builders.weight("one", np.ones((1, 2), np.float32))]
    ports = [(name, TensorProto.FLOAT, ["n", 2]) for name in "xy"]
    overwrites = mserve.export(builders.model([node], ports[:1], ports[1:], constants), tmp_path / "put").path
    assert {engine.threads for engine in open_engines(open_bundle(overwrites), threads=4).values()} == {4}


MILLION = """
import resource, sys
import numpy as np
import mserve, sparse_models

rows = sparse_models.draw(256, 1_000_000, 80)
servable = mserve.load(sys.argv[1])
servable.run({"features": sparse_models.objects(rows[:2])})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = servable.run({"features": sparse_models.objects(rows)})["y"]
np.save(sys.argv[2], found)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", ["logistic regression", "factorisation machine"])
def test_a_million_features_need_no_dense_row(kind: str, tmp_path: Path) -> None:
    """256 dense rows would take a gigabyte."""
    weights = builders.floats(1_000_000, 4) * np.float32(0.3)
    rows = draw(256, 1_000_000, 80)
    if kind == "logistic regression":
        version = sparse_models.logistic(tmp_path / "m", weights[:, :1], 0.1)
        expected = sigmoid(sparse_models.dots(rows, weights[:, :1]) + 0.1)
    else:
        version = sparse_models.machine(tmp_path / "m", 0.1, weights[:, 0], weights)
        expected = sparse_models.fm(rows, 0.1, weights[:, 0], weights)
    command = [sys.executable, "-c", MILLION, str(version), str(tmp_path / "y.npy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
    assert int(done.stdout) < 64 << 10  # KiB
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=2e-4, atol=2e-4)


# --- a signatures file ---


def exported(tmp_path: Path, text: str) -> Any:
    (tmp_path / "s.toml").write_text(text)
    return mserve.export(sparse_models.triple(), tmp_path / "m", signatures=tmp_path / "s.toml")


def test_a_signatures_file_names_the_triple(tmp_path: Path) -> None:
    found = exported(tmp_path, sparse_models.TRIPLE)
    assert found.notes == ()
    assert found.metagraph.signatures["serving_default"].batch_axis == 0
    servable = mserve.load(found.path)
    assert servable.run({"features": ["3:1 9:0.5", "", "2:2"]})["y"].tolist() == [7.5, 0, 4]
    assert servable.run({"features": []})["y"].tolist() == []
    servable.close()
    counted = exported(tmp_path, sparse_models.TRIPLE.replace("size = 10", "size = 10, first_id = 1"))
    assert counted.metagraph.signatures["serving_default"].sparse["features"].first_id == 1
    text = run("diff", found.path, counted.path).stdout
    assert "ids count from another number" in text
    assert "input-narrowed" in text
    assert "input-widened" in run("diff", counted.path, found.path).stdout


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"sparse"', '"dense"', "a kind that is sparse or ragged"),
        ("size = 10", "size = -1", "bad size"),
        ("size = 10", 'size = "10"', "wrong kind"),
        ("size = 10", "size = true", "wrong kind"),
        ("size = 10", "sise = 10", "did you mean 'size'?"),
        ("size = 10", "max_length = 4294967296", "max_length"),
        ("indices =", "indexes =", "did you mean 'indices'?"),
        ('"f/indices"', '"f/index"', "no such tensor"),
        ('"f/indices"', '"f/values"', "does not fit the role"),
        ('shape = "f/shape"', 'ids = "f/shape"', "the number of rows"),
        ('shape = "f/shape"', 'splits = "f/indices"', "int64 of rank 1"),
        ("size = 10", "size = 10, range = [1]", "a range"),
        ("size = 10", "size = 10, first_id = 10", "below the number of ids"),
    ],
)
def test_a_bad_signatures_file_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in sparse_models.TRIPLE
    with pytest.raises(UsageError) as caught:
        exported(tmp_path, sparse_models.TRIPLE.replace(old, new))
    assert words in str(caught.value)
    assert not (tmp_path / "m" / "00000001").exists()


def test_a_graph_input_that_no_role_feeds_is_named(tmp_path: Path) -> None:
    text = sparse_models.TRIPLE.replace('values = "f/values", ', "")
    with pytest.raises(UsageError, match="not those that its outputs") as caught:
        exported(tmp_path, text)
    assert "f/values" in str(caught.value)


# --- commands ---


def test_commands_know_them(model: Servable, tmp_path: Path) -> None:
    path = model.bundle.path
    (tmp_path / "in.json").write_text(json.dumps({"instances": objects(ROWS)}))
    np.savez(tmp_path / "in.npz", **parts(ROWS))  # type: ignore[arg-type]
    expected = sigmoid(sparse_models.dots(ROWS, WEIGHTS) + 0.25)
    for name in ("in.json", "in.npz"):
        told = json.loads(run("run", path, "--inputs", tmp_path / name, "--json").stdout)
        np.testing.assert_allclose(told["outputs"]["y"]["data"], expected, rtol=1e-5)
    shown = run("inspect", path).stdout
    for word in ("float32 sparse", f"[batch, {SIZE}]", "features.rows"):
        assert word in shown
    told = json.loads(run("inspect", path, "--json").stdout)
    assert told["format_version"] == 2
    assert told["signatures"]["serving_default"]["inputs"]["features"]["kind"] == "sparse"
    run("validate", path, "--full")
    (tmp_path / "bad.json").write_text('{"instances": ["5:1", "1000:1"]}')
    assert "row 1" in run("run", path, "--inputs", tmp_path / "bad.json").stderr


@pytest.mark.parametrize("rows", [1, 5])
def test_bench_asks_in_process(model: Servable, rows: int) -> None:
    told = bench_json(model.bundle.path, "--duration", 0.2, "--warmup", 0.1, "--rows", rows)
    assert told["reports"][0]["target"]["rows"] == rows


def test_diff_asks_both_versions(model: Servable, tmp_path: Path) -> None:
    """The recorded rows go to both; fewer ids, or shorter rows, break clients."""
    version = model.bundle.path
    fewer = sparse_models.logistic(tmp_path / "fewer", WEIGHTS[:600], -0.25)
    text = run("diff", version, fewer).stdout
    assert "input-narrowed" in text
    assert "up to 1000 -> up to 600" in text
    assert "answers-moved" in text
    assert "input-widened" in run("diff", fewer, version).stdout
    moved = sparse_models.logistic(tmp_path / "moved", WEIGHTS, 0.25 + 1e-7)
    (tmp_path / "in.json").write_text(json.dumps({"instances": objects(draw(700, SIZE, 9))}))
    done = run("diff", version, moved, "--inputs", tmp_path / "in.json", "--fail-on", "outputs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "700 row(s)" in done.stdout
