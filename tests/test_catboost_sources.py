"""CatBoost: files and live models; run where CatBoost is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sklearn_sources import error_of

import mserve
from mserve.errors import InputError
from mserve.exporters import sources

catboost = pytest.importorskip("catboost")
pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(int) + (X[:, 3] > 1)
WORDS = np.array(["no", "yes", "perhaps"])
QUICK = {
    "iterations": 10,
    "verbose": False,
    "allow_writing_files": False,
    "thread_count": 1,
    "random_seed": 0,
}
TWO, THREE = "float32 [batch, 2]", "float32 [batch, 3]"
classifier, regressor = catboost.CatBoostClassifier, catboost.CatBoostRegressor


@pytest.mark.parametrize(
    ("model", "target", "outputs"),
    [
        (classifier(**QUICK), Y, {"probabilities": THREE, "label": "int64 [batch]"}),
        (classifier(**QUICK), (Y > 0).astype(int), {"probabilities": TWO, "label": "int64 [batch]"}),
        (classifier(**QUICK), WORDS[Y], {"probabilities": THREE, "label": "string [batch]"}),
        (regressor(**QUICK), Y, {"score": "float32 [batch]"}),
        (regressor(loss_function="Quantile:alpha=0.9", **QUICK), Y, {"score": "float32 [batch]"}),
        (regressor(loss_function="Poisson", **QUICK), Y, {"score": "float32 [batch]"}),
        (regressor(loss_function="Tweedie:variance_power=1.5", **QUICK), Y, {"score": "float32 [batch]"}),
    ],
    ids=["classes", "two classes", "words", "regression", "quantile", "counts", "tweedie"],
)
def test_models_answer_as_catboost(model: Any, target: Any, outputs: dict[str, str], base: Path) -> None:
    model.fit(X, target)
    done = mserve.export(model, base, isolate=False)
    signature = done.metagraph.signatures["serving_default"]
    assert {alias: str(spec) for alias, spec in signature.outputs.items()} == outputs
    assert error_of(done) <= 2e-6
    found = mserve.load(done.path).run({"features": X[:20]})
    own = model.predict_proba(X[:20]) if "label" in outputs else model.predict(X[:20])
    answer = found["probabilities" if "label" in outputs else "score"]
    np.testing.assert_allclose(answer, own, atol=2e-6, rtol=2e-6)


def test_a_file_is_found_by_content_and_converted_in_a_child(tmp_path: Path, base: Path) -> None:
    import pandas

    model = classifier(**QUICK).fit(pandas.DataFrame(X, columns=list("abcde")), WORDS[Y])
    model.save_model(str(tmp_path / "m.bin"))
    assert sources.kind_of(tmp_path / "m.bin").name == "catboost"
    done = mserve.export(tmp_path / "m.bin", base)
    assert error_of(done) <= 2e-6
    assert (done.path / "assets" / "labels.txt").read_text() == "no\nperhaps\nyes\n"
    assert (done.path / "assets" / "features.txt").read_text() == "a\nb\nc\nd\ne\n"


def test_what_catboost_cannot_export_is_refused_with_the_reason(tmp_path: Path, base: Path) -> None:
    import pandas

    table = pandas.DataFrame({"colour": list("ab") * 100, "x": X[:, 0]})
    for depth in (2, 255):  # one-hot categories too
        model = classifier(cat_features=["colour"], one_hot_max_size=depth, **QUICK).fit(table, Y > 0)
        with pytest.raises(InputError, match=r"not numbers.*categorical colour"):
            mserve.export(model, base, isolate=False)
    with pytest.raises(InputError, match="Unexpected label type"):
        mserve.export(classifier(**QUICK).fit(X, Y > 0), base, isolate=False)
    for objective, target in (("MultiRMSE", np.stack([Y, Y], 1)), ("MultiClassOneVsAll", Y)):
        model = catboost.CatBoost({"loss_function": objective, **QUICK}).fit(X, target)
        with pytest.raises(InputError, match=objective):
            mserve.export(model, base, isolate=False)
    model = regressor(**QUICK).fit(X, Y)
    model.save_model(str(tmp_path / "m.cbm"))
    data = (tmp_path / "m.cbm").read_bytes()
    (tmp_path / "cut.cbm").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        mserve.export(tmp_path / "cut.cbm", base, isolate=False)
