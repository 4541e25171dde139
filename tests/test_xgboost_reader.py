"""XGBoost models read without XGBoost, held to its own answers at thresholds, beside them and for NaN."""

from __future__ import annotations

import gzip
import json
import warnings
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
from mserve.errors import InputError, MserveError, UsageError
from mserve.exporters.kinds import ConvertOptions
from mserve.exporters.sources import kind_of
from mserve.exporters.trees import ubjson, xgboost_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    xgb = pytest.importorskip("xgboost")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, 6)).astype(np.float32)
X[RNG.random(X.shape) < 0.1] = np.nan
KNOWN = np.nan_to_num(X)
Y = KNOWN[:, 0] * 2 + KNOWN[:, 1] ** 2 - KNOWN[:, 2]
POSITIVE, TWO, THREE = np.exp(Y / 4), (Y > 0).astype(int), np.digitize(Y, [-1, 2])
CATEGORIES = X.copy()
CATEGORIES[:, 3], CATEGORIES[:, 4] = RNG.integers(0, 12, 300), RNG.integers(0, 40, 300)
BY_CATEGORY = Y + np.isin(CATEGORIES[:, 3], [1, 5, 7]) * 3 - np.isin(CATEGORIES[:, 4], [2, 3, 30]) * 4
KINDS = {"feature_types": ["q", "q", "q", "c", "c", "q"], "enable_categorical": True}
SCORE, CLASSES = ["score"], ["probabilities", "label"]


def booster(label: Any, rounds: int = 8, x: Any = X, data: Any = None, **parameters: Any) -> Any:
    matrix = xgb.DMatrix(x, label, **(data or {}))
    return xgb.train({"max_depth": 4, **parameters}, matrix, rounds)


GROUPS = {"qid": np.repeat(np.arange(30), 10)}
BOUNDS = {"label_lower_bound": POSITIVE, "label_upper_bound": POSITIVE * 2}
CASES: list[tuple[str, Any, dict[str, Any], list[str]]] = [
    ("squared error", POSITIVE, {"objective": "reg:squarederror"}, SCORE),
    ("squared log error", POSITIVE, {"objective": "reg:squaredlogerror"}, SCORE),
    ("pseudo Huber", POSITIVE, {"objective": "reg:pseudohubererror"}, SCORE),
    ("absolute error", POSITIVE, {"objective": "reg:absoluteerror"}, SCORE),
    ("counts go through exp", POSITIVE, {"objective": "count:poisson"}, SCORE),
    (
        "a base score of counts goes through log",
        POSITIVE,
        {"objective": "count:poisson", "base_score": 0.3},
        SCORE,
    ),
    ("gamma", POSITIVE, {"objective": "reg:gamma"}, SCORE),
    ("tweedie", POSITIVE, {"objective": "reg:tweedie"}, SCORE),
    ("hazards", POSITIVE, {"objective": "survival:cox"}, SCORE),
    ("survival times", None, {"objective": "survival:aft", "data": BOUNDS}, SCORE),
    (
        "several quantiles",
        POSITIVE,
        {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]},
        SCORE,
    ),
    ("reg:logistic is a sigmoid and no class", TWO, {"objective": "reg:logistic"}, SCORE),
    ("two classes", TWO, {"objective": "binary:logistic"}, CLASSES),
    ("raw margins", TWO, {"objective": "binary:logitraw"}, SCORE),
    ("hinge", TWO, {"objective": "binary:hinge"}, SCORE),
    ("three classes", THREE, {"objective": "multi:softprob", "num_class": 3}, CLASSES),
    ("three classes, softmax", THREE, {"objective": "multi:softmax", "num_class": 3}, CLASSES),
    ("rank:pairwise is a margin", TWO, {"objective": "rank:pairwise", "data": GROUPS}, SCORE),
    ("rank:ndcg is a margin", TWO, {"objective": "rank:ndcg", "data": GROUPS}, SCORE),
    ("rank:map is a margin", TWO, {"objective": "rank:map", "data": GROUPS}, SCORE),
    (
        "dart weighs its trees",
        TWO,
        {"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.5},
        CLASSES,
    ),
    ("gblinear", TWO, {"objective": "binary:logistic", "booster": "gblinear"}, CLASSES),
    (
        "gblinear of three",
        THREE,
        {"objective": "multi:softprob", "num_class": 3, "booster": "gblinear"},
        CLASSES,
    ),
    (
        "a random forest",
        TWO,
        {
            "objective": "binary:logistic",
            "num_parallel_tree": 8,
            "subsample": 0.5,
            "learning_rate": 1,
            "rounds": 1,
        },
        CLASSES,
    ),
    ("several targets", np.stack([Y, -Y, Y * 2], 1), {"objective": "reg:squarederror"}, SCORE),
    (
        "named features",
        Y,
        {"objective": "reg:squarederror", "data": {"feature_names": list("abcdef")}},
        SCORE,
    ),
    (
        "sets of categories",
        BY_CATEGORY,
        {"objective": "reg:squarederror", "x": CATEGORIES, "data": KINDS, "max_cat_to_onehot": 2},
        SCORE,
    ),
    (
        "one category at a time",
        BY_CATEGORY,
        {"objective": "reg:squarederror", "x": CATEGORIES, "data": KINDS, "max_cat_to_onehot": 99},
        SCORE,
    ),
]


# The second encoding says the same, and is tried with every kind of booster.
IN_BOTH = ("two classes", "dart weighs its trees", "gblinear of three", "sets of categories")
WRITTEN = [(*case, "json") for case in CASES] + [(*case, "ubj") for case in CASES if case[0] in IN_BOTH]


@pytest.mark.parametrize(
    ("why", "label", "parameters", "outputs", "ending"), WRITTEN, ids=[f"{c[0]}, {c[4]}" for c in WRITTEN]
)
def test_answers_are_those_of_xgboost(
    why: str, label: Any, parameters: dict[str, Any], outputs: list[str], ending: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"  # told by its content
    booster(label, **parameters).save_model(tmp_path / f"model.{ending}")
    (tmp_path / f"model.{ending}").rename(path)
    assert kind_of(path).name == "xgboost"
    facts, loaded = exported(path, tmp_path / "base")
    assert facts["compared_with"].startswith("xgboost ")
    assert facts["rows"] == 257
    assert facts["max_error"] < 1e-6
    signature = loaded.signatures["serving_default"]
    assert list(signature.outputs) == outputs
    assert signature.batch_axis == 0


def test_the_face_of_scikit_learn_answers_the_same(tmp_path: Path) -> None:
    """Live objects: a classifier that stopped early uses its best rounds, as its `predict` does."""
    model = xgb.XGBClassifier(n_estimators=60, max_depth=3, learning_rate=1.0, early_stopping_rounds=2)
    model.fit(X[:150], TWO[:150], eval_set=[(X[150:], TWO[150:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    done = mserve.export(model, tmp_path / "base", version=7)
    answers = mserve.load(done.path).run({"features": X})
    assert np.abs(answers["probabilities"] - model.predict_proba(X)).max() < 1e-6
    assert np.array_equal(answers["label"], model.predict(X))
    assert done.metagraph.provenance["source"] == {
        "kind": "xgboost",
        "object": "xgboost.sklearn.XGBClassifier",
    }
    whole = exported(model.get_booster(), tmp_path / "all")[1].run({"features": X})["probabilities"]
    native = model.get_booster().predict(xgb.DMatrix(X), iteration_range=(0, 0))
    assert np.abs(whole[:, 1] - native).max() < 1e-6


def test_early_stopping_is_said(tmp_path: Path) -> None:
    model = booster(TWO, objective="binary:logistic")
    model.set_attr(best_iteration="3")
    model.save_model(tmp_path / "m.json")
    done = mserve.export(tmp_path / "m.json", tmp_path / "base", isolate=False)
    assert any("round 3 to be the best; all rounds are used" in note for note in done.notes)


def test_names_of_features_and_classes_are_shipped(tmp_path: Path) -> None:
    data = {"feature_names": ["age", "naïve café", "c", "d", "e", "f"]}
    booster(THREE, data=data, objective="multi:softprob", num_class=3).save_model(tmp_path / "m.json")
    (tmp_path / "classes.txt").write_text("low\nmiddle\nhigh\n")
    _, loaded = exported(tmp_path / "m.json", tmp_path / "base", labels=tmp_path / "classes.txt")
    place = tmp_path / "base" / "00000001" / "assets"
    assert (place / "features.txt").read_text().splitlines() == data["feature_names"]
    assert (place / "labels.txt").read_text() == "low\nmiddle\nhigh\n"
    assert loaded.signatures["serving_default"].outputs["probabilities"].labels == "labels.txt"
    (tmp_path / "classes.txt").write_text("low\n")
    with pytest.raises(UsageError, match="3 lines, one for each class"):
        exported(tmp_path / "m.json", tmp_path / "base", labels=tmp_path / "classes.txt")


@pytest.mark.parametrize("written", ['"5E-1"', '"[5E-1]"', "[0.5]", '"[5E-1]  "'])
def test_every_form_of_a_base_score_is_read(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xgboost_model, "_compare", lambda *_: None)  # no version reads all of them
    text = small()
    text["learner"]["learner_model_param"]["base_score"] = json.loads(written)
    (tmp_path / "m.json").write_text(json.dumps(text))
    converted = xgboost_model.convert(str(tmp_path / "m.json"), ConvertOptions())
    (base,) = (w for w in converted.model.graph.initializer if w.name == "base_score")
    assert np.frombuffer(base.raw_data, np.float32).tolist() == [0.0]


def test_the_old_binary_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"binf" + bytes(200))
    assert kind_of(tmp_path / "m").name == "xgboost"
    with pytest.raises(InputError, match="old binary format"):
        exported(tmp_path / "m", tmp_path / "base")


def test_several_values_in_a_leaf_are_refused(tmp_path: Path) -> None:
    parameters = {"multi_strategy": "multi_output_tree", "tree_method": "hist"}
    booster(np.stack([Y, -Y], 1), objective="reg:squarederror", **parameters).save_model(tmp_path / "m.json")
    with pytest.raises(InputError, match="several values") as caught:
        exported(tmp_path / "m.json", tmp_path / "base")
    assert "one_output_per_tree" in caught.value.hint


_SMALL: dict[str, Any] = {}


def small() -> dict[str, Any]:
    """A model of two trees as JSON; a fresh copy."""
    if not _SMALL:
        model = booster(TWO, 2, objective="binary:logistic")
        _SMALL.update(json.loads(bytes(model.save_raw("json"))))
    return json.loads(json.dumps(_SMALL))  # type: ignore[no-any-return]


def tree(document: dict[str, Any]) -> dict[str, Any]:
    return document["learner"]["gradient_booster"]["model"]["trees"][0]  # type: ignore[no-any-return]


def replaced(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda d: tree(d).update({key: value})


def at(key: str, index: int, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda d: tree(d)[key].__setitem__(index, value)


def learner(*path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


LIES = [
    ("a child that is not there", at("left_children", 0, 9999), "a tree is not a tree"),
    ("a child that is its own parent", at("left_children", 0, 0), "a tree is not a tree"),
    ("a child of two parents", at("right_children", 0, 1), "a tree is not a tree"),
    ("a negative feature", at("split_indices", 0, -1), "does not have"),
    ("a feature too far", at("split_indices", 0, 6), "0 to 5"),
    ("a threshold NaN", at("split_conditions", 0, float("nan")), "a threshold is not a number"),
    (
        "a leaf NaN",
        lambda d: replaced("split_conditions", [float("nan")] * 99)(d) or shorten(d),
        "not a number",
    ),
    ("text among numbers", at("split_conditions", 0, "1"), "split_conditions"),
    ("a list among numbers", at("split_conditions", 0, []), "split_conditions"),
    ("fractions for children", at("left_children", 0, 1.5), "left_children"),
    ("arrays of other lengths", replaced("right_children", [1]), "numbers; found: list of 1"),
    (
        "a count of nodes that lies",
        replaced("tree_param", {"num_nodes": "999999999", "size_leaf_vector": "1"}),
        "999999999",
    ),
    ("no count of nodes", replaced("tree_param", {}), "num_nodes"),
    ("a huge whole number", at("left_children", 0, 10**40), "left_children"),
    ("no trees", learner("learner", "gradient_booster", "model", "trees", value=[]), "no trees"),
    ("trees that are no list", learner("learner", "gradient_booster", "model", "trees", value=3), "a list"),
    (
        "a tree for no output",
        learner("learner", "gradient_booster", "model", "tree_info", value=[0, 1]),
        "no output",
    ),
    ("another objective", learner("learner", "objective", "name", value="my:own"), "found: my:own"),
    ("another booster", learner("learner", "gradient_booster", "name", value="gbforest"), "found: gbforest"),
    ("no learner", lambda d: d.pop("learner"), "learner"),
    (
        "a base score that is text",
        learner("learner", "learner_model_param", "base_score", value="x"),
        "bad base score",
    ),
    (
        "a base score NaN",
        learner("learner", "learner_model_param", "base_score", value="NaN"),
        "bad base score",
    ),
    (
        "a base score of certainty",
        learner("learner", "learner_model_param", "base_score", value="1"),
        "cannot have",
    ),
    (
        "too many features",
        learner("learner", "learner_model_param", "num_feature", value="99999999999"),
        "num_feature",
    ),
    (
        "categories that are not there",
        lambda d: tree(d).update(
            split_type=[1] * len(tree(d)["left_children"]),
            categories=[1],
            categories_nodes=[0],
            categories_segments=[0],
            categories_sizes=[5],
        ),
        "5 from 0",
    ),
    (
        "a category below zero",
        lambda d: tree(d).update(
            split_type=[1] * len(tree(d)["left_children"]),
            categories=[-1],
            categories_nodes=[0],
            categories_segments=[0],
            categories_sizes=[1],
        ),
        "out of range",
    ),
]


def shorten(document: dict[str, Any]) -> None:
    one = tree(document)
    one["split_conditions"] = one["split_conditions"][: len(one["left_children"])]
    for node, child in enumerate(one["left_children"]):
        if child >= 0:
            one["split_conditions"][node] = 0.5


@pytest.mark.parametrize(("why", "change", "said"), LIES, ids=[lie[0] for lie in LIES])
def test_a_document_that_lies_is_refused(
    why: str, change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path
) -> None:
    document = small()
    change(document)
    (tmp_path / "m.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        xgboost_model.convert(str(tmp_path / "m.json"), ConvertOptions())
    assert said in str(caught.value)


@pytest.mark.parametrize("ending", ["json", "ubj"])
def test_truncated_files_are_refused(ending: str, tmp_path: Path) -> None:
    data = bytes(booster(TWO, 2, objective="binary:logistic").save_raw(ending))
    for cut in truncations(data):
        (tmp_path / "m").write_bytes(cut)
        with pytest.raises(InputError):
            xgboost_model.convert(str(tmp_path / "m"), ConvertOptions())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), ending=st.sampled_from(["json", "ubj"]))
def test_changed_bytes_never_raise_anything_else(data: st.DataObject, ending: str, tmp_path: Path) -> None:
    original = json.dumps(small()).encode() if ending == "json" else UBJ
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "m").write_bytes(changed)
    with pytest.MonkeyPatch.context() as patch:  # the framework is not there to be crashed by them
        patch.setattr(xgboost_model, "_compare", lambda *_: None)
        with suppress(MserveError):
            xgboost_model.convert(str(tmp_path / "m"), ConvertOptions())


UBJ = bytes(booster(TWO, 2, objective="binary:logistic").save_raw("ubj"))
BOMBS = [
    ("an array that says it is huge", b"[$L#L\x7f\xff\xff\xff\xff\xff\xff\xff"),
    ("an array of nothings", b"[$Z#L\x7f\xff\xff\xff\xff\xff\xff\xff"),
    ("untyped values that are not there", b"[#L\x00\x00\x7f\xff\xff\xff\xff\xff"),
    ("an object that says it is huge", b"{#L\x00\x00\x7f\xff\xff\xff\xff\xff"),
    ("a negative length", b"[$d#l\xff\xff\xff\xff"),
    ("a fraction for a length", b"[$d#d\x3f\x80\x00\x00"),
    ("text longer than the file", b"SL\x00\x00\x00\x00\x7f\xff\xff\xff"),
    ("deeper than any model", b"[" * 10_000),
    ("objects deeper than any model", b"{U\x01a" * 10_000),
    ("an unknown mark", b"?"),
    ("nothing", b""),
    ("a type without a number of values", b"[$d]"),
    ("more after the end", b"T "),
]


@pytest.mark.parametrize(("why", "data"), BOMBS, ids=[bomb[0] for bomb in BOMBS])
def test_ubjson_bombs_are_refused(why: str, data: bytes) -> None:
    with pytest.raises(InputError, match=r"UBJSON file is (malformed|truncated)"):
        ubjson.parse(data, Path("m"))


def test_ubjson_reads_every_kind_of_value() -> None:
    data = (
        b"{U\x01aiU" b"U\x01b[$l#U\x02\x00\x00\x00\x01\xff\xff\xff\xff"
        b"U\x01c[TFZ]" b"U\x01d[#U\x01SU\x02hi"
        b"U\x01e{#U\x01U\x01xd\x3f\x80\x00\x00" b"U\x01fD\x3f\xf0\x00\x00\x00\x00\x00\x00" b"U\x01gCq}"
    )  # fmt: skip
    value = ubjson.parse(data, Path("m"))
    assert value.pop("b").tolist() == [1, -1]
    assert value == {"a": 85, "c": [True, False, None], "d": ["hi"], "e": {"x": 1.0}, "f": 1.0, "g": "q"}


def test_a_real_model_recognises_voices(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "voice.json").write_bytes(
        gzip.decompress(real_data("11_gbdt_svm_linear/voice2gender_xgboost.json.gz").read_bytes())
    )
    done = mserve.export(tmp_path / "voice.json", tmp_path / "base")
    facts = done.metagraph.provenance["conversion"]
    assert facts["max_error"] < 5e-7
    x = np.random.default_rng(1).random((200, 20), np.float32)
    native = xgb.Booster(model_file=tmp_path / "voice.json")
    expected = native.predict(xgb.DMatrix(x, feature_names=native.feature_names))
    found = mserve.load(done.path).run({"features": x})
    assert np.abs(found["probabilities"][:, 1] - expected).max() < 5e-7
