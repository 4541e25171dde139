"""Spark ML and MLlib models: those in the archive were trained and saved by Spark 4.3, which also gave the
answers that are expected here.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import legacy_writers
import numpy as np
import pytest
from test_commands import run

import mserve
from mserve.errors import MserveError, UsageError
from mserve.exporters.kinds import Seen
from mserve.exporters.sources import kind_of, listing

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every model, and `expected.npz`."""
    root = tmp_path_factory.mktemp("spark")
    with zipfile.ZipFile(Path(__file__).parent / "golden" / "spark_models.zip") as archive:
        archive.extractall(root)
    return root


@pytest.fixture(scope="module")
def expected(saved: Path) -> dict[str, Any]:
    with np.load(saved / "expected.npz") as arrays:
        return dict(arrays)


# Whole vectors come in as one column, whose size no stage of these tells.
VECTORS = dict.fromkeys(("cat_keep", "cat_skip", "select"), ("features:float32[batch,4]",))
MODELS = {
    "lr": "logistic regression",
    "lr_thr": "with a threshold of 0.3",
    "lr_multi": "of three classes",
    "svc": "support vectors",
    "dt": "a tree",
    "rf": "a forest",
    "gbt": "boosted trees",
    "cat_rf": "a forest over categories that an indexer found",
    "mlp": "a perceptron",
    "nb_multi": "naive Bayes over counts",
    "nb_bern": "naive Bayes over yes and no",
    "nb_compl": "naive Bayes over complements",
    "nb_gauss": "naive Bayes over normal distributions",
    "linreg": "linear regression",
    "glm_poisson": "counts through a logarithm",
    "glm_gauss": "the same without a link",
    "dtr": "a tree for numbers",
    "rfr": "a forest for numbers",
    "gbtr": "boosted trees for numbers",
    "fmc": "factorisation machine for classes",
    "fmr": "factorisation machine for numbers",
    "kmeans": "clusters",
    "kmeans_cos": "clusters by angle",
    "ovr": "one model for each class",
    "cat_keep": "categories of which the unknown are kept, vectors, a scaler",
    "cat_skip": "rows with unknown categories were left out",
    "multi_index": "one indexer for two columns, all places kept, centred",
    "numeric": "missing numbers, buckets, two scalers",
    "vectors": "components, lengths, products, slices",
    "select": "chosen entries",
    "text_tf": "words hashed and weighed",
    "text_bin": "words that count once",
    "text_count": "words of a vocabulary, without stop words",
    "text_regex": "words by a pattern",
    "labels": "an index of the label, and back to text",
    "cv": "a tuned pipeline",
    "tvs": "a tuned model",
    "mllib_lr": "MLlib's logistic regression",
    "mllib_svm": "MLlib's support vectors",
    "mllib_linreg": "MLlib's regression",
}


def inputs_of(name: str, wanted: list[str], expected: dict[str, Any]) -> dict[str, Any]:
    """The rows that Spark was asked about, as float32 or text."""
    rows = expected["in/train"] if name == "cat_skip" else slice(None)
    found = {}
    for column in wanted:
        values = expected["in/a_nan" if (name, column) == ("numeric", "a") else f"in/{column}"][rows]
        found[column] = values.astype(object if values.dtype.kind == "U" else np.float32)
    return found


@pytest.mark.parametrize("name", MODELS, ids=[f"{n}: {why}" for n, why in MODELS.items()])
def test_a_saved_model_answers_as_spark_did(name: str, saved: Path, expected: dict[str, Any]) -> None:
    converted = legacy_writers.convert("spark", saved / name, input=VECTORS.get(name, ()))
    signature = (converted.signatures or {})["serving_default"]
    answers = legacy_writers.answers(converted, inputs_of(name, list(signature.inputs), expected))
    if "label" in answers:
        assert np.array_equal(answers["label"], expected[f"{name}/prediction"])
    else:
        assert np.allclose(answers["score"], expected[f"{name}/prediction"], rtol=1e-5, atol=1e-5)
    if f"{name}/probability" in expected:
        assert np.abs(answers["probabilities"] - expected[f"{name}/probability"]).max() < 1e-6
    if name == "labels":
        assert answers["said"].tolist() == expected["labels/said"].tolist()
        assert converted.assets["labels.txt"].decode().split() == ["S", "M", "L"]


def test_a_pipeline_through_the_whole_command(saved: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    done = run("export", saved / "cat_keep", tmp_path / "base", "--input", "features:float32[batch,4]")
    assert done.returncode == 0, done.stderr
    assert "own answers: give --check reference.npz" in done.stderr
    assert next(kind for kind in listing() if kind.name == "spark").compares is False
    model = mserve.load(tmp_path / "base")
    columns = ["colour", "size", "a", "features"]
    found = model.run(inputs_of("cat_keep", columns, expected))["probabilities"]
    assert np.abs(found - expected["cat_keep/probability"]).max() < 1e-6
    facts = json.loads(run("inspect", tmp_path / "base", "--json").stdout)
    assert facts["provenance"]["conversion"]["versions"] == {"model": "4.3.0"}
    assert facts["signatures"]["serving_default"]["batch_axis"] == 0


def test_a_row_that_spark_would_leave_out_has_no_answer(saved: Path) -> None:
    converted = legacy_writers.convert("spark", saved / "cat_skip", input=VECTORS["cat_skip"])
    assert "NaN" in " ".join(converted.notes)
    rows = {
        "colour": np.array(["red", "mauve", "green", "red"], object),
        "size": np.array(["S", "S", "XL", "M"], object),
        "a": np.array([0.5, 0.5, 0.5, np.nan], np.float32),
        "features": np.ones((4, 4), np.float32),
    }
    found = legacy_writers.answers(converted, rows)
    assert np.isnan(found["probabilities"]).all(1).tolist() == [False, True, True, True]
    assert found["label"].tolist()[1:] == [-1, -1, -1]


REFUSED = {
    "isotonic": ["IsotonicRegressionModel"],
    "text_w2v": ["Word2VecModel"],
}


@pytest.mark.parametrize(("name", "said"), REFUSED.items())
def test_what_has_no_counterpart_is_named(name: str, said: list[str], saved: Path) -> None:
    with pytest.raises(MserveError) as caught:
        legacy_writers.convert("spark", saved / name)
    assert caught.value.found == ", ".join(said)


def test_all_unknown_stages_are_named_at_once(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(saved / "numeric", copy)
    for stage, name in zip(sorted((copy / "stages").iterdir())[:3], ("Odd", "Strange", "Weird"), strict=True):
        edit(stage, lambda meta, name=name: meta.update({"class": f"org.apache.spark.ml.feature.{name}"}))
    with pytest.raises(MserveError) as caught:
        legacy_writers.convert("spark", copy)
    assert caught.value.found == "Odd, Strange, Weird"


def edit(stage: Path, change: Callable[[dict[str, Any]], object]) -> None:
    part = next((stage / "metadata").glob("part-*"))
    meta = json.loads(part.read_text())
    change(meta)
    part.write_text(json.dumps(meta))


def rewrite(stage: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change what was learned."""
    file = next((stage / "data").glob("*.parquet"))
    table = parquet.read_table(file)
    rows = table.to_pylist()
    change(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows, table.schema), file)


def first(key: str, value: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda rows: rows[0].update({key: value})


def inner(key: str, part: str, value: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda rows: rows[0][key].update({part: value})


def weight(value: float) -> Callable[[list[dict[str, Any]]], object]:
    return lambda rows: rows[0]["coefficientMatrix"]["values"].__setitem__(0, value)


def cycle(rows: list[dict[str, Any]]) -> None:
    node = next(r for r in rows if r["leftChild"] > 0)
    node["leftChild"] = 0


HOSTILE = [
    ("lr", weight(float("nan")), "a weight is not a number"),
    ("lr", weight(float("inf")), "a weight is not a number"),
    ("lr", weight(1e300), "not a number that float32 holds"),
    ("lr", lambda rows: rows[0]["coefficientMatrix"].update(numRows=1 << 20, numCols=1 << 20), "too large"),
    ("lr", inner("coefficientMatrix", "numCols", 5), "not what it must be"),
    ("lr", inner("coefficientMatrix", "numRows", -1), "not what it must be"),
    ("lr", inner("interceptVector", "values", [1.0, 2.0]), "intercepts do not match"),
    ("lr", inner("interceptVector", "type", 0), "not what it must be"),
    ("dt", cycle, "a tree is not a tree"),
    ("dt", lambda rows: rows[0].update(leftChild=10_000), "not what it must be"),
    ("dt", lambda rows: rows[0]["split"].update(featureIndex=77), "a split is on a feature"),
    ("dt", lambda rows: rows[-1].update(id=0), "a node stands twice"),
    ("dt", lambda rows: rows.pop(3), "nodes are missing"),
    ("kmeans", lambda rows: rows.pop(0), "centres are missing"),
    ("mlp", lambda rows: rows.append(dict(rows[0])), "data is malformed"),
]


@pytest.mark.parametrize(("name", "change", "said"), HOSTILE, ids=[f"{n}-{s}" for n, _, s in HOSTILE])
def test_a_changed_model_is_refused(
    name: str, change: Callable[[list[dict[str, Any]]], object], said: str, saved: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "m"
    shutil.copytree(saved / name, copy)
    rewrite(copy, change)
    with pytest.raises(MserveError) as caught:
        legacy_writers.convert("spark", copy)
    assert said in str(caught.value)


def parameter(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda meta: meta["paramMap"].update({name: value})


PARAMETERS = [
    ("text_tf", "HashingTF", parameter("numFeatures", float("inf")), "a whole number from 1 to"),
    ("text_tf", "HashingTF", parameter("inputCol", "\ud800"), "expected: text"),
    ("numeric", "Binarizer", parameter("thresholds", [0.5, 1.5, 2.5, 3.5]), "numbers"),
    ("numeric", "Binarizer", parameter("threshold", 1e300), "float32 holds"),
    ("lr", "", parameter("thresholds", [-1.0, 1.0]), "a threshold that is not positive"),
    ("lr_multi", "", parameter("thresholds", [1e300, 1.0, 1.0]), "float32 holds"),
]


@pytest.mark.parametrize(
    ("name", "kind", "change", "said"), PARAMETERS, ids=[f"{n}-{k}-{s}" for n, k, _, s in PARAMETERS]
)
def test_a_bad_parameter_is_refused(
    name: str, kind: str, change: Callable[[dict[str, Any]], object], said: str, saved: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "m"
    shutil.copytree(saved / name, copy)
    stage = next(copy.glob(f"stages/*_{kind}_*")) if kind else copy
    edit(stage, change)
    with pytest.raises(MserveError) as caught:
        legacy_writers.convert("spark", copy)
    assert said in str(caught.value)


def test_two_stages_of_one_number_are_refused(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(saved / "numeric", copy)
    first = next(copy.glob("stages/0_*"))
    shutil.copytree(first, first.with_name("00_again"))
    with pytest.raises(MserveError, match="stages are not all there"):
        legacy_writers.convert("spark", copy)


METADATA = [
    ("not JSON", "{", "metadata is malformed"),
    ("deep", "[" * 100_000, "metadata is malformed"),
    ("a list", "[]", "lacks a part"),
    ("no class", "{}", "lacks a part"),
    ("another class", '{"class": "org.apache.spark.ml.Nothing"}', "cannot be converted"),
    (
        "wrong parameters",
        '{"class": "org.apache.spark.ml.feature.Bucketizer", "paramMap": 3}',
        "lacks a part",
    ),
]


@pytest.mark.parametrize(("why", "text", "said"), METADATA, ids=[m[0] for m in METADATA])
def test_bad_metadata_is_refused(why: str, text: str, said: str, saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(saved / "lr", copy)
    next((copy / "metadata").glob("part-*")).write_text(text)
    with pytest.raises(MserveError) as caught:
        legacy_writers.convert("spark", copy)
    assert said in str(caught.value)


def test_truncated_and_missing_files_are_refused(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(saved / "lr", copy)
    file = next((copy / "data").glob("*.parquet"))
    whole = file.read_bytes()
    for end in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:end])
        with pytest.raises(MserveError, match="truncated or malformed"):
            legacy_writers.convert("spark", copy)
    file.unlink()
    with pytest.raises(MserveError, match="part of the model is missing"):
        legacy_writers.convert("spark", copy)


def test_a_pipeline_that_holds_itself_ends(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(saved / "cv", copy)
    deep = copy
    for _ in range(12):
        shutil.rmtree(deep / "bestModel", ignore_errors=True)
        shutil.copytree(copy / "metadata", deep / "bestModel" / "metadata")
        deep = deep / "bestModel"
    with pytest.raises(MserveError, match="pipelines do not end"):
        legacy_writers.convert("spark", copy)


def test_hashes_of_old_versions_are_refused(saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m"
    shutil.copytree(saved / "text_tf", copy)
    edit(sorted((copy / "stages").iterdir())[1], lambda meta: meta.update(sparkVersion="2.4.8"))
    with pytest.raises(MserveError, match="hashed in the way of Spark before"):
        legacy_writers.convert("spark", copy)


def test_an_input_that_is_not_there_is_a_mistake(saved: Path) -> None:
    with pytest.raises(UsageError, match="does not have"):
        legacy_writers.convert("spark", saved / "cv", input=("z:float32[batch]",))


def test_a_directory_is_known_by_its_metadata(saved: Path, tmp_path: Path) -> None:
    assert kind_of(saved / "lr").name == "spark"
    (tmp_path / "metadata").mkdir()
    assert not sources_match(tmp_path)
    (tmp_path / "metadata" / "part-00000").write_text("{}")
    assert not sources_match(tmp_path)


def sources_match(path: Path) -> bool:
    from mserve.exporters.spark.spark_model import KIND

    return KIND.matches(Seen(str(path)))
