"""Train a scikit-learn pipeline on a table of numbers, categories and text, export it, and ask both.

python sklearn_table.py BASE_PATH       needs mserve[sklearn]
"""

from __future__ import annotations

import sys

import data
import numpy as np
import pandas
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import mserve

SHADES = np.array(["", "clair", "foncé", "très_foncé"])


def table() -> tuple[pandas.DataFrame, np.ndarray]:
    """Digits as a table: how much ink, where it is most, and the shades of the middle pixels in words."""
    pixels, digit = data.digits()
    shades = SHADES[(pixels * 3).round().astype(int)]
    words = [" ".join(f"p{i}_{shade}" for i, shade in enumerate(row) if shade) for row in shades]
    darkest = np.array(["ABCDEFGH"[i] for i in pixels.reshape(-1, 8, 8).sum(1).argmax(1)])
    return pandas.DataFrame({"ink": pixels.sum(1), "column": darkest, "words": words}), digit


def main(base: str) -> None:
    rows, digit = table()
    train, test = data.split(len(digit))
    columns = make_column_transformer(
        (StandardScaler(), ["ink"]),
        (OneHotEncoder(handle_unknown="ignore"), ["column"]),
        (TfidfVectorizer(), "words"),
    )
    model = make_pipeline(columns, LogisticRegression(C=10, max_iter=300))
    model.fit(rows.iloc[train], digit[train])
    done = mserve.export(model, base, version="auto", example=rows.iloc[test[:16]])
    print("\n".join(done.notes))
    asked = {name: rows[name].to_numpy()[test].reshape(-1, 1) for name in rows}
    asked = {k: x.astype(np.float32) if x.dtype.kind == "f" else x.astype(object) for k, x in asked.items()}
    found = mserve.load(done.path).run(asked)["label"]
    own = model.predict(rows.iloc[test])
    right = [np.mean(answer == digit[test]) for answer in (own, found)]
    print(f"accuracy: scikit-learn {right[0]:.4f}, bundle {right[1]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
