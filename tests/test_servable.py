"""Loading a bundle and answering from it; the states of a version."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import builders
import numpy as np
import pytest
from builders import FLOAT, floats, mlp, model
from onnx import ModelProto, TensorProto, helper

import mserve
from mserve.errors import ExecutionFailed, ModelRefused, NotFound, RequestError
from mserve.exporters.signatures import PROBE_ROWS
from mserve.loader.servable import NEXT, Servable, State

node = helper.make_node


@pytest.fixture(scope="module")
def digits(mlp: ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Servable:
    """A loaded network."""
    return mserve.load(mserve.export(mlp, tmp_path_factory.mktemp("digits"), name="digits", version=7).path)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Servable:
    """A loaded model of text."""
    return mserve.load(mserve.export(builders.strings(), tmp_path_factory.mktemp("words")).path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Servable:
    """Two inputs that share a symbol beside the batch."""
    proto = model(
        [node("Add", ["a", "b"], ["y"])],
        [("a", FLOAT, ["N", "W"]), ("b", FLOAT, ["N", "W"])],
        [("y", FLOAT, ["N", "W"])],
    )
    return mserve.load(mserve.export(proto, tmp_path_factory.mktemp("pair")).path)


@pytest.mark.parametrize("rows", [0, 1, 3, 100])
def test_answers_equal_those_of_the_runtime_alone(rows: int, mlp: ModelProto, digits: Servable) -> None:
    x = {"x": floats(rows, 784)}
    answer = digits.run(x)
    assert list(answer) == ["y"]
    assert np.array_equal(answer["y"], builders.plain(mlp, x)[0])
    assert (digits.version, digits.private_memory) == (7, True)


TEXT: list[Any] = [
    ["a", "é", "none"],
    np.array(["a", "é", "none"]),
    np.array(["a", "é", "none"], object),
    np.array(["a", b"\xc3\xa9", "none"], object),
    np.array([b"a", "é".encode(), b"none"]),
    np.array(["a", "é", "none"], np.dtypes.StringDType()),
]


@pytest.mark.parametrize("text", TEXT, ids=["list", "U", "objects", "mixed", "S", "T"])
def test_text_may_come_in_any_form(text: Any, words: Servable) -> None:
    answer = words.run({"word": text})
    assert list(answer["value"]) == [1.0, 3.0, -1.0]
    assert list(answer["echo"]) == ["a", "é", "none"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (np.array([b"\xff"]), "text is not UTF-8"),
        (np.array([None]), "an array of objects holds no text (expected: str; found: NoneType)"),
        (np.array(["a", 1], object), "found: int"),
    ],
)
def test_what_is_no_text(text: Any, said: str, words: Servable) -> None:
    with pytest.raises(RequestError) as caught:
        words.run({"word": text})
    assert said in str(caught.value)


X = floats(2, 784)
BAD_INPUTS: list[tuple[str, dict[str, Any], str]] = [
    ("no input", {}, "expected: x; found: missing 'x'"),
    ("another input", {"z": X}, "expected: x; found: missing 'x', unknown 'z'"),
    ("one input more", {"x": X, "z": X}, "expected: x; found: unknown 'z'"),
    ("doubles", {"x": X.astype(float)}, "input 'x' has the wrong dtype (expected: float32; found: float64)"),
    ("integers", {"x": [[1, 2]]}, "input 'x' has the wrong dtype (expected: float32; found: int64)"),
    ("text", {"x": ["a"]}, "input 'x' has the wrong dtype (expected: float32; found: string)"),
    ("complex numbers", {"x": X.astype(complex)}, "expected: float32; found: complex128"),
    ("a bare row", {"x": X[0]}, "input 'x' has the wrong shape (expected: [batch, 784]; found: [784])"),
    ("a scalar", {"x": np.float32(1)}, "expected: [batch, 784]; found: []"),
    ("a dimension too many", {"x": X[None]}, "expected: [batch, 784]; found: [1, 2, 784]"),
    ("a row too short", {"x": X[:, :9]}, "expected: [batch, 784]; found: [2, 9]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("why", "inputs", "said"), BAD_INPUTS, ids=[w.replace(" ", "-") for w, *_ in BAD_INPUTS]
)
def test_bad_inputs(why: str, inputs: dict[str, Any], said: str, digits: Servable) -> None:
    with pytest.raises(RequestError) as caught:
        digits.run(inputs)
    assert type(caught.value) is RequestError, why
    assert (caught.value.exit_code, caught.value.http_status) == (3, 400)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (
            (2, 5),
            (3, 5),
            "input 'b' has the wrong shape (expected: [batch, W] with batch=2; found: [3, 5])",
        ),
        (
            (2, 5),
            (2, 6),
            "input 'b' has the wrong shape (expected: [batch, W] with W=5; found: [2, 6])",
        ),
    ],
)
def test_a_symbol_has_one_size_in_a_request(
    a: tuple[int, int], b: tuple[int, int], said: str, pair: Servable
) -> None:
    with pytest.raises(RequestError) as caught:
        pair.run({"a": floats(*a), "b": floats(*b)})
    assert said in str(caught.value)
    assert pair.run({"a": floats(2, 6), "b": floats(2, 6)})["y"].shape == (2, 6)


def test_inputs_that_do_not_agree_on_the_rows(tmp_path: Path) -> None:
    """Where no symbol joins the first axes, the batch axis still does."""
    proto = model(
        [node("Relu", ["a"], ["y"]), node("Relu", ["b"], ["z"])],
        [("a", FLOAT, ["N", 2]), ("b", FLOAT, ["M", 2])],
        [("y", FLOAT, ["N", 2]), ("z", FLOAT, ["M", 2])],
    )
    servable = mserve.load(mserve.export(proto, tmp_path / "base").path)
    with pytest.raises(RequestError, match="wrong shape"):
        servable.run({"a": floats(2, 2), "b": floats(3, 2)})


def test_a_model_that_fails_on_a_request_says_why(tmp_path: Path) -> None:
    table = builders.weight("table", floats(10, 2))
    proto = model(
        [node("Gather", ["table", "ids"], ["y"])],
        [("ids", TensorProto.INT64, ["N"])],
        [("y", FLOAT, ["N", 2])],
        [table],
    )
    servable = mserve.load(mserve.export(proto, tmp_path / "base").path)
    assert np.array_equal(servable.run({"ids": np.array([3])})["y"], floats(10, 2)[3:4])
    with pytest.raises(ExecutionFailed, match="indices element out of data bounds") as caught:
        servable.run({"ids": np.array([10])})
    assert (caught.value.exit_code, caught.value.http_status) == (3, 400)


def test_signatures_by_name(mlp: ModelProto, tmp_path: Path) -> None:
    toml = tmp_path / "s.toml"
    toml.write_text(
        '[signatures.a]\ninputs.x = { tensor = "x" }\noutputs.y = { tensor = "y" }\n'
        '[signatures.b]\ninputs.image = { tensor = "x" }\noutputs.scores = { tensor = "y" }\n'
    )
    servable = mserve.load(mserve.export(mlp, tmp_path / "base", signatures=toml).path)
    assert list(servable.run({"image": X}, "b")) == ["scores"]
    for name in ("", "c", "serving_default"):
        with pytest.raises(NotFound, match="no such signature") as caught:
            servable.run({"x": X}, name)
        assert caught.value.expected == "a, b"


def test_the_only_signature_needs_no_name(mlp: ModelProto, tmp_path: Path) -> None:
    toml = tmp_path / "s.toml"
    toml.write_text('[signatures.a]\ninputs.x = { tensor = "x" }\noutputs.y = { tensor = "y" }\n')
    servable = mserve.load(mserve.export(mlp, tmp_path / "base", signatures=toml).path)
    assert servable.signature()[0] == "a"
    assert np.array_equal(servable.run({"x": X})["y"], builders.plain(mlp, {"x": X})[0])


def test_examples_are_valid_inputs_of_one_row(mlp: ModelProto, tmp_path: Path) -> None:
    for golden in (0, 3):
        servable = mserve.load(mserve.export(mlp, tmp_path / "base", golden=golden).path)
        example = servable.example()
        assert example["x"].shape == (1, 784)
        assert servable.run(example)["y"].shape == (1, 10)


def test_large_models_are_mapped_and_small_ones_read(tmp_path: Path) -> None:
    table = np.arange(9 << 20, dtype=np.float32).reshape(9 << 10, 1 << 10)
    big = builders.weight("w", table)
    ids = ("ids", TensorProto.INT64, ["N"])
    proto = model([node("Gather", ["w", "ids"], ["y"])], [ids], [("y", FLOAT, ["N", 1 << 10])], [big])
    servable = mserve.load(mserve.export(proto, tmp_path / "base").path)
    assert not servable.private_memory
    assert np.array_equal(servable.run({"ids": np.array([0, 9215])})["y"], table[[0, 9215]])


def test_a_deleted_version_keeps_answering(mlp: ModelProto, tmp_path: Path) -> None:
    import shutil

    version = mserve.export(mlp, tmp_path / "base").path
    servable = mserve.load(version)
    shutil.rmtree(version)
    assert np.array_equal(servable.run({"x": X})["y"], builders.plain(mlp, {"x": X})[0])


def test_a_closed_servable_does_not_run(mlp: ModelProto, tmp_path: Path) -> None:
    servable = mserve.load(mserve.export(mlp, tmp_path / "base").path)
    servable.close()
    with pytest.raises(RuntimeError, match="closed"):
        servable.run({"x": X})


def test_every_state_has_successors_and_ended_has_none() -> None:
    assert set(NEXT) == set(State)
    assert NEXT[State.ENDED] == frozenset()
    assert all(NEXT[state] and state not in NEXT[state] for state in State if state is not State.ENDED)


def test_every_state_is_reached_and_leads_to_the_end() -> None:
    def reach(start: State) -> set[State]:
        found, todo = {start}, [start]
        while todo:
            new = NEXT[todo.pop()] - found
            found |= new
            todo += new
        return found

    assert reach(State.WAITING) == set(State)
    assert all(State.ENDED in reach(state) for state in State)
    assert NEXT[State.AVAILABLE] == {State.DRAINING}, "a version drains before it ends"


# --- real models ------------------------------------------------------------------------------


def text_rows(rows: int) -> builders.Array:
    return np.array([f"{i * 7919:08x}" for i in range(rows)], object)


REAL: list[tuple[str, Callable[[], dict[str, Any]], int | None]] = [
    (
        "02_magika/model.onnx",
        lambda: {"bytes": np.arange(3 * 2048, dtype=np.int32).reshape(3, 2048) % 257},
        0,
    ),
    ("03_basic_pitch/nmp.onnx", lambda: {"serving_default_input_2:0": floats(2, 43844, 1)}, 0),
    ("04_ppocr/ch_PP-OCRv4_det_infer.onnx", lambda: {"x": floats(1, 3, 64, 96)}, 0),
    ("09_avazu_spark_lr/derived_avazu_lr_16strings.onnx", dict, 0),
]


@pytest.mark.parametrize(("name", "feeds", "batch_axis"), REAL, ids=[name.split("/")[0] for name, *_ in REAL])
def test_real_models_answer_bit_for_bit(
    name: str,
    feeds: Callable[[], dict[str, Any]],
    batch_axis: int | None,
    real_data: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    source = real_data(name)
    version = mserve.export(source, tmp_path / "base").path
    servable = mserve.load(version)
    _, signature = servable.signature()
    given = feeds() or {spec.name: text_rows(5) for spec in signature.inputs.values()}
    alias_of = {spec.name: alias for alias, spec in signature.inputs.items()}
    answer = servable.run({alias_of[tensor]: x for tensor, x in given.items()})
    for alone in (builders.plain(source, given), builders.plain(version / "export.meta", given)):
        assert [np.array_equal(a, b) for a, b in zip(answer.values(), alone, strict=True)] == [True] * len(
            alone
        )
    assert signature.batch_axis == batch_axis
    assert servable.golden
    assert next(iter(servable.golden["serving_default"].inputs.values())).shape[0] in (1, PROBE_ROWS)


SHORT = ["BFLOAT16", "FLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2"]


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("element", SHORT)
def test_short_floats_go_in_and_come_out(element: str, rows: int, tmp_path: Path) -> None:
    """Those that numpy lacks, too, beside others, however they lie in memory."""
    number = getattr(TensorProto, element)
    proto = model(
        [node("Identity", ["x"], ["y"]), node("Identity", ["s"], ["t"])],
        [("x", number, ["N", 2]), ("s", FLOAT, [])],
        [("y", number, ["N", 2]), ("t", FLOAT, [])],
    )
    servable = mserve.load(mserve.export(proto, tmp_path / "base").path)
    x = floats(2, rows).astype(helper.tensor_dtype_to_np_dtype(number)).T
    answer = servable.run({"x": x, "s": np.array(1.5, np.float32)})
    assert (answer["y"].dtype, answer["y"].shape) == (x.dtype, x.shape)
    assert answer["y"].tobytes() == x.tobytes()
    assert (answer["t"].shape, float(answer["t"])) == ((), 1.5)


def test_short_floats_beside_text(tmp_path: Path) -> None:
    proto = model(
        [node("Cast", ["x"], ["y"], to=FLOAT), node("Identity", ["s"], ["t"])],
        [("x", TensorProto.BFLOAT16, ["N"]), ("s", TensorProto.STRING, ["N"])],
        [("y", FLOAT, ["N"]), ("t", TensorProto.STRING, ["N"])],
    )
    servable = mserve.load(mserve.export(proto, tmp_path / "base").path)
    x = np.array([0.5, -2], helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    answer = servable.run({"x": x, "s": np.array(["a", "é"])})
    assert (answer["y"].tolist(), answer["t"].tolist()) == ([0.5, -2.0], ["a", "é"])


@pytest.mark.parametrize("name", ["nope.txt", "../export.meta", "/etc/passwd", "../../../secret"])
def test_a_label_file_is_an_asset_of_the_bundle_or_the_bundle_is_refused(version: Path, name: str) -> None:
    """A name from a bundle leads nowhere but to the bundle's own assets."""

    def label(signatures: Any) -> Any:
        signatures["serving_default"]["outputs"]["y"]["labels"] = name
        return signatures

    builders.reseal(version, lambda proto: builders.set_json(proto, "mserve.signatures", label))
    with pytest.raises(ModelRefused, match="label file that is no asset"):
        mserve.load(version)


def test_label_files_are_read_when_a_version_is_loaded(version: Path) -> None:
    def label(signatures: Any) -> Any:
        signatures["serving_default"]["outputs"]["y"]["labels"] = "words.txt"
        return signatures

    builders.reseal(version, lambda proto: builders.set_json(proto, "mserve.signatures", label))
    assert mserve.load(version).labels("serving_default", "y") == ["zero", "one"]
    builders.overwrite(version / "assets" / "words.txt", b"\xff\xffro\none\n")
    with pytest.raises(ModelRefused, match="a label file cannot be read"):
        mserve.load(version)


def test_a_run_has_several_threads_only_where_it_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short run is slower with several; what is long is measured, whatever the size of its weights."""
    monkeypatch.setattr("mserve.loader.servable.threads_max", lambda: 2)
    mserve.export(mlp(), tmp_path / "m")
    with closing(mserve.load(tmp_path / "m")) as short:
        assert not short.can_be_wide
        expected = short.run(short.example())
    monkeypatch.setattr("mserve.loader.warm_up.LONG_RUN_NS", 0)
    with closing(mserve.load(tmp_path / "m")) as long:
        assert {engine.threads for engine in long._sessions.values()} == {1}
        assert {engine.threads for engine in long._wide.values()} == {2}
        for wide in (False, True):
            (answer,) = long.compute("serving_default", long.example(), wide=wide)
            np.testing.assert_allclose(answer, next(iter(expected.values())), rtol=1e-5)
