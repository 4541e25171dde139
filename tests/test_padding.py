"""Inputs of different lengths in one batch: declared, checked, stored, padded, trimmed and proven."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import FLOAT, Array, model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper
from server_tools import serving
from test_commands import run

import mserve
from mserve.batching.batcher import Limits
from mserve.batching.executor import Executor
from mserve.checks import validate
from mserve.errors import MetaGraphMalformed, MserveError, UsageError
from mserve.format import open_bundle
from mserve.front import Front, Query
from mserve.loader.servable import Servable
from mserve.padding import Pad
from mserve.tensors import Signature
from mserve.wire.oip import to_raw
from mserve.wire.oip_texts import texts_of

INT = TensorProto.INT64
node = helper.make_node
TABLE = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)


def encoder(*pooling: NodeProto, weights: Sequence[Any] = ()) -> onnx.ModelProto:
    """ids [N, seq] and mask [N, seq], length [N]: tokens [N, seq, 8], and pooled [N, 8] by `pooling`."""
    nodes = [
        node("Gather", ["table", "ids"], ["tokens"]),
        node("Cast", ["mask"], ["m2"], to=FLOAT),
        node("Unsqueeze", ["m2", "two"], ["m"]),
        node("Mul", ["tokens", "m"], ["kept"]),
        node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        node("Cast", ["length"], ["n1"], to=FLOAT),
        node("Unsqueeze", ["n1", "one"], ["n"]),
        *(pooling or (node("Div", ["sum", "n"], ["pooled"]),)),
    ]
    tables = [
        numpy_helper.from_array(TABLE, "table"),
        numpy_helper.from_array(np.array([1], np.int64), "one"),
        numpy_helper.from_array(np.array([2], np.int64), "two"),
        *weights,
    ]
    inputs = [("ids", INT, ["N", "seq"]), ("mask", INT, ["N", "seq"]), ("length", INT, ["N"])]
    outputs = [("tokens", FLOAT, ["N", "seq", 8]), ("pooled", FLOAT, ["N", 8])]
    return model(nodes, inputs, outputs, tables)


TOML = """
[signatures.serving_default]
inputs.ids = { range = [0, 49], pad = { value = 3, buckets = [4, 8, 16] } }
inputs.mask = { default = 1, pad = {} }
inputs.length = { length_of = "ids" }
outputs.tokens = {}
outputs.pooled = {}
"""


def exported(root: Path, source: onnx.ModelProto, toml: str = TOML) -> Path:
    (root / "s.toml").write_text(toml)
    return mserve.export(source, root / "encoder", signatures=root / "s.toml").path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("padding"), encoder())


@pytest.fixture(scope="module")
def servable(bundle: Path) -> Servable:
    return mserve.load(bundle)


def answers(servable: Servable, requests: Sequence[Mapping[str, Array]], limits: Limits) -> list[Any]:
    """What requests that come together are answered, in order."""

    async def work() -> list[Any]:
        executor = Executor(limits, workers=1)
        front, loop = Front({}, executor), asyncio.get_running_loop()
        futures = [loop.create_future() for _ in requests]
        for request, future in zip(requests, futures, strict=True):
            front.predict(servable, Query("serving_default", request), future.set_result)
        found = await asyncio.gather(*futures)
        executor.close()
        return list(found)

    return asyncio.run(work())


def expected(ids: Array) -> tuple[Array, Array]:
    return TABLE[ids], TABLE[ids].mean(1)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 20)), min_size=1, max_size=8),
    st.sampled_from([(), (2, 8), (16,)]),
)
@settings(max_examples=60, deadline=None)
def test_requests_of_any_lengths_are_answered_as_if_alone(
    servable: Servable, sizes: list[tuple[int, int]], allowed: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(len(sizes))
    ids = [rng.integers(0, 50, size) for size in sizes]
    limits = Limits(allowed[-1] if allowed else 16, allowed=allowed)
    found = answers(servable, [{"ids": x} for x in ids], limits)
    for x, (tokens, pooled) in zip(ids, found, strict=True):
        assert np.array_equal(tokens, expected(x)[0])
        assert np.allclose(pooled, expected(x)[1], atol=1e-6)
    assert servable.in_flight == 0


def test_lengths_of_one_bucket_share_a_batch(servable: Servable) -> None:
    before = servable.stats.batches
    lengths = [5, 8, 6, 7, 3, 17]
    answers(servable, [{"ids": np.ones((1, n), np.int64)} for n in lengths], Limits())
    assert servable.stats.batches - before == 3, "5 to 8 in one bucket, 3 in another, 17 as it is"


def test_what_the_model_sees(servable: Servable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows lengthened with their value, and the batch filled up with copies of its last row."""
    seen: list[dict[str, Any]] = []
    compute = servable.compute

    def spy(signature: str, inputs: Mapping[str, Array], options: Any = None, **more: Any) -> Any:
        seen.append({alias: x.tolist() for alias, x in inputs.items()})
        return compute(signature, inputs, options, **more)

    monkeypatch.setattr(servable, "compute", spy)
    requests = [{"ids": np.array([[7, 8, 9]])}, {"ids": np.array([[5]])}]
    answers(servable, requests, Limits(4, allowed=(4,)))
    assert seen == [
        {
            "ids": [[7, 8, 9, 3], *[[5, 3, 3, 3]] * 3],
            "mask": [[1, 1, 1, 0], *[[1, 0, 0, 0]] * 3],
            "length": [3, 1, 1, 1],
        }
    ]


def test_what_a_request_may_leave_out_is_filled_in(servable: Servable) -> None:
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    given = servable.run({"ids": ids, "mask": np.ones((2, 3), np.int64), "length": np.array([3, 3])})
    filled = servable.run({"ids": ids})
    assert np.array_equal(given["pooled"], filled["pooled"])
    halved = servable.run({"ids": ids, "length": np.array([6, 6])})
    assert np.allclose(halved["pooled"] * 2, filled["pooled"])


def test_a_mask_that_is_given_is_kept(servable: Servable) -> None:
    request = {"ids": np.array([[7, 9, 2]]), "mask": np.array([[1, 0, 0]]), "length": np.array([1])}
    tokens, pooled = answers(servable, [request], Limits())[0]
    assert tokens.shape == (1, 3, 8)
    assert np.allclose(pooled, TABLE[[7]])


def test_it_is_stored_and_shown(bundle: Path) -> None:
    facts = json.loads(run("inspect", bundle, "--json").stdout)["signatures"]["serving_default"]["inputs"]
    assert facts["ids"]["pad"] == {"axis": 1, "value": 3, "buckets": [4, 8, 16]}
    assert facts["mask"]["pad"] == {"axis": 1, "value": 0, "buckets": [4, 8, 16]}
    assert facts["length"]["length_of"] == "ids"
    assert "axis 1 padded to 4, 8, 16" in " ".join(run("inspect", bundle).stdout.split())


def test_over_http_an_absent_mask_and_length_are_filled_in(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle.parent, tmp_path / "log") as server:
        body = {"signature_name": "serving_default", "inputs": {"ids": [[1, 2, 3]]}}
        outputs = server.predict("encoder", body).json()["outputs"]
        assert np.allclose(outputs["pooled"], TABLE[[1, 2, 3]].mean(0), atol=1e-6)
        assert np.shape(outputs["tokens"]) == (1, 3, 8)
        page = json.loads(server.get("/v2/models/encoder/config").body)
        assert {p["name"]: p.get("optional", False) for p in page["input"]} == {
            "ids": False,
            "mask": True,
            "length": True,
        }


UNMASKED = (
    node("Div", ["sum", "n"], ["masked"]),
    node("ReduceMean", ["tokens", "one"], ["all"], keepdims=0),
    node("Max", ["masked", "all"], ["pooled"]),
)
SAFE: list[tuple[str, onnx.ModelProto, list[str]]] = [
    ("a mask and a length make it safe", encoder(), []),
    ("a mean over all tokens does not", encoder(*UNMASKED), ["serving_default.pooled"]),
]


@pytest.mark.parametrize(("what", "source", "guilty"), SAFE, ids=[c[0] for c in SAFE])
def test_validate_proves_it(tmp_path: Path, what: str, source: onnx.ModelProto, guilty: list[str]) -> None:
    found = validate(open_bundle(exported(tmp_path, source)))
    assert [(f.code, f.where) for f in found] == [("padding", where) for where in guilty], what
    assert all("padded to" in f.text for f in found)


def test_validate_finds_an_output_that_is_not_cut_back(tmp_path: Path) -> None:
    """The graph calls the axis of an output by another name, so nobody knows that it is the padded one."""
    source = encoder()
    source.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "tokens"
    found = validate(open_bundle(exported(tmp_path, source)))
    assert [(f.code, f.where) for f in found] == [("padding", "serving_default.tokens")]
    named = TOML.replace("outputs.tokens = {}", 'outputs.tokens = { shape = ["N", "seq", 8] }')
    (tmp_path / "named").mkdir()
    assert validate(open_bundle(exported(tmp_path / "named", source, named))) == []


def test_validate_needs_no_golden_samples(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(TOML)
    path = mserve.export(encoder(*UNMASKED), tmp_path / "m", signatures=tmp_path / "s.toml", golden=0).path
    assert [f.code for f in validate(open_bundle(path))] == ["golden-absent", "padding"]


IDS = "{ range = [0, 49], pad = { value = 3, buckets = [4, 8, 16] } }"
BAD: list[tuple[str, Callable[[str], str], str]] = [
    ("no buckets", lambda t: t.replace("buckets = [4, 8, 16]", ""), "at least one"),
    ("falling buckets", lambda t: t.replace("[4, 8, 16]", "[8, 4]"), "each larger than the one before"),
    ("the batch axis", lambda t: t.replace("pad = { value", "pad = { axis = 0, value"), "axis >= 1"),
    ("an axis that is not there", lambda t: t.replace("pad = { value", "pad = { axis = 2, value"), "axis 2"),
    ("a value of another kind", lambda t: t.replace("value = 3", "value = 'x'"), "is no int64"),
    ("a value that is no whole number", lambda t: t.replace("value = 3", "value = 1.5"), "is no int64"),
    ("several values", lambda t: t.replace("value = 3", "value = [1]"), "single value"),
    ("a key that is unknown", lambda t: t.replace("value = 3", "valeu = 3"), "did you mean 'value'"),
    ("a symbol that is padded in one input only", lambda t: t.replace(", pad = {} }", " }"), "'seq'"),
    (
        "other buckets for the same symbol",
        lambda t: t.replace("pad = {}", "pad = { buckets = [5] }"),
        "same buckets",
    ),
    ("the length of nothing", lambda t: t.replace('length_of = "ids"', 'length_of = "id"'), "padded input"),
    ("a length that is a table", lambda t: t.replace("{ default = 1,", '{ length_of = "ids",'), "integers"),
    ("an axis without a symbol", lambda t: t.replace("{ range", '{ shape = ["N", 5], range'), "no symbol"),
]


@pytest.mark.parametrize(("what", "change", "words"), BAD, ids=[c[0] for c in BAD])
def test_what_cannot_be_padded_is_refused(
    tmp_path: Path, what: str, change: Callable[[str], str], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        exported(tmp_path, encoder(), change(TOML))
    assert words in str(caught.value), what


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("no table", {"pad": 1}),
    ("no axis", {"pad": {"axis": "1", "buckets": [4]}}),
    ("an axis that is true", {"pad": {"axis": True, "buckets": [4]}}),
    ("no buckets", {"pad": {"axis": 1, "buckets": []}}),
    ("too many buckets", {"pad": {"axis": 1, "buckets": list(range(1, 100))}}),
    ("buckets that are no sizes", {"pad": {"axis": 1, "buckets": [0, 4]}}),
    ("buckets without end", {"pad": {"axis": 1, "buckets": [2**40]}}),
    ("a value that is a list", {"pad": {"axis": 1, "value": [0], "buckets": [4]}}),
    ("a value that does not fit", {"pad": {"axis": 1, "value": 2**70, "buckets": [4]}}),
    ("length_of that is no text", {"length_of": 3}),
    ("length_of that is no input", {"length_of": "y"}),
    ("a padded axis twice", {"shape": ["batch", "n", "n"], "pad": {"axis": 1, "buckets": [4]}}),
]


@pytest.mark.parametrize(("what", "extra"), HOSTILE, ids=[c[0] for c in HOSTILE])
def test_a_bundle_with_a_wrong_pad_is_refused(what: str, extra: dict[str, Any]) -> None:
    port = {"tensor": "x", "dtype": "int64", "shape": ["batch", "n"]}
    other = {"tensor": "y", "dtype": "int64", "shape": ["batch"]}
    value = {"method": "predict", "batch_axis": 0, "inputs": {"x": port | extra}, "outputs": {"y": other}}
    with pytest.raises(MetaGraphMalformed):
        Signature.from_json(value, "here")


@given(st.lists(st.integers(1, 2**31 - 1), unique=True, max_size=64), st.integers(0, 2**31))
def test_a_pad_survives_json_and_finds_the_next_bucket(sizes: list[int], length: int) -> None:
    pad = Pad(2, 0, tuple(sorted(sizes)))
    assert Pad.from_json(json.loads(json.dumps(pad.to_json()))) == pad
    assert pad.size(length) == min([b for b in pad.buckets if b >= length], default=length)


def test_requests_that_run_alone_are_not_padded(tmp_path: Path) -> None:
    """Rows depend on each other, so there is no batch axis; export says that the buckets have no use."""
    source = encoder(
        node("Div", ["sum", "n"], ["p"]),
        node("ReduceMean", ["p", "zero"], ["all"]),
        node("Sub", ["p", "all"], ["pooled"]),
        weights=[numpy_helper.from_array(np.array([0], np.int64), "zero")],
    )
    (tmp_path / "s.toml").write_text(TOML)
    result = mserve.export(source, tmp_path / "m", signatures=tmp_path / "s.toml")
    assert any("nothing is padded" in note for note in result.notes)
    servable = mserve.load(result.path)
    request = {"ids": np.array([[1, 2, 3]]), "mask": np.ones((1, 3), np.int64), "length": np.array([3])}
    found = answers(servable, [request, request], Limits())
    assert [x[0].shape for x in found] == [(1, 3, 8)] * 2
    assert not any(isinstance(x, MserveError) for x in found)


def test_texts_of_any_width_are_padded_and_joined_whole(tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(n, TensorProto.STRING, ["batch", "length"]) for n in ("t", "u")]
    graph = helper.make_graph([helper.make_node("Identity", ["t"], ["u"])], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    toml = """
[signatures.serving_default]
inputs.t = { pad = { value = "<pad>", buckets = [4] } }
outputs.u = {}
"""
    servable = mserve.load(exported(tmp_path, model, toml))
    seen: list[Array] = []
    compute = servable.compute

    def watched(signature: str, inputs: Mapping[str, Array], *rest: Any, **more: Any) -> Sequence[Array]:
        seen.append(inputs["t"])
        return compute(signature, inputs, *rest, **more)

    servable.compute = watched  # type: ignore[method-assign]
    words = [["a", "b"], ["a much longer word"], ["xy", "z", "x"]]
    requests = [{"t": texts_of(to_raw(np.array(w, object)), len(w), "t").reshape(1, -1)} for w in words]
    assert {r["t"].dtype.kind for r in requests} == {"U"}
    found = answers(servable, requests, Limits())
    assert [u.tolist() for (u,) in found] == [[w] for w in words]
    assert [row for batch in seen for row in batch.tolist()] == [w + ["<pad>"] * (4 - len(w)) for w in words]
