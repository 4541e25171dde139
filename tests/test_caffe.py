"""Caffe networks: those in the archive were answered by OpenCV's reader of the same files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import legacy_writers
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from legacy_writers import caffemodel

from mserve.errors import MserveError, UsageError
from mserve.exporters.legacy import caffe_files
from mserve.exporters.sources import kind_of

NETS = (
    "acts bn conv_dil conv_pad deconv elt exp flat ip lrn pool_ave pool_ave_pad pool_glob pool_max "
    "pool_max_pad prelu"
).split()
W, B = np.float32([[1, -2, 0.5], [0.25, 3, -1]]), np.float32([0.5, -0.5])
X = np.float32([[1, 2, 3], [-1, 0, 2]])
HEAD = 'name: "net" input: "x" input_dim: 1 input_dim: 3 input_dim: 1 input_dim: 1\n'
PRODUCT = """layer { name: "p" type: "InnerProduct" bottom: "x" top: "p"
  inner_product_param { num_output: 2 } }\n"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nets")
    with zipfile.ZipFile(Path(__file__).parent / "golden" / "caffe_nets.zip") as archive:
        archive.extractall(root)
    return root


@pytest.mark.parametrize("name", NETS)
def test_a_network_answers_as_by_opencv(name: str, nets: Path) -> None:
    assert kind_of(nets / f"{name}.prototxt").name == "caffe"
    converted = legacy_writers.convert(
        "caffe", nets / f"{name}.prototxt", weights=nets / f"{name}.caffemodel"
    )
    found = legacy_writers.answers(converted, {"x": np.load(nets / f"{name}.npy")})
    expected = np.load(nets / f"{name}.out.npy")
    assert np.abs(next(iter(found.values())).reshape(expected.shape) - expected).max() < 2e-6


def convert(text: str, tmp_path: Path, blobs: dict[str, list[Any]] | None = None, **options: Any) -> Any:
    (tmp_path / "m.prototxt").write_text(text)
    weights = caffemodel({"p": [W, B]} if blobs is None else blobs, tmp_path / "m.caffemodel", old=False)
    return legacy_writers.convert("caffe", tmp_path / "m.prototxt", weights=weights, **options)


@pytest.mark.parametrize("old", [False, True], ids=["blob shapes", "four dims, V1 layers"])
def test_both_versions_of_the_format(old: bool, tmp_path: Path) -> None:
    text = HEAD + PRODUCT
    if old:
        text = text.replace("layer {", "layers {").replace('"InnerProduct"', "INNER_PRODUCT")
    (tmp_path / "m.prototxt").write_text(text)
    weights = caffemodel({"p": [W, B]}, tmp_path / "m.caffemodel", old=old)
    assert kind_of(weights).name == "caffe"
    converted = legacy_writers.convert("caffe", tmp_path / "m.prototxt", weights=weights)
    found = legacy_writers.answers(converted, {"x": X.reshape(2, 3, 1, 1)})
    assert np.allclose(found["score"], X @ W.T + B)


TRAINING = HEAD + (
    'layer { name: "d" type: "Data" top: "data" top: "label" include { phase: TRAIN } }\n'
    + PRODUCT
    + 'layer { name: "a" type: "Accuracy" bottom: "p" bottom: "label" top: "a" include: { phase: TEST } }\n'
    'layer { name: "l" type: "SoftmaxWithLoss" bottom: "p" bottom: "label" top: "prob" }\n'
)


def test_what_is_for_training_is_left_out(tmp_path: Path) -> None:
    """Data, labels and accuracies go; a loss answers with its probabilities."""
    text = TRAINING.replace('"d" type: "Data" top: "data"', '"d" type: "Data" top: "x"')
    text = text.replace("include { phase: TRAIN }", "").replace(HEAD, "# a comment\n")
    converted = convert(text, tmp_path, input=("x:float32[batch,3]",))
    assert list(legacy_writers.answers(converted, {"x": X})) == ["probabilities", "label"]


def test_two_outputs_keep_their_names(tmp_path: Path) -> None:
    text = HEAD + PRODUCT + 'layer { name: "t" type: "TanH" bottom: "x" top: "t" }'
    found = legacy_writers.answers(convert(text, tmp_path), {"x": X.reshape(2, 3, 1, 1)})
    assert sorted(found) == ["p", "t"]


def layer(kind: str, body: str = "", bottom: str = "x") -> str:
    return HEAD + f'layer {{ name: "p" type: "{kind}" bottom: "{bottom}" top: "p" {body} }}'


BIG = "9" * 30
HOSTILE: list[tuple[str, str, dict[str, list[Any]] | None, str]] = [
    ("unknown layers", HEAD + PRODUCT.replace("InnerProduct", "Odd") + layer("Crop")[len(HEAD) :],
     None, "found: Crop, Odd"),
    ("NaN among weights", HEAD + PRODUCT, {"p": [W, np.float32([np.nan, 1])]}, "not a number"),
    ("no weights", HEAD + PRODUCT, {}, "weights do not fit"),
    ("weights of another size", HEAD + PRODUCT, {"p": [W, np.float32([1])]}, "weights do not fit"),
    ("layers that do not fit", HEAD + PRODUCT, {"p": [W[:, :2], B]}, "do not fit each other"),
    ("a bottom that is not there", layer("ReLU", bottom="y"), None, "takes what is not there"),
    ("a huge kernel", layer("Pooling", f"pooling_param {{ kernel_size: {BIG} }}"), None, "not a whole"),
    ("no kernel", layer("Pooling"), None, "a bad kernel"),
    ("no stride", layer("Pooling", "pooling_param { kernel_size: 1 stride: 0 }"), None, "a bad stride"),
    ("by chance", layer("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 1 }"), None, "ONNX"),
    ("within channels", layer("LRN", "lrn_param { norm_region: WITHIN_CHANNEL }"), None, "ONNX"),
    ("a number too large", layer("Power", f"power_param {{ scale: {BIG}{BIG} }}"), None, "float32 holds"),
    ("a number as Python writes it", layer("Power", "power_param { scale: 1_0 }"), None, "not a number"),
    ("digits of another script", layer("Pooling", "pooling_param { stride: \u0663 }"), None, "not a whole"),
    ("a coefficient that is a name", layer("Eltwise", "eltwise_param { coeff: a }"), None, "not a number"),
    ("means divided by next to nothing", layer("BatchNorm"),
     {"p": [B, B, np.float32([1e-44])]}, "float32 holds"),
    ("no layers", HEAD, None, "not a network"),
    ("no end", HEAD + "layer {", None, "the end"),
    ("an end too much", HEAD + PRODUCT + "}", None, "malformed"),
    ("no value", HEAD + "layer:", None, "malformed"),
    ("deep", HEAD + "layer { a { " + "a { " * 500, None, "inside each other"),
    ("other signs", HEAD + "layer @", None, "Protocol Buffers text"),
    ("a message as a name", HEAD + "layer { name { } }", None, "not a value"),
    ("a value as a layer", HEAD + "layer: 5", None, "not a message"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "text", "blobs", "said"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_a_bad_network_is_refused(
    why: str, text: str, blobs: dict[str, list[Any]] | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(MserveError) as caught:
        convert(text, tmp_path, blobs)
    assert said in str(caught.value)


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "m.prototxt").write_text(HEAD + PRODUCT)
    weights = caffemodel({"p": [W, B]}, tmp_path / "m.caffemodel")
    with pytest.raises(UsageError, match="without weights"):
        legacy_writers.convert("caffe", tmp_path / "m.prototxt")
    with pytest.raises(UsageError, match="only a network's weights"):
        legacy_writers.convert("caffe", weights)
    no_shape = HEAD.replace("input_dim: 1 input_dim: 3 input_dim: 1 input_dim: 1", "") + PRODUCT
    with pytest.raises(UsageError, match="does not say what the network takes"):
        convert(no_shape, tmp_path)
    with pytest.raises(UsageError, match="does not have"):
        convert(HEAD + PRODUCT, tmp_path, input=("y:float32[batch]",))


def test_every_truncation_of_the_weights_is_refused_or_lacks_them(tmp_path: Path) -> None:
    data = caffemodel({"p": [W, B]}, tmp_path / "m").read_bytes()
    for end in range(len(data)):
        try:
            assert caffe_files.parse_weights(data[:end], "here") == {}
        except MserveError:
            continue


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
def test_any_weights_are_read_or_refused(changes: list[tuple[int, int]], tmp_path: Path) -> None:
    data = bytearray(caffemodel({"p": [W, B]}, tmp_path / "m").read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    try:
        caffe_files.parse_weights(bytes(data), "here")
    except MserveError:
        return


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='layer{}:"<>[] \n#\\ab01.', max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        caffe_files.parse_text(text, "here")
    except MserveError:
        return
