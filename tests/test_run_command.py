"""`mserve run`: every kind of input, what it writes and prints, a look inside, and what it refuses."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import onnx
import pytest
import sparse_models
from builders import FLOAT, STRING, floats, mlp, model, save, weight
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from test_commands import run

import mserve
from mserve import cli
from mserve.errors import EnvironmentProblem, InputError, MserveError
from mserve.outfiles import OutFiles
from mserve.readers.csv_arrays import read_csv
from mserve.readers.lines import read_lines
from mserve.sparse import Sparse
from mserve.tensors import Signature, TensorSpec

Patch, Capture = pytest.MonkeyPatch, pytest.CaptureFixture[str]
BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64
EMPTY = b"{'descr': '<U0', 'fortran_order': False, 'shape': (1099511627776,), }\n"
CSV = 'count,city,price,sold,note\n2,Bern,1.5,true,a\n3,"Aarau, AG",-2e1,0,b\n'
ROWS = {
    "price": np.float32([1.5, -20]),
    "count": np.int64([[2], [3]]),
    "city": np.array(["Bern", "Aarau, AG"]),
    "sold": np.array([True, False]),
}
TOTAL = [1.5 * 2 + 1, -60.0]


def shop() -> onnx.ModelProto:
    """total = price * count + sold, and the city itself."""
    nodes = [
        helper.make_node("Cast", ["count"], ["counted"], to=FLOAT),
        helper.make_node("Reshape", ["counted", "flat"], ["factor"], name="flatten"),
        helper.make_node("Mul", ["price", "factor"], ["worth"], name="multiply"),
        helper.make_node("Cast", ["sold"], ["bonus"], to=FLOAT),
        helper.make_node("Add", ["worth", "bonus"], ["total"]),
        helper.make_node("Identity", ["city"], ["where"]),
    ]
    inputs = [
        ("price", FLOAT, ["N"]),
        ("count", INT64, ["N", 1]),
        ("city", STRING, ["N"]),
        ("sold", BOOL, ["N"]),
    ]
    outputs = [("total", FLOAT, ["N"]), ("where", STRING, ["N"])]
    return model(nodes, inputs, outputs, [weight("flat", np.int64([-1]))])


def cast_of(kind: int, shape: list[int | str]) -> onnx.ModelProto:
    """x of a type and shape, as float32."""
    return model(
        [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)], [("x", kind, shape)], [("y", FLOAT, shape)]
    )


PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shop, models that take pictures and matrices, and inputs in every form."""
    root = tmp_path_factory.mktemp("run")
    mserve.export(shop(), root / "shop", name="shop")
    save(shop(), root / "shop.onnx")
    save(cast_of(TensorProto.UINT8, ["N", 4, 6, 3]), root / "bytes.onnx")
    save(cast_of(FLOAT, ["N", 3, 4, 6]), root / "floats.onnx")
    save(cast_of(FLOAT, [3, 4, 3]), root / "ambiguous.onnx")
    save(cast_of(FLOAT, ["N", 3]), root / "matrix.onnx")
    save(mlp(), root / "mlp.onnx")
    save(mlp(seed=5), root / "other.onnx")
    (root / "rows.csv").write_text(CSV)
    (root / "rows.tsv").write_text(
        "\n".join(("price\tcount\tcity\tsold", "1.5\t2\tBern\t1", "-20\t3\tAarau, AG\tFALSE"))
    )
    np.savez(root / "rows.npz", **ROWS)
    for name, array in ROWS.items():
        np.save(root / f"{name}.npy", array)
    Image.fromarray(PICTURE).save(root / "picture.png")
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(root / "square.png")
    Image.fromarray(np.full((4, 6), 255, np.uint8)).save(root / "white.jpg")
    columns = {"inputs": {a: x.tolist() for a, x in ROWS.items()}}
    rows = [{a: x[i].tolist() for a, x in ROWS.items()} for i in range(2)]
    (root / "columns.json").write_text(json.dumps(columns))
    (root / "rows.json").write_text(json.dumps({"instances": rows}))
    (root / "rows.jsonl").write_text("".join(json.dumps({"instances": [row]}) + "\n" for row in rows))
    kinds = {"price": "FP32", "count": "INT64", "city": "BYTES", "sold": "BOOL"}
    oip = [
        {"name": a, "datatype": kinds[a], "shape": list(x.shape), "data": x.ravel().tolist()}
        for a, x in ROWS.items()
    ]
    (root / "oip.json").write_text(json.dumps({"inputs": oip}))
    (root / "nine.bin").write_bytes(np.arange(9, dtype="<f4").tobytes())
    (root / "text").write_text("what is this?")
    return root


def does(*arguments: object) -> int:
    """`mserve run` in this process: its exit code. Raises its error."""
    code = cli.build()(["run", *map(str, arguments)], prog_name="mserve", standalone_mode=False)
    return int(code or 0)


def answered(capsys: Capture, *arguments: object) -> Any:
    capsys.readouterr()
    assert does(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


FORMS = [
    ["rows.csv"],
    ["rows.tsv"],
    ["rows.npz"],
    ["rows.json"],
    ["columns.json"],
    ["oip.json"],
    ["price=price.npy", "count=count.npy", "city=city.npy", "sold=sold.npy"],
    ["price=price.npy", "count=count.npy", "city=rows.csv", "sold=sold.npy"],
]


@pytest.mark.parametrize("source", ["shop", "shop.onnx"])
@pytest.mark.parametrize("forms", FORMS, ids=" ".join)
def test_every_form_of_input_is_the_same_request(
    place: Path,
    capsys: Capture,
    monkeypatch: Patch,
    source: str,
    forms: list[str],
) -> None:
    monkeypatch.chdir(place)
    facts = answered(capsys, source, *(part for form in forms for part in ("--inputs", form)))
    assert facts["outputs"]["total"] == {"dtype": "float32", "shape": [2], "data": TOTAL}
    assert facts["outputs"]["where"]["data"] == ["Bern", "Aarau, AG"]
    assert facts.get("version") == (1 if source == "shop" else None)


def test_each_line_of_json_lines_is_a_request(place: Path, tmp_path: Path, capsys: Capture) -> None:
    facts = answered(capsys, place / "shop", "--inputs", place / "rows.jsonl")
    assert [a["total"]["data"] for a in facts["answers"]] == [[TOTAL[0]], [TOTAL[1]]]
    for name in ("a.jsonl", "a.npz"):
        assert does(place / "shop", "--inputs", place / "rows.jsonl", "--output", tmp_path / name) == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["predictions"][0]["total"] for line in lines] == TOTAL
    with np.load(tmp_path / "a.npz") as saved:
        assert saved["total"].tolist() == TOTAL
        assert saved["where"].tolist() == ["Bern", "Aarau, AG"]


def test_an_answer_to_json_has_the_form_of_its_request(place: Path, capsys: Capture) -> None:
    shown = {}
    for name in ("rows", "columns", "oip"):
        does(place / "shop", "--inputs", place / f"{name}.json")
        shown[name] = json.loads(capsys.readouterr().out)
    assert [row["total"] for row in shown["rows"]["predictions"]] == TOTAL
    assert shown["columns"]["outputs"]["total"] == TOTAL
    assert shown["oip"]["outputs"][0] == {"name": "total", "datatype": "FP32", "shape": [2], "data": TOTAL}


def test_everything_else_is_shown_by_shape_and_first_rows(place: Path, capsys: Capture) -> None:
    does(place / "shop", "--inputs", place / "rows.csv")
    assert capsys.readouterr().out.splitlines() == [
        "total\tfloat32 [2]\t0\t4",
        "total\tfloat32 [2]\t1\t-60",
        "where\tstring [2]\t0\t'Bern'",
        "where\tstring [2]\t1\t'Aarau, AG'",
    ]


def test_a_person_sees_a_table_whatever_was_sent(place: Path) -> None:
    """Standard output is a terminal; the answer to a JSON request is drawn too."""
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "mserve",
        "run",
        str(place / "shop"),
        "--inputs",
        str(place / "rows.json"),
    ]
    done = subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, timeout=60, check=True)
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode()
    os.close(leader)
    assert done.stderr == b""
    assert "predictions" not in shown
    for words in ("output", "values", "float32 [2]", "'Aarau, AG'"):
        assert words in shown


@pytest.mark.parametrize(
    ("name", "kind"),
    [("rows.npz", ""), ("rows.json", ""), ("rows.csv", "csv")],
    ids=["npz", "JSON", "CSV, which has to be said"],
)
def test_standard_input_is_read(place: Path, name: str, kind: str) -> None:
    flags = ["--input-format", kind] if kind else []
    done = run("run", place / "shop", "--inputs", "-", "--json", *flags, stdin=(place / name).read_bytes())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"]["total"]["data"] == TOTAL


def test_many_rows_of_a_bundle_are_run_in_pieces(place: Path, tmp_path: Path) -> None:
    text = "price,count,city,sold\n" + "".join(f"{i},2,c{i},0\n" for i in range(3000))
    (tmp_path / "many.csv").write_text(text)
    does(place / "shop", "--inputs", tmp_path / "many.csv", "--output", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as saved:
        assert saved["total"].tolist() == [2.0 * i for i in range(3000)]
        assert saved["where"][-1] == "c2999"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What was there stays until the new bytes are; what is no regular file is written to as it is."""
    path, taken, device = tmp_path / "y.npz", tmp_path / "taken", Path(os.devnull)
    path.write_bytes(b"before")
    taken.mkdir()
    with OutFiles([path, device]) as files:
        assert path.read_bytes() == b"before"
        files.write(path, b"after")
        files.write(device, b"x")
    assert path.read_bytes() == b"after"
    for place, said in ((taken, "is a directory"), (path / "below", "cannot be written")):
        with pytest.raises(EnvironmentProblem, match=said), OutFiles([place]):
            pass
    with OutFiles([path]), suppress(InputError):
        raise InputError("the run failed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken", "y.npz"]
    assert path.read_bytes() == b"after"
    assert not device.is_file()


def test_a_place_that_cannot_be_written_is_refused_before_the_run(place: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        does(place / "shop", "--inputs", tmp_path / "missing.jsonl", "--output", tmp_path / "no" / "y.npz")


def test_a_model_that_ends_the_process_does_not_do_so_without_a_word(tmp_path: Path) -> None:
    path = save(mutations.crashes(mlp(hidden=8, inputs=4)), tmp_path / "crash.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 4), np.float32))
    done = run("run", path, "--inputs", tmp_path / "x.npz")
    assert done.returncode == -signal.SIGFPE
    assert "Fatal Python error: Floating point exception" in done.stderr


# --- images and raw values


def test_an_image_becomes_what_the_input_takes(place: Path, capsys: Capture) -> None:
    picture = place / "picture.png"
    whole = answered(capsys, place / "bytes.onnx", "--inputs", picture)["outputs"]["y"]
    assert np.array_equal(whole["data"], PICTURE[None].astype(float))
    scaled = answered(capsys, place / "floats.onnx", "--inputs", picture, "--pixels", "-1..1")["outputs"]["y"]
    assert np.allclose(scaled["data"], PICTURE.transpose(2, 0, 1)[None] / 127.5 - 1, atol=1e-6)
    blue = answered(capsys, place / "bytes.onnx", "--inputs", picture, "--bgr")["outputs"]["y"]
    assert np.array_equal(blue["data"], PICTURE[None, ..., ::-1].astype(float))


def test_several_images_are_rows_and_grey_is_three_times_the_same(place: Path, capsys: Capture) -> None:
    flags = (
        "--inputs",
        place / "picture.png",
        "--inputs",
        place / "white.jpg",
        "--inputs",
        place / "square.png",
    )
    found = answered(capsys, place / "bytes.onnx", *flags, "--resize")["outputs"]["y"]
    assert found["shape"] == [3, 4, 6, 3]
    assert np.unique(found["data"][1]).tolist() == [255.0]


def test_raw_values_have_one_open_size(place: Path, capsys: Capture) -> None:
    found = answered(capsys, place / "matrix.onnx", "--inputs", place / "nine.bin")["outputs"]["y"]
    assert found["data"] == np.arange(9.0).reshape(3, 3).tolist()


@pytest.mark.parametrize(
    "text", ["1,2,3\n4,5,6\n", "a,b,c\n1,2,3\n4,5,6\n"], ids=["numbers only", "a header"]
)
def test_a_matrix_takes_all_columns(place: Path, tmp_path: Path, capsys: Capture, text: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    found = answered(capsys, place / "matrix.onnx", "--inputs", tmp_path / "m.csv")["outputs"]["y"]
    assert found["data"] == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


# --- a look inside, and a comparison


def test_tensors_and_nodes_inside_are_shown(place: Path, capsys: Capture) -> None:
    for source in ("shop", "shop.onnx"):
        flags = ("--intermediate", "multiply", "--intermediate", "bonus", "--intermediate", "total")
        found = answered(capsys, place / source, "--inputs", place / "rows.csv", *flags)["outputs"]
        assert list(found) == ["total", "where", "worth", "bonus"]
        assert found["worth"] == {"dtype": "float32", "shape": [2], "data": [3.0, -60.0]}


@pytest.mark.parametrize("other", ["plain", "cpu", "shop.onnx", "shop"])
def test_what_answers_alike_is_exit_0(place: Path, capsys: Capture, monkeypatch: Patch, other: str) -> None:
    monkeypatch.chdir(place)
    assert does("shop", "--inputs", "rows.csv", "--compare-with", other, "--bisect") == 0
    out = capsys.readouterr().out
    assert "total\tequal\tequal" in out
    assert "first at node" not in out


def test_what_parts_is_exit_1_and_names_the_node(place: Path, tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 784), np.float32))
    flags = (
        place / "mlp.onnx",
        "--inputs",
        tmp_path / "x.npy",
        "--compare-with",
        place / "other.onnx",
        "--bisect",
    )
    assert does(*flags) == 1
    shown = capsys.readouterr().out
    assert "y\tPARTED\t" in shown
    assert "first at node 1 of 3: Gemm" in shown
    assert "takes w0: a weight, float32 [784, 128]" in shown
    assert does(*flags, "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdicts"][0]["equal"] is False
    assert facts["first_parted"]["operator"] == "Gemm"
    assert facts["first_parted"]["tensor"] == "h"
    assert does(*flags, "--rtol", "1e9") == 0


# --- rows as people have them


LINES = "1 3:1 17:0.5 # a comment\n\n-1\r\n# a comment alone\n0,1 999:-2e0\n   5:1   5:1"
LINE_ROWS = [([3, 17], [1, 0.5]), ([], []), ([999], [-2]), ([5, 5], [1, 1])]
WEIGHTS = floats(1000, 1)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logistic regression over a thousand features, and rows for it as text."""
    root = tmp_path_factory.mktemp("clicks")
    sparse_models.logistic(root / "lr", WEIGHTS, 0.25)
    for name in ("rows.libsvm", "rows.svm", "rows.LIBFM", "rows.txt"):
        (root / name).write_bytes(LINES.encode())
    rows = [{"ids": list(ids), "values": list(values)} for ids, values in LINE_ROWS]
    (root / "rows.json").write_text(json.dumps([{"features": row} for row in rows]))
    (root / "bare.json").write_text(json.dumps(rows, indent=1))
    (root / "sum.npy").write_bytes(b"\x93NUMPY")
    np.savez(root / "rows.npz", **sparse_models.parts(LINE_ROWS))
    bad = {"zero": "1 3:1\n\n1 0:x", "range": "1 3:1\n1 1000:1", "empty": "\n# nothing\n"}
    for name, text in bad.items():
        (root / f"{name}.svm").write_text(text)
    (root / "latin.svm").write_bytes(b"1 3:1 # \xfc\n")
    return root


@pytest.mark.parametrize(
    "words",
    [
        ["rows.libsvm"],
        ["rows.svm"],
        ["rows.LIBFM"],
        ["features=rows.svm"],
        ["rows.txt", "--input-format", "lines"],
        ["rows.json"],
        ["bare.json"],
        ["rows.npz"],
    ],
    ids=" ".join,
)
def test_sparse_rows_in_every_form(
    clicks: Path, capsys: Capture, monkeypatch: Patch, words: list[str]
) -> None:
    monkeypatch.chdir(clicks)
    expected = sparse_models.sigmoid(sparse_models.dots(LINE_ROWS, WEIGHTS) + 0.25)
    found = answered(capsys, "lr", "--inputs", *words)["outputs"]["y"]["data"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_files_of_lines_are_joined(clicks: Path, capsys: Capture) -> None:
    one, two = (
        answered(capsys, clicks / "lr", *["--inputs", clicks / "rows.svm"] * count)["outputs"]["y"]["data"]
        for count in (1, 2)
    )
    assert two == one * 2


def test_rows_with_more_entries_than_are_run_at_once(clicks: Path, tmp_path: Path, capsys: Capture) -> None:
    """Rows are cut, not their entries; and a look inside feeds the graph what it takes."""
    entries = " ".join(f"{i}:1" for i in range(400))
    (tmp_path / "many.svm").write_text(f"{entries}\n3:1\n" * 4 + f"{entries}\n")
    words = ["--inputs", tmp_path / "many.svm"]
    rows = [(list(range(400)), [1] * 400), ([3], [1])] * 4 + [(list(range(400)), [1] * 400)]
    expected = sparse_models.sigmoid(sparse_models.dots(rows, WEIGHTS) + 0.25)
    found = answered(capsys, clicks / "lr", *words)["outputs"]["y"]["data"]
    assert np.allclose(np.ravel(found), np.ravel(expected), rtol=1e-4, atol=1e-6)
    (tmp_path / "other").mkdir()
    sparse_models.logistic(tmp_path / "other" / "lr", WEIGHTS, 0.5)
    assert does(clicks / "lr", *words, "--compare-with", tmp_path / "other" / "lr", "--bisect") == 1
    assert "first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "words", "said"),
    [
        ("lr", ["zero.svm"], r"not of pairs \(where: zero.svm: line 3; .*found: 0:x"),
        ("lr", ["range.svm"], "id out of range .where: row 1; expected: 0 to 999; found: 1000"),
        ("lr", ["empty.svm"], "holds no rows.*3:1 17:0.5"),
        ("lr", ["latin.svm"], "not UTF-8"),
        ("lr", ["features=sum.npy"], "lines of id:value, or a file for each part: features.ids"),
        ("lr", ["features.ids=rows.svm"], "one sparse input.*expected: features; found: features.ids"),
        ("lr", ["feature=rows.svm"], "no such input.*did you mean 'features"),
        ("dense", ["rows.svm"], "one sparse input.*a signature with a sparse input"),
    ],
)
def test_lines_that_do_not_fit(
    clicks: Path, place: Path, monkeypatch: Patch, source: str, words: list[str], said: str
) -> None:
    monkeypatch.chdir(clicks)
    path = clicks / "lr" if source == "lr" else place / "matrix.onnx"
    with pytest.raises(MserveError, match=f"(?s){said}") as caught:
        does(path, "--inputs", *words)
    assert caught.value.exit_code in (2, 3)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80) | st.text("0123456789:., #-+e\n", max_size=60).map(str.encode))
def test_bytes_that_are_no_lines_are_an_error_and_no_more(data: bytes) -> None:
    tensors = {"ids": "i", "values": "v", "lengths": "l", "rows": "r"}
    port = Sparse("sparse", "float32", tensors, ("batch", 1000))
    signature = Signature.of("predict", {"f": port}, {})
    with suppress(MserveError):
        found = read_lines(data, "f", signature, "file")
        assert found["f.lengths"].sum() == len(found["f.ids"]) == len(found["f.values"])
        assert 0 < len(found["f.lengths"]) <= len(data.splitlines())


def test_a_bare_list_of_rows_is_a_request(place: Path, tmp_path: Path, capsys: Capture) -> None:
    """As JSON writers write it: rows in order, or an object for each with the inputs' names."""
    (tmp_path / "matrix.json").write_text("\n [[1, 2, 3],\n [4, 5, NaN]]\n")
    found = answered(capsys, place / "matrix.onnx", "--inputs", tmp_path / "matrix.json")
    np.testing.assert_array_equal(found["outputs"]["y"]["data"], [[1, 2, 3], [4, 5, np.nan]])
    rows = [{a: x[i].tolist() for a, x in ROWS.items()} for i in range(2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=2))
    found = answered(capsys, place / "shop", "--inputs", tmp_path / "rows.json")
    assert found["outputs"]["total"]["data"] == TOTAL
    done = run("run", place / "shop", "--inputs", tmp_path / "rows.json")
    assert [row["total"] for row in json.loads(done.stdout)["predictions"]] == TOTAL


# --- what is refused


REFUSED = [
    ("a file that is none of the kinds", "shop", ["text"], "cannot be told.*--input-format"),
    ("a file that is absent", "shop", ["nope.csv"], "cannot read the file.*nope.csv"),
    ("a missing input", "shop", ["price=price.npy"], "missing 'count'"),
    ("an input that the signature lacks", "shop", ["prices=price.npy"], "no such input.*mean 'price'"),
    ("one array for several inputs", "shop", ["price.npy"], "several.*NAME=FILE"),
    ("a wrong dtype", "shop", ["rows.npz", "price=count.npy"], "cannot be joined|wrong dtype"),
    ("float64 for float32", "matrix.onnx", ["{t}/double.npy"], "wrong dtype.*float32.*float64"),
    ("a wrong shape", "matrix.onnx", ["{t}/wide.npy"], "wrong shape"),
    ("a JSON request beside another file", "shop", ["rows.json", "price=price.npy"], "holds all inputs"),
    ("a JSON request for another signature", "shop", ["{t}/named.json"], "--signature other"),
    ("JSON that is no request", "shop", ["{t}/text.json"], "not a JSON object"),
    ("rows without the names of several inputs", "shop", ["{t}/unnamed.json"], "expected: an object"),
    ("a list of rows that is cut off", "matrix.onnx", ["{t}/cut.json"], "not valid JSON.*byte 14"),
    ("a list of rows with more behind it", "matrix.onnx", ["{t}/behind.json"], "not valid JSON"),
    ("JSON lines without a request", "shop", ["{t}/empty.jsonl"], "no requests"),
    ("an npy file that announces more than it has", "matrix.onnx", ["{t}/huge.npy"], "cannot read the npy"),
    ("an npy file whose header stops", "matrix.onnx", ["{t}/cut.npy"], "cannot read the npy"),
    ("an npy file of a trillion nothings", "shop", ["city={t}/empty.npy"], "cannot read the npy.*announced"),
    ("bytes that are no text", "shop", ["city={t}/bytes.npy"], "no text"),
    ("beyond Unicode", "shop", ["city={t}/beyond.npy"], "Unicode does not have"),
    ("an npy file of objects", "matrix.onnx", ["{t}/objects.npy"], "cannot read the npy.*objects"),
    ("an npz archive for one input", "shop", ["price=rows.npz"], "one array"),
    ("CSV without a column", "shop", ["{t}/lacks.csv"], "lacks a column.*price.*is it 'prices'"),
    ("CSV with text for a number", "shop", ["{t}/text.csv"], "line 3, column 'price'.*float32.*'cheap'"),
    ("CSV with an empty cell", "shop", ["{t}/empty.csv"], "a value is missing.*line 2, column 'count'"),
    ("CSV with a number beyond the dtype", "shop", ["{t}/large.csv"], "does not fit.*int64"),
    ("CSV with a fraction for a whole number", "shop", ["{t}/fraction.csv"], "does not fit.*'2.5'"),
    ("CSV with a short row", "shop", ["{t}/short.csv"], "too many or too few cells.*line 2"),
    ("CSV without rows", "shop", ["{t}/header.csv"], "holds no rows"),
    ("CSV that is empty", "shop", ["{t}/nothing.csv"], "is empty"),
    ("CSV that is not UTF-8", "shop", ["{t}/latin.csv"], "not UTF-8"),
    ("CSV for a matrix of another width", "matrix.onnx", ["{t}/two.csv"], "too few columns.*expected: 3"),
    ("CSV for a model of pictures", "floats.onnx", ["rows.csv"], "not a table"),
    ("an image of another size", "bytes.onnx", ["square.png"], "another size.*6 x 4.*5 x 5.*--resize"),
    ("an image without a scale for floats", "floats.onnx", ["picture.png"], "not said what pixels.*--pixels"),
    ("an image for a matrix", "matrix.onnx", ["picture.png"], "no image fits"),
    ("an image where channels could be two axes", "ambiguous.onnx", ["square.png"], "cannot be told"),
    ("an image that is text", "bytes.onnx", ["{t}/text.png"], "not a readable image"),
    ("an image that is cut off", "bytes.onnx", ["{t}/cut.png"], "not a readable image"),
    ("an image of too many pixels", "bytes.onnx", ["{t}/bomb.png"], "too large.*pixels"),
    ("raw bytes that are no whole row", "matrix.onnx", ["{t}/odd.bin"], "multiple of 12 bytes"),
    ("raw bytes for text", "shop", ["city=nine.bin"], "raw bytes do not say"),
    ("standard input twice", "shop", ["price=-", "count=-"], "read once"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs that make no sense."""
    root = tmp_path_factory.mktemp("bad")
    np.save(root / "double.npy", np.ones((2, 3)))
    np.save(root / "wide.npy", np.ones((2, 4), np.float32))
    np.save(root / "bytes.npy", np.array([b"\xff"]))
    np.save(root / "beyond.npy", np.array([0x7FFFFFFF], np.uint32).view("<U1"))
    for name, head in (("cut", b"{'descr': '<f4', 'shape': (3,"), ("empty", EMPTY)):
        (root / f"{name}.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head)
    np.save(root / "objects.npy", np.array([{}], object))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3)}
    )
    (root / "huge.npy").write_bytes(header.getvalue() + bytes(12))
    (root / "named.json").write_text('{"signature_name": "other", "instances": [1]}')
    (root / "text.json").write_text('"rows"')
    (root / "unnamed.json").write_text("[1, 2]")
    (root / "cut.json").write_text("[[1, 2, 3], [4")
    (root / "behind.json").write_text('[[1, 2, 3]], "instances": [[4, 5, 6]]')
    (root / "empty.jsonl").write_text("\n")
    head = "price,count,city,sold\n"
    texts = {
        "lacks": "prices,count,city,sold\n1,1,a,0\n",
        "text": f"{head}1,1,a,0\ncheap,1,a,0\n",
        "empty": f"{head}1,,a,0\n",
        "large": f"{head}1,9223372036854775808,a,0\n",
        "fraction": f"{head}1,2.5,a,0\n",
        "short": f"{head}1,1,a\n",
        "header": head,
        "nothing": "",
        "two": "1,2\n",
    }
    for name, text in texts.items():
        (root / f"{name}.csv").write_text(text)
    (root / "latin.csv").write_bytes(f"{head}1,1,Zürich,0\n".encode("latin-1"))
    (root / "text.png").write_text("not an image")
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    Image.fromarray(noise).save(root / "cut.png")
    (root / "cut.png").write_bytes((root / "cut.png").read_bytes()[:80])
    Image.new("1", (10_000, 10_000)).save(root / "bomb.png")
    (root / "odd.bin").write_bytes(bytes(13))
    return root


@pytest.mark.parametrize(("what", "source", "inputs", "said"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(
    place: Path,
    bad: Path,
    monkeypatch: Patch,
    what: str,
    source: str,
    inputs: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(place)
    flags = [part for text in inputs for part in ("--inputs", text.format(t=bad))]
    with pytest.raises(MserveError, match=f"(?s){said}") as caught:
        does(source, *flags)
    assert caught.value.exit_code in (2, 3), what


WRONG = [
    ("a name that no node has", ["--intermediate", "multiplied"], 3, "did you mean 'multiply'"),
    ("a weight", ["--intermediate", "flat"], 3, "that is a weight"),
    ("bisect with nothing to compare", ["--bisect"], 2, "--compare-with"),
    ("a comparison with nothing", ["--compare-with", "nope"], 3, "no such model"),
    ("a comparison with another shape of model", ["--compare-with", "mlp.onnx"], 2, "no such"),
    ("a device that is none", ["--device", "tpu"], 2, "no such device"),
    ("a comparison with a device that is absent", ["--compare-with", "cuda:99"], 4, "device cuda:99"),
    ("outputs in a file of another kind", ["--output", "y.txt"], 2, ".npz, .npy, .json, .jsonl"),
    ("two outputs in one array", ["--output", "y.npy"], 2, "holds one output"),
    ("outputs in a directory that is absent", ["--output", "no/y.npz"], 4, "cannot be written"),
    ("pixels that are no range", ["--pixels", "1"], 2, "0..1"),
    ("an unknown kind", ["--input-format", "xml"], 2, "npz, npy"),
    ("an unknown signature", ["--signature", "s"], 3, "serving_default"),
]


@pytest.mark.parametrize(("what", "flags", "code", "said"), WRONG, ids=[row[0] for row in WRONG])
def test_wrong_options(
    place: Path, monkeypatch: Patch, what: str, flags: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(MserveError) as caught:
        does("shop", "--inputs", "rows.csv", *flags)
    assert caught.value.exit_code == code, what
    assert said in str(caught.value)
    assert not (place / "y.npy").exists()


def test_more_rows_than_are_read_at_once(monkeypatch: Patch) -> None:
    monkeypatch.setattr("mserve.readers.csv_arrays.MAX_ROWS", 2)
    signature = Signature("predict", {"x": TensorSpec("x", "int64", ("N",))}, {})
    assert read_csv(b"x\n1\n2\n", signature, "f")["x"].tolist() == [1, 2]
    with pytest.raises(InputError, match=r"too many rows.*at most 2"):
        read_csv(b"x\n1\n2\n3\n", signature, "f")


def test_a_saved_model_is_told_from_a_bundle(real_data: Callable[[str], Path]) -> None:
    path = real_data("08_tfx_wide_deep/saved_model_1646034756")
    with pytest.raises(InputError, match=r"SavedModel cannot be run.*convert it to ONNX"):
        does(path, "--inputs", "x.json")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(width=32),
            st.booleans(),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_a_csv_writer_wrote_is_read_back(rows: list[tuple[str, int, float, bool]]) -> None:
    kinds = {"a": "string", "b": "int64", "c": "float32", "d": "bool"}
    signature = Signature("predict", {a: TensorSpec(a, kind, ("N",)) for a, kind in kinds.items()}, {})
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(kinds)
    writer.writerows(rows)
    found = read_csv(text.getvalue().encode(), signature, "f")
    for i, alias in enumerate(kinds):
        assert np.array_equal(
            found[alias], np.array([row[i] for row in rows], found[alias].dtype), equal_nan=alias == "c"
        )


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_bytes_that_are_no_csv_are_an_error_and_no_more(data: bytes) -> None:
    signature = Signature("predict", {"x": TensorSpec("x", "float32", ("N",))}, {})
    try:
        assert read_csv(data, signature, "f")["x"].ndim == 1
    except InputError as error:
        assert "f" in error.where  # noqa: PT017


# --- real models


def test_clicks_from_a_csv_file(real_data: Callable[[str], Path], tmp_path: Path, capsys: Capture) -> None:
    """Rows of the Avazu log, with a header made of its columns; those that are no input are passed over."""
    names = (
        "row id click hour C1 banner_pos site_id site_domain site_category app_id app_domain app_category "
        "device_id device_ip device_model device_type device_conn_type C14 C15 C16 C17 C18 C19 C20 C21"
    ).split()
    with gzip.open(real_data("09_avazu_spark_lr/avazu_stream_23299.csv.gz"), "rt") as file:
        lines = [next(file) for _ in range(20)]
    assert lines[0].count(",") == len(names) - 1
    (tmp_path / "clicks.csv").write_text(",".join(names) + "\n" + "".join(lines))
    source = real_data("09_avazu_spark_lr/derived_avazu_lr_16strings.onnx")
    found = answered(capsys, source, "--inputs", tmp_path / "clicks.csv")["outputs"]["p_click"]
    assert found["shape"] == [20]
    assert all(0 < p < 1 for p in found["data"])
    assert len(set(found["data"])) > 5


def test_a_page_and_the_bytes_of_a_file(
    real_data: Callable[[str], Path], tmp_path: Path, capsys: Capture
) -> None:
    with Image.open(real_data("04_ppocr/page.png")) as page:
        page.crop((0, 0, 192, 48)).save(tmp_path / "line.png")
    source = real_data("04_ppocr/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    upright = answered(capsys, source, "--inputs", tmp_path / "line.png", "--pixels", "-1..1")["outputs"]
    (scores,) = upright.values()
    assert scores["shape"] == [1, 2]
    assert abs(sum(scores["data"][0]) - 1) < 1e-5
    np.full(2048, 256, "<i4").tofile(tmp_path / "padding.raw")
    magika = answered(capsys, real_data("02_magika/model.onnx"), "--inputs", tmp_path / "padding.raw")
    assert magika["outputs"]["target_label"]["shape"] == [1, 214]
