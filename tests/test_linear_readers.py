"""LIBLINEAR, LIBSVM and libFM models, held to their own programs' answers or to the formula."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_tools import exported, truncations
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_commands import run

import mserve
from mserve.errors import InputError, MserveError, UsageError
from mserve.exporters.kinds import ConvertOptions
from mserve.exporters.linear import libfm, liblinear, libsvm
from mserve.exporters.sources import kind_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((160, 5))
TWO = np.where(X[:, 0] + X[:, 1] ** 2 > 0.5, 7.0, -3.0)
FOUR = np.digitize(X[:, 0] + X[:, 2], [-1, 0, 1]) * 10.0
NUMBERS = X[:, 0] * 3 - X[:, 1]
ROWS = [{i + 1: v for i, v in enumerate(row)} for row in X.tolist()]
REGRESSION = (11, 12, 13)
SOLVERS = [
    (solver, bias, classes)
    for solver, bias, classes in itertools.product(
        (0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 21), (-1, 2.5), (2, 4)
    )
    if classes == 2 or solver not in (*REGRESSION, 21)
    if bias == -1 or solver != 21
]


def linear_model(path: Path, solver: int, bias: float, classes: int) -> Path:
    tools = pytest.importorskip("liblinear.liblinearutil")
    label = NUMBERS if solver in REGRESSION else TWO if classes == 2 else FOUR
    tools.save_model(str(path), tools.train(label.tolist(), ROWS, f"-s {solver} -B {bias} -q"))
    return path


@pytest.mark.parametrize(("solver", "bias", "classes"), SOLVERS)
def test_answers_are_those_of_liblinear(solver: int, bias: float, classes: int, tmp_path: Path) -> None:
    """Every solver, with and without a bias, of two and of four classes whose labels are in no order."""
    path = linear_model(tmp_path / "m", solver, bias, classes)
    assert kind_of(path).name == "liblinear"
    facts, loaded = exported(path, tmp_path / "base")
    assert (facts["compared_with"], facts["rows"]) == ("liblinear", 65)
    assert facts["max_error"] < 5e-7
    signature = loaded.signatures["serving_default"]
    logistic = ["probabilities"] if solver in (0, 6, 7) else []
    assert list(signature.outputs) == [*logistic, *([] if solver in REGRESSION else ["label"]), "score"]
    assert signature.batch_axis == 0
    if logistic:
        labels = (tmp_path / "base/00000001/assets/labels.txt").read_text().split()
        answers = loaded.run({"features": X.astype(np.float32)})
        assert np.array_equal(
            np.array(labels, np.int64)[answers["probabilities"].argmax(1)], answers["label"]
        )


def test_classes_that_are_all_unlikely_share_what_there_is(tmp_path: Path) -> None:
    """Decisions of which every sigmoid is next to nothing; LIBLINEAR divides them all the same."""
    text = "solver_type L2R_LR\nnr_class 3\nlabel 1 2 3\nnr_feature 1\nbias -1\nw\n-100 -101 -102\n"
    (tmp_path / "m").write_text(text)
    _, loaded = exported(tmp_path / "m", tmp_path / "base")
    found = loaded.run({"features": np.ones((1, 1), np.float32)})["probabilities"][0]
    shares = np.exp([0, -1, -2.0])
    assert np.allclose(found, shares / shares.sum(), rtol=1e-6)


def test_of_two_equal_decisions_liblinear_takes_the_second(tmp_path: Path) -> None:
    """Crammer and Singer's machine has two decisions of two classes, and none for an empty row."""
    path = linear_model(tmp_path / "m", 4, -1, 2)
    labels = path.read_text().split("label ")[1].split()[:2]
    _, loaded = exported(path, tmp_path / "base")
    assert loaded.run({"features": np.zeros((1, 5), np.float32)})["label"].tolist() == [int(labels[1])]


MACHINES = [
    (svm, kernel, classes, probable)
    for svm, kernel, classes, probable in itertools.product(range(5), range(4), (2, 4), (0, 1))
    if classes == 2 or svm < 2
]


@pytest.mark.parametrize(("svm", "kernel", "classes", "probable"), MACHINES)
def test_answers_are_those_of_libsvm(
    svm: int, kernel: int, classes: int, probable: int, tmp_path: Path
) -> None:
    """Every machine and kernel; with probabilities, the label is the most probable class."""
    tools = pytest.importorskip("libsvm.svmutil")
    label = NUMBERS if svm > 2 else TWO if classes == 2 else FOUR
    path = tmp_path / "m"
    model = tools.svm_train(label.tolist(), ROWS, f"-s {svm} -t {kernel} -b {probable} -n 0.1 -q")
    tools.svm_save_model(str(path), model)
    assert kind_of(path).name == "libsvm"
    facts, loaded = exported(path, tmp_path / "base")
    assert (facts["compared_with"], facts["rows"]) == ("libsvm", 65)
    assert facts["max_error"] < 1e-6
    outputs = list(loaded.signatures["serving_default"].outputs)
    chances = ["probabilities"] if probable and svm < 2 else []
    assert outputs == [*chances, *([] if svm > 2 else ["label"]), "score"]


HEART = "11_gbdt_svm_linear/heart_scale"


def test_the_heart_model_is_as_accurate_as_ever(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    done = run("export", real_data(f"{HEART}.model"), tmp_path / "base")
    assert done.returncode == 0, done.stderr
    x, label = np.zeros((270, 13), np.float32), []
    for row, line in enumerate(real_data(HEART).read_text().splitlines()):
        first, *words = line.split()
        label.append(int(first))
        for word in words:
            index, _, value = word.partition(":")
            x[row, int(index) - 1] = float(value)
    found = mserve.load(tmp_path / "base").run({"features": x})["label"]
    assert f"{100 * (found == np.array(label)).mean():.2f}" == "84.44"


@pytest.mark.parametrize("name", ["brisque_libsvm_epsSVR.txt", "vmaf_float_v0.6.1_libsvm_nuSVR.model"])
def test_real_models_of_picture_quality(name: str, real_data: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("libsvm")
    facts, _ = exported(real_data(f"11_gbdt_svm_linear/{name}"), tmp_path / "base")
    assert facts["max_error"] < 1e-6


FACTORS = """#global bias W0
0.25
#unary interactions Wj
0.5
-1
2
#pairwise interactions Vj,f
0.1 0.2
-0.3 0.4
0.5 -0.6
"""
W, V = np.array([0.5, -1, 2]), np.array([[0.1, 0.2], [-0.3, 0.4], [0.5, -0.6]])


def machine(x: Any) -> Any:
    """The formula, pair by pair."""
    pairs = [V[i] @ V[j] * x[:, i] * x[:, j] for i, j in itertools.combinations(range(3), 2)]
    return 0.25 + x @ W + sum(pairs)


TASKS = [
    ("regression", {}, "score", lambda y: y),
    ("regression", {"clip": (0.0, 1.0)}, "score", lambda y: np.clip(y, 0, 1)),
    ("sigmoid", {}, "probabilities", lambda y: 1 / (1 + np.exp(-y))),
    ("probit", {}, "probabilities", lambda y: np.array([(1 + math.erf(v / math.sqrt(2))) / 2 for v in y])),
]  # fmt: skip


@pytest.mark.parametrize(("task", "options", "output", "link"), TASKS)
def test_factorisation_machines_follow_the_formula(
    task: str, options: dict[str, Any], output: str, link: Callable[[Any], Any], tmp_path: Path
) -> None:
    (tmp_path / "m").write_text(FACTORS)
    assert kind_of(tmp_path / "m").name == "libfm"
    x = RNG.standard_normal((20, 3)).astype(np.float32)
    expected = link(machine(x.astype(np.float64)))
    np.savez(
        tmp_path / "check.npz",
        features=x,
        **{output: np.stack([1 - expected, expected], 1) if output != "score" else expected},
    )
    facts, loaded = exported(
        tmp_path / "m", tmp_path / "base", task=task, check=tmp_path / "check.npz", **options
    )
    assert (facts["compared_with"], facts["rows"]) == ("the check file", 20)
    assert facts["max_error"] < 1e-6
    found = loaded.run({"features": x})
    if output != "score":
        assert np.array_equal(found["label"], expected > 0.5)


def test_a_factorisation_machine_needs_a_task(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(FACTORS)
    with pytest.raises(UsageError, match="does not say what its answers are"):
        exported(tmp_path / "m", tmp_path / "base")
    with pytest.raises(UsageError, match="cut to a range"):
        exported(tmp_path / "m", tmp_path / "base", task="sigmoid", clip=(0.0, 1.0))
    done = mserve.export(tmp_path / "m", tmp_path / "base", task="regression", isolate=False)
    assert any("give --clip LO,HI" in note for note in done.notes)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("#global bias W0\n1\n#pairwise interactions Vj,f\n1 1\n2 0\n", 1 + 2),
        ("#unary interactions Wj\n3\n4\n#pairwise interactions Vj,f\n\n\n", 7),
        ("#pairwise interactions Vj,f\n1\n2\n", 2),
    ],
    ids=["no weights", "no factors", "factors alone"],
)
def test_parts_may_be_left_out(parts: str, expected: float, tmp_path: Path) -> None:
    (tmp_path / "m").write_text(parts)
    _, loaded = exported(tmp_path / "m", tmp_path / "base", task="regression")
    assert loaded.run({"features": np.ones((1, 2), np.float32)})["score"].tolist() == [expected]


LINEAR = """solver_type L2R_LR
nr_class 3
label 5 3 4
nr_feature 2
bias 1
w
1 2 3
4 5 6
7 8 9
"""
MACHINE = """svm_type c_svc
kernel_type rbf
gamma 0.5
nr_class 3
total_sv 3
rho 0.1 0.2 0.3
label 5 3 4
probA 1 1 1
probB 0 0 0
nr_sv 1 1 1
SV
1 1 1:0.5 3:1
-1 1 2:0.5
-1 -1 1:2
"""
READERS = {"liblinear": (liblinear, LINEAR), "libsvm": (libsvm, MACHINE), "libfm": (libfm, FACTORS)}
LIES = [
    ("liblinear", "L2R_LR", "L9R_LR", "found: L9R_LR"),
    ("liblinear", "nr_class 3", "nr_class 999999999", "nr_class"),
    ("liblinear", "nr_class 3", "nr_class three", "found: three"),
    ("liblinear", "nr_feature 2", "nr_feature 99999999", "truncated"),
    ("liblinear", "nr_feature 2", "nr_feature 1", "too many numbers"),
    ("liblinear", "nr_feature 2", "nr_feature -1", "whole number"),
    ("liblinear", "label 5 3 4", "label 5 3", "3 whole numbers"),
    ("liblinear", "bias 1", "bias nan", "not a number"),
    ("liblinear", "4 5 6", "4 nan 6", "a weight is not a number"),
    ("liblinear", "4 5 6", "4 inf 6", "a weight is not a number"),
    ("liblinear", "4 5 6", "4 x 6", "malformed"),
    ("libsvm", "rbf", "precomputed", "a precomputed kernel is not in the model"),
    ("libsvm", "c_svc", "d_svc", "d_svc"),
    ("libsvm", "total_sv 3", "total_sv 99999999999", "total_sv"),
    ("libsvm", "total_sv 3", "total_sv 4", "4 support vectors; found: 3"),
    ("libsvm", "total_sv 3", "total_sv 2", "too many support vectors"),
    ("libsvm", "nr_class 3", "nr_class 2", "index from 1"),
    ("libsvm", "nr_sv 1 1 1", "nr_sv 1 1 2", "do not add up"),
    ("libsvm", "nr_sv 1 1 1", "nr_sv -1 3 1", "do not add up"),
    ("libsvm", "3:1", "999999999:1", "too wide"),
    ("libsvm", "3:1", "0:1", "index from 1"),
    ("libsvm", "3:1", "-3:1", "index from 1"),
    ("libsvm", "3:1", "3", "malformed"),
    ("libsvm", "0.5 3:1", "nan 3:1", "not a number"),
    ("libsvm", "gamma 0.5", "gamma nan", "gamma"),
    ("libsvm", "rho 0.1 0.2 0.3", "rho 0.1", "3 numbers"),
    ("libsvm", "probB 0 0 0", "probB 0", "3 numbers"),
    ("libfm", "0.25", "nan", "not a number"),
    ("libfm", "-0.3 0.4", "-0.3", "truncated"),
    ("libfm", "-1\n", "", "3 rows; found: 2"),
    ("libfm", "#unary interactions Wj", "#something else", "line 3"),
    ("libfm", "#unary interactions Wj", "#global bias W0", "line 3"),
    ("libfm", "-0.3 0.4", "-0.3 inf", "not a number"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "said"), LIES)
def test_a_model_that_lies_is_refused(name: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    reader, text = READERS[name]
    assert old in text
    (tmp_path / "m").write_text(text.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        reader.convert(str(tmp_path / "m"), ConvertOptions(task="sigmoid"))
    assert said in str(caught.value)


def unheld(reader: Any, path: Path) -> None:
    """Convert without the framework, which hostile bytes could crash."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(reader, "_compare"):
            patch.setattr(reader, "_compare", lambda *_: None)
        reader.convert(str(path), ConvertOptions(task="sigmoid"))


@pytest.mark.parametrize("name", READERS)
def test_truncated_files_are_refused(name: str, tmp_path: Path) -> None:
    """Up to the last line; a number cut short there is another number, which no text can tell."""
    reader, text = READERS[name]
    unheld(reader, _written(tmp_path, text.encode()))
    for cut in truncations(text.encode()[: text.rstrip().rindex("\n")]):
        with pytest.raises(MserveError):
            unheld(reader, _written(tmp_path, cut))


def _written(directory: Path, data: bytes) -> Path:
    (directory / "m").write_bytes(data)
    return directory / "m"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(list(READERS)))
def test_changed_bytes_never_raise_anything_else(data: st.DataObject, name: str, tmp_path: Path) -> None:
    reader, text = READERS[name]
    changed = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with suppress(MserveError):
        unheld(reader, _written(tmp_path, bytes(changed)))
