"""Answers: both versions asked the same, and every way in which one of them does not answer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import pytest
from builders import FLOAT, Array, constant, floats, mlp, model, plain, save, strings, weight, words
from onnx import ModelProto, helper
from sklearn import metrics

import mserve
from mserve.compare import Diff, Options, diff
from mserve.compare.answers import beyond, measured, scores
from mserve.errors import InputError, UsageError


def scorer(*, scale: float = 1.0, shift: float = 0.0, seed: int = 0) -> ModelProto:
    """A score between 0 and 1 for each row of 4 numbers."""
    weights = [weight("w", floats(4, 1, seed=seed) * scale), weight("b", np.full(1, shift, np.float32))]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["l"]), helper.make_node("Sigmoid", ["l"], ["p"])]
    return model(nodes, [("x", FLOAT, ["N", 4])], [("p", FLOAT, ["N", 1])], weights)


X = floats(200, 4, seed=5)


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    np.savez(tmp_path / "requests.npz", x=X)
    return tmp_path / "requests.npz"


def files(tmp_path: Path, old: ModelProto, new: ModelProto) -> tuple[Path, Path]:
    return save(old, tmp_path / "old.onnx"), save(new, tmp_path / "new.onnx")


def outputs(found: Diff) -> dict[str, Any]:
    return {change.rule: change for change in found.level("outputs").changes}


def test_drift_and_ranks_of_scores(tmp_path: Path, requests: Path) -> None:
    old, new = files(tmp_path, scorer(), scorer(scale=2.0, shift=0.5))
    (change,) = outputs(diff(old, new, Options(inputs=requests))).values()
    assert change.rule == "answers-moved"
    assert change.facts["psi"] > 0.1
    assert 0 < change.facts["ks"] < 1
    assert change.facts["kendall_tau"] == pytest.approx(1, abs=1e-3)  # stretched: nobody changes places
    assert change.facts["top_overlap"] == 1
    worst = change.facts["worst_rows"][0]
    gaps = np.abs(plain(new, {"x": X})[0] - plain(old, {"x": X})[0]).ravel()
    assert worst["row"] == int(gaps.argmax())
    assert worst["gap"] == pytest.approx(float(gaps.max()))


def test_labels_give_metrics(tmp_path: Path, requests: Path) -> None:
    old, new = files(tmp_path, scorer(), scorer(seed=3))
    labels = (X @ floats(4, 1) > 0).astype(int).ravel()
    (tmp_path / "labels.txt").write_text("\n".join(map(str, labels)))
    np.save(tmp_path / "labels.npy", labels)
    np.savez(tmp_path / "labels.npz", y=labels)
    scores_of = [plain(path, {"x": X})[0].ravel() for path in (old, new)]
    for name in ("labels.txt", "labels.npy", "labels.npz"):
        found = diff(old, new, Options(inputs=requests, labels=tmp_path / name))
        by_name = {c.facts["metric"]: c for c in found.changes if c.rule == "metric"}
        assert by_name["AUC"].facts["old"] == pytest.approx(metrics.roc_auc_score(labels, scores_of[0]))
        assert by_name["AUC"].facts["new"] == pytest.approx(metrics.roc_auc_score(labels, scores_of[1]))
        assert by_name["log-loss"].facts["new"] == pytest.approx(metrics.log_loss(labels, scores_of[1]))


def test_golden_samples_are_asked_and_renamed_ports_followed(tmp_path: Path) -> None:
    old = mserve.export(mlp(), tmp_path / "m", golden=4).path
    renamed = mutations.names_changed(mutations.input_renamed(mlp()))
    found = diff(old, save(renamed, tmp_path / "new.onnx"), Options(run=True))
    assert {c.rule for c in found.changes if c.severity != "none"} == {"input-renamed"}
    assert found.level("outputs").summary == "serving_default: 4 row(s)"


def test_the_samples_of_new_do_where_old_has_none(tmp_path: Path) -> None:
    new = mserve.export(mlp(seed=1), tmp_path / "m", golden=3).path
    found = diff(save(mlp(), tmp_path / "old.onnx"), new)
    assert found.level("outputs").summary == "serving_default: 3 row(s)"
    assert set(outputs(found)) == {"answers-moved"}


def test_without_samples_it_says_how_to_record_some(tmp_path: Path) -> None:
    old = mserve.export(mlp(), tmp_path / "m", golden=0).path
    new = mserve.export(mlp(seed=1), tmp_path / "m", golden=0).path
    level = diff(old, new).level("outputs")
    assert level.verdict == "not compared"
    assert f"mserve export MODEL.onnx {tmp_path / 'm'} --golden REQUESTS.npz" in level.skipped
    found = diff(old, new, fail_on=["outputs"])
    assert set(outputs(found)) == {"no-samples"}
    assert found.failing(["outputs"])
    assert found.failing(["breaking"]) == []


def test_the_command_that_it_names_records_samples(tmp_path: Path, requests: Path) -> None:
    source = save(scorer(), tmp_path / "model.onnx")
    old = mserve.export(source, tmp_path / "m", golden=requests).path
    new = mserve.export(scorer(shift=0.5), tmp_path / "m", golden=0).path
    assert diff(old, new).level("outputs").summary == "serving_default: 200 row(s)"


FAILS = [
    ("ends its process", mutations.crashes, "new-fails", "SIGFPE"),
    ("takes a batch of one only", mutations.batch_of_one, "new-fails", "wrong shape"),
    ("never comes to an end", mutations.endless_copy, "new-fails", "no answer after 5 s"),
]


@pytest.mark.parametrize(("why", "change", "rule", "text"), FAILS, ids=[f[0] for f in FAILS])
def test_a_version_that_does_not_answer(
    tmp_path: Path, requests: Path, why: str, change: mutations.Mutation, rule: str, text: str
) -> None:
    old, new = files(tmp_path, scorer(), change(scorer()))
    options = Options(inputs=requests, seconds=5 if "never" in why else 60)
    found = outputs(diff(old, new, options))
    assert set(found) == {rule}, why
    assert text in found[rule].text
    if "process" in why:
        assert set(outputs(diff(new, old, options))) == {"old-fails"}


def test_a_model_that_the_engine_refuses_is_a_finding(tmp_path: Path, requests: Path) -> None:
    broken = mutations.copied(scorer())
    broken.graph.node[1].op_type = "NoSuchOperator"
    found = outputs(diff(*files(tmp_path, scorer(), broken), Options(inputs=requests)))
    assert set(found) == {"new-fails"}
    assert "NoSuchOperator" in found["new-fails"].text


def test_signatures_that_cannot_be_matched(tmp_path: Path, requests: Path) -> None:
    """An output without counterpart is said to be one; what has a counterpart is compared."""
    both = mutations.copied(scorer())
    both.graph.output.append(helper.make_tensor_value_info("l", FLOAT, ["N", 1]))
    found = outputs(diff(*files(tmp_path, both, scorer()), Options(inputs=requests)))
    assert set(found) == {"no-counterpart"}
    assert found["no-counterpart"].where == "serving_default.l"


LABELS = [
    ("too few", [0, 1, 1]),
    ("no classes that there are", list(range(200))),
    ("no whole numbers", [0.5] * 200),
]


@pytest.mark.parametrize(("why", "labels"), LABELS, ids=[x[0] for x in LABELS])
def test_labels_that_fit_no_output_are_refused(
    tmp_path: Path, requests: Path, why: str, labels: list[float]
) -> None:
    np.save(tmp_path / "labels.npy", np.array(labels))
    options = Options(inputs=requests, labels=tmp_path / "labels.npy")
    with pytest.raises(InputError, match="labels fit no output"):
        diff(*files(tmp_path, scorer(), scorer()), options)


def test_requests_of_another_model_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", pixel=np.zeros((2, 3), np.float32))
    with pytest.raises(InputError, match=r"neither an npz nor.*unknown 'pixel'"):
        diff(*files(tmp_path, scorer(), scorer()), Options(inputs=tmp_path / "other.npz"))


BAD = [
    ("no such file", "absent.npy", None),
    ("words", "labels.txt", b"yes\nno\n"),
    ("a pickle", "labels.npy", b"\x80\x04N."),
    ("NaN", "labels.txt", b"0\nnan\n"),
]


@pytest.mark.parametrize(("why", "name", "data"), BAD, ids=[b[0] for b in BAD])
def test_label_files_that_are_none(
    tmp_path: Path, requests: Path, why: str, name: str, data: bytes | None
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError):
        diff(*files(tmp_path, scorer(), scorer()), Options(inputs=requests, labels=tmp_path / name))


def test_a_json_request_and_an_unknown_signature(tmp_path: Path) -> None:
    old, new = files(tmp_path, scorer(), scorer(shift=1.0))
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"instances": X[:3].tolist()}))
    assert set(outputs(diff(old, new, Options(inputs=request)))) == {"answers-moved"}
    with pytest.raises(UsageError):
        diff(old, new, Options(inputs=request, signature="other"))
    request.write_text("{")
    with pytest.raises(InputError):
        diff(old, new, Options(inputs=request))


def test_text_in_and_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "r.npz", word=words("a", "é", "z").astype(str))
    changed = mutations.copied(strings())
    attribute = next(a for a in changed.graph.node[0].attribute if a.name == "default_float")
    attribute.f = 7.0
    old, new = files(tmp_path, strings(), changed)
    found = outputs(diff(old, new, Options(inputs=tmp_path / "r.npz")))
    assert set(found) == {"answers-moved"}
    assert found["answers-moved"].where == "serving_default.value"
    assert found["answers-moved"].facts["worst_rows"] == [{"row": 2, "old": -1.0, "new": 7.0, "gap": 8.0}]


def test_many_rows_run_in_parts(tmp_path: Path) -> None:
    """More rows than one run takes, in a bundle whose rows are independent."""
    np.savez(tmp_path / "r.npz", x=floats(2500, 4, seed=1))
    old = mserve.export(scorer(), tmp_path / "m", golden=2).path
    new = mserve.export(scorer(), tmp_path / "m", golden=0).path
    found = diff(old, new, Options(inputs=tmp_path / "r.npz"))
    assert found.level("outputs").summary == "serving_default: 2500 row(s)"
    assert outputs(found) == {}


def test_a_tolerance_for_one_output(tmp_path: Path, requests: Path) -> None:
    old, new = files(tmp_path, scorer(), scorer(shift=0.1))
    loose = Options(inputs=requests, tolerances={"serving_default.p": (0.5, 0.5)})
    assert set(outputs(diff(old, new, Options(inputs=requests)))) == {"answers-moved"}
    assert set(outputs(diff(old, new, loose))) == {"answers-close"}


ONES = np.ones((4, 1000), np.float32)


def nudged(by: float, count: int) -> Array:
    array = ONES.copy()
    array.reshape(-1)[:count] += np.float32(by)
    return array


BEYOND = [
    ("equal", ONES, ONES, True),
    ("within the row's tolerance", ONES, nudged(9e-4, 4000), True),
    ("beyond it", ONES, nudged(2e-3, 4000), False),
    ("a few strays", ONES, nudged(2e-3, 4), True),
    ("too many strays", ONES, nudged(2e-3, 5), False),
    ("one far off", ONES, nudged(0.02, 1), False),
    ("small values beside large ones", np.array([[1e-9, 1.0]]), np.array([[5e-4, 1.0]]), True),
    ("a number becomes NaN", ONES, nudged(math.nan, 1), False),
    ("NaN stays NaN", nudged(math.nan, 1), nudged(math.nan, 1), True),
    ("infinity stays infinity", nudged(math.inf, 1), nudged(math.inf, 1), True),
    ("a column has its own scale in each row", np.array([[1e-3], [1.0]]), np.array([[2e-3], [1.0]]), False),
    ("whole numbers are equal or not", np.array([[1, 2]]), np.array([[1, 3]]), False),
]


@pytest.mark.parametrize(("why", "was", "now", "equal"), BEYOND, ids=[b[0] for b in BEYOND])
def test_when_answers_have_moved(why: str, was: Array, now: Array, equal: bool) -> None:
    assert beyond(was, now, 1e-3, 1e-5).equal is equal, why


def test_what_counts_as_a_score() -> None:
    column = np.array([0.1, 0.9], np.float32)
    assert np.array_equal(scores(column), column)  # type: ignore[arg-type]
    assert np.array_equal(scores(column[:, None]), column)  # type: ignore[arg-type]
    assert np.array_equal(scores(np.stack([1 - column, column], 1)), column)  # type: ignore[arg-type]
    assert scores(np.eye(3, dtype=np.float32)) is None
    assert scores(np.array([1, 2])) is None
    assert scores(np.array([math.nan, 1.0])) is None
    assert scores(np.array(1.0)) is None


def test_classes_are_measured_by_accuracy_and_log_loss() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]])
    found = measured(p, np.array([0, 1]))
    assert found == {"accuracy": 0.5, "log-loss": pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2)}
    assert set(measured(p * 3, np.array([0, 1]))) == {"accuracy"}


def test_constants_as_old_and_new(tmp_path: Path) -> None:
    """Scores that are all the same have no ranking; nothing divides by zero."""
    np.savez(tmp_path / "r.npz", x=np.zeros((60, 1), np.float32))
    found = outputs(diff(*files(tmp_path, constant(1), constant(2)), Options(inputs=tmp_path / "r.npz")))
    facts = found["answers-moved"].facts
    assert "kendall_tau" not in facts
    assert facts["ks"] == 1
