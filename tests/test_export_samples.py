"""The scripts of samples/exports: each trains, exports, and the bundle is as good as the framework."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mserve

pytestmark = pytest.mark.slow
SAMPLES = Path(__file__).parent.parent / "samples" / "exports"


def ran(name: str, base: Path, **environment: str) -> str:
    """What a script prints."""
    root = str(SAMPLES.parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH", "")])])
    words = [sys.executable, str(SAMPLES / name), str(base)]
    kept = {k: v for k, v in os.environ.items() if k != "MSERVE_ADS"}
    given = kept | {"PYTHONPATH": path} | environment
    done = subprocess.run(words, capture_output=True, text=True, env=given, check=False)
    assert done.returncode == 0, done.stderr
    assert "answers equal those of" in done.stdout
    return done.stdout


def pairs(text: str) -> list[tuple[float, float]]:
    """The framework's figure and the bundle's, line by line."""
    found = re.findall(r"(?:accuracy|AUC)\b.*?([01]\.\d+), bundle ([01]\.\d+)", text)
    return [(float(own), float(bundle)) for own, bundle in found]


def test_torch(base: Path) -> None:
    pytest.importorskip("torch")
    ((own, bundle),) = pairs(ran("torch_digits.py", base))
    assert own == bundle > 0.95


def test_scikit_learn(base: Path) -> None:
    pytest.importorskip("skl2onnx")
    pytest.importorskip("pandas")
    ((own, bundle),) = pairs(ran("sklearn_table.py", base))
    assert own == bundle > 0.9


def test_boosted_trees(base: Path) -> None:
    pytest.importorskip("xgboost")
    found = pairs(ran("boosted_digits.py", base))
    assert all(own == bundle > 0.9 for own, bundle in found)
    assert found


MODELS = ["fm", "gbdt", "lr", "mixture"]


def columns(text: str, head: str) -> list[list[str]]:
    """The words of the lines of a table, whose first line begins with `head`."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    end = next((i for i, line in enumerate(lines) if i > start and not line.strip()), len(lines))
    return [line.split() for line in lines[start:end]]


@pytest.mark.parametrize("real", [False, True], ids=["digits", "ad clicks"])
def test_ads(
    real: bool, base: Path, real_data: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, exported, held to the frameworks, compared by `mserve diff`, and served side by side."""
    pytest.importorskip("torch")
    pytest.importorskip("lightgbm")
    path = str(real_data("12_ctr_data/avazu_train.csv.gz")) if real else ""
    text = ran("ads.py", base, MSERVE_ADS=path)
    assert sorted(one.name for one in base.iterdir()) == MODELS
    assert ("8087 rows of Avazu" in text) == real

    _, *found = columns(text, "AUC")
    aucs = {name: float(bundle) for name, _, bundle, *_ in found}
    assert sorted(aucs) == MODELS
    for name, own, bundle, *note in found:
        assert float(bundle) == pytest.approx(float(own), abs=1e-5), text
        assert float(own) > 0.6, text
        assert " ".join(note).startswith("answers equal those of"), name

    head, *changes = columns(text, "mserve diff lr fm")
    assert head[4] == "compatible:"
    said = {" ".join(words[1:-3]): [float(words[-3]), float(words[-1])] for words in changes[1:]}
    assert changes[0][0] == "answers-moved:"
    assert said["AUC"] == pytest.approx([aucs["lr"], aucs["fm"]], abs=1e-5), text
    assert set(said) == {"AUC", "log-loss"}

    names, *rows = columns(text, "served")
    assert names == ["served", *MODELS, "clicked"]
    assert [row[-1] for row in rows] == ["yes"] * 3 + ["no"] * 3
    scores = np.array([row[2:-1] for row in rows], float)
    monkeypatch.setenv("MSERVE_ADS", path)
    monkeypatch.syspath_prepend(str(SAMPLES))
    data = importlib.import_module("data")
    ids, clicked, _ = data.clicks()
    test = data.split(len(ids))[1]
    some = np.concatenate([test[clicked[test] == one][:3] for one in (1, 0)])
    again = [asked(base, name, ids[some]) for name in MODELS]
    np.testing.assert_allclose(scores, np.transpose(again), atol=1e-4)


def asked(base: Path, name: str, rows: np.ndarray) -> list[float]:
    """What a bundle answers to some rows, without a server."""
    model = mserve.load(base / name)
    inputs = {"features": rows.astype(np.float32)} if name == "gbdt" else {"ids": rows}
    found = model.run(inputs)
    model.close()
    answers: list[float] = (found["p_click"] if "p_click" in found else found["probabilities"][:, 1]).tolist()
    return answers
