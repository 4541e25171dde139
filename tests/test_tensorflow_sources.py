"""TensorFlow's SavedModels, SessionBundles and MetaGraphs: answers equal to TensorFlow's, or a refusal.

They need TensorFlow (`pip install 'mserve[tf]'`) and are skipped without; each conversion takes
some seconds in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_tools import serving
from tf_examples import asked, parts

import mserve
from mserve.compare import Options, diff
from mserve.errors import EnvironmentProblem, InputError, MserveError, UsageError
from mserve.exporters import sources

needs_tf = pytest.mark.skipif(
    bool(sources.missing(sources.named("saved-model"))), reason="needs pip install 'mserve[tf]'"
)
TF = "14_tfserving_testdata"
HEAD = f"{TF}/head/servables_testdata"
F32 = np.float32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of `tf_models`."""
    directory = tmp_path_factory.mktemp("models")
    script = Path(__file__).with_name("tf_models.py")
    done = subprocess.run(
        [sys.executable, str(script), str(directory)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return directory


def column(*values: float) -> Any:
    return np.array([[v] for v in values], F32)


TWO = column(0, 1, 2, 3)
HALF_PLUS_TWO = column(2, 2.5, 3, 3.5)
KNOWN = [
    (
        "a parsed feature and the tensor that it is parsed to are both fed",
        f"{HEAD}/saved_model_half_plus_two_2_versions/00000123",
        {
            "serving_default": ({"x": TWO}, {"y": HALF_PLUS_TWO}),
            "regress_x_to_y": ({"x": TWO}, {"outputs": HALF_PLUS_TWO}),
            "classify_x_to_y": ({"x": TWO}, {"scores": HALF_PLUS_TWO}),
            "regress_x2_to_y3": ({"inputs": TWO}, {"outputs": HALF_PLUS_TWO + 1}),
        },
    ),
    (
        "functions, and signatures that parse inside them",
        f"{HEAD}/saved_model_half_plus_two_tf2_cpu/00000123",
        {
            "serving_default": ({"x": np.array([1], F32)}, {"y": np.array([2.5], F32)}),
            "regress_x_to_y": ({"x": TWO}, {"outputs": HALF_PLUS_TWO}),
        },
    ),
    (
        "a SessionBundle of 2016, its checkpoint in shards of format V1",
        f"{TF}/head/session_bundle_testdata/half_plus_two/00000123",
        {
            "serving_default": ({"x": TWO}, {"outputs": HALF_PLUS_TWO}),
            "predict": ({"x": TWO}, {"y": HALF_PLUS_TWO}),
        },
    ),
    (
        "a SessionBundle with a checkpoint of format V2 and shapes that nobody knows",
        f"{TF}/v0.5.1/servables_testdata/half_plus_two/00000123",
        {"serving_default": ({"x": TWO}, {"y": HALF_PLUS_TWO})},
    ),
    (
        "a SessionBundle with a checkpoint of format V1 in one file",
        f"{TF}/history/half_plus_two_v1_unsharded/00000123",
        {"serving_default": ({"x": TWO}, {"y": HALF_PLUS_TWO})},
    ),
]


@needs_tf
@pytest.mark.parametrize(("why", "name", "calls"), KNOWN, ids=[row[0] for row in KNOWN])
def test_known_models_answer_what_they_are_known_for(
    why: str,
    name: str,
    calls: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
    real_data: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    done = mserve.export(real_data(name), tmp_path / "m")
    facts = done.metagraph.provenance["conversion"]
    assert facts["max_error"] == 0.0
    assert facts["compared_with"].startswith("tensorflow ")
    model = mserve.load(done.path)
    for signature, (inputs, outputs) in calls.items():
        found = model.run(inputs, signature)
        assert found.keys() == outputs.keys(), signature
        for alias, expected in outputs.items():
            np.testing.assert_array_equal(found[alias], expected, err_msg=f"{signature}.{alias}")


MADE = [
    ("an operator that the converter does not know is written with others", "gelu", 0, 1e-6),
    ("tables, their sizes and sorted edges", "lookup", 0, 0.0),
    ("features of every kind, parsed by the graph", "examples", 0, 1e-6),
    ("rows that depend on one another run alone", "across", None, 1e-6),
]


@needs_tf
@pytest.mark.parametrize(("why", "name", "axis", "most"), MADE, ids=[row[0] for row in MADE])
def test_models_answer_as_tensorflow_does(
    why: str, name: str, axis: int | None, most: float, made: Path, tmp_path: Path
) -> None:
    done = mserve.export(made / name, tmp_path / "m")
    assert done.metagraph.signatures["serving_default"].batch_axis == axis
    assert done.metagraph.provenance["conversion"]["max_error"] <= most


@needs_tf
def test_vocabularies_are_assets_and_features_keep_what_the_graph_said(made: Path, tmp_path: Path) -> None:
    lookup = mserve.export(made / "lookup", tmp_path / "lookup")
    assert [record.name for record in lookup.metagraph.assets if "golden" not in record.name] == [
        "assets/lookup.txt"
    ]
    done = mserve.export(made / "examples", tmp_path / "examples")
    ports = done.metagraph.signatures["serving_default"].ports()
    assert {name: (p.dtype, p.optional) for name, p in ports.items()} == {
        "tags": ("int64", True),
        "steps": ("float32", True),
        "n": ("int64", True),
        "x": ("float32", False),
    }
    assert ports["n"].default == 3


@needs_tf
def test_a_metagraph_is_asked_for_what_the_user_names(made: Path, tmp_path: Path) -> None:
    done = mserve.export(made / "trained", tmp_path / "m", input=["x"], output=["probability=score:0"])
    found = mserve.load(done.path).run({"x": np.array([[0, 0, 0], [1, 0, 0]], F32)})
    np.testing.assert_allclose(found["probability"], [[0.5], [1 / (1 + np.exp(-1))]], atol=1e-7)


ROWS = {
    "rows of every length": [[3, 1, 4], [], [5], [9, 2, 6, 5], []],
    "no entries at all": [[], [], []],
    "one row without entries": [[]],
    "one row": [[7, 7]],
    "empty rows before others": [[], [1], [], [2, 3]],
}
BAGS = [
    ("vectors of entries, summed and averaged, with rows without any", "bags", 0),
    ("rows after the last with entries are no rows, as in TensorFlow", "last_rows", None),
    ("entries with weights in another feature", "weighted", None),
]


def bag(row: list[int]) -> dict[str, Any]:
    """A row's entries as every feature of the models."""
    words = [f"word {'x' * value * value}" for value in row]
    return {"ids": row, "ragged": row, "words": words, "weights": [value / 4 + 0.25 for value in row]}


@needs_tf
@pytest.mark.parametrize(("why", "name", "axis"), BAGS, ids=[row[0] for row in BAGS])
def test_bags_of_entries_answer_as_tensorflow_does(
    why: str, name: str, axis: int | None, made: Path, tmp_path: Path
) -> None:
    done = mserve.export(made / name, tmp_path / "m")
    signature = done.metagraph.signatures["serving_default"]
    assert signature.batch_axis == axis
    assert not any("divided by" in note for note in done.notes)
    batches = [[bag(row) for row in rows] for rows in ROWS.values()]
    given = [[{k: v for k, v in x.items() if k in signature.sparse} for x in rows] for rows in batches]
    expected = asked(made / name, "serving_default", given, tmp_path)
    model = mserve.load(done.path)
    for what, batch, answers in zip(ROWS, batches, expected, strict=True):
        found = model.run(parts(signature, batch))
        assert found.keys() == answers.keys()
        for alias, array in answers.items():
            message = f"{alias}: {what}"
            np.testing.assert_allclose(found[alias], array, rtol=2e-6, atol=1e-7, err_msg=message)


REFUSED: list[tuple[str, str, type[MserveError], tuple[str, ...], dict[str, Any]]] = [
    ("steps on text are all named at once", "text", InputError, ("StaticRegexReplace", "StringLength"), {}),
    ("a model that counts its calls", "counter", InputError, ("stateful", "AssignAddVariableOp"), {}),
    ("a model that writes files", "file_reader", UsageError, ("--trust", "WriteFile"), {}),
    ("no signatures", "unsigned", InputError, ("no signatures",), {}),
    ("nobody says what may be asked", "trained", UsageError, ("--output y:0",), {}),
    (
        "a tensor that the graph does not have",
        "trained",
        InputError,
        ("no such tensor", "score"),
        {"input": ["x"], "output": ["scores:0"]},
    ),
]


@needs_tf
@pytest.mark.parametrize(("why", "name", "error", "words", "options"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_cannot_be_served_is_refused(
    why: str,
    name: str,
    error: type[MserveError],
    words: tuple[str, ...],
    options: dict[str, Any],
    made: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error) as caught:
        mserve.export(made / name, tmp_path / "m", **options)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "m").exists() or not list((tmp_path / "m").iterdir())
    assert not list(made.glob("*.planted"))


BROKEN = [
    ("a stateful model of 2018", f"{HEAD}/saved_model_counter/00000123", "stateful"),
    ("a bundle without signatures", f"{HEAD}/bad_half_plus_two/00000123", "no signatures"),
    ("a half-copied SavedModel", f"{HEAD}/tf_text_regression/01", "saved_model.pb"),
]


@needs_tf
@pytest.mark.parametrize(("why", "name", "word"), BROKEN, ids=[row[0] for row in BROKEN])
def test_real_models_that_are_refused(
    why: str, name: str, word: str, real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(MserveError, match=word):
        mserve.export(real_data(name), tmp_path / "m")


@needs_tf
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_graph_is_refused(made: Path, tmp_path: Path, share: float) -> None:
    (tmp_path / "s").mkdir()
    data = (made / "across" / "saved_model.pb").read_bytes()
    (tmp_path / "s" / "saved_model.pb").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MserveError):
        mserve.export(tmp_path / "s", tmp_path / "m")


@needs_tf
def test_basic_pitch_answers_as_its_onnx_file_does(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """The public conversion and ours, by the tensors' names; and `diff` finds their outputs equal."""
    old, new = real_data("03_basic_pitch/nmp.onnx"), real_data("03_basic_pitch/nmp")
    assert diff(old, new).levels[-1].verdict == "not compared"
    outputs = diff(old, new, Options(run=True)).levels[-1]
    assert (outputs.name, outputs.verdict) == ("outputs", "equal")
    assert len(outputs.changes) <= 3


@needs_tf
def test_a_session_bundle_answers_over_rest(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """The calls of TensorFlow Serving's own page on half_plus_two."""
    source = real_data(f"{TF}/head/session_bundle_testdata/half_plus_two/00000123")
    mserve.export(source, tmp_path / "half_plus_two")
    with serving(tmp_path / "half_plus_two", tmp_path / "log") as server:
        predicted = server.predict("half_plus_two", {"instances": [[1.0], [2.0], [3.0]]})
        assert predicted.json() == {"predictions": [[2.5], [3.0], [3.5]]}
        url = "/v1/models/half_plus_two"
        body = json.dumps({"examples": [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]}).encode()
        regressed = server.ask("POST", f"{url}:regress", body)
        assert regressed.json() == {"results": [2.5, 3.0, 3.5]}


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(EnvironmentProblem, match="mserve\\[tf\\]") as caught:
        mserve.export(tmp_path / "s", tmp_path / "m")
    assert caught.value.exit_code == 4
