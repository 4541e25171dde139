"""A real Wide & Deep model of TensorFlow 1: words in vocabularies and hash buckets, sparse lookups."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_tools import serving
from tf_examples import Example, asked, packed, parts, serialised

import mserve
from mserve.exporters import sources
from mserve.tensors import Signature

needs_tf = pytest.mark.skipif(
    bool(sources.missing(sources.named("saved-model"))), reason="needs pip install 'mserve[tf]'"
)
DATA = "08_tfx_wide_deep"
ROWS, COMPARED, SERVED = 3000, 200, 20
AUC = 0.906
AS = {"string": str, "float32": float, "int64": lambda text: int(float(text))}


@dataclass(frozen=True)
class Taxi:
    """The model as it was, the bundle, and trips with whether the tip was above a fifth of the fare."""

    source: Path
    bundle: Path
    trips: list[Example]
    generous: Any


@pytest.fixture(scope="module")
def taxi(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Taxi:
    source = real_data(f"{DATA}/saved_model_1646034756")
    done = mserve.export(source, tmp_path_factory.mktemp("taxi") / "taxi")
    with gzip.open(real_data(f"{DATA}/taxi_data.csv.gz"), "rt") as file:
        rows = list(islice(csv.DictReader(file), ROWS))
    signature = done.metagraph.signatures["predict"]
    generous = np.array([float(row["tips"] or 0) > 0.2 * float(row["fare"] or 0) for row in rows])
    return Taxi(source, done.path, [trip(signature, row) for row in rows], generous)


def trip(signature: Signature, row: dict[str, str]) -> Example:
    """A row's features; what is missing has no entry."""
    return {
        alias: [AS[port.dtype](row[alias])] if row[alias] else [] for alias, port in signature.sparse.items()
    }


def auc(scores: Any, positive: Any) -> float:
    """The share of pairs that the scores order rightly; equal scores are half right."""
    _, place, many = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(many) - (many - 1) / 2)[place]
    count = int(positive.sum())
    least = count * (count + 1) / 2
    return float((ranks[positive].sum() - least) / (count * (len(positive) - count)))


@needs_tf
def test_it_ranks_trips_as_it_did(taxi: Taxi) -> None:
    model = mserve.load(taxi.bundle)
    answers = model.run(parts(model.signatures["predict"], taxi.trips), "predict")
    assert auc(answers["logistic"][:, 0], taxi.generous) == pytest.approx(AUC, abs=0.001)


@needs_tf
def test_it_answers_as_tensorflow_does(taxi: Taxi, tmp_path: Path) -> None:
    """Together and alone, features missing in every trip, and no features at all."""
    some = taxi.trips[:COMPARED]
    assert any(not values for example in some for values in example.values())
    batches = [some, some[:1], [{}, {}], [{**example, "company": []} for example in some[:5]]]
    model = mserve.load(taxi.bundle)
    signature = model.signatures["predict"]
    assert {s.batch_axis for s in model.signatures.values()} == {0}
    for batch, answers in zip(batches, asked(taxi.source, "predict", batches, tmp_path), strict=True):
        found = model.run(parts(signature, batch), "predict")
        assert found.keys() == answers.keys()
        for alias, array in answers.items():
            if array.dtype.kind == "f":
                np.testing.assert_allclose(found[alias], array, rtol=1e-6, atol=2e-6, err_msg=alias)
            else:
                assert found[alias].astype(str).tolist() == array.astype(str).tolist(), alias


@needs_tf
def test_examples_are_classified_over_rest(taxi: Taxi, tmp_path: Path) -> None:
    some = taxi.trips[:SERVED]
    model = mserve.load(taxi.bundle)
    expected = model.run(parts(model.signatures["predict"], some), "predict")["probabilities"]
    body = {"examples": [{k: v for k, v in x.items() if v} for x in some]}
    named = body | {"signature_name": "regression"}
    raw = {"signature_name": "predict", "inputs": {"examples": [packed(serialised(x)) for x in some]}}
    with serving(taxi.bundle.parent, tmp_path / "log") as server:
        predicted = server.predict("taxi", raw)
        classified, regressed = (
            server.ask("POST", f"/v1/models/taxi:{verb}", json.dumps(asked_for).encode())
            for verb, asked_for in (("classify", body), ("regress", named))
        )
    np.testing.assert_allclose(predicted.json()["outputs"]["probabilities"], expected, rtol=1e-6)
    results = classified.json()["results"]
    assert [[label for label, _ in row] for row in results] == [["0", "1"]] * SERVED
    np.testing.assert_allclose([[score for _, score in row] for row in results], expected, rtol=1e-6)
    np.testing.assert_allclose(regressed.json()["results"], expected[:, 1], rtol=1e-6)
