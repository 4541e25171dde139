"""Keras models without TensorFlow: answers equal to Keras's own, or a refusal.

They need Keras and PyTorch (`pip install 'mserve[keras]'`) and are skipped without.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mserve
from mserve.errors import InputError
from mserve.exporters import sources

needs_keras = pytest.mark.skipif(
    bool(sources.missing(sources.named("keras"))), reason="needs pip install 'mserve[keras]'"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of `keras_models`, and one exported where it was made."""
    directory = tmp_path_factory.mktemp("models")
    script = Path(__file__).with_name("keras_models.py")
    command = [sys.executable, str(script), str(directory), str(directory / "live")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("Sequential")
    return directory


MODELS = [
    ("a network with GELU", "mlp.keras", ("x",), ("probabilities",)),
    ("the same in the older format", "mlp.h5", ("x",), ("probabilities",)),
    ("convolutions and batch normalisation", "cnn.keras", None, None),
    ("recurrence in both directions keeps the batch open", "bilstm.keras", None, ("score",)),
    ("gated recurrence", "gru.keras", None, None),
    ("two inputs and two outputs keep their names", "two.keras", ("a", "b"), ("score", "label")),
    ("attention", "attention.keras", ("words",), ("score",)),
]


@needs_keras
@pytest.mark.parametrize(("why", "name", "inputs", "outputs"), MODELS, ids=[row[0] for row in MODELS])
def test_models_answer_as_keras_does(
    why: str,
    name: str,
    inputs: tuple[str, ...] | None,
    outputs: tuple[str, ...] | None,
    made: Path,
    tmp_path: Path,
) -> None:
    done = mserve.export(made / name, tmp_path / "m")
    signature = done.metagraph.signatures["serving_default"]
    assert signature.batch_axis == 0
    assert inputs is None or tuple(signature.inputs) == inputs
    assert outputs is None or tuple(signature.outputs) == outputs
    assert done.metagraph.provenance["conversion"]["max_error"] <= 1e-6


@needs_keras
def test_a_live_model_is_the_saved_one(made: Path, tmp_path: Path) -> None:
    x = {"x": np.random.default_rng(0).random((5, 4), np.float32)}
    live = mserve.load(made / "live").run(x)
    saved = mserve.load(mserve.export(made / "mlp.keras", tmp_path / "m").path).run(x)
    np.testing.assert_array_equal(live["probabilities"], saved["probabilities"])


@needs_keras
@pytest.mark.parametrize(
    ("why", "name", "word"),
    [
        ("a Lambda layer holds code", "lambda.keras", "safe mode"),
        ("a file of weights alone", "only.weights.h5", "weights alone"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    why: str, name: str, word: str, made: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=word):
        mserve.export(made / name, tmp_path / "m", kind="keras")


@needs_keras
@pytest.mark.parametrize("name", ["mlp.keras", "mlp.h5"])
def test_truncated_files_are_refused(name: str, made: Path, tmp_path: Path) -> None:
    data = (made / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError):
        mserve.export(tmp_path / name, tmp_path / "m", kind="keras")


@needs_keras
def test_a_real_model_of_keras_2(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Emotions on faces, saved by a Keras of 2018."""
    done = mserve.export(real_data("13_tf1_and_keras/emotion_model.hdf5"), tmp_path / "m")
    signature = done.metagraph.signatures["serving_default"]
    assert {a: s.shape for a, s in signature.outputs.items()} == {"predictions": ("batch", 7)}
    assert done.metagraph.provenance["conversion"]["max_error"] <= 1e-5
