"""Models that people trained in frameworks of the past: from their files to the accuracy they had.

Each goes through the whole command (`mserve export`, then the bundle answers), and nothing but
the real data says whether it is right.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mnist_rows
import numpy as np
import onnxruntime as ort
import pytest
from test_commands import run

import mserve

Find = Callable[[str], Path]
DIGITS = "10_mnist_legacy"
# Source, options, how pixels become inputs, the input's name, and how many of the thousand are right.
WEIGHTS = ("--weights", "lenet_iter_10000.caffemodel")
MODELS = [
    ("torch7_mlp_model.t7", (), lambda p: (p - 33.3184) / 78.5675, "x", 994),
    ("lenet_deploy.prototxt", WEIGHTS, lambda p: p[:, None] / 256, "data", 998),
    (
        "lenet_image_memory_data.prototxt",
        (*WEIGHTS, "--input", "data:float32[batch,1,28,28]"),
        lambda p: p[:, None] / 256,
        "data",
        998,
    ),
    ("theano_logreg_best_model.pkl", (), lambda p: p.reshape(-1, 784) / 255, "x", 940),
]  # fmt: skip


@pytest.mark.parametrize(("file", "options", "prepare", "name", "right"), MODELS, ids=[m[0] for m in MODELS])
def test_digits_are_read_as_well_as_ever(
    file: str,
    options: tuple[str, ...],
    prepare: Callable[[Any], Any],
    name: str,
    right: int,
    real_data: Find,
    tmp_path: Path,
) -> None:
    pixels, shown = mnist_rows.digits(real_data(f"{DIGITS}/mnist_1000.tfrecord.gz"))
    words = [real_data(f"{DIGITS}/{w}") if w.endswith(".caffemodel") else w for w in options]
    exported = run("export", real_data(f"{DIGITS}/{file}"), tmp_path / "base", *words)
    assert exported.returncode == 0, exported.stderr
    assert run("validate", tmp_path / "base").returncode == 0
    model = mserve.load(tmp_path / "base")
    found = model.run({name: prepare(pixels.astype(np.float64)).astype(np.float32)})
    assert int((found["label"] == shown).sum()) == right
    assert np.allclose(found["probabilities"].sum(1), 1, atol=1e-5)
    facts = json.loads(run("inspect", tmp_path / "base", "--json").stdout)
    assert facts["signatures"]["serving_default"]["batch_axis"] == 0


COLUMNS = (
    "idx,id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,"
    "device_id,device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
).split(",")


def test_clicks_are_foretold_as_by_spark(real_data: Find, tmp_path: Path) -> None:
    """23,299 rows of Avazu: AUC 0.8125, logloss 0.3513, and what another's rewrite of the weights gives."""
    pytest.importorskip("pyarrow")
    exported = run("export", real_data("09_avazu_spark_lr/model"), tmp_path / "base")
    assert exported.returncode == 0, exported.stderr
    with gzip.open(real_data("09_avazu_spark_lr/avazu_stream_23299.csv.gz"), "rt") as file:
        rows = list(csv.reader(file))
    other = ort.InferenceSession(
        real_data("09_avazu_spark_lr/derived_avazu_lr_16strings.onnx"), providers=["CPUExecutionProvider"]
    )
    model = mserve.load(tmp_path / "base")
    columns = {
        name: np.array([row[COLUMNS.index(name)] for row in rows], object)
        for name in (value.name for value in other.get_inputs())
    }
    clicked = np.array([row[2] == "1" for row in rows])
    found = model.run(columns)
    chances = found["probabilities"][:, 1].astype(np.float64)
    assert np.abs(chances - other.run(None, columns)[0]).max() < 1e-6
    assert round(area(chances, clicked), 4) == 0.8125
    loss = -np.where(clicked, np.log(chances), np.log1p(-chances)).mean()
    assert round(float(loss), 4) == 0.3513
    assert np.array_equal(found["label"] == 1, chances > 0.22)  # the threshold that the model was saved with
    assert (tmp_path / "base" / "00000001" / "export.meta").stat().st_size < 4_000_000


def area(scores: Any, positive: Any) -> float:
    """The area under the ROC curve: how often a positive row has the higher score, ties for half."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    many, few = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - many * (many + 1) / 2) / (many * few))
