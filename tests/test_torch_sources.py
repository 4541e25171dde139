"""PyTorch: modules from functions, live ones, .pt2, TorchScript and weights; run where torch is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mserve
from mserve.errors import FindingError, InputError, MserveError, UsageError
from mserve.exporters import ports, sources
from mserve.exporters.pytorch import torch_pickle

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
import torch_models  # noqa: E402

# torch's own code warns of its own future.
pytestmark = pytest.mark.filterwarnings("ignore")
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def beside_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)


@pytest.fixture
def path_kept() -> Iterator[None]:
    """Undo what conversions in this process do to sys.path."""
    kept = list(sys.path)
    yield
    sys.path[:] = kept


def facts(path: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "mserve", "inspect", str(path), "--json"]
    return json.loads(subprocess.run(words, capture_output=True, check=True).stdout)


def error_of(path: Path) -> float:
    return facts(path)["provenance"]["conversion"]["max_error"]


MODELS = [
    ("mlp", "x:float32[batch,8]", 0, 1.2e-7, "a dense network with batch norm"),
    pytest.param("mlp", "x:float32[batch,8]", 18, 1.2e-7, "at opset 18", marks=pytest.mark.slow),
    pytest.param("mlp", "x:float32[batch,8]", 23, 1.2e-7, "at opset 23", marks=pytest.mark.slow),
    ("cnn", "image:float32[batch,1,28,28]", 0, 1e-6, "a convolutional network, logits"),
    ("lstm", "x:float32[batch,7,4]", 0, 1.2e-7, "a recurrent network, a dict with a list in it"),
    ("transformer", "x:float32[batch,time,8]", 0, 1e-6, "attention over an open length"),
    ("bag", "", 0, 1.2e-7, "an embedding bag: the function gives example inputs"),
]


@pytest.mark.parametrize(("name", "given", "opset", "bound", "why"), MODELS)
@pytest.mark.usefixtures("path_kept")
def test_modules_answer_as_pytorch(
    name: str, given: str, opset: int, bound: float, why: str, base: Path
) -> None:
    options = {"input": (given,)} if given else {}
    done = mserve.export(f"torch_models:{name}", base, trust=True, isolate=False, opset=opset, **options)
    assert done.metagraph.signatures["serving_default"].batch_axis == 0
    assert error_of(done.path) <= bound, why


def test_a_child_exports_with_open_time_and_names_what_a_dict_holds(base: Path) -> None:
    done = mserve.export("torch_models:lstm", base, trust=True, input=("x:float32[batch,time,4]",))
    signature = done.metagraph.signatures["serving_default"]
    assert list(signature.outputs) == ["logits", "probs", "aux.0"]
    assert signature.inputs["x"].shape == ("batch", "time", 4)
    x = torch.randn(5, 11, 4)
    expected = torch_models.lstm()(x)
    found = mserve.load(done.path).run({"x": x.numpy()})
    for alias, value in (
        ("logits", expected["logits"]),
        ("probs", expected["probs"]),
        ("aux.0", expected["aux"][0]),
    ):
        np.testing.assert_allclose(found[alias], value.detach().numpy(), atol=2e-7)
    written = facts(done.path)["provenance"]
    assert written["conversion"]["versions"]["torch"] == torch.__version__
    assert str(HERE) not in (done.path / "export.meta").read_bytes().decode("latin-1")


@pytest.mark.usefixtures("path_kept")
def test_a_second_export_in_one_process_never_loses_an_open_dimension(tmp_path: Path) -> None:
    options = {"trust": True, "isolate": False, "input": ("x:float32[batch,time,4]",)}
    mserve.export("torch_models:mlp", tmp_path, trust=True, isolate=False, input=("x:float32[batch,8]",))
    # When torch has mended this, the test fails, and can go with the sentence in torch_onnx.py.
    with pytest.raises(InputError, match=r"froze a dimension|cannot export the module"):
        [opened(mserve.export("torch_models:lstm", tmp_path, **options)) for _ in range(2)]


def opened(done: Any) -> None:
    """A bundle that is written has its open dimension."""
    assert done.metagraph.signatures["serving_default"].inputs["x"].shape[1] == "time"


REFUSED = [
    ("reshaped", "x:float32[batch,8]", InputError, "an output has no batch axis"),
    ("centred", "x:float32[batch,8]", FindingError, "lost the batch axis"),
    ("frozen", "x:float32[batch,8]", InputError, "static shape of 3 for dimension inputs['x'].shape[0]"),
    ("wordy", "x:float32[batch,8]", InputError, "name: str"),
    ("no_module", "x:float32[batch,8]", InputError, "the function made no module"),
    ("broken", "x:float32[batch,8]", InputError, "the data is not there"),
    ("gone", "x:float32[batch,8]", InputError, "no such function"),
    ("mlp", "", UsageError, "do not say what their inputs are"),
    ("mlp", "y:float32[batch,8]", UsageError, "no such argument of forward"),
    ("mlp", "x:float32[batch,9]", InputError, "mat1 and mat2 shapes cannot be multiplied"),
    ("bag", "dense:float32[batch,4]", UsageError, "example inputs are not those"),
]


@pytest.mark.parametrize(("name", "given", "kind", "said"), REFUSED)
@pytest.mark.usefixtures("path_kept")
def test_what_cannot_be_exported_is_refused_with_the_reason(
    name: str, given: str, kind: type[MserveError], said: str, base: Path
) -> None:
    options = {"input": (given,)} if given else {}
    with pytest.raises(kind) as caught:
        mserve.export(f"torch_models:{name}", base, trust=True, isolate=False, **options)
    assert said in str(caught.value)
    assert not list(base.glob("*"))


@pytest.mark.usefixtures("path_kept")
def test_rows_that_depend_on_each_other_run_alone_when_the_user_says_so(base: Path) -> None:
    done = mserve.export("torch_models:centred", base, trust=True, isolate=False, input=("x:float32[n,8]",))
    assert done.metagraph.signatures["serving_default"].batch_axis is None


def test_a_live_module_of_a_script_is_exported_with_its_own_answers(tmp_path: Path) -> None:
    """Its class is in `__main__`; it is in training mode before and after; the example has one row."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, torch, mserve\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.hidden = torch.nn.Linear(4, 8)\n"
        "        self.drop, self.out = torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)\n"
        "    def forward(self, x, *, scale=2.0):\n"
        "        last = self.drop(self.hidden(x)[:, -1].relu())\n"
        "        return {'probabilities': self.out(last).softmax(-1) * scale / 2}\n"
        "net = Net().train()\n"
        "for step in (7, 8):\n"
        "    done = mserve.export(net, sys.argv[1], version=step, example={'x': torch.randn(1, 6, 4)},\n"
        "                         labels=sys.argv[2])\n"
        "    assert net.training\n"
        "print(done.notes)\n"
    )
    (tmp_path / "labels.txt").write_text("no\nyes\n")
    words = [sys.executable, str(script), str(tmp_path / "base"), str(tmp_path / "labels.txt")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "answers equal those of torch" in done.stdout
    signature = facts(tmp_path / "base" / "00000008")["signatures"]["serving_default"]
    assert signature["inputs"]["x"]["shape"] == ["batch", 6, 4]
    assert signature["outputs"]["probabilities"] == {
        "tensor": "probabilities",
        "dtype": "float32",
        "shape": ["batch", 2],
        "labels": "labels.txt",
    }
    assert error_of(tmp_path / "base" / "00000007") <= 1.2e-7


@pytest.mark.usefixtures("path_kept")
def test_a_live_module_needs_examples_and_plain_outputs(base: Path) -> None:
    with pytest.raises(UsageError, match="do not say what their inputs are"):
        mserve.export(torch_models.mlp(), base)
    with pytest.raises(InputError, match="PyTorch cannot export"):
        mserve.export(torch_models.frozen(), base, example=(torch.randn(4, 8),), isolate=False)
    done = mserve.export(
        torch_models.bag()[0], base, example=torch_models.bag()[1], isolate=False, output=("score",)
    )
    assert list(done.metagraph.signatures["serving_default"].outputs) == ["score"]
    assert error_of(done.path) <= 1.2e-7


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pt2 of the LSTM with an open batch."""
    path = tmp_path_factory.mktemp("pt2") / "model.bin"
    opened = ({0: torch.export.Dim.DYNAMIC},)
    made = torch.export.export(torch_models.lstm(), (torch.randn(3, 7, 4),), dynamic_shapes=opened)
    with path.open("wb") as file:
        torch.export.save(made, file)
    return path


def test_a_program_keeps_its_names_and_its_batch(program: Path, base: Path) -> None:
    assert sources.kind_of(program).name == "pt2"
    done = mserve.export(program, base, trust=True)
    signature = done.metagraph.signatures["serving_default"]
    assert list(signature.outputs) == ["logits", "probs", "aux.0"]
    assert signature.inputs["x"].shape == ("batch", 7, 4)
    assert signature.batch_axis == 0
    assert error_of(done.path) <= 1.2e-7
    with pytest.raises(UsageError, match="a program has its inputs"):
        mserve.export(program, base, trust=True, isolate=False, input=("x:float32[batch,7,4]",))


def test_a_program_without_an_open_batch_runs_alone_and_says_so(tmp_path: Path, base: Path) -> None:
    torch.export.save(torch.export.export(torch_models.mlp(), (torch.randn(2, 8),)), tmp_path / "m.pt2")
    done = mserve.export(tmp_path / "m.pt2", base, trust=True, isolate=False)
    assert done.metagraph.signatures["serving_default"].batch_axis is None
    assert any("no open batch axis" in note for note in done.notes)


class Planted:
    """Pickled, it is a call that writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


def planted_program(program: Path, marker: Path, target: Path) -> Path:
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("sample_inputs/model.pt"):
                torch.save(((Planted(marker),), {}), target.with_suffix(".tmp"))
                data = target.with_suffix(".tmp").read_bytes()
            new.writestr(entry, data)
    return target


def planted_module(program: Path, marker: Path, target: Path) -> Path:
    torch.save({"model": Planted(marker)}, target)
    return target


def planted_weights(program: Path, marker: Path, target: Path) -> Path:
    """A state dict but for one entry."""
    torch.save(torch_models.mlp().state_dict() | {"extra": Planted(marker)}, target)
    return target


@pytest.mark.parametrize(
    ("plant", "kind"),
    [(planted_program, "pt2"), (planted_module, "torch-module"), (planted_weights, "torch-module")],
)
def test_planted_code_stays_inert_without_trust(
    plant: Callable[[Path, Path, Path], Path], kind: str, program: Path, tmp_path: Path, base: Path
) -> None:
    marker = tmp_path / "ran"
    source = plant(program, marker, tmp_path / "model.pt")
    assert sources.kind_of(source).name == kind
    for options in ({}, {"isolate": False}, {"kind": kind}):
        with pytest.raises(UsageError, match="runs code that lies in it"):
            mserve.export(source, base, **options)
    assert not marker.exists()
    with pytest.raises(InputError):  # it is no model
        mserve.export(source, base, trust=True, isolate=False)
    assert marker.exists()  # the payload is live: what kept it inert is the refusal


def test_weights_never_run_code_even_with_trust(program: Path, tmp_path: Path, base: Path) -> None:
    marker = tmp_path / "ran"
    weights = planted_weights(program, marker, tmp_path / "w.pt")
    with pytest.raises(InputError, match="the weights cannot be read"):
        mserve.export(
            "torch_models:mlp",
            base,
            trust=True,
            isolate=False,
            weights=weights,
            input=("x:float32[batch,8]",),
        )
    assert not marker.exists()


@pytest.mark.usefixtures("path_kept")
def test_a_function_needs_trust_before_it_is_imported(base: Path) -> None:
    with pytest.raises(UsageError, match=r"runs code .*the named module and function"):
        mserve.export("torch_models:mlp", base)


@pytest.mark.usefixtures("path_kept")
@pytest.mark.parametrize("form", ["pt", "checkpoint", "safetensors"])
def test_weights_fill_a_function_s_module(form: str, tmp_path: Path, base: Path) -> None:
    torch.manual_seed(99)
    other = torch_models.MLP().eval()
    path = tmp_path / f"w.{form}"
    if form == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(other.state_dict(), path)
    else:
        torch.save(
            other.state_dict() if form == "pt" else {"state_dict": other.state_dict(), "epoch": 3}, path
        )
    assert sources.kind_of(path).name == "torch-weights"
    with pytest.raises(UsageError, match=r"package.module:function BASE_PATH --weights"):
        mserve.export(path, base, isolate=False)
    given = {"trust": True, "isolate": False, "input": ("x:float32[batch,8]",)}
    done = mserve.export("torch_models:mlp", base, weights=path, **given)
    x = torch.randn(4, 8)
    found = mserve.load(done.path).run({"x": x.numpy()})["output"]
    np.testing.assert_allclose(found, other(x).detach().numpy(), atol=1e-6)
    with pytest.raises(InputError, match=r"do not fit the module.*Missing key"):
        mserve.export("torch_models:cnn", base, weights=path, **given)


@pytest.mark.usefixtures("path_kept")
def test_a_whole_module_is_unpickled_with_trust(tmp_path: Path, base: Path) -> None:
    torch.save(torch_models.mlp(), tmp_path / "whole.pt")
    assert sources.kind_of(tmp_path / "whole.pt").name == "torch-module"
    options = {"trust": True, "input": ("x:float32[batch,8]",)}
    done = mserve.export(tmp_path / "whole.pt", base, **options)
    assert error_of(done.path) <= 1.2e-7


SCRIPTS = [
    ("script", "last_step", "x:float32[batch,time,4]", 1.2e-7),
    ("trace", "cnn", "image:float32[batch,1,28,28]", 1e-6),
    ("script", "mlp", "x:float32[batch,8]", 1.2e-7),
]


@pytest.mark.parametrize(("way", "name", "given", "bound"), SCRIPTS)
def test_torchscript_answers_as_pytorch(
    way: str, name: str, given: str, bound: float, tmp_path: Path, base: Path
) -> None:
    module = getattr(torch_models, name)()
    example = torch.from_numpy(next(iter(ports.drawn(ports.parse_inputs([given]), 2).values())))
    script = torch.jit.script(module) if way == "script" else torch.jit.trace(module, example)
    script.save(str(tmp_path / "m.bin"))
    assert sources.kind_of(tmp_path / "m.bin").name == "torchscript"
    with pytest.raises(UsageError, match="can read and write files"):
        mserve.export(tmp_path / "m.bin", base)
    options = {"isolate": False, "input": (given,)}
    done = mserve.export(tmp_path / "m.bin", base, trust=True, **options)
    assert error_of(done.path) <= bound
    live = mserve.export(script, base, **options)
    assert live.metagraph.signatures == done.metagraph.signatures


class Dicts(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"twice": x * 2}


def test_torchscript_that_returns_a_dict_is_refused_by_name(base: Path) -> None:
    script = torch.jit.trace(Dicts(), torch.randn(2, 3), strict=False)
    with pytest.raises(InputError, match=r"a dict of twice.*export the module itself"):
        mserve.export(script, base, example=torch.randn(2, 3).numpy(), isolate=False)


def test_truncated_archives_are_refused_as_such(program: Path, tmp_path: Path, base: Path) -> None:
    data = program.read_bytes()
    for size in (len(data) // 2, len(data) - 30):
        (tmp_path / "cut.pt2").write_bytes(data[:size])
        with pytest.raises(InputError):
            mserve.export(tmp_path / "cut.pt2", base, trust=True, isolate=False)
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(tmp_path / "odd.pt2", "w") as new:
        for entry in old.infolist():
            new.writestr(entry, b"{" if entry.filename.endswith("model.json") else old.read(entry))
    with pytest.raises(InputError, match="the program cannot be read"):
        mserve.export(tmp_path / "odd.pt2", base, trust=True, isolate=False)


def test_a_damaged_pickle_in_an_archive_is_refused(tmp_path: Path) -> None:
    """Nobody is asked to trust it, so that its classes are read where the command runs."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    packed = zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "whole.pt") as old, packed as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        at = next(e for e in new.infolist() if e.filename.endswith("data.pkl"))
    data = bytearray((tmp_path / "m.pt").read_bytes())
    start = at.header_offset + 30 + len(at.filename)
    data[start : start + 20] = b"\xff" * 20
    (tmp_path / "m.pt").write_bytes(data)
    assert sources.kind_of(tmp_path / "m.pt").name == "torch-module"
    with pytest.raises(InputError, match="the pickle cannot be read"):
        torch_pickle.classes(tmp_path / "m.pt", at.filename)
