"""Gates of real models, each changed in one way: the verdict, and the rule that has to be named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mutations
import numpy as np
import onnx
import pytest
from builders import mlp, save
from gate_tools import Change, Find, Models, copied, digits, gated, resigned, through_branch

import mserve
from mserve.errors import InputError
from mserve.workflows.gate import Gate
from mserve.workflows.rules import FAIL, INCONCLUSIVE, NOTE

PASS = "pass"


@pytest.fixture(scope="module")
def models(real_data: Find, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(real_data, tmp_path_factory.mktemp("gates"))


def rules(found: Gate, severity: str = FAIL) -> set[str]:
    return {reason.rule for reason in found.reasons if reason.severity == severity}


# What was changed, of which model, under which expectation: the verdict, and the rules that say it.
CAUGHT: list[tuple[str, str, Change, str, set[str]]] = [
    ("an input renamed", "avazu", mutations.input_renamed, "retrained", {"input-renamed"}),
    ("an input renamed", "digits", mutations.input_renamed, "same", {"input-renamed"}),
    ("an output's dtype", "angle", mutations.output_dtype, "retrained", {"output-dtype", "answer-shape"}),
    ("a batch of one", "angle", mutations.batch_of_one, "retrained", {"input-narrowed", "new-fails"}),
    ("channels permuted", "magika", mutations.channels_permuted, "retrained", {"weight-permuted"}),
    ("channels permuted", "angle", mutations.channels_permuted, "same", {"weight-permuted", "answers-moved"}),
    (
        "channels permuted",
        "digits",
        mutations.channels_permuted,
        "retrained",
        {"weight-permuted", "agreement"},
    ),
    ("weights swapped", "angle", mutations.weights_swapped, "retrained", {"weights-swapped"}),
    ("weights swapped", "magika", mutations.weights_swapped, "same", {"weights-swapped", "answers-moved"}),
    ("float16 and back", "avazu", mutations.rounded_to_float16, "retrained", {"weight-rounded"}),
    ("float16 and back", "digits", mutations.rounded_to_float16, "same", {"weight-rounded"}),
    ("rows mixed", "angle", mutations.rows_mixed, "retrained", {"rows-together"}),
    ("rows mixed", "avazu", mutations.rows_mixed, "retrained", {"batch-neighbours"}),
    ("a node inserted", "angle", mutations.with_relu, "same", {"answers-moved"}),
]


def cases(table: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The rows; what changes a large model is slow where another model says the same."""
    changes = Counter(row[0] for row in table)
    large = [row[1] in ("avazu", "magika") and changes[row[0]] > 1 for row in table]
    return [
        pytest.param(*row, id=f"{row[0]}-{row[1]}", marks=[pytest.mark.slow] * slow)
        for row, slow in zip(table, large, strict=True)
    ]


@pytest.mark.parametrize(("why", "name", "change", "expect", "wanted"), cases(CAUGHT))
def test_what_has_to_be_caught(
    models: Models, tmp_path: Path, why: str, name: str, change: Change, expect: str, wanted: set[str]
) -> None:
    found = gated(models.old(name), models.new(name, change, tmp_path), {"expect": expect})
    assert found.verdict == FAIL, why
    assert wanted <= rules(found), (why, found.sentence())
    assert found.exit_code() == 1
    assert all(rule in found.sentence() for rule in wanted)


Quiet = Callable[[Path], Change]


def optimised(place: Path) -> Change:
    return lambda model: mutations.optimised(model, place / "optimised.onnx")


def plain(change: Change) -> Quiet:
    return lambda place: change


QUIET: list[tuple[str, str, Quiet, str]] = [
    ("one unit in the last place", "magika", plain(mutations.one_ulp), "same"),
    ("one unit in the last place", "digits", plain(mutations.one_ulp), "retrained"),
    ("one unit in the last place", "avazu", plain(mutations.one_ulp), "same"),
    ("exported again", "digits", plain(lambda m: m), "same"),
    ("written by somebody else", "angle", plain(mutations.reexported), "same"),
    ("other names", "angle", plain(mutations.names_changed), "same"),
    ("other names", "digits", plain(mutations.names_changed), "retrained"),
    ("another order", "avazu", plain(mutations.order_changed), "same"),
    ("another opset", "digits", plain(mutations.another_opset), "same"),
    ("another opset", "angle", plain(mutations.another_opset), "retrained"),
    ("optimised", "angle", optimised, "same"),
    ("optimised", "digits", optimised, "retrained"),
]


@pytest.mark.parametrize(("why", "name", "change", "expect"), cases(QUIET))
def test_what_has_to_pass(
    models: Models, tmp_path: Path, why: str, name: str, change: Quiet, expect: str
) -> None:
    new = models.new(name, change(tmp_path), tmp_path)
    found = gated(models.old(name), new, {"expect": expect, "strict": True})
    assert found.verdict == PASS, (why, found.sentence())
    assert {r.severity for r in found.reasons} <= {NOTE}, why
    assert found.exit_code() == 0


def test_a_vocabulary_line_inserted(models: Models, real_data: Find, tmp_path: Path) -> None:
    """The same weights, and every word behind the inserted line has another number."""
    words = tmp_path / "words.txt"
    source = "08_tfx_wide_deep/saved_model_1646034756/assets/vocab_compute_and_apply_vocabulary_vocabulary"
    words.write_bytes(real_data(source).read_bytes())
    golden = models.golden("avazu")
    old = mserve.export(models.file("avazu"), tmp_path / "m", golden=golden, assets=[words]).path
    mutations.line_inserted(words)
    new = mserve.export(models.file("avazu"), tmp_path / "m", golden=golden, assets=[words]).path
    found = gated(old, new)
    assert rules(found) == {"vocabulary-alone"}
    words.write_text(words.read_text() + "appended\n")
    more = mserve.export(models.file("avazu"), tmp_path / "m", golden=golden, assets=[words]).path
    assert gated(new, more).verdict == PASS


def test_a_declared_shape_that_is_not_what_returns(models: Models, tmp_path: Path) -> None:
    copy = copied(models.old("digits"), tmp_path)

    def widen(signatures: Any) -> Any:
        signatures["serving_default"]["outputs"]["probabilities"]["shape"][1] = 11
        return signatures

    found = gated(models.old("digits"), resigned(copy, widen))
    assert rules(found) >= {"not-as-declared", "output-shape"}


def test_rows_that_depend_on_neighbours_and_claim_not_to(models: Models, tmp_path: Path) -> None:
    """The export finds out; a bundle that says otherwise is found out by running it."""
    new = models.new("digits", mutations.rows_mixed, tmp_path)

    def claim(signatures: Any) -> Any:
        signatures["serving_default"]["batch_axis"] = 0
        return signatures

    assert "batch-neighbours" in rules(gated(models.old("digits"), resigned(new, claim)))


def test_a_model_that_ends_its_process_is_a_finding(models: Models, tmp_path: Path) -> None:
    """Once as a file, when answers are compared, and once as a bundle, whose checks run it too."""
    file = save(mutations.crashes(onnx.load(models.file("digits"))), tmp_path / "crash.onnx")
    found = gated(models.old("digits"), file)
    assert rules(found) == {"new-fails"}
    assert rules(found, INCONCLUSIVE) == {"not-a-bundle"}
    assert "SIGFPE" in next(r.text for r in found.reasons if r.rule == "new-fails")


def test_checks_that_end_their_process_are_a_finding(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    from mserve.workflows import apart

    monkeypatch.setattr(apart, "_PROGRAM", "import os; os.abort()")
    found = gated(models.old("digits"), models.old("digits"))
    assert rules(found) == {"validate-ended"}
    assert "SIGABRT" in found.reasons[0].text
    monkeypatch.setattr(apart, "_PROGRAM", "import time; time.sleep(60)")
    found = gated(models.old("digits"), models.old("digits"), seconds=1)
    assert "no answer after 4 s" in found.reasons[0].text


# --- a version that was trained again


def trained(seed: int, noise: float, tmp_path: Path, rows: int = 60) -> Path:
    """Digits with noise on the weights: as good, or worse, the more noise there is."""
    model = mutations.copied(onnx.load(Path(__file__).parent.parent / "samples/digits/digits.onnx"))
    rng = np.random.default_rng(seed)
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        if array.ndim:
            moved = (array + noise * rng.normal(size=array.shape) * array.std()).astype(np.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(moved, weight.name))
    return mserve.export(model, tmp_path / "trained", golden={"pixels": digits()[0][:rows]}).path


@pytest.mark.parametrize(
    ("why", "noise", "labelled", "verdict", "wanted"),
    [
        ("a little other weights", 0.02, False, PASS, set()),
        ("nothing is left of it", 3.0, False, FAIL, {"agreement"}),
        ("labels find it as good", 0.02, True, PASS, set()),
        ("labels find it worse", 1.0, True, FAIL, {"metric-accuracy", "metric-log-loss"}),
    ],
)
def test_a_version_trained_again(
    models: Models, tmp_path: Path, why: str, noise: float, labelled: bool, verdict: str, wanted: set[str]
) -> None:
    given: dict[str, Any] = {}
    if labelled:
        pixels, labels = digits()
        np.savez(tmp_path / "inputs.npz", pixels=pixels)
        np.save(tmp_path / "labels.npy", labels)
        given = {"inputs": tmp_path / "inputs.npz", "labels": tmp_path / "labels.npy"}
    policy = {"rules": {"metric-required": {"metric": "accuracy"}}} if labelled else {}
    found = gated(models.old("digits"), trained(1, noise, tmp_path), policy, **given)
    assert found.verdict == verdict, (why, found.reasons)
    assert wanted <= rules(found), why
    if labelled and verdict == FAIL:
        assert "agreement" not in {r.rule for r in found.reasons}, "labels know better"
    json.dumps(found.to_json(), allow_nan=False)


def test_samples_that_export_made_up_say_nothing(models: Models, tmp_path: Path) -> None:
    old = mserve.export(models.file("digits"), tmp_path / "m", golden=60).path
    found = gated(old, trained(1, 0.02, tmp_path))
    assert (found.verdict, rules(found, INCONCLUSIVE)) == (INCONCLUSIVE, {"drift-unknown"})
    assert "made up" in found.reasons[0].text
    assert found.exit_code() == 0
    assert gated(old, trained(1, 0.02, tmp_path), {"strict": True}).exit_code() == 1


def test_no_golden_samples(tmp_path: Path) -> None:
    """It says how to record some; nothing has to be asked where graph and weights are the same."""
    old = mserve.export(mlp(), tmp_path / "m", golden=0).path
    found = gated(old, mserve.export(mlp(seed=1), tmp_path / "m", golden=0).path)
    assert rules(found, INCONCLUSIVE) == {"no-samples"}
    assert "--golden REQUESTS.npz" in next(r.text for r in found.reasons if r.rule == "no-samples")
    again = mserve.export(mutations.names_changed(mlp()), tmp_path / "m", golden=0).path
    assert gated(old, again).verdict == PASS


def test_signatures_that_cannot_be_matched(models: Models) -> None:
    found = gated(models.old("digits"), models.old("angle"))
    assert {"input-removed", "output-removed"} <= rules(found)
    assert found.verdict == FAIL


def test_labels_that_fit_nothing(models: Models, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(3))
    policy = {"rules": {"metric-required": {"metric": "AUC"}}}
    with pytest.raises(InputError, match="labels fit no output"):
        gated(models.old("digits"), models.old("digits"), policy, labels=tmp_path / "labels.npy")
    assert rules(gated(models.old("digits"), models.old("digits"), policy)) == {"metric-required"}


# --- what a policy changes

permuted = mutations.channels_permuted
F16, OPSET, SAME = mutations.rounded_to_float16, mutations.another_opset, mutations.reexported
DENIED, ONLY = {"denied": ["Softsign"]}, {"allowed": ["Gemm"]}
LOOSE = {"outputs": {"serving_default.probabilities": {"atol": 2.0}}}
POLICIES: list[tuple[str, Change, dict[str, Any], str, str]] = [
    ("a rule made a note", F16, {"weight-rounded": "note"}, "weight-rounded", NOTE),
    ("a rule made a warning", F16, {"weight-rounded": "warn"}, "weight-rounded", "warn"),
    ("a rule that is off", F16, {"weight-rounded": "off"}, "weight-rounded", ""),
    ("a change forbidden", through_branch, {"subgraph": "fail"}, "subgraph", FAIL),
    ("an opset too new", OPSET, {"opset-maximum": {"maximum": 17}}, "opset-maximum", FAIL),
    ("an opset allowed", OPSET, {"opset-maximum": {"maximum": 18}}, "opset-maximum", ""),
    ("an operator in a branch", through_branch, {"operators-allowed": DENIED}, "operators-allowed", FAIL),
    ("only some operators", SAME, {"operators-allowed": ONLY}, "operators-allowed", FAIL),
    ("a domain", SAME, {"domains-allowed": {"allowed": ["other"]}}, "domains-allowed", FAIL),
    ("answers may not move", permuted, {"answers-moved": "fail"}, "answers-moved", FAIL),
    ("but these", permuted, {"answers-moved": "fail", "tolerances": LOOSE}, "answers-moved", ""),
]


@pytest.mark.parametrize(
    ("why", "change", "said", "rule", "severity"), POLICIES, ids=[p[0] for p in POLICIES]
)
def test_a_policy_decides(
    models: Models, tmp_path: Path, why: str, change: Change, said: dict[str, Any], rule: str, severity: str
) -> None:
    new = save(change(onnx.load(models.file("digits"))), tmp_path / "new.onnx")
    found = gated(models.old("digits"), new, {"rules": {"not-a-bundle": "off", **said}})
    where = {r.severity for r in found.reasons if r.rule == rule and "label" not in r.where}
    assert where == ({severity} if severity else set()), (why, found.reasons)


def test_growth(tmp_path: Path) -> None:
    old, new = (save(mlp(hidden=n), tmp_path / f"{n}.onnx") for n in (100, 200))
    inputs = tmp_path / "x.npz"
    np.savez(inputs, x=np.zeros((2, 784), np.float32))
    assert rules(gated(old, new, inputs=inputs), "warn") == {"growth-parameters", "growth-bytes"}
    policy = {"rules": {"growth-bytes": {"severity": "fail", "maximum": "90%"}, "growth-parameters": "off"}}
    assert rules(gated(old, new, policy, inputs=inputs)) == {"growth-bytes"}
    assert rules(gated(new, old, inputs=inputs), "warn") == set()
