"""LightGBM models read without LightGBM, held to its own answers at thresholds, beside them and for NaN."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_tools import exported, truncations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mserve
from mserve.errors import InputError, MserveError
from mserve.exporters.kinds import ConvertOptions
from mserve.exporters.sources import kind_of
from mserve.exporters.trees import lightgbm_model

lgb = pytest.importorskip("lightgbm")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 6)).astype(np.float32)
X[RNG.random(X.shape) < 0.1] = np.nan
X[RNG.random(X.shape) < 0.2] = 0
KNOWN = np.nan_to_num(X)
Y = KNOWN[:, 0] * 2 + KNOWN[:, 1] ** 2 - KNOWN[:, 2]
POSITIVE, TWO, THREE, SHARE = (
    np.exp(Y / 4),
    (Y > 0).astype(int),
    np.digitize(Y, [-1, 2]),
    1 / (1 + np.exp(-Y)),
)
CATEGORIES = X.copy()
CATEGORIES[:, 3], CATEGORIES[:, 4] = RNG.integers(0, 12, 400), RNG.integers(0, 70, 400)
BY_CATEGORY = Y + np.isin(CATEGORIES[:, 3], [1, 5, 7]) * 3 - np.isin(CATEGORIES[:, 4], [2, 3, 40]) * 4
HOLES = CATEGORIES.copy()
HOLES[::9, 4] = np.nan
SCORE, CLASSES = ["score"], ["probabilities", "label"]
ALL = {"objective": "multiclassova", "num_class": 3}
FOREST = {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.6}


def saved(path: Path, label: Any, x: Any = X, group: Any = None, **parameters: Any) -> Path:
    """A model of a few rounds, trained and saved."""
    parameters = {"verbosity": -1, "num_leaves": 15, "min_data_in_leaf": 5, "num_threads": 1} | parameters
    categorical = parameters.pop("categorical", "auto")
    data = lgb.Dataset(x, label, group=group, categorical_feature=categorical, params=parameters)
    lgb.train(parameters, data, 8).save_model(path)
    return path


CASES: list[tuple[str, Any, dict[str, Any], list[str]]] = [
    *((name, POSITIVE, {"objective": name}, SCORE) for name in (
        "regression", "regression_l1", "huber", "fair", "quantile", "mape", "poisson", "gamma", "tweedie"
    )),
    ("reg_sqrt squares its sums", Y, {"objective": "regression", "reg_sqrt": True}, SCORE),
    ("two classes", TWO, {"objective": "binary"}, CLASSES),
    ("a sigmoid with a slope", TWO, {"objective": "binary", "sigmoid": 2.5}, CLASSES),
    ("three classes", THREE, {"objective": "multiclass", "num_class": 3}, CLASSES),
    ("one against all has a sigmoid for each", THREE, {**ALL, "sigmoid": 1.7}, CLASSES),
    ("cross entropy", SHARE, {"objective": "cross_entropy"}, SCORE),
    ("cross entropy, lambda", SHARE, {"objective": "cross_entropy_lambda"}, SCORE),
    ("ranks", TWO, {"objective": "lambdarank", "group": [20] * 20}, SCORE),
    ("ranks, xendcg", TWO, {"objective": "rank_xendcg", "group": [20] * 20}, SCORE),
    ("a forest averages", TWO, {"objective": "binary", **FOREST}, CLASSES),
    ("a forest of three classes", THREE, {"objective": "multiclass", "num_class": 3, **FOREST}, CLASSES),
    ("a forest of numbers", Y, {"objective": "regression", **FOREST}, SCORE),
    ("dart", Y, {"objective": "regression", "boosting": "dart"}, SCORE),
    ("zeros are missing", Y, {"objective": "regression", "zero_as_missing": True}, SCORE),
    ("nothing is missing", Y, {"objective": "regression", "use_missing": False}, SCORE),
    ("categories", BY_CATEGORY, {"objective": "regression", "x": CATEGORIES, "categorical": [3, 4]}, SCORE),
    ("categories and holes", BY_CATEGORY, {"objective": "regression", "x": HOLES, "categorical": [4]}, SCORE),
    ("trees of one leaf", np.ones(400), {"objective": "regression"}, SCORE),
]  # fmt: skip


@pytest.mark.parametrize(("why", "label", "parameters", "outputs"), CASES, ids=[c[0] for c in CASES])
def test_answers_are_those_of_lightgbm(
    why: str, label: Any, parameters: dict[str, Any], outputs: list[str], tmp_path: Path
) -> None:
    path = saved(tmp_path / "model.bin", label, **parameters)
    assert kind_of(path).name == "lightgbm"
    facts, loaded = exported(path, tmp_path / "base")
    assert facts["compared_with"].startswith("lightgbm ")
    assert facts["rows"] == 257
    assert facts["max_error"] < 1e-6
    signature = loaded.signatures["serving_default"]
    assert list(signature.outputs) == outputs
    assert signature.batch_axis == 0


def test_values_that_count_as_zero_are_no_threshold(tmp_path: Path) -> None:
    """LightGBM takes up to 1e-35 for zero before it compares, its own threshold of -1e-35 included."""
    path = saved(tmp_path / "m.txt", POSITIVE, objective="regression")
    _, loaded = exported(path, tmp_path / "base")
    tiny = np.float32(1e-35)
    values = [
        0.0,
        tiny,
        -tiny,
        np.nextafter(tiny, 1, dtype=np.float32),
        np.nextafter(-tiny, -1, dtype=np.float32),
    ]
    x = np.array([[a, b, a, b, a, b] for a in values for b in values], np.float32)
    expected = lgb.Booster(model_file=path).predict(x.astype(np.float64))
    assert np.abs(loaded.run({"features": x})["score"] - expected).max() < 1e-6


def test_categories_are_cut_to_whole_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.txt", BY_CATEGORY, x=CATEGORIES, objective="regression", categorical=[3, 4])
    _, loaded = exported(path, tmp_path / "base")
    x = np.repeat(CATEGORIES[:1], 9, 0)
    for column in (3, 4):
        x[:, column] = [2, 2.9, -0.5, -1, 3, 39.99, 40, 1e6, np.nan]
    expected = lgb.Booster(model_file=path).predict(x.astype(np.float64))
    assert np.abs(loaded.run({"features": x})["score"] - expected).max() < 1e-6


def test_the_face_of_scikit_learn_answers_the_same(tmp_path: Path) -> None:
    """A live classifier: its best rounds, and the names of its classes."""
    names = np.array(["high", "low", "naïve"])[THREE]
    model = lgb.LGBMClassifier(n_estimators=40, learning_rate=0.6, verbosity=-1, n_jobs=1)
    stop = lgb.early_stopping(2, verbose=False)
    model.fit(X[:200], names[:200], eval_set=[(X[200:], names[200:])], callbacks=[stop])
    done = mserve.export(model, tmp_path / "base")
    answers = mserve.load(done.path).run({"features": X})
    assert np.abs(answers["probabilities"] - model.predict_proba(X)).max() < 1e-6
    labels = (done.path / "assets" / "labels.txt").read_text().splitlines()
    assert np.array_equal(np.array(labels)[answers["label"]], model.predict(X))
    assert done.metagraph.provenance["source"]["object"] == "lightgbm.sklearn.LGBMClassifier"


def test_linear_trees_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.txt", KNOWN[:, 0], x=KNOWN, objective="regression", linear_tree=True)
    with pytest.raises(InputError, match="linear models in their leaves") as caught:
        exported(path, tmp_path / "base")
    assert caught.value.found == "8 of 8 trees"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = saved(
        tmp_path_factory.mktemp("m") / "m.txt",
        BY_CATEGORY,
        x=CATEGORIES,
        objective="regression",
        categorical=[3],
    )
    return path.read_text()


def line(text: str, key: str) -> str:
    return next(one for one in text.splitlines() if one.startswith(f"{key}="))


LIES = [
    ("a leaf NaN", "leaf_value", lambda v: ["nan", *v[1:]], "a leaf is not a number"),
    ("a leaf that is infinite", "leaf_value", lambda v: ["inf", *v[1:]], "a leaf is not a number"),
    ("a threshold NaN", "threshold", lambda v: ["nan"] * len(v), "nan"),
    ("a threshold that is text", "threshold", lambda v: ["x", *v[1:]], "could not convert"),
    ("a leaf too few", "leaf_value", lambda v: v[1:], "15 numbers; found: 14"),
    ("a split too many", "split_feature", lambda v: [*v, "0"], "14 numbers; found: 15"),
    ("a feature too far", "split_feature", lambda v: ["6", *v[1:]], "0 to 5"),
    ("a fraction of a feature", "split_feature", lambda v: ["0.5", *v[1:]], "whole numbers"),
    ("a child that is not there", "left_child", lambda v: ["14", *v[1:]], "a tree is not a tree"),
    ("a leaf that is not there", "left_child", lambda v: ["-99", *v[1:]], "a tree is not a tree"),
    ("a child that is its parent", "right_child", lambda v: ["0", *v[1:]], "a tree is not a tree"),
    ("a huge number of leaves", "num_leaves", lambda v: ["2000000000"], "2000000000 numbers"),
    ("no number of leaves", "num_leaves", lambda v: ["x"], "whole number"),
    ("more trees than there are", "tree_sizes", lambda v: [*v, "9"], "9 trees; found: 8"),
    ("an objective that is not known", "objective", lambda v: ["mine"], "found: mine"),
    ("a slope that is none", "objective", lambda v: ["binary", "sigmoid:-1"], "sigmoid > 0"),
    ("too many features", "max_feature_idx", lambda v: ["99999999999"], "max_feature_idx"),
    ("no outputs", "num_tree_per_iteration", lambda v: ["0"], "num_tree_per_iteration"),
    ("too many outputs", "num_tree_per_iteration", lambda v: ["99999999"], "num_tree_per_iteration"),
    ("sets that overlap", "cat_boundaries", lambda v: ["1", *v[1:]], "overlap"),
    ("sets that are huge", "cat_boundaries", lambda v: [*v[:-1], "4000000000"], "numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "key", "change", "said"), LIES, ids=[lie[0] for lie in LIES])
def test_a_model_that_lies_is_refused(
    why: str, key: str, change: Callable[[list[str]], list[str]], said: str, text: str, tmp_path: Path
) -> None:
    old = line(text, key)
    new = f"{key}={' '.join(change(old.partition('=')[2].split()))}"
    (tmp_path / "m.txt").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        lightgbm_model.convert(str(tmp_path / "m.txt"), ConvertOptions())
    assert said in str(caught.value)


def test_mixed_rules_for_zeros_are_refused(text: str, tmp_path: Path) -> None:
    """Trees of two trainings with different zero_as_missing: no one mask over the inputs says both."""
    old = line(text, "decision_type")
    kinds = [str(int(v) & ~12 | 4) if not int(v) & 1 else v for v in old.partition("=")[2].split()]
    (tmp_path / "m.txt").write_text(text.replace(old, f"decision_type={' '.join(kinds)}", 1))
    with pytest.raises(InputError, match="some trees take the zeros of a feature for missing"):
        lightgbm_model.convert(str(tmp_path / "m.txt"), ConvertOptions())


def test_truncated_files_are_refused(text: str, tmp_path: Path) -> None:
    whole = text[: text.index("end of trees")].encode()
    for cut in truncations(whole):
        (tmp_path / "m.txt").write_bytes(cut)
        with pytest.raises(InputError, match="truncated"):
            lightgbm_model.convert(str(tmp_path / "m.txt"), ConvertOptions())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_never_raise_anything_else(data: st.DataObject, text: str, tmp_path: Path) -> None:
    changed = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 5))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "m").write_bytes(changed)
    with pytest.MonkeyPatch.context() as patch:  # the framework is not there to be crashed by them
        patch.setattr(lightgbm_model, "_compare", lambda *_: None)
        with suppress(MserveError):
            lightgbm_model.convert(str(tmp_path / "m"), ConvertOptions())


def test_a_real_model_of_sparse_categories(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    packed = real_data("11_gbdt_svm_linear/lightgbm_sparse_categorical_model.txt.gz")
    (tmp_path / "m.txt").write_bytes(gzip.decompress(packed.read_bytes()))
    facts, loaded = exported(tmp_path / "m.txt", tmp_path / "base")
    assert facts["max_error"] < 1e-6
    rows = []
    for row in real_data("11_gbdt_svm_linear/treelite_sparse_cat.test").read_text().splitlines():
        x = np.full(5057, np.nan, np.float32)
        for word in row.split()[1:]:
            index, _, value = word.partition(":")
            x[int(index)] = float(value)
        rows.append(x)
    x = np.array(rows)
    expected = lgb.Booster(model_file=tmp_path / "m.txt", params={"verbosity": -1}).predict(
        x.astype(np.float64)
    )
    found = loaded.run({"features": x})
    assert np.abs(found.get("score", found.get("probabilities", x)[:, -1]) - expected).max() < 1e-6
