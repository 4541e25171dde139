"""Models of many features take sparse rows: exported, served, and held to their own programs."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_tools import exported
from server_tools import Running, serving
from sparse_models import Row, dots, draw, fm, objects, parts, sigmoid
from test_commands import run
from test_linear_readers import HEART, linear_model
from test_spark import saved  # noqa: F401

import mserve
from mserve.errors import InputError, MserveError, UsageError
from mserve.exporters import conversion, feature_rows
from mserve.exporters.kinds import ConvertOptions
from mserve.exporters.sources import kind_of, named

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

SIZE, FACTORS = 1_000_000, 8
RNG = np.random.default_rng(0)
SINGLE = np.round(RNG.standard_normal(SIZE), 5)
VECTORS = np.round(RNG.standard_normal((SIZE, FACTORS)) / 5, 4)
CONSTANT = np.array([0.25, -0.5, 0.125])
THREE = np.round(RNG.standard_normal((50_000, 3)), 9)
ROWS = draw(2000, SIZE, 40)


def of_rows(values: Any) -> str:
    """Numbers as text, those of a row on a line."""
    words = iter(map(repr, values.ravel().tolist()))
    return "".join(map("{}\n".format, map(" ".join, zip(*[words] * values.shape[1], strict=True))))


def liblinear_text(weights: Any, labels: str) -> str:
    """Logistic regression, with a row for a bias of 1."""
    head = f"solver_type L2R_LR\nnr_class {len(labels.split())}\nlabel {labels}\nnr_feature {len(weights)}\n"
    constant = CONSTANT[None, : weights.shape[1]]
    return f"{head}bias 1\nw\n{of_rows(weights)}{of_rows(constant)}"


def libfm_text(bias: float, single: Any, factors: Any) -> str:
    return (
        f"#global bias W0\n{bias}\n#unary interactions Wj\n{of_rows(single[:, None])}"
        f"#pairwise interactions Vj,f\n{of_rows(factors)}"
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of a million features, as their programs write them."""
    root = tmp_path_factory.mktemp("files")
    (root / "lr").write_text(liblinear_text(SINGLE[:, None], "1 -1"))
    (root / "three").write_text(liblinear_text(THREE, "7 -2 4"))
    (root / "fm").write_text(libfm_text(0.25, SINGLE, VECTORS))
    return root


@pytest.fixture(scope="module")
def server(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("models")
    for name, flags in (("lr", ()), ("three", ()), ("fm", ("--task", "sigmoid"))):
        done = run("export", files / name, root / "base" / name, *flags)
        assert done.returncode == 0, done.stderr
    with serving(root / "base", root / "log") as running:
        yield running


def lines(rows: list[Row], first: int) -> list[str]:
    """Rows in the text of the models' programs, with a label."""
    return [" ".join(["1", *(f"{i + first}:{v!s}" for i, v in zip(*row, strict=True))]) for row in rows]


def moved(rows: list[Row], first: int) -> list[Row]:
    return [(np.asarray(ids) + first, values) for ids, values in rows]


@pytest.mark.parametrize("form", ["lines", "rows"])
def test_a_logistic_regression_over_a_million_features(server: Running, form: str) -> None:
    """LIBLINEAR's ids count from 1."""
    instances = lines(ROWS, 1) if form == "lines" else objects(moved(ROWS, 1))
    answer = server.predict("lr", {"instances": instances})
    assert answer.status == 200, answer.body
    found = answer.json()["predictions"]
    decisions = dots(ROWS, SINGLE[:, None])[:, 0] + CONSTANT[0]
    assert [row["label"] for row in found] == np.where(decisions > 0, 1, -1).tolist()
    np.testing.assert_allclose([row["score"] for row in found], decisions, rtol=1e-6, atol=1e-6)
    chances = sigmoid(decisions)
    np.testing.assert_allclose(
        [row["probabilities"] for row in found], np.stack([chances, 1 - chances], 1), rtol=1e-5, atol=1e-7
    )


def test_three_classes(server: Running) -> None:
    rows: list[Row] = [(np.asarray(ids) % 50_000, values) for ids, values in ROWS[:200]]
    found = server.predict("three", {"instances": lines(rows, 1)}).json()["predictions"]
    decisions = dots(rows, THREE) + CONSTANT
    assert [row["label"] for row in found] == np.array([7, -2, 4])[decisions.argmax(1)].tolist()
    np.testing.assert_allclose([row["score"] for row in found], decisions, rtol=1e-6, atol=1e-6)
    each = 1 / (1 + np.exp(-decisions))
    expected = each / each.sum(1, keepdims=True)
    np.testing.assert_allclose([row["probabilities"] for row in found], expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["lines", "rows"])
def test_a_factorisation_machine_over_a_million_features(server: Running, form: str) -> None:
    """LibFM's ids count from 0."""
    instances = lines(ROWS, 0) if form == "lines" else objects(ROWS)
    answer = server.predict("fm", {"instances": instances})
    assert answer.status == 200, answer.body
    found = answer.json()["predictions"]
    chances = sigmoid(fm(ROWS, 0.25, SINGLE, VECTORS)[:, 0])
    np.testing.assert_allclose([row["probabilities"][1] for row in found], chances, rtol=1e-4, atol=1e-5)
    sure = np.abs(chances - 0.5) > 1e-4
    assert sure.sum() > 1900
    assert np.array_equal(np.array([row["label"] for row in found])[sure], chances[sure] > 0.5)


def test_ids_that_a_model_has_no_weights_for(server: Running) -> None:
    """LIBLINEAR passes over them, libFM has no answer."""
    known, *others = server.predict(
        "lr", {"instances": ["5:1", "5:1 1000001:3", "5:1 123456789012:3"]}
    ).json()["predictions"]
    assert others == [known] * 2
    answer = server.predict("fm", {"instances": ["5:1 1000000:3"]})
    assert (answer.status, "id out of range" in answer.error) == (400, True)


ZERO = {"ids": [0, 5], "values": [3.0, 1.0]}
FROM_0 = [
    ("a line", {"instances": ["5:1", "0:3 5:1"]}),
    ("a line with a label", {"instances": ["5:1", "+1 0:3 5:1"]}),
    ("an object", {"instances": [{"ids": [5]}, ZERO]}),
    ("a named object", {"instances": [{"features": "5:1"}, {"features": ZERO}]}),
    ("columns", {"inputs": {"features": ["5:1", ZERO]}}),
    (
        "arrays",
        {"inputs": {"features.ids": [5, 0], "features.values": [1, 1], "features.lengths": [1, 1]}},
    ),
]


@pytest.mark.parametrize("name", ["lr", "three"])
@pytest.mark.parametrize("body", [body for _, body in FROM_0], ids=[why for why, _ in FROM_0])
def test_rows_that_count_from_0_are_refused_where_ids_count_from_1(
    server: Running, name: str, body: dict[str, Any]
) -> None:
    answer = server.predict(name, body)
    assert answer.status == 400
    expected = "id out of range (where: row 1; expected: 1 or more, as ids count from there; found: 0)"
    assert expected in answer.error


@pytest.mark.parametrize(("name", "first"), [("lr", 1), ("fm", 0)])
def test_the_api_document_says_what_an_id_is(server: Running, name: str, first: int) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    assert f"ids count from {first}" in json.dumps(paths[f"/v1/models/{name}:predict"])


def test_no_dense_rows_are_made(server: Running, files: Path) -> None:
    """2000 rows of a million numbers are 8 GB; what was asked above took the server a part of one."""
    for name, form in (("lr", lines(ROWS, 1)), ("fm", lines(ROWS, 0))):
        assert server.predict(name, {"instances": form}).status == 200
    status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    assert peak < 1_000_000  # KiB
    with conversion.converted(kind_of(files / "fm"), files / "fm", ConvertOptions(task="sigmoid")) as found:
        assert found.conversion["cost"]["memory_kib"] < 1_000_000


# --- the programs' own answers ---


def test_lines_of_a_file_get_the_answers_of_liblinears_predict(
    real_data: Callable[[str], Path], tmp_path: Path
) -> None:
    tools = pytest.importorskip("liblinear.liblinearutil")
    labels, rows = tools.svm_read_problem(str(real_data(HEART)))
    model = tools.load_model(str(real_data(f"{HEART}.model")))
    expected, _, decided = tools.predict(labels, rows, model, "-q")
    done = run("export", real_data(f"{HEART}.model"), tmp_path / "base" / "heart", "--sparse")
    assert done.returncode == 0, done.stderr
    with serving(tmp_path / "base", tmp_path / "log") as server:
        sent = real_data(HEART).read_text().splitlines()
        found = server.predict("heart", {"instances": sent}).json()["predictions"]
    assert [row["label"] for row in found] == expected
    assert [np.float32(row["score"]) for row in found] == [np.float32(one) for (one,) in decided]
    assert np.mean([row["label"] == one for row, one in zip(found, labels, strict=True)]) > 0.84


@pytest.mark.parametrize(
    ("solver", "bias", "classes"),
    [(0, 2.5, 2), (0, -1, 4), (7, 2.5, 4), (4, -1, 2), (4, 2.5, 4), (1, -1, 4), (5, 2.5, 2), (11, 2.5, 2),
     (13, -1, 2), (21, -1, 2)],
)  # fmt: skip
def test_solvers_of_liblinear(solver: int, bias: float, classes: int, tmp_path: Path) -> None:
    path = linear_model(tmp_path / "m", solver, bias, classes)
    facts, loaded = exported(path, tmp_path / "base", sparse=True)
    assert (facts["compared_with"], facts["rows"]) == ("liblinear", 65)
    assert facts["max_error"] < 1e-7
    assert list(loaded.signatures["serving_default"].sparse) == ["features"]


@pytest.mark.parametrize(
    ("svm", "classes", "probable"), [(0, 2, 1), (1, 4, 1), (0, 4, 0), (2, 2, 0), (3, 2, 0)]
)
def test_linear_kernels_of_libsvm(svm: int, classes: int, probable: int, tmp_path: Path) -> None:
    tools = pytest.importorskip("libsvm.svmutil")
    rows = [{i + 1: v for i, v in enumerate(row)} for row in RNG.standard_normal((80, 5)).tolist()]
    label = [
        row[1] if svm == 3 else float(np.digitize(row[1], [-0.5, 0, 0.5][: classes - 1])) for row in rows
    ]
    model = tools.svm_train(label, rows, f"-s {svm} -t 0 -b {probable} -n 0.1 -q")
    tools.svm_save_model(str(tmp_path / "m"), model)
    facts, _ = exported(tmp_path / "m", tmp_path / "base", sparse=True)
    assert (facts["compared_with"], facts["rows"]) == ("libsvm", 65)
    assert facts["max_error"] < 1e-6
    text = (tmp_path / "m").read_text().replace("linear", "rbf\ngamma 1", 1)
    (tmp_path / "m").write_text(text)
    with pytest.raises(UsageError, match="only a linear kernel"):
        exported(tmp_path / "m", tmp_path / "base", sparse=True)


def test_real_lines_of_libfm(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Apps and contexts: ten ids in a row."""
    sent = (
        gzip.decompress(real_data("12_ctr_data/frappe.test.libfm.gz").read_bytes())
        .decode()
        .splitlines()[:300]
    )
    pairs = [[word.split(":") for word in line.split()[1:]] for line in sent]
    rows: list[Row] = [([int(i) for i, _ in row], [float(v) for _, v in row]) for row in pairs]
    size = 5500
    (tmp_path / "m").write_text(libfm_text(-1.5, SINGLE[:size], VECTORS[:size]))
    _, loaded = exported(tmp_path / "m", tmp_path / "base", task="regression", clip=(-1.0, 1.0))
    expected = np.clip(fm(rows, -1.5, SINGLE[:size], VECTORS[:size])[:, 0], -1, 1)
    assert 0 < (np.abs(expected) < 1).sum() < 300
    np.testing.assert_allclose(loaded.run(parts(rows))["score"], expected, rtol=1e-5, atol=1e-5)


# --- which form ---

FORMS = [
    (feature_rows.SPARSE_FROM - 1, None, False),
    (feature_rows.SPARSE_FROM, None, True),
    (feature_rows.SPARSE_FROM, False, False),
    (3, True, True),
]


@pytest.mark.parametrize(("size", "asked", "sparse"), FORMS)
@pytest.mark.parametrize("kind", ["liblinear", "libfm"])
def test_many_features_are_sparse_unless_the_user_says_otherwise(
    kind: str, size: int, asked: bool | None, sparse: bool, tmp_path: Path
) -> None:
    """Either form has the same answers."""
    text = (
        libfm_text(0.25, SINGLE[:size], VECTORS[:size])
        if kind == "libfm"
        else liblinear_text(THREE[:size], "1 2 3")
    )
    (tmp_path / "m").write_text(text)
    task = {"task": "probit"} if kind == "libfm" else {}
    _, loaded = exported(tmp_path / "m", tmp_path / "base", sparse=asked, **task)
    assert bool(loaded.signatures["serving_default"].sparse) is sparse
    rows: list[Row] = [([0, 2], [1.0, -0.5]), ([], []), ([size - 1], [0.5])]
    wide = np.zeros((3, size), np.float32)
    for at, (ids, values) in enumerate(rows):
        wide[at, ids] = values
    first = int(kind == "liblinear")
    given = {**parts(moved(rows, first))} if sparse else {"features": wide}
    if first and sparse:
        given["features.values"] = given["features.values"].astype(np.float64)
    chances = loaded.run(given)["probabilities"]
    if kind == "liblinear":
        each = 1 / (1 + np.exp(-(wide @ THREE[:size] + CONSTANT)))
        np.testing.assert_allclose(chances, each / each.sum(1, keepdims=True), rtol=1e-5)
    else:
        sums = fm(rows, 0.25, SINGLE[:size], VECTORS[:size])[:, 0]
        expected = [(1 + math.erf(y / math.sqrt(2))) / 2 for y in sums]
        np.testing.assert_allclose(chances[:, 1], expected, rtol=1e-5, atol=1e-6)


def test_the_flags(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(liblinear_text(THREE[:5000], "1 2 3"))
    for flags, words in (((), "sparse"), (("--no-sparse",), "5000"), (("--sparse",), "sparse")):
        done = run("export", tmp_path / "m", tmp_path / "base", "--json", *flags)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    np.savez(tmp_path / "rows.npz", **parts([([1, 7], [1, 2]), ([], [])]) | {"features.values": np.ones(2)})
    done = run("export", tmp_path / "m", tmp_path / "base", "--example", tmp_path / "rows.npz")
    assert done.returncode == 0, done.stderr
    done = run("export", Path(mserve.__file__), tmp_path / "base", "--from", "xgboost", "--sparse")
    assert (done.returncode, "sparse says nothing" in done.stderr) == (2, True)


# --- trees ---


def csr(rows: list[Row], width: int) -> Any:
    sparse = pytest.importorskip("scipy.sparse")
    given = parts(rows, "x")
    starts = np.concatenate([[0], np.cumsum(given["x.lengths"])])
    return sparse.csr_matrix(
        (given["x.values"].astype(np.float64), given["x.ids"], starts), (len(rows), width)
    )


def test_a_real_model_of_sparse_categories(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """5057 features, of which the trees read some: the file's lines get LightGBM's answers for the file."""
    lgb = pytest.importorskip("lightgbm")
    packed = real_data("11_gbdt_svm_linear/lightgbm_sparse_categorical_model.txt.gz")
    (tmp_path / "m.txt").write_bytes(gzip.decompress(packed.read_bytes()))
    facts, _ = exported(tmp_path / "m.txt", tmp_path / "base" / "trees", sparse=True)
    assert facts["max_error"] < 1e-6
    file = real_data("11_gbdt_svm_linear/treelite_sparse_cat.test")
    booster = lgb.Booster(model_file=tmp_path / "m.txt", params={"verbosity": -1})
    expected = booster.predict(str(file), predict_disable_shape_check=True)
    with serving(tmp_path / "base", tmp_path / "log") as server:
        found = server.predict("trees", {"instances": file.read_text().splitlines()}).json()["predictions"]
        assert server.predict("trees", {"instances": []}).json() == {"predictions": []}
        twice = server.predict("trees", {"instances": ["7:1 7:5", "7:5", "5057:1"][:2]}).json()["predictions"]
        assert server.predict("trees", {"instances": ["5057:1"]}).status == 400
    np.testing.assert_allclose([row["probabilities"][1] for row in found], expected, atol=1e-6)
    assert twice[0] == twice[1]


@pytest.mark.parametrize(
    ("why", "parameters"),
    [
        ("zeros are values", {}),
        ("zeros are missing", {"zero_as_missing": True}),
        ("nothing is missing", {"use_missing": False}),
        (
            "three classes, categories",
            {"objective": "multiclass", "num_class": 3, "categorical_feature": "3,40"},
        ),
        ("no trees to speak of", {"min_data_in_leaf": 10_000}),
    ],
)
def test_sparse_trees_of_lightgbm(why: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    """A feature that a row leaves out is 0, whatever that means to the model."""
    lgb = pytest.importorskip("lightgbm")
    rng = np.random.default_rng(1)
    x = np.where(rng.random((400, 60)) < 0.3, np.round(rng.standard_normal((400, 60)) * 2), 0)
    x[:, [3, 40]] = rng.integers(0, 5, (400, 2))
    y = (x[:, 3] > 2) * 1.0 + (x[:, 50] + x[:, 7] > 0)
    settings = {
        "verbosity": -1,
        "num_threads": 1,
        "objective": "regression",
        "min_data_in_leaf": 3,
    } | parameters
    lgb.train(settings, lgb.Dataset(x, y), 5).save_model(tmp_path / "m.txt")
    facts, loaded = exported(tmp_path / "m.txt", tmp_path / "base", sparse=True)
    assert (facts["compared_with"].split()[0], facts["rows"]) == ("lightgbm", 257)
    rows: list[Row] = [(np.flatnonzero(row), row[row != 0].astype(np.float32)) for row in x]
    booster = lgb.Booster(model_file=tmp_path / "m.txt", params={"verbosity": -1})
    found = loaded.run(parts(rows))
    answer = found["score"] if "score" in found else found["probabilities"]
    np.testing.assert_allclose(answer, booster.predict(csr(rows, 60)), rtol=1e-6, atol=1e-6)


# --- Spark ---


@pytest.mark.parametrize(
    "name",
    [
        "lr",
        "lr_thr",
        "lr_multi",
        "svc",
        "linreg",
        "glm_poisson",
        "ovr",
        "mllib_lr",
        "mllib_svm",
        "mllib_linreg",
    ],
)
def test_linear_models_of_spark(name: str, saved: Path, tmp_path: Path) -> None:  # noqa: F811
    """Sparse rows have the answers of whole rows, which are held to Spark's elsewhere."""
    _, whole = exported(saved / name, tmp_path / "dense")
    _, loaded = exported(saved / name, tmp_path / "sparse", sparse=True)
    (port,) = loaded.signatures["serving_default"].sparse.values()
    assert port.shape == ("batch", whole.signatures["serving_default"].inputs["features"].shape[1])
    rng = np.random.default_rng(0)
    x = np.where(rng.random((50, int(port.shape[1]))) < 0.5, rng.standard_normal((50, int(port.shape[1]))), 0)
    rows: list[Row] = [(np.flatnonzero(row), row[row != 0]) for row in x]
    expected, found = whole.run({"features": x.astype(np.float32)}), loaded.run(parts(rows))
    for output, answer in expected.items():
        np.testing.assert_allclose(found[output], answer, rtol=1e-5, atol=1e-6)


REFUSED = [("rf", InputError, "wants whole rows"), ("text_tf", UsageError, "no input is a vector")]


@pytest.mark.parametrize(("name", "error", "said"), REFUSED)
def test_what_cannot_take_sparse_rows_says_so(
    name: str,
    error: type[MserveError],
    said: str,
    saved: Path,  # noqa: F811
) -> None:
    convert = named("spark").convert
    assert convert is not None
    with pytest.raises(error, match=said):
        convert(str(saved / name), ConvertOptions(sparse=True))
