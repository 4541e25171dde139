"""FORMAT.md says what the code does: its examples run, and its tables and numbers are compared."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import builders
import h5py
import numpy as np
import pytest
from onnx import ModelProto, helper

import mserve
from mserve import errors
from mserve.exporters.onnx_model import INLINE_BYTES
from mserve.format import layout, metagraph, open_bundle, serving, shards
from mserve.format.graph import MAX_DIMS
from mserve.sparse import Sparse
from mserve.tensors import DTYPES, METHODS


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    """The specification."""
    return (root / "mserve/format/FORMAT.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(text: str, header: str) -> dict[str, str]:
    """A table's rows by their first column."""
    table = text.split(f"| {header} |", 1)[1].split("\n\n", 1)[0]
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in table.splitlines()[2:]]
    return dict(cells)


def test_the_python_examples_run(text: str, mlp: ModelProto, base: Path) -> None:
    version = mserve.export(mlp, base).path
    examples = blocks(text, "python")
    assert len(examples) == 3
    for example in examples:
        names: dict[str, Any] = {"version": version}
        exec(example, names)
        assert (
            names.get("identity", open_bundle(version).metagraph.identity)
            == open_bundle(version).metagraph.identity
        )


def test_the_json_example_is_a_metagraph(text: str) -> None:
    example, sparse, _ = (json.loads(block) for block in blocks(text, "json"))
    assert Sparse.from_json(sparse, DTYPES).to_json() == sparse
    proto = builders.elementwise(helper.make_node("Relu", ["x"], ["y"]))
    for key, value in example.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    parsed = metagraph.parse(metagraph.seal(proto.SerializeToString()), "FORMAT.md")
    assert {key: json.loads(value) for key, value in parsed.props().items()} == example


def test_the_example_of_serving_defaults_is_read(text: str) -> None:
    *_, example = blocks(text, "json")
    assert serving.unpack(example.encode(), "FORMAT.md") == serving.Serving(32, 1.5)


def test_the_layout_example_is_what_export_writes(text: str, version: Path) -> None:
    (example,) = blocks(text, "text")
    names = [line.strip() for line in example.splitlines()[2:]]
    assert sorted(names) == sorted(builders.tree(version))
    assert f"  {version.name}/" in example


def test_numbers_and_names(text: str) -> None:
    head, trailer = metagraph._TRAILER_HEAD, metagraph.TRAILER_BYTES
    assert f"{trailer} bytes" in text
    assert f"`{head[:2].hex(' ')}`, `{head[2:4].hex(' ')}`" in text
    assert f"`{head[-2:].hex(' ')}`" in text
    for fact in (
        f"{INLINE_BYTES} stored bytes",
        f"at most {MAX_DIMS} dimensions",
        f"under {shards.OWN_SHARD_BYTES >> 20} MiB",
        f"({shards.DEFAULT_SHARD_BYTES >> 30} GiB unless",
        f"under {shards.PAGE_ALIGNED_BYTES >> 10} KiB",
        f"multiples of {shards.SMALL_ALIGNMENT}, the others at multiples of {shards.PAGE_ALIGNMENT}",
        f"`{layout.TEMP_PREFIX}*`",
        "`, `".join(METHODS[:2]) + f"` or `{METHODS[2]}",
        f"format version {metagraph.FORMAT_VERSION}",
    ):
        assert fact in text
    assert metagraph.MAX_META_BYTES == 2**31 - 1
    assert layout.MAX_VERSION == 2**63 - 1
    outside = text.split("without the metadata entries ")[1].split(". ")[0]
    assert set(re.findall(r"mserve\.\w+", outside)) == metagraph._OUTSIDE_CONTENT


def test_the_storage_table(text: str) -> None:
    table = rows(text, "dtype")
    named = {name for names in table for name in re.split(r", | to ", names)}
    stored = {name for name in DTYPES if name != "string"}
    assert stored - named == {"int16", "int32", "uint16", "uint32"}, "in the ranges of integers"
    assert named <= stored
    for names, how in table.items():
        for name in re.split(r", | to ", names):
            shape, kind = shards.storage(name, (3, 5))
            if how.startswith("uint8"):
                assert kind == h5py.h5t.STD_U8LE
                assert shape == ((8,) if "one dimension" in how else (3, 5))
            elif name == "bfloat16":
                assert (kind.get_fields(), kind.get_ebias()) == ((15, 7, 8, 0, 7), 127)
            elif name == "bool":
                assert (kind.enum_valueof(b"FALSE"), kind.enum_valueof(b"TRUE")) == (0, 1)
                assert kind.get_super().dtype == np.int8
            else:
                assert shape == (3, 5)
                assert kind.dtype == np.dtype(name).newbyteorder("<")


def test_every_refusal_is_an_error_of_its_own(text: str) -> None:
    codes = {e.code: e for e in errors.BundleError.__subclasses__()}
    assert set(rows(text, "check").values()) | {"model-refused"} == set(codes)
    again = text.split("\n- A bundle that somebody copies")[1]
    assert {code for code in codes if code in again} == {c for c, e in codes.items() if e.may_complete}
