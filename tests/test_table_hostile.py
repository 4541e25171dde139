"""Bundles of tables that were changed to harm: each is refused at load, or fails one request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Array, reseal, words
from onnx import ModelProto, TensorProto, helper, numpy_helper

import mserve
from mserve.checks import validate
from mserve.errors import (
    BundleError,
    ExecutionFailed,
    FormatUnsupported,
    MetaGraphMalformed,
    ModelRefused,
)
from mserve.format import open_bundle


def stored(name: str, array: Array) -> Callable[[ModelProto], object]:
    """Replace an inline weight."""

    def edit(model: ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.name == name)
        weight.CopyFrom(numpy_helper.from_array(np.asarray(array), name))

    return edit


def changed(name: str, change: Callable[[Array], Array]) -> Callable[[ModelProto], object]:
    def edit(model: ModelProto) -> None:
        array = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)
        stored(name, change(array.copy()))(model)

    return edit


def node(change: Callable[[onnx.NodeProto], object]) -> Callable[[ModelProto], object]:
    return lambda model: change(model.graph.node[0])


def port(name: str, dtype: int, shape: Any) -> Callable[[ModelProto], object]:
    """Declare an input or output of the graph otherwise."""

    def edit(model: ModelProto) -> None:
        value = next(v for v in (*model.graph.input, *model.graph.output) if v.name == name)
        value.CopyFrom(helper.make_tensor_value_info(name, dtype, shape))

    return edit


def swapped(names: list[str], one: int, other: int) -> None:
    names[one], names[other] = names[other], names[one]


def renamed_output(model: ModelProto) -> None:
    model.graph.node[0].output[1] = "n"


def function(model: ModelProto) -> None:
    model.functions.add(name="Lookup", domain="mserve")


def twin(model: ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(model.graph.initializer[0])


S, M, F = ModelRefused, MetaGraphMalformed, FormatUnsupported
NOT_FITTING = "a weight does not fit the table"
HOSTILE: list[tuple[str, Callable[[ModelProto], object], type[BundleError], str]] = [
    ("hashes fall", changed("key:hashes", lambda a: a[::-1]), S, "the keys are not in order"),
    ("hashes are equal", stored("key:hashes", np.zeros(80, np.uint64)), S, "too many keys have one hash"),
    ("a hash too few", changed("key:hashes", lambda a: a[:-1]), M, NOT_FITTING),
    ("no keys", stored("key:hashes", np.zeros(0, np.uint64)), S, "the keys are not in order"),
    ("hashes in two dimensions", changed("key:hashes", lambda a: a[None]), M, NOT_FITTING),
    ("signed hashes", changed("key:hashes", lambda a: a.view(np.int64)), M, NOT_FITTING),
    ("offsets begin late", changed("key:offsets", lambda a: np.maximum(a, 1)), S, "offsets of text"),
    ("offsets begin before", changed("key:offsets", lambda a: np.minimum(a, a - (a == 0))), S, "offsets"),
    ("offsets fall", changed("key:offsets", lambda a: np.r_[a[:2], 0, a[3:]]), S, "offsets of text"),
    ("offsets end late", changed("key:offsets", lambda a: np.r_[a[:-1], a[-1] + 1]), S, "offsets of text"),
    ("offsets end early", changed("key:offsets", lambda a: np.minimum(a, a[-1] - 1)), S, "offsets of text"),
    ("an offset too many", changed("key:offsets", lambda a: np.r_[a, a[-1]]), M, NOT_FITTING),
    ("32-bit offsets", changed("key:offsets", lambda a: a.astype(np.int32)), M, NOT_FITTING),
    ("text in two dimensions", changed("key:bytes", lambda a: a[None]), M, NOT_FITTING),
    ("a column is short", changed("price:values", lambda a: a[1:]), M, NOT_FITTING),
    ("a column is wide", changed("price:values", lambda a: np.c_[a, a]), M, NOT_FITTING),
    ("a column is of another dtype", changed("price:values", lambda a: a.view(np.int32)), M, NOT_FITTING),
    ("text offsets of a column", changed("title:offsets", lambda a: a[::-1]), S, "offsets of text"),
    ("raw bytes are short", lambda m: setattr(m.graph.initializer[0], "raw_data", b"x" * 8), M, "malformed"),
    ("another operator", node(lambda n: setattr(n, "op_type", "Erase")), F, "found: mserve.Erase x1"),
    ("another domain below", node(lambda n: setattr(n, "domain", "mserve.x")), F, "mserve.x.Lookup"),
    ("another version", lambda m: setattr(m.opset_import[0], "version", 2), F, "Lookup x1 of version 2"),
    ("no version", lambda m: m.ClearField("opset_import"), F, "of version None"),
    ("two nodes", lambda m: m.graph.node.add().CopyFrom(m.graph.node[0]), F, "mserve.Lookup x2"),
    ("a node beside it", lambda m: m.graph.node.add(op_type="Relu", input=["price"]), F, "Relu x1"),
    ("a function of its name", function, F, "not a table that this version"),
    ("an attribute", node(lambda n: n.attribute.add(name="mode", type=2, i=1)), M, "the node has attributes"),
    ("a weight too few", node(lambda n: n.input.pop()), M, "an input of the node is no weight"),
    ("a weight too many", node(lambda n: n.input.append("key:bytes")), M, "belong to nothing"),
    ("an input that does not exist", node(lambda n: swapped(n.input, 1, 0)), M, "the ports of the graph"),
    ("weights in another order", node(lambda n: swapped(n.input, 1, 2)), M, NOT_FITTING),
    ("no key", node(lambda n: n.input.__delitem__(slice(None))), M, "the ports of the graph"),
    ("outputs in another order", node(lambda n: swapped(n.output, 0, 1)), M, "the ports of the graph"),
    ("an output of another name", renamed_output, M, "the ports of the graph"),
    ("two weights of one name", twin, M, "two weights have one name"),
    ("keys of numbers", port("key", TensorProto.FLOAT, ["batch"]), M, "keys of another kind"),
    ("keys in two dimensions", port("key", TensorProto.STRING, ["batch", 2]), M, "keys of another kind"),
    ("integer keys over text", port("key", TensorProto.INT64, ["batch"]), M, NOT_FITTING),
    ("found is a number", port("found", TensorProto.FLOAT, ["batch"]), M, "whether a key was found"),
    ("found has two dimensions", port("found", TensorProto.BOOL, ["batch", 2]), M, "whether a key was found"),
    ("an open size", port("price", TensorProto.FLOAT, ["batch", "n"]), M, "a column cannot be looked up"),
    ("no values in a row", port("price", TensorProto.FLOAT, ["batch", 0]), M, "a column cannot be looked up"),
    ("no rank", port("price", TensorProto.FLOAT, None), M, "a column cannot be looked up"),
    ("a scalar", port("price", TensorProto.FLOAT, []), M, "a column cannot be looked up"),
    ("4-bit values", port("price", TensorProto.INT4, ["batch"]), M, "a column cannot be looked up"),
    ("a dtype of tomorrow", port("price", 99, ["batch"]), M, "a column cannot be looked up"),
    ("words beyond counting", port("title", TensorProto.STRING, ["batch", 2**62, 2**62]), M, NOT_FITTING),
]  # fmt: skip


def small(base: Path, **options: Any) -> Path:
    """A table of 80 rows, all of whose weights are inline, and which any edit can reach."""
    keys = words(*(f"k{i}" for i in range(80)))
    table = {"key": keys, "price": np.arange(80, dtype=np.float32), "title": words(*"abcdefgh" * 10)}
    return mserve.export(table, base, **options).path


@pytest.mark.parametrize(("why", "edit", "error", "said"), HOSTILE, ids=[row[0] for row in HOSTILE])
def test_hostile_tables(
    why: str, edit: Callable[[ModelProto], object], error: type[BundleError], said: str, tmp_path: Path
) -> None:
    path = small(tmp_path / "base")
    assert mserve.load(path).run({"key": words("k7")})["price"].tolist() == [7.0]
    reseal(path, edit)
    with pytest.raises(BundleError) as caught:
        mserve.load(path)
    assert type(caught.value) is error, f"{why}: {caught.value!r}"
    assert said in str(caught.value), why
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert {f.code for f in validate(open_bundle(path))} >= {"load"}


@pytest.mark.parametrize(
    ("why", "keys", "said"),
    [
        ("falling", np.array([1, 3, 2]), "the keys are not in order"),
        ("equal", np.array([1, 1, 2]), "the keys are not in order"),
        ("none", np.array([], np.int64), "the keys are not in order"),
    ],
)
def test_hostile_integer_keys(why: str, keys: Array, said: str, tmp_path: Path) -> None:
    path = mserve.export({"key": np.array([1, 2, 3])}, tmp_path / "base").path
    reseal(path, stored("key:values", keys))
    with pytest.raises(ModelRefused, match=said):
        mserve.load(path)


def test_text_that_is_not_utf8_fails_the_request_that_meets_it(tmp_path: Path) -> None:
    path = small(tmp_path / "base", golden=0)
    reseal(path, changed("title:bytes", lambda a: np.full_like(a, 255)))
    servable = mserve.load(path)
    with pytest.raises(ExecutionFailed, match="the lookup failed") as caught:
        servable.run({"key": words("k3")})
    assert "utf-8" in caught.value.found
    assert servable.run({"key": words("nowhere")})["title"].tolist() == [""]


def test_bytes_of_a_bool_column_are_true_or_false(tmp_path: Path) -> None:
    path = mserve.export({"key": np.array([1, 2]), "yes": np.array([True, False])}, tmp_path / "base").path

    def edit(model: ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.name == "yes:values")
        weight.raw_data = b"\x07\x00"

    reseal(path, edit)
    assert mserve.load(path).run({"key": np.array([1, 2])})["yes"].view(np.uint8).tolist() == [1, 0]


def test_a_weight_at_an_odd_place(tmp_path: Path) -> None:
    path = mserve.export({"key": np.arange(1000)}, tmp_path / "base").path

    def edit(model: ModelProto) -> None:
        place = next(e for e in model.graph.initializer[0].external_data if e.key == "offset")
        place.value = str(int(place.value) - 4)

    reseal(path, edit)
    with pytest.raises(MetaGraphMalformed, match="a weight lies at an odd place"):
        mserve.load(path)


@pytest.mark.parametrize(
    ("why", "inputs", "said"),
    [
        ("another dtype", {"key": {"tensor": "key", "dtype": "int64", "shape": ["batch"]}}, "found: int64"),
        (
            "another rank",
            {"key": {"tensor": "key", "dtype": "string", "shape": ["batch", 1]}},
            "found: string",
        ),
        ("no input", {}, "found: nothing"),
    ],
)
def test_a_signature_that_contradicts_the_table(
    why: str, inputs: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = small(tmp_path / "base", golden=0)

    def edit(model: ModelProto) -> None:
        prop = next(p for p in model.metadata_props if p.key == "mserve.signatures")
        signatures = json.loads(prop.value)
        signatures["serving_default"] |= {"inputs": inputs, "batch_axis": None}
        prop.value = json.dumps(signatures)

    reseal(path, edit)
    servable = mserve.load(path)
    with pytest.raises(ExecutionFailed) as caught:
        servable.run(servable.example())
    assert said in str(caught.value), why
