"""Train the same boosted trees with every library that is installed, export them, and ask both.

python boosted_digits.py BASE_PATH      needs mserve[xgboost], mserve[lightgbm] or mserve[catboost]

The bundles are BASE_PATH/xgboost and so on.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import data
import numpy as np

import mserve


def classifier(library: str) -> Any:
    """Forty rounds of trees of depth four."""
    if library == "xgboost":
        from xgboost import XGBClassifier

        return XGBClassifier(n_estimators=40, max_depth=4, n_jobs=2)
    if library == "lightgbm":
        from lightgbm import LGBMClassifier

        return LGBMClassifier(n_estimators=40, max_depth=4, n_jobs=2, verbosity=-1)
    from catboost import CatBoostClassifier

    return CatBoostClassifier(
        iterations=40, depth=4, verbose=False, allow_writing_files=False, thread_count=2
    )


def main(base: str) -> None:
    pixels, digit = data.digits()
    train, test = data.split(len(digit))
    for library in filter(find_spec, ("xgboost", "lightgbm", "catboost")):
        model = classifier(library).fit(pixels[train], digit[train])
        done = mserve.export(model, Path(base) / library)
        print(f"{library}: {done.notes[0]}")
        found = mserve.load(done.path).run({"features": pixels[test]})["label"]
        own = np.asarray(model.predict(pixels[test])).ravel()
        right = [np.mean(answer == digit[test]) for answer in (own, found)]
        print(f"accuracy: {library} {right[0]:.4f}, bundle {right[1]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
