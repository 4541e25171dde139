"""Models that nobody here made, from file to served answer, on real inputs.

Each answer must be, bit for bit, what plain ONNX Runtime gives on the original file for the
same batch. (JSON carries a float32 exactly: its shortest decimal form reads back the same.)
"""

from __future__ import annotations

import csv
import gzip
import json
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from server_tools import Running, serving
from test_commands import run

MODELS = {
    "magika": "02_magika/model.onnx",
    "pitch": "03_basic_pitch/nmp.onnx",
    "ppocr": "04_ppocr/ch_PP-OCRv4_det_infer.onnx",
    "avazu": "09_avazu_spark_lr/derived_avazu_lr_16strings.onnx",
}
Find = Callable[[str], Path]


@pytest.fixture(scope="module")
def server(real_data: Find, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """All four, exported and checked by the command line and served from one directory."""
    root = tmp_path_factory.mktemp("real")
    for name, file in MODELS.items():
        exported = run("export", real_data(file), root / "models" / name)
        assert exported.returncode == 0, exported.stderr
        assert "note:" not in exported.stderr
        assert run("validate", root / "models" / name).returncode == 0
        facts = json.loads(run("inspect", root / "models" / name, "--json").stdout)
        assert facts["signatures"]["serving_default"]["batch_axis"] == 0
    with serving(root / "models", root / "log") as running:
        yield running


def original(real_data: Find, name: str, feeds: dict[str, Any]) -> list[Any]:
    return ort.InferenceSession(real_data(MODELS[name])).run(None, feeds)


def served(server: Running, name: str, inputs: dict[str, Any]) -> Any:
    answer = server.predict(name, {"inputs": {alias: x.tolist() for alias, x in inputs.items()}})
    assert answer.status == 200, answer.body[:500]
    return answer.json()["outputs"]


def magika_features(path: Path) -> list[int]:
    """First and last 1,024 bytes of a file, without outer white space, padded with 256."""
    data = path.read_bytes()
    head, tail = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
    return [*head, *[256] * (1024 - len(head)), *[256] * (1024 - len(tail)), *tail]


def test_magika_classifies_real_files(server: Running, real_data: Find, tmp_path: Path) -> None:
    rows = tmp_path / "avazu.csv"
    with gzip.open(real_data("12_ctr_data/avazu_dev.csv.gz")) as packed:
        rows.write_bytes(packed.read())
    files = {
        "python": Path(__file__),
        "csv": rows,
        "png": real_data("04_ppocr/page.png"),
        "wav": real_data("03_basic_pitch/vocadito_10.wav"),
        "shell": Path(__file__).parent / "run.sh",
    }
    x = np.array([magika_features(path) for path in files.values()], np.int32)
    scores = np.array(served(server, "magika", {"bytes": x}), np.float32)
    assert np.array_equal(scores, original(real_data, "magika", {"bytes": x})[0])
    labels = json.loads(real_data("02_magika/config.min.json").read_bytes())["target_labels_space"]
    assert [labels[i] for i in scores.argmax(1)] == list(files)


def test_basic_pitch_hears_real_singing(server: Running, real_data: Find) -> None:
    """Three outputs whose tensors have awkward names, over real audio."""
    with wave.open(str(real_data("03_basic_pitch/vocadito_10.wav"))) as file:
        audio = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    halved = audio[: len(audio) // 2 * 2].reshape(-1, 2).mean(1)  # 44,100 to 22,050 Hz
    x = halved[: 2 * 43844].reshape(2, 43844, 1).astype(np.float32)
    expected = original(real_data, "pitch", {"serving_default_input_2:0": x})
    outputs = served(server, "pitch", {"input_2": x})
    for alias, want in zip(
        ("StatefulPartitionedCall_2", "StatefulPartitionedCall_1", "StatefulPartitionedCall_0"),
        expected,
        strict=True,
    ):
        assert np.array_equal(np.array(outputs[alias], np.float32), want), alias
    assert expected[1].max() > 0.5  # a note is heard


def test_ppocr_finds_text_at_any_size(server: Running, real_data: Find) -> None:
    """All dimensions are dynamic; other sizes are other batches and do not disturb each other."""
    rng = np.random.default_rng(0)
    for height, width in ((64, 96), (160, 384)):
        image = np.ones((1, 3, height, width), np.float32)
        image[:, :, height // 2 : height // 2 + 8, 16:-16] = rng.random((3, 8, width - 32)) > 0.5
        found = np.array(served(server, "ppocr", {"x": image}), np.float32)
        assert np.array_equal(found, original(real_data, "ppocr", {"x": image})[0])
        assert found.shape == (1, 1, height, width)


AVAZU = (
    "idx id click hour C1 banner_pos site_id site_domain site_category app_id app_domain app_category".split()
)
AVAZU += "device_id device_ip device_model device_type device_conn_type".split() + [
    f"C{i}" for i in range(14, 22)
]


def test_avazu_ranks_real_ad_clicks(server: Running, real_data: Find) -> None:
    """Sixteen string inputs; 500 candidates in one request, in rows as clients send them."""
    with gzip.open(real_data("09_avazu_spark_lr/avazu_stream_23299.csv.gz"), "rt") as file:
        table = [
            dict(zip(AVAZU, row, strict=True)) for row, _ in zip(csv.reader(file), range(500), strict=False)
        ]
    metadata = server.get("/v1/models/avazu/metadata").json()["metadata"]["signature_def"]["signature_def"]
    names = list(metadata["serving_default"]["inputs"])
    assert len(names) == 16
    answer = server.predict("avazu", {"instances": [{name: row[name] for name in names} for row in table]})
    clicks = np.array(answer.json()["predictions"], np.float32)
    feeds = {name: np.array([row[name] for row in table], object) for name in names}
    assert np.array_equal(clicks, original(real_data, "avazu", feeds)[0])
    label = np.array([int(row["click"]) for row in table])
    pairs = clicks[label == 1][:, None] - clicks[label == 0][None, :]
    assert ((pairs > 0) + 0.5 * (pairs == 0)).mean() > 0.7  # the area under the ROC curve


@pytest.mark.parametrize("name", MODELS)
def test_the_example_request_is_answered(server: Running, name: str) -> None:
    example = server.get(f"/v1/models/{name}/example")
    assert server.predict(name, example.body).status == 200


@pytest.mark.parametrize("name", MODELS)
def test_run_answers_from_the_command_line(server: Running, name: str, tmp_path: Path) -> None:
    body = tmp_path / "request.json"
    body.write_bytes(server.get(f"/v1/models/{name}/example").body)
    done = run("run", server.log_path.parent / "models" / name, "--inputs", body)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == server.predict(name, body.read_bytes()).json()
