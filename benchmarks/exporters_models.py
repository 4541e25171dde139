"""Models for `exporters.py`: small ones trained here, and real ones where the collection of them is.

A trainer writes a model file as its framework does, and tells how the framework predicts with
one thread or as it comes. What is not installed is left out.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from serving_requests import data_file

TESTS = Path(__file__).resolve().parent.parent / "tests"
ROWS, FEATURES, ROUNDS = 20_000, 30, 200
FEW = 2000  # rows for those that learn slowly, or from lists of Python
Predict = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Model:
    """A model file and what its export needs. `predicts` are the framework's own ways to answer rows,
    each a function of a number of threads (0: as it comes).
    """

    path: Path
    options: tuple[str, ...] = ()
    predicts: Mapping[str, Callable[[int], Predict]] = field(default_factory=dict)


def data(rows: int = ROWS) -> tuple[Any, Any]:
    """Features and two classes, float32 [rows, FEATURES] and int64 [rows]."""
    x = np.random.default_rng(0).standard_normal((ROWS, FEATURES)).astype(np.float32)[:rows]
    return x, ((x[:, 0] * x[:, 1] + x[:, 2]) > 0).astype(np.int64)


def xgboost(directory: Path) -> Model:
    import xgboost

    x, y = data()
    booster = xgboost.train({"max_depth": 6, "objective": "binary:logistic"}, xgboost.DMatrix(x, y), ROUNDS)
    booster.save_model(directory / "xgboost.json")

    def threads(count: int) -> Any:
        limited = booster.copy()
        if count:
            limited.set_param({"nthread": count})
        return limited

    def inplace(count: int) -> Predict:
        return threads(count).inplace_predict

    def matrix(count: int) -> Predict:
        limited = threads(count)
        return lambda x: limited.predict(xgboost.DMatrix(x))

    ways = {"Booster.inplace_predict": inplace, "Booster.predict(DMatrix)": matrix}
    return Model(directory / "xgboost.json", predicts=ways)


def lightgbm(directory: Path) -> Model:
    import lightgbm

    x, y = data()
    parameters = {"objective": "binary", "num_leaves": 63, "verbosity": -1}
    forest = lightgbm.train(parameters, lightgbm.Dataset(x, y), ROUNDS)
    forest.save_model(directory / "lightgbm.txt")

    def predict(count: int) -> Predict:
        return lambda x: forest.predict(x, num_threads=count)

    return Model(directory / "lightgbm.txt", predicts={"Booster.predict": predict})


def catboost(directory: Path) -> Model:
    import catboost

    x, y = data()
    model = catboost.CatBoostClassifier(
        iterations=ROUNDS, depth=6, verbose=False, allow_writing_files=False, thread_count=2
    )
    model.fit(x, y).save_model(str(directory / "catboost.cbm"))

    def predict(count: int) -> Predict:
        return lambda x: model.predict_proba(x, thread_count=count or -1)

    return Model(directory / "catboost.cbm", predicts={"predict_proba": predict})


def liblinear(directory: Path) -> Model:
    from liblinear import liblinearutil

    x, y = data(FEW)
    model = liblinearutil.train(y.tolist(), _sparse(x), "-s 0 -q")
    liblinearutil.save_model(str(directory / "liblinear.model"), model)
    way = _of_lists(liblinearutil.predict, model, "-b 1 -q")
    return Model(directory / "liblinear.model", predicts={"predict -b 1": way})


def libsvm(directory: Path) -> Model:
    from libsvm import svmutil

    x, y = data(FEW)
    model = svmutil.svm_train(y.tolist(), _sparse(x), "-q")
    svmutil.svm_save_model(str(directory / "libsvm.model"), model)
    return Model(
        directory / "libsvm.model", predicts={"svm_predict": _of_lists(svmutil.svm_predict, model, "-q")}
    )


def sklearn_logistic(directory: Path) -> Model:
    from sklearn.linear_model import LogisticRegression

    return _sklearn(directory / "logistic.joblib", LogisticRegression())


def sklearn_boosted(directory: Path) -> Model:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return _sklearn(directory / "boosted.joblib", HistGradientBoostingClassifier(max_iter=ROUNDS))


def sklearn_skops(directory: Path) -> Model:
    import skops.io
    from sklearn.linear_model import SGDClassifier

    x, y = data()
    skops.io.dump(SGDClassifier(loss="log_loss").fit(x, y), directory / "sgd.skops")
    return Model(directory / "sgd.skops")


def torchscript(directory: Path) -> Model:
    import torch

    layers = torch.nn.Sequential(torch.nn.Linear(FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    torch.jit.script(layers.eval()).save(str(directory / "mlp.pt"))
    shape = f"input:float32[batch,{FEATURES}]"
    return Model(directory / "mlp.pt", ("--trust", "--input", shape))


def pt2(directory: Path) -> Model:
    import torch

    layers = torch.nn.Sequential(torch.nn.Linear(FEATURES, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(layers.eval(), (torch.randn(2, FEATURES),), dynamic_shapes=batch)
    torch.export.save(program, directory / "mlp.pt2")
    return Model(directory / "mlp.pt2", ("--trust",))


def libfm(directory: Path) -> Model:
    rng = np.random.default_rng(0)
    weights, factors = rng.standard_normal(10_000), rng.standard_normal((10_000, 8)) / 5
    parts = ["#global bias W0", "0.25", "#unary interactions Wj", *map(str, weights)]
    parts += ["#pairwise interactions Vj,f", *(" ".join(map(str, row)) for row in factors)]
    (directory / "libfm.model").write_text("\n".join(parts) + "\n")
    return Model(directory / "libfm.model", ("--task", "sigmoid"))


def mahout(directory: Path) -> Model:
    sys.path.insert(0, str(TESTS))
    from test_mahout import logistic

    (directory / "mahout.bin").write_bytes(logistic())
    return Model(directory / "mahout.bin")


def table(directory: Path) -> Model:
    rows = [f"{key},{key % 97},{key / 7}" for key in range(ROWS)]
    (directory / "table.csv").write_text("\n".join(["id,count,rate", *rows]) + "\n")
    return Model(directory / "table.csv", ("--key", "id"))


FORESTS = ("xgboost", "lightgbm", "catboost", "sklearn_boosted")
BOOSTED_AND_LINEAR = (xgboost, lightgbm, catboost, sklearn_boosted, sklearn_logistic, liblinear, libsvm)
OTHERS = (sklearn_skops, torchscript, pt2, libfm, mahout, table)
LENET = "10_mnist_legacy/lenet_iter_10000.caffemodel"
REAL: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("02_magika/model.onnx", ()),
    ("11_gbdt_svm_linear/voice2gender_xgboost.json.gz", ()),
    ("11_gbdt_svm_linear/lightgbm_sparse_categorical_model.txt.gz", ()),
    ("11_gbdt_svm_linear/heart_scale.model", ()),
    ("11_gbdt_svm_linear/brisque_libsvm_epsSVR.txt", ()),
    ("09_avazu_spark_lr/model", ()),
    ("10_mnist_legacy/theano_logreg_best_model.pkl", ()),
    ("10_mnist_legacy/torch7_mlp_model.t7", ()),
    ("10_mnist_legacy/lenet_deploy.prototxt", ("--weights", LENET)),
    ("03_basic_pitch/nmp", ()),
    ("08_tfx_wide_deep/saved_model_1646034756", ()),
    ("13_tf1_and_keras/half_plus_two_sessionbundle/00000123", ()),
    ("13_tf1_and_keras/emotion_model.hdf5", ()),
)


def trained(directory: Path, trainers: Any) -> Iterator[tuple[str, Model | None]]:
    """Each trainer's name and model, None where its framework is not installed."""
    for train in trainers:
        try:
            yield train.__name__, train(directory)
        except ImportError:
            yield train.__name__, None


def real(directory: Path) -> Iterator[Model]:
    """The real models that are at hand, unpacked."""
    for name, options in REAL:
        path = data_file(name)
        if path is None:
            continue
        if path.suffix == ".gz":
            plain = directory / path.stem
            plain.write_bytes(gzip.decompress(path.read_bytes()))
            path = plain
        yield Model(path, tuple(str(data_file(word) or word) for word in options))


@contextmanager
def holding(count: int) -> Iterator[None]:
    """Keep the pools of threads of BLAS and OpenMP to `count`; leave them where it is 0."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(count or None):
        yield


def _sklearn(path: Path, model: Any) -> Model:
    """The threads of scikit-learn are those of BLAS and OpenMP: see `holding`."""
    import joblib

    joblib.dump(model.fit(*data()), path)
    return Model(path, ("--trust",), {"predict_proba": lambda count: model.predict_proba})


def _sparse(x: Any) -> list[dict[int, float]]:
    return [{i + 1: float(v) for i, v in enumerate(row)} for row in x]


def _of_lists(predict: Callable[..., Any], model: Any, flags: str) -> Callable[[int], Predict]:
    """A predict over rows in its own form, made before the clock runs, one for each number of rows."""
    kept: dict[int, Any] = {}

    def run(x: Any) -> Any:
        if len(x) not in kept:
            kept[len(x)] = _sparse(x)
        return predict([], kept[len(x)], model, flags)

    return lambda count: run
