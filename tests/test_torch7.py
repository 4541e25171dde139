"""Torch7 networks: those in the archive were answered by OpenCV's reader of both forms of the format."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import legacy_writers
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from legacy_writers import T7, Obj, sequential, t7

from mserve.errors import MserveError, UsageError
from mserve.exporters.kinds import Converted
from mserve.exporters.legacy import torch7_file
from mserve.exporters.sources import kind_of

RNG = np.random.default_rng(3)
NETS = (
    "ave ave_ceil bn bn_old concat conv conv_mm dilated full lrn max max_ceil mlp pad prelu residual soft"
).split()


def some(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def linear(taken: int, made: int) -> Obj:
    return Obj("nn.Linear", {"weight": some(made, taken), "bias": some(made)})


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nets")
    with zipfile.ZipFile(Path(__file__).parent / "golden" / "torch7_nets.zip") as archive:
        archive.extractall(root)
    return root


@pytest.mark.parametrize("form", ["", ".ascii"], ids=["binary", "ascii"])
@pytest.mark.parametrize("name", NETS)
def test_a_network_answers_as_by_opencv(name: str, form: str, nets: Path) -> None:
    x = np.load(nets / f"{name}.npy")
    described = f"x:float32[batch,{','.join(map(str, x.shape[1:]))}]"
    assert kind_of(nets / f"{name}{form}.t7").name == "torch7"
    converted = legacy_writers.convert("torch7", nets / f"{name}{form}.t7", input=(described,))
    found = legacy_writers.answers(converted, {"x": x})
    expected = np.load(nets / f"{name}{form}.out.npy")
    answer = found.get("log_probabilities", next(iter(found.values())))
    assert np.abs(answer.reshape(expected.shape) - expected).max() < 2e-6


X = np.array([[-7.0, -0.5, 0.25, 3.0], [8.0, 0.6, -1.5, 1.0]], np.float32)
FORMULAS: list[tuple[Obj, Callable[[Any], Any]]] = [
    (Obj("nn.HardTanh", {"min_val": -2, "max_val": 1}), lambda x: x.clip(-2, 1)),
    (Obj("nn.ReLU6"), lambda x: x.clip(0, 6)),
    (Obj("nn.Threshold", {"threshold": 0.5, "val": -9}), lambda x: np.where(x > 0.5, x, -9)),
    (Obj("nn.LeakyReLU", {"negval": 0.3}), lambda x: np.where(x > 0, x, 0.3 * x)),
    (Obj("nn.ELU", {"alpha": 0.7}), lambda x: np.where(x > 0, x, 0.7 * np.expm1(x))),
    (Obj("nn.SoftPlus", {"beta": 2}), lambda x: np.log1p(np.exp(2 * x)) / 2),
    (Obj("nn.Power", {"pow": 2}), lambda x: x**2),
    (Obj("nn.Square"), lambda x: x**2),
    (Obj("nn.Abs"), np.abs),
    (Obj("nn.MulConstant", {"constant_scalar": 3}), lambda x: 3 * x),
    (Obj("nn.AddConstant", {"constant_scalar": 3}), lambda x: 3 + x),
    (Obj("nn.CMul", {"weight": np.float32([1, 2, 3, 4])}), lambda x: x * [1, 2, 3, 4]),
    (Obj("nn.Add", {"bias": np.float32([1, 2, 3, 4])}), lambda x: x + np.arange(1, 5)),
    (Obj("nn.Dropout", {"p": 0.25}), lambda x: 0.75 * x),
    (Obj("nn.Dropout", {"p": 0.25, "v2": True}), lambda x: x),
    (Obj("nn.SoftMin"), lambda x: np.exp(-x) / np.exp(-x).sum(1, keepdims=True)),
    (Obj("nn.Mean", {"dimension": 2}), lambda x: x.mean(1)),
    (Obj("nn.Max", {"dimension": 1, "nInputDims": 1}), lambda x: x.max(1)),
]


@pytest.mark.parametrize(("layer", "formula"), FORMULAS, ids=[layer.name for layer, _ in FORMULAS])
def test_a_layer_computes_its_formula(layer: Obj, formula: Callable[[Any], Any], tmp_path: Path) -> None:
    converted = legacy_writers.convert(
        "torch7", t7(sequential(layer), tmp_path / "m.t7"), input=("x:float32[batch,4]",)
    )
    found = next(iter(legacy_writers.answers(converted, {"x": X}).values()))
    assert np.allclose(found, formula(X.astype(np.float64)), atol=1e-5)


def test_tables_of_tensors(tmp_path: Path) -> None:
    both = Obj(
        "nn.ParallelTable",
        {"modules": {1: Obj("nn.Identity"), 2: Obj("nn.MulConstant", {"constant_scalar": 2})}},
    )
    net = sequential(both, Obj("nn.CSubTable"))
    described = ("a:float32[batch,4]", "b:float32[batch,4]")
    converted = legacy_writers.convert("torch7", t7(net, tmp_path / "m.t7"), input=described)
    found = legacy_writers.answers(converted, {"a": X, "b": X})
    assert np.array_equal(found["score"], -X)


def test_words_are_counted_from_one(tmp_path: Path) -> None:
    rows = some(5, 3)
    net = sequential(Obj("nn.LookupTable", {"weight": rows}), Obj("nn.Mean", {"dimension": 2}))
    converted = legacy_writers.convert("torch7", t7(net, tmp_path / "m.t7"), input=("x:int64[batch,2]",))
    found = legacy_writers.answers(converted, {"x": np.array([[1, 5], [2, 2]])})
    assert np.allclose(found["score"], [(rows[0] + rows[4]) / 2, rows[1]])


def shape(converted: Converted) -> Any:
    return (converted.signatures or {})["serving_default"].inputs["x"].shape


def test_where_the_input_s_shape_is_taken_from(tmp_path: Path) -> None:
    """A matrix tells, else the gradient that training left, else the user must."""
    path = tmp_path / "m.t7"
    assert shape(legacy_writers.convert("torch7", t7(sequential(linear(6, 2)), path))) == ("batch", 6)
    trained = sequential(Obj("nn.View", {"size": [6]}), linear(6, 2), gradInput=some(9, 2, 3))
    converted = legacy_writers.convert("torch7", t7(trained, path))
    assert shape(converted) == ("batch", 2, 3)
    assert "--input says it otherwise" in converted.notes[0]
    with pytest.raises(UsageError, match="does not say what the network takes"):
        legacy_writers.convert("torch7", t7(sequential(Obj("nn.Tanh"), linear(6, 2)), path))


def test_a_checkpoint_has_one_network(tmp_path: Path) -> None:
    path, net = tmp_path / "m.t7", sequential(linear(3, 2), Obj("nn.SoftMax"))
    converted = legacy_writers.convert("torch7", t7({"epoch": 3, "model": net}, path))
    assert list(legacy_writers.answers(converted, {"x": some(2, 3)})) == ["probabilities", "label"]
    for value in ({"a": net, "b": sequential(linear(2, 2))}, {"a": 1}, "text", Obj("optim.Adam")):
        with pytest.raises(MserveError):
            legacy_writers.convert("torch7", t7(value, path))


def test_class_names_are_an_asset(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    net = t7(sequential(linear(3, 2), Obj("nn.SoftMax")), tmp_path / "m.t7")
    converted = legacy_writers.convert("torch7", net, labels=tmp_path / "names.txt")
    assert converted.assets == {"labels.txt": b"cat\ndog\n"}


def nested() -> Obj:
    net = sequential(linear(3, 2))
    net.fields["modules"] = {1: net}
    return net


def view(sizes: tuple[int, ...], strides: tuple[int, ...], offset: int = 1) -> bytes:
    """A network of a matrix whose tensor is a view of three numbers, as bytes."""
    out = T7()
    out.numbers("i", [4, 1])
    out._head("nn.Linear")
    out.numbers("i", [3, 2, 1])
    out.value("weight")
    out.numbers("i", [4, 3])
    out._head("torch.FloatTensor")
    out.numbers("i", [len(sizes)])
    out.numbers("q", [*sizes, *strides, offset])
    out.numbers("i", [4, 4])
    out._head("torch.FloatStorage")
    out.numbers("q", [3])
    out.numbers("f", [1, 2, 3])
    return bytes(out.out)


def with_nan() -> Obj:
    layer = linear(3, 2)
    layer.fields["bias"][1] = np.nan
    return layer


def encoded(value: Any) -> bytes:
    return bytes(T7().value(value).out)


def begun(name: str, **fields: Any) -> Obj:
    """A network that says what it takes and goes on with a layer."""
    return sequential(linear(3, 3), Obj(name, fields))


ZEROS = np.zeros(3, np.float32)
DEVIATION = encoded(begun("nn.BatchNormalization", running_mean=ZEROS, running_std=ZEROS))
ASCII_SIZES = bytes(T7(ascii_form=True).value(begun("nn.View", size=[7, 8])).out)
ASCII_SIZES = ASCII_SIZES.replace(b"\n7 8\n", b"\n99999999999999999999 8\n")
NAN_SIZES = encoded(begun("nn.View", size=[-1])).replace(b"torch.LongStorage", b"torch.HalfStorage")
HOSTILE = [
    ("layers that hold themselves", encoded(nested()), "do not end"),
    ("unknown layers", encoded(sequential(Obj("nn.Odd"), Obj("nn.Tanh"), Obj("my.Own"))), "my.Own, nn.Odd"),
    ("NaN among weights", encoded(sequential(with_nan())), "not a number that float32 holds"),
    ("a view past its storage", view((2, 2), (2, 1)), "leaves its storage"),
    ("a view of a huge size", view((1 << 40, 1 << 40), (0, 0)), "leaves its storage"),
    ("a view that runs backwards", view((3, 1), (-1, 1), 3), "leaves its storage"),
    ("a view of nothing with a huge side", view((0, 1 << 62, 1 << 62), (1, 1, 1)), "[out, in]"),
    ("a parameter too large", encoded(begun("nn.MulConstant", constant_scalar=1e300)), "parameter is not a"),
    ("a deviation of zero", DEVIATION, "not a number that float32 holds"),
    ("a window of -3 channels", encoded(begun("nn.SpatialCrossMapLRN", size=-3)), "size"),
    ("a border of a gigabyte", encoded(begun("nn.SpatialZeroPadding", pad_t=1 << 27)), "sides of at most"),
    ("sizes that are no numbers", NAN_SIZES, "sizes"),
    ("a number of 20 digits", ASCII_SIZES, "64 bits"),
    ("a view before its storage", view((1, 1), (1, 1), -5), "leaves its storage"),
    ("no weights", encoded(sequential(Obj("nn.Linear"))), "weight; expected: a tensor"),
    ("a bias of another size", encoded(Obj("nn.Linear", {"weight": some(2, 3), "bias": some(5)})), "bias"),
    ("weights that are text", encoded(Obj("nn.Linear", {"weight": "text"})), "a tensor"),
    ("layers out of order", encoded(Obj("nn.Sequential", {"modules": {1: None, 3: None}})), "numbered"),
    ("a layer that is a number", encoded(Obj("nn.Sequential", {"modules": {1: 5}})), "a layer"),
    ("layers that do not fit", encoded(sequential(linear(3, 2), linear(5, 2))), "do not fit each other"),
    ("a huge text", struct.pack("<3i", 4, 1, 2**31 - 1), "truncated or malformed"),
    ("a text of negative length", struct.pack("<3i", 4, 1, -1), "truncated or malformed"),
    ("a table of 2 billion", struct.pack("<3i", 3, 1, 2**31 - 1), "truncated or malformed"),
    ("an unknown type", struct.pack("<i", 77), "a type from 0 to 8"),
    ("deep", b"".join(struct.pack("<4id", 3, i, 1, 1, i) for i in range(1, 9999)), "inside each other"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "data", "said"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_a_bad_file_is_refused(why: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "m.t7").write_bytes(data)
    with pytest.raises(MserveError) as caught:
        legacy_writers.convert("torch7", tmp_path / "m.t7")
    assert said in str(caught.value)


def test_the_stride_of_an_axis_of_one_number_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "m.t7").write_bytes(view((1, 3), (1 << 62, 1)))
    x = some(4, 3)
    found = legacy_writers.answers(legacy_writers.convert("torch7", tmp_path / "m.t7"), {"x": x})
    assert np.allclose(found["score"].ravel(), x @ [1, 2, 3], atol=1e-5)


NET = sequential(
    linear(3, 4), Obj("nn.ReLU"), Obj("nn.Dropout", {"v2": True}), linear(4, 2), Obj("nn.LogSoftMax")
)


@pytest.mark.parametrize("ascii_form", [False, True])
def test_every_truncation_is_refused(ascii_form: bool, tmp_path: Path) -> None:
    data = bytes(T7(ascii_form=ascii_form).value(NET).out).rstrip()
    for end in range(len(data) - 16):  # a last number may be written shorter
        (tmp_path / "m.t7").write_bytes(data[:end])
        with pytest.raises(MserveError):
            legacy_writers.convert("torch7", tmp_path / "m.t7")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    form=st.booleans(),
)
def test_any_bytes_convert_or_are_refused(changes: list[tuple[int, int]], form: bool, tmp_path: Path) -> None:
    data = bytearray(T7(ascii_form=form).value(NET).out)
    for place, value in changes:
        data[place % len(data)] = value
    (tmp_path / "m.t7").write_bytes(bytes(data))
    try:
        legacy_writers.convert("torch7", tmp_path / "m.t7")
    except MserveError:
        return


def test_functions_are_stepped_over() -> None:
    """Compiled Lua in a table is not run, nor kept."""
    out = T7()
    out.numbers("i", [3, 1, 2])
    out.value("f")
    out.numbers("i", [8, 2])
    out.text(b"\x1bLJ code")
    out.numbers("i", [3, 3, 0])
    out.value("x")
    out.value(5)
    assert torch7_file.parse(bytes(out.out), "here") == {"f": None, "x": 5.0}


VIEWS = [
    ([-1, 6], {}, (3, 6), "the first axis is named"),
    ([6], {}, (3, 6), "a row's axes only"),
    ([-1], {"numInputDims": 2}, (3, 6), "what is left of a row"),
    ([-1, 2], {"numInputDims": 2}, (3, 3, 2), "what is left of a row, in pairs"),
]


@pytest.mark.parametrize(("size", "fields", "made", "why"), VIEWS, ids=[v[3] for v in VIEWS])
def test_views_keep_the_batch(
    size: list[int], fields: dict[str, Any], made: tuple[int, ...], why: str, tmp_path: Path
) -> None:
    net = t7(sequential(Obj("nn.View", {"size": size, **fields})), tmp_path / "m.t7")
    converted = legacy_writers.convert("torch7", net, input=("x:float32[batch,2,3]",))
    x = some(3, 2, 3)
    found = next(iter(legacy_writers.answers(converted, {"x": x}).values()))
    assert np.array_equal(found, x.reshape(made))
