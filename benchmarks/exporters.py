"""What conversions cost and what they give: a table on stdout.

    python benchmarks/exporters.py cost [MODEL...]    time, memory and error of each conversion
    python benchmarks/exporters.py rows               rows a second, against the framework's predict

`cost` trains a small model of each kind whose framework is installed, and takes further
model files. `rows` interleaves our runs and the framework's, takes the best of many of each,
and prints the ratio: what matters on a machine that is shared.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import mserve
from mserve.exporters import conversion, sources
from mserve.exporters.kinds import ConvertOptions
from mserve.exporters.pipeline import Options, export

ROWS, FEATURES, TURNS = 20_000, 30, 60
BATCHES = (1, 256)
Predict = Callable[[Any], Any]


def data() -> tuple[Any, Any]:
    """Features and two classes, float32 [ROWS, FEATURES] and int64 [ROWS]."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, FEATURES)).astype(np.float32)
    return x, ((x[:, 0] * x[:, 1] + x[:, 2]) > 0).astype(np.int64)


def models(directory: Path) -> Iterator[tuple[str, Path, Predict]]:
    """A trained model of each kind that is installed: its name, its file, the framework's own predict."""
    x, y = data()
    try:
        import xgboost

        booster = xgboost.train({"max_depth": 6, "objective": "binary:logistic"}, xgboost.DMatrix(x, y), 200)
        booster.save_model(directory / "xgboost.json")
        yield "xgboost", directory / "xgboost.json", booster.inplace_predict
    except ImportError:
        pass
    try:
        import lightgbm

        parameters = {"objective": "binary", "num_leaves": 63, "verbosity": -1}
        forest = lightgbm.train(parameters, lightgbm.Dataset(x, y), 200)
        forest.save_model(directory / "lightgbm.txt")
        yield "lightgbm", directory / "lightgbm.txt", forest.predict
    except ImportError:
        pass
    rows = [{i + 1: float(v) for i, v in enumerate(row)} for row in x[:2000]]
    try:
        from liblinear import liblinearutil

        linear = liblinearutil.train(y[:2000].tolist(), rows, "-s 0 -q")
        liblinearutil.save_model(str(directory / "liblinear.model"), linear)
        scipy_rows = _sparse(liblinearutil.predict, linear, "-b 1 -q")
        yield "liblinear", directory / "liblinear.model", scipy_rows
    except ImportError:
        pass
    try:
        from libsvm import svmutil

        machine = svmutil.svm_train(y[:2000].tolist(), rows, "-q")
        svmutil.svm_save_model(str(directory / "libsvm.model"), machine)
        yield "libsvm", directory / "libsvm.model", _sparse(svmutil.svm_predict, machine, "-q")
    except ImportError:
        pass


def _sparse(predict: Callable[..., Any], model: Any, flags: str) -> Predict:
    """The framework's predict over rows in its own form, made before the clock runs."""
    kept: dict[int, Any] = {}

    def run(x: Any) -> Any:
        rows = kept.setdefault(id(x), [{i + 1: float(v) for i, v in enumerate(row)} for row in x])
        return predict([], rows, model, flags)

    return run


def cost(paths: list[Path]) -> None:
    print("source\treader\tfile\tseconds\tchild seconds\tchild MB\tmax error\tcompared with")
    with tempfile.TemporaryDirectory() as work:
        made = [path for _, path, _ in models(Path(work))]
        for path in [*made, *paths]:
            start = time.monotonic()
            done = export(path, Path(work) / "base", Options())
            seconds = time.monotonic() - start
            facts = done.metagraph.provenance["conversion"]
            kind = sources.kind_of(path)
            with conversion.converted(kind, path, replace(ConvertOptions())) as parts:
                child = parts.conversion["cost"]
            error = "-" if facts["max_error"] is None else f"{facts['max_error']:.1e}"
            reader = "own" if not kind.modules else ", ".join(kind.modules)
            figures = f"{seconds:.2f}\t{child['seconds']:.2f}\t{child['memory_kib'] / 1024:.0f}"
            print(f"{kind.name}\t{reader}\t{path.name}\t{figures}\t{error}\t{facts['compared_with'] or '-'}")


def rows() -> None:
    print("source\tbatch\trows/s bundle\trows/s framework\tratio")
    x, _ = data()
    with tempfile.TemporaryDirectory() as work:
        for name, path, predict in models(Path(work)):
            done = export(path, Path(work) / name, Options(isolate=False))
            bundle = mserve.load(done.path)
            for batch in BATCHES:
                part = x[:batch].copy()
                ours, theirs = _best(
                    lambda p=part, b=bundle: b.run({"features": p}), lambda p=part, f=predict: f(p)
                )
                rates = f"{batch / ours:.0f}\t{batch / theirs:.0f}"
                print(f"{name}\t{batch}\t{rates}\t{theirs / ours:.2f}")


def _best(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """The shortest time of each in seconds, over turns that alternate."""
    best = [float("inf"), float("inf")]
    for _ in range(TURNS):
        for index, call in enumerate((first, second)):
            start = time.perf_counter()
            for _ in range(5):
                call()
            best[index] = min(best[index], (time.perf_counter() - start) / 5)
    return best[0], best[1]


def main() -> None:
    warnings.simplefilter("ignore")
    match sys.argv[1:]:
        case ["cost", *paths]:
            cost([Path(path) for path in paths])
        case ["rows"]:
            rows()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
