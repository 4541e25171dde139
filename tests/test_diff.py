"""Diff on models that nobody here made, each changed in one way: what is caught, and what is let pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mutations
import numpy as np
import onnx
import pytest
from builders import reseal, set_json
from onnx import ModelProto
from test_real_models import magika_features

import mserve
from mserve.compare import Diff, Options, diff

Find = Callable[[str], Path]
MODELS = {"magika": "02_magika/model.onnx", "angle": "04_ppocr/ch_ppocr_mobile_v2.0_cls_infer.onnx"}


@pytest.fixture(scope="module")
def originals(real_data: Find, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles with golden samples: real files for magika, made-up images for the text angle classifier."""
    root = tmp_path_factory.mktemp("originals")
    files = [Path(__file__), real_data("04_ppocr/page.png"), real_data("03_basic_pitch/vocadito_10.wav")]
    files += [Path(__file__).parent / "run.sh", real_data("02_magika/config.min.json")]
    golden = {"magika": {"bytes": np.array([magika_features(f) for f in files], np.int32)}, "angle": 4}
    return {
        name: mserve.export(real_data(file), root / name, golden=golden[name]).path
        for name, file in MODELS.items()
    }


def compared(
    originals: dict[str, Path],
    real_data: Find,
    name: str,
    change: Callable[[ModelProto], ModelProto],
    tmp_path: Path,
) -> Diff:
    path = tmp_path / "new.onnx"
    onnx.save(change(onnx.load(real_data(MODELS[name]))), path)
    return diff(originals[name], path, Options(run=True))


def rules(found: Diff) -> set[str]:
    """The rules of all changes that somebody could tell."""
    return {change.rule for change in found.changes if change.severity != "none"}


CAUGHT = [
    ("an input renamed: only the signature breaks", mutations.input_renamed, {"input-renamed"}),
    ("an output's dtype", mutations.output_dtype, {"output-dtype", "answer-shape", "subgraph"}),
    ("a batch of one row", mutations.batch_of_one, {"input-narrowed", "output-narrowed", "new-fails"}),
    ("channels in another order", mutations.channels_permuted, {"weight-permuted", "answers-moved"}),
    ("two weights of one shape swapped", mutations.weights_swapped, {"weights-swapped", "answers-moved"}),
    ("one unit in the last place moves weights, not answers", mutations.one_ulp, {"weight-values"}),
    ("rows that depend on their neighbours", mutations.rows_mixed, {"subgraph", "answers-moved"}),
    ("a node inserted", mutations.with_relu, {"subgraph", "answers-moved"}),
    ("a model that ends its process", mutations.crashes, {"subgraph", "weight-added", "new-fails"}),
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("why", "change", "wanted"), CAUGHT, ids=[c[0] for c in CAUGHT])
def test_what_changed_is_caught(
    originals: dict[str, Path],
    real_data: Find,
    tmp_path: Path,
    name: str,
    why: str,
    change: mutations.Mutation,
    wanted: set[str],
) -> None:
    found = compared(originals, real_data, name, change, tmp_path)
    assert rules(found) == wanted, why
    assert found.failing(["any"])


@pytest.mark.parametrize("name", MODELS)
def test_weights_rounded_to_float16_are_named_so(
    originals: dict[str, Path], real_data: Find, tmp_path: Path, name: str
) -> None:
    found = compared(originals, real_data, name, mutations.rounded_to_float16, tmp_path)
    assert {c.rule for c in found.level("weights").changes} == {"weight-rounded"}
    assert "rounded to float16" in found.level("weights").changes[0].text


PASSED = [
    ("exported again by somebody else", mutations.reexported),
    ("other names of nodes, tensors and weights", mutations.names_changed),
    ("another order of weights and nodes", mutations.order_changed),
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("why", "change"), PASSED, ids=[p[0] for p in PASSED])
def test_the_same_model_is_let_pass(
    originals: dict[str, Path],
    real_data: Find,
    tmp_path: Path,
    name: str,
    why: str,
    change: mutations.Mutation,
) -> None:
    found = compared(originals, real_data, name, change, tmp_path)
    assert rules(found) == set(), why
    assert found.verdict() == "equal"
    assert found.failing(["any"]) == []


@pytest.mark.parametrize("name", MODELS)
def test_another_opset_with_equal_answers(
    originals: dict[str, Path], real_data: Find, tmp_path: Path, name: str
) -> None:
    found = compared(originals, real_data, name, mutations.another_opset, tmp_path)
    assert found.level("signature").verdict == found.level("outputs").verdict == "equal"
    assert "opset" in rules(found)
    assert found.failing(["breaking", "outputs", "signature"]) == []


@pytest.mark.parametrize("name", MODELS)
def test_an_optimised_graph_with_equal_answers(
    originals: dict[str, Path], real_data: Find, tmp_path: Path, name: str
) -> None:
    def optimised(model: ModelProto) -> ModelProto:
        return mutations.optimised(model, tmp_path / "optimised.onnx")

    found = compared(originals, real_data, name, optimised, tmp_path)
    assert found.level("signature").verdict == found.level("outputs").verdict == "equal"
    assert found.level("graph").verdict == "changed"
    patches = [line for c in found.level("graph").changes for line in c.facts.get("patch", ())]
    assert any(line.startswith("- ") for line in patches)
    assert any(line.startswith("+ ") for line in patches)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_model_exported_again_is_not_even_run(
    originals: dict[str, Path], real_data: Find, tmp_path: Path, name: str
) -> None:
    again = mserve.export(real_data(MODELS[name]), tmp_path / "again", golden=2).path
    found = diff(originals[name], again)
    assert found.verdict() == "equal"
    assert found.level("outputs").summary == "the same graph and weights: not run"
    assert {c.rule for c in found.changes} <= {"golden-changed", "metadata"}


def test_an_output_that_is_not_as_declared(originals: dict[str, Path], tmp_path: Path) -> None:
    """The declared shape is that of another model; what returns is what always returned."""
    copy = Path(shutil.copytree(originals["magika"], tmp_path / "m" / "00000002"))
    copy.chmod(0o755)

    def widen(signatures: dict[str, dict[str, dict[str, dict[str, list[int]]]]]) -> object:
        signatures["serving_default"]["outputs"]["target_label"]["shape"][1] += 1
        return signatures

    reseal(copy, lambda proto: set_json(proto, "mserve.signatures", widen))
    found = diff(originals["magika"], copy, Options(run=True))
    assert rules(found) == {"output-widened", "not-as-declared"}
    declared = next(c for c in found.changes if c.rule == "not-as-declared")
    assert "215" in declared.old
    assert "214" in declared.new


def test_a_vocabulary_line_inserted(real_data: Find, tmp_path: Path) -> None:
    """A real vocabulary, beside a SavedModel: every line behind the inserted one has another number."""
    old = real_data("08_tfx_wide_deep/saved_model_1646034756")
    new = Path(shutil.copytree(old, tmp_path / "new"))
    vocabulary = new / "assets" / "vocab_compute_and_apply_vocabulary_vocabulary"
    vocabulary.chmod(0o644)
    count = len(vocabulary.read_text().splitlines())
    mutations.line_inserted(vocabulary, 1)
    found = diff(old, new)
    assert rules(found) == {"lines-changed"}
    (change,) = found.level("assets").changes
    assert change.facts["inserted"] == {"count": 1, "first": [[2, "inserted"]]}
    assert change.facts["shifted"] == count - 1
    assert change.facts["removed"]["count"] == change.facts["moved"]["count"] == 0
    assert found.failing(["assets"]) == [change]
    json.dumps(found.to_json(), allow_nan=False)


def test_a_saved_model_beside_its_conversion(real_data: Find) -> None:
    """The signature levels of both kinds meet; the outputs have other names in the converted model."""
    found = diff(real_data("03_basic_pitch/nmp"), real_data("03_basic_pitch/nmp.onnx"))
    assert found.level("graph").verdict == found.level("outputs").verdict == "not compared"
    assert {c.rule for c in found.level("signature").changes if c.severity == "breaking"} == {
        "output-renamed"
    }
    assert "weight-renamed" in {c.rule for c in found.level("weights").changes}
