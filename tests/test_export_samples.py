"""The scripts of samples/exports: each trains, exports, and the bundle is as good as the framework."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("real", [False, True], ids=["digits", "ad clicks"])
def test_ads(real: bool, base: Path, real_data: Callable[[str], Path]) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("lightgbm")
    environment = {"MSERVE_ADS": str(real_data("12_ctr_data/avazu_train.csv.gz"))} if real else {}
    text = ran("ads.py", base, **environment)
    found = pairs(text)
    assert sorted(path.name for path in base.iterdir()) == ["fm", "gbdt", "lr", "mixture"]
    assert len(found) == 4
    for own, bundle in found:
        assert bundle == pytest.approx(own, abs=1e-5), text
        assert own > 0.6, text
