"""scikit-learn: pickles, joblib, skops and live estimators; run where its extra is installed."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mserve
from mserve.errors import FindingError, InputError, MserveError, UsageError
from mserve.exporters import sources
from mserve.exporters.sklearn import sklearn_files
from mserve.exporters.zipmap import without_maps

pytest.importorskip("skl2onnx")
joblib = pytest.importorskip("joblib")
pandas = pytest.importorskip("pandas")
from sklearn import (  # noqa: E402
    cluster,
    decomposition,
    ensemble,
    linear_model,
    naive_bayes,
    neighbors,
    neural_network,
    svm,
)
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.compose import make_column_transformer  # noqa: E402
from sklearn.datasets import load_digits, load_iris  # noqa: E402
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer  # noqa: E402
from sklearn.impute import SimpleImputer  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import (  # noqa: E402
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    StandardScaler,
)

# The libraries warn of their own future, and small models of not having converged.
pytestmark = pytest.mark.filterwarnings("ignore")
DIGITS, DIGIT = (part[:400] for part in load_digits(return_X_y=True))
IRIS, SPECIES = load_iris(return_X_y=True)
ODD = DIGIT % 2
TEXTS = ["naïve café", "x y zz", "hello world", "foo café naïve CAFÉ"] * 10
ANSWER = np.array(["no", "yes", "yes", "no"] * 10)
TABLE = pandas.DataFrame(
    {"age": np.arange(40.0), "rooms": [1, 2, 3, 4] * 10, "city": list("abcd") * 10, "text": TEXTS}
)
columns = make_column_transformer
WORDS = {"label": "string [batch]", "probabilities": "float32 [batch, 2]"}
CLASSES = {"label": "int64 [batch]", "probabilities": "float32 [batch, 10]"}
DECISIONS = {"label": "int64 [batch]", "scores": "float32 [batch, 3]"}
SCORE = {"score": "float32 [batch]"}


def mixed() -> Any:
    parts = columns(
        (StandardScaler(), ["age"]),
        (OneHotEncoder(handle_unknown="ignore"), ["city"]),
        (TfidfVectorizer(), "text"),
        (MinMaxScaler(), ["rooms"]),
    )
    return make_pipeline(parts, linear_model.LogisticRegression()).fit(TABLE, ANSWER)


def fitted(estimator: Any, x: Any = DIGITS, y: Any = DIGIT) -> Callable[[], Any]:
    return lambda: estimator.fit(x, y)


logistic = linear_model.LogisticRegression
bayes_of_pairs = make_pipeline(CountVectorizer(ngram_range=(1, 2)), naive_bayes.MultinomialNB())
one_hot = make_pipeline(OneHotEncoder(handle_unknown="ignore"), logistic())
single_letters = make_pipeline(TfidfVectorizer(token_pattern=r"(?u)\b\w+\b"), logistic(C=100))
other_tokens = make_pipeline(TfidfVectorizer(token_pattern=r"\b\w\w\w+\b"), logistic(C=100))
two_targets = np.stack([DIGIT, ODD], 1)
MODELS: list[tuple[str, Callable[[], Any], dict[str, str], float]] = [
    ("logistic regression", fitted(logistic(max_iter=50)), CLASSES, 1e-6),
    ("texts, numbers and categories by column", mixed, WORDS, 1e-6),
    ("boosted histograms", fitted(ensemble.HistGradientBoostingClassifier(max_iter=3)), CLASSES, 1e-6),
    (
        "boosted histograms of a regressor",
        fitted(ensemble.HistGradientBoostingRegressor(max_iter=3)),
        SCORE,
        1e-6,
    ),
    ("random forest", fitted(ensemble.RandomForestClassifier(8)), CLASSES, 1e-6),
    ("extra trees", fitted(ensemble.ExtraTreesRegressor(5)), SCORE, 1e-6),
    ("gradient boosting", fitted(ensemble.GradientBoostingRegressor(n_estimators=5)), SCORE, 1e-6),
    ("AdaBoost", fitted(ensemble.AdaBoostClassifier(n_estimators=3)), CLASSES, 1e-6),
    ("text", fitted(make_pipeline(TfidfVectorizer(), logistic()), TEXTS, ANSWER), WORDS, 1e-6),
    ("words of one letter", fitted(single_letters, TEXTS, ANSWER), WORDS, 1e-6),
    (
        "pairs of words",
        fitted(bayes_of_pairs, TEXTS, ANSWER),
        WORDS,
        5e-6,
    ),
    ("linear SVC", fitted(make_pipeline(StandardScaler(), svm.LinearSVC()), IRIS, SPECIES), DECISIONS, 3e-6),
    ("SVC", fitted(svm.SVC(), IRIS, SPECIES), DECISIONS, 3e-6),
    ("SVR", fitted(svm.SVR(), IRIS, SPECIES), SCORE, 3e-6),
    (
        "linear SVC of two classes",
        fitted(svm.LinearSVC(), IRIS, SPECIES > 0),
        {"label": "int64 [batch]", "scores": "float32 [batch]"},
        3e-6,
    ),
    ("perceptron", fitted(neural_network.MLPClassifier((8,), max_iter=5)), CLASSES, 1e-6),
    ("ridge", fitted(linear_model.Ridge()), SCORE, 3e-6),
    (
        "two targets",
        fitted(linear_model.Ridge(), y=two_targets),
        {"score": "float32 [batch, 2]"},
        3e-6,
    ),
    ("principal components", fitted(decomposition.PCA(2), IRIS), {"transformed": "float32 [batch, 2]"}, 3e-6),
    (
        "k-means",
        fitted(cluster.KMeans(4, n_init=1)),
        {"label": "int64 [batch]", "scores": "float32 [batch, 4]"},
        3e-6,
    ),
    ("neighbours", fitted(neighbors.KNeighborsClassifier()), CLASSES, 1e-6),
    (
        "naive Bayes",
        fitted(naive_bayes.GaussianNB(), IRIS, SPECIES),
        {"label": "int64 [batch]", "probabilities": "float32 [batch, 3]"},
        1e-5,
    ),
    (
        "outliers",
        fitted(ensemble.IsolationForest(n_estimators=5)),
        {"label": "int64 [batch]", "scores": "float32 [batch]"},
        1e-6,
    ),
    (
        "calibrated, with classes that are booleans",
        fitted(CalibratedClassifierCV(svm.LinearSVC()), IRIS, SPECIES > 0),
        {"label": "int64 [batch]", "probabilities": "float32 [batch, 2]"},
        1e-6,
    ),
    ("missing values", fitted(make_pipeline(SimpleImputer(), logistic())), CLASSES, 1e-6),
    (
        "categories that are texts and whole numbers",
        fitted(one_hot, TABLE[["city", "rooms"]], ANSWER),
        WORDS,
        1e-6,
    ),
    (
        "ordinal categories",
        fitted(make_pipeline(OrdinalEncoder(), ensemble.RandomForestClassifier(4)), TABLE[["city"]], ANSWER),
        WORDS,
        1e-6,
    ),
]


def conversion(path: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "mserve", "inspect", str(path), "--json"]
    done = subprocess.run(words, capture_output=True, check=True)
    return json.loads(done.stdout)["provenance"]["conversion"]


def error_of(done: Any) -> float:
    """The largest error that the export says it found."""
    note = next(note for note in done.notes if note.startswith("answers equal"))
    return float(note.partition(" within ")[2].partition(" ")[0])


@pytest.mark.parametrize(("why", "make", "outputs", "bound"), MODELS, ids=[row[0] for row in MODELS])
def test_estimators_answer_as_scikit_learn(
    why: str, make: Callable[[], Any], outputs: dict[str, str], bound: float, base: Path
) -> None:
    done = mserve.export(make(), base, isolate=False)
    signature = done.metagraph.signatures["serving_default"]
    assert {alias: str(spec) for alias, spec in signature.outputs.items()} == outputs
    assert signature.batch_axis == 0
    assert error_of(done) <= bound


def test_a_pipeline_of_texts_and_numbers_is_served_by_column(base: Path) -> None:
    model = mixed()
    done = mserve.export(model, base, example=TABLE)
    signature = done.metagraph.signatures["serving_default"]
    assert {alias: str(spec) for alias, spec in signature.inputs.items()} == {
        "age": "float32 [batch, 1]",
        "rooms": "float32 [batch, 1]",
        "city": "string [batch, 1]",
        "text": "string [batch, 1]",
    }
    assert signature.outputs["probabilities"].labels == "labels.txt"
    assert (done.path / "assets" / "labels.txt").read_text() == "no\nyes\n"
    one = {"age": [[3.0]], "rooms": [[9.0]], "city": [["elsewhere"]], "text": [["CAFÉ unknown naïve"]]}
    kinds = {name: object if isinstance(x[0][0], str) else np.float32 for name, x in one.items()}
    arrays = {name: np.array(x, kinds[name]) for name, x in one.items()}
    found = mserve.load(done.path).run(arrays)
    row = pandas.DataFrame({name: x[0] for name, x in one.items()})
    np.testing.assert_allclose(found["probabilities"], model.predict_proba(row), atol=1e-6)
    assert found["label"].tolist() == model.predict(row).tolist()
    facts = conversion(done.path)
    assert facts["compared_with"].startswith("scikit-learn ")
    assert set(facts["versions"]) == {"scikit-learn", "skl2onnx"}


def test_unicode_words_count_as_they_do_in_python(base: Path) -> None:
    """ASCII tokens move these probabilities by 0.1 and more, without an error."""
    model = make_pipeline(TfidfVectorizer(), logistic(C=100)).fit(TEXTS, ANSWER)
    done = mserve.export(model, base, isolate=False)
    asked = ["naïve", "CAFÉ", "café naïve hello", "na ve caf", "日本語 foo"]
    found = mserve.load(done.path).run({"text": np.array(asked, object).reshape(-1, 1)})
    np.testing.assert_allclose(found["probabilities"], model.predict_proba(asked), atol=1e-6)


def test_text_is_lowered_in_a_locale_that_slim_systems_have(base: Path) -> None:
    model = make_pipeline(TfidfVectorizer(), logistic()).fit(TEXTS, ANSWER)
    done = mserve.export(model, base, isolate=False)
    assert b"C.UTF-8" in (done.path / "export.meta").read_bytes()
    code = (
        "import mserve, sys, numpy; mserve.load(sys.argv[1]).run({'text': numpy.array([['CAFÉ']], object)})"
    )
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))} | {"LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", code, str(done.path)], env=bare, check=True)


def test_names_of_features_are_an_asset(base: Path) -> None:
    model = logistic().fit(pandas.DataFrame(IRIS, columns=list("abcd")), SPECIES)
    done = mserve.export(model, base, isolate=False, example=IRIS[:5])
    assert (done.path / "assets" / "features.txt").read_text() == "a\nb\nc\nd\n"


def logged(x: Any) -> Any:
    return np.log1p(x)


REFUSED: list[tuple[str, Callable[[], Any], type[MserveError], str]] = [
    (
        "a function",
        fitted(make_pipeline(FunctionTransformer(logged), logistic())),
        InputError,
        "function of Python: logged",
    ),
    (
        "two steps, named at once",
        lambda: make_pipeline(
            columns((HashingVectorizer(), "text"), (FunctionTransformer(logged), ["age"])), logistic()
        ).fit(TABLE, ANSWER),
        InputError,
        "HashingVectorizer, FunctionTransformer (a function of Python: logged)",
    ),
    (
        "accents",
        fitted(make_pipeline(TfidfVectorizer(strip_accents="unicode"), logistic()), TEXTS, ANSWER),
        InputError,
        "strip_accents='unicode'",
    ),
    (
        "a tokenizer",
        fitted(make_pipeline(TfidfVectorizer(tokenizer=str.split), logistic()), TEXTS, ANSWER),
        InputError,
        "a tokenizer or preprocessor of Python",
    ),
    ("nothing learned", logistic, InputError, "does not say how many features"),
    (
        "tokens that the converter has otherwise",
        fitted(other_tokens, TEXTS, ANSWER),
        FindingError,
        "does not answer as its source does",
    ),
]


@pytest.mark.parametrize(("why", "make", "kind", "said"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_has_no_form_in_onnx_is_refused_by_name(
    why: str, make: Callable[[], Any], kind: type[MserveError], said: str, base: Path
) -> None:
    with pytest.raises(kind) as caught:
        mserve.export(make(), base, isolate=False)
    assert said in str(caught.value)
    assert not list(base.glob("*"))


class Planted:
    """Pickled, it is a call that writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


def plain(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def compressed(value: Any, path: Path) -> None:
    path.write_bytes(gzip.compress(pickle.dumps(value)))


def joblibbed(value: Any, path: Path) -> None:
    joblib.dump(value, path)


def joblib_zlib(value: Any, path: Path) -> None:
    joblib.dump(value, path, compress=3)


WAYS = [plain, compressed, joblibbed, joblib_zlib]


@pytest.mark.parametrize("write", WAYS)
def test_pickles_are_found_by_content_and_need_trust(
    write: Callable[..., None], tmp_path: Path, base: Path
) -> None:
    path = tmp_path / "model.bin"
    write(logistic().fit(IRIS, SPECIES), path)
    assert sources.kind_of(path).name == "sklearn"
    with pytest.raises(UsageError, match=r"runs code.*classes and functions that the pickle names"):
        mserve.export(path, base)
    assert error_of(mserve.export(path, base, trust=True, isolate=False)) <= 1e-6


@pytest.mark.parametrize("write", WAYS)
@pytest.mark.parametrize("nested", ["alone", "in an estimator", "in an array of objects"])
def test_planted_code_stays_inert_even_with_trust(
    write: Callable[..., None], nested: str, tmp_path: Path, base: Path
) -> None:
    """Without trust nothing is opened; with it, nothing is called but scikit-learn's own."""
    marker, path = tmp_path / "ran", tmp_path / "model.bin"
    model: Any = logistic().fit(IRIS, SPECIES)
    model.extra = Planted(marker) if nested == "in an estimator" else np.array([Planted(marker), 1], object)
    write(Planted(marker) if nested == "alone" else model, path)
    for options in (
        {},
        {"isolate": False},
        {"kind": "sklearn"},
        {"kind": "sklearn", "trust": True, "isolate": False},
    ):
        with pytest.raises(MserveError):
            mserve.export(path, base, **options)
    assert not marker.exists()
    assert not list(base.glob("*"))


@pytest.mark.parametrize(
    ("module", "name", "allowed", "why"),
    [
        ("os", "system", False, "a shell"),
        ("posix", "system", False, "the same under another name"),
        ("builtins", "eval", False, "runs text"),
        ("builtins", "getattr", False, "reaches anything"),
        ("sklearn.base", "os.system", False, "through a module into another"),
        ("sklearn.datasets._base", "load_files", False, "a function of the library that reads files"),
        ("sklearn.datasets", "fetch_california_housing", False, "unpickles a file without care"),
        ("sklearn.utils", "joblib.load", False, "another unpickler"),
        ("numpy", "load", False, "another unpickler"),
        ("numpy.f2py", "compile", False, "a compiler"),
        ("numpy.testing", "Tester", False, "not an array"),
        ("joblib.numpy_pickle", "NDArrayWrapper", False, "reads a file that the pickle names"),
        ("sklearn.linear_model._logistic", "LogisticRegression", True, "an estimator"),
        ("numpy", "float64", True, "a scalar"),
        ("numpy", "dtype", True, "a dtype"),
        ("scipy.sparse._csr", "csr_matrix", True, "a sparse matrix"),
    ],
)
def test_a_pickle_may_ask_for_little(module: str, name: str, allowed: bool, why: str) -> None:
    assert sklearn_files._allowed(module, name) is allowed, why


def test_another_version_s_pickle_is_an_error_unless_allowed(tmp_path: Path, base: Path) -> None:
    import sklearn

    path = tmp_path / "model.pkl"
    data = pickle.dumps(logistic().fit(IRIS, SPECIES))
    own = sklearn.__version__.encode()
    path.write_bytes(data.replace(own, b"0." + own[2:]))
    with pytest.raises(InputError, match=r"another version .*LogisticRegression of scikit-learn 0\."):
        mserve.export(path, base, trust=True, isolate=False)
    mserve.export(path, base, trust=True, isolate=False, allow_version_mismatch=True)


def test_bad_pickles_are_refused(tmp_path: Path, base: Path) -> None:
    path = tmp_path / "model.pkl"
    data = pickle.dumps(ensemble.RandomForestClassifier(2).fit(IRIS, SPECIES))
    options = {"kind": "sklearn", "trust": True, "isolate": False}
    for bad, said in (
        (data[: len(data) // 2], "cannot be read"),
        (gzip.compress(data)[:-20], "compressed pickle cannot be read"),
        (pickle.dumps({"a": 1}), "holds no estimator"),
        (b"", "cannot be read"),
    ):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=said):
            mserve.export(path, base, **options)


def test_skops_needs_no_trust_unless_it_names_what_is_not_known(tmp_path: Path, base: Path) -> None:
    skops = pytest.importorskip("skops.io")
    path = tmp_path / "model.bin"
    skops.dump(mixed(), path)
    assert sources.kind_of(path).name == "skops"
    assert error_of(mserve.export(path, base)) <= 1e-6
    odd = make_pipeline(StandardScaler(), logistic()).fit(IRIS, SPECIES)
    odd.steps.insert(0, ("odd", FunctionTransformer(logged)))
    skops.dump(odd, path)
    with pytest.raises(UsageError, match=r"not known to be harmless.*logged"):
        mserve.export(path, base, isolate=False)
    with pytest.raises(InputError, match="function of Python: logged"):
        mserve.export(path, base, isolate=False, trust=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schema.json", "{")
    with pytest.raises(InputError, match="skops file cannot be read"):
        mserve.export(path, base, isolate=False)


def test_maps_become_columns() -> None:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    raw = convert_sklearn(logistic().fit(IRIS, SPECIES), initial_types=[("x", FloatTensorType([None, 4]))])
    assert raw.graph.output[1].type.WhichOneof("value") == "sequence_type"
    found = without_maps(raw).graph.output[1]
    assert [d.dim_value for d in found.type.tensor_type.shape.dim] == [0, 3]
    assert all(node.op_type != "ZipMap" for node in raw.graph.node)


def test_a_model_that_made_up_inputs_do_not_fit_is_batched_all_the_same(base: Path) -> None:
    """Its own rows at two sizes are the evidence: nothing says that requests run alone."""
    model = make_pipeline(OneHotEncoder(), logistic()).fit(TABLE[["city"]], ANSWER)
    done = mserve.export(model, base, isolate=False)
    assert done.metagraph.signatures["serving_default"].batch_axis == 0
    assert not any("run alone" in note for note in done.notes)
