"""The bundle format: names, shards, dtypes, and what other tools read in the files."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from pathlib import Path
from typing import Any

import builders
import h5py
import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper

import mserve
from mserve.errors import NotABundle, UnsafePath
from mserve.format import Bundle, layout, open_bundle, shards
from mserve.format.digests import file_digest, range_digest
from mserve.format.golden import read_npz, unpack
from mserve.format.metagraph import TRAILER_BYTES, content_digest, parse, seal
from mserve.tensors import DTYPES

# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "version", "why"),
    [
        ("00000001", 1, "eight digits are the canonical form"),
        ("0", 0, "zero is a version"),
        ("7", 7, "padding is not needed to read"),
        ("1700000000", 1700000000, "a Unix time is a version"),
        ("9223372036854775807", 2**63 - 1, "the largest version"),
        ("9223372036854775808", None, "one more does not fit into 63 bits"),
        ("0" * 31 + "1", 1, "thirty-two digits are read"),
        ("0" * 32 + "1", None, "longer names are not"),
        ("", None, "an empty name is no number"),
        ("-1", None, "versions are not negative"),
        ("+1", None, "nor signed"),
        ("1.0", None, "nor fractions"),
        ("1_0", None, "Python's digit separators do not count"),
        (" 1", None, "nor do spaces"),
        ("٣", None, "digits are ASCII digits"),
        ("²", None, "superscripts are not digits"),
        (".tmp-1", None, "a temporary directory is no version"),
        ("v1", None, "letters are not digits"),
    ],
)
def test_version_names(name: str, version: int | None, why: str) -> None:
    assert layout.parse_version(name) == version, why


@given(st.integers(0, layout.MAX_VERSION))
def test_every_version_name_is_read_back(version: int) -> None:
    assert len(layout.version_dir(version)) >= 8
    assert layout.parse_version(layout.version_dir(version)) == version


@pytest.mark.parametrize(
    ("name", "safe", "why"),
    [
        ("export-00000-of-00001", True, "a plain name"),
        ("assets/a/b.txt", True, "directories are allowed"),
        ("assets/..a", True, "two dots inside a name are a name"),
        ("assets/é ü", True, "any script is allowed"),
        ("assets/a:b", True, "a colon after the first part is a character"),
        ("", False, "no name"),
        ("/etc/passwd", False, "an absolute path"),
        ("../x", False, "a step out"),
        ("assets/../../x", False, "a step out, later"),
        ("assets/..", False, "a step back"),
        ("./x", False, "another spelling of x"),
        ("assets//x", False, "another spelling of assets/x"),
        ("assets/", False, "a directory"),
        ("..\\x", False, "a step out on Windows"),
        ("C:x", False, "a drive of Windows"),
        ("x\0y", False, "the end of a name in C"),
        ("assets/\ud800", False, "a lone surrogate has no bytes"),
    ],
)
def test_safe_relative(name: str, safe: bool, why: str) -> None:
    if safe:
        assert layout.safe_relative(name, "here") == name
        return
    with pytest.raises(UnsafePath, match="here"):
        layout.safe_relative(name, "here")
    assert why


@pytest.mark.parametrize(
    ("name", "is_shard"),
    [
        ("export-00000-of-00001", True),
        ("export-00003-of-00001", True),
        ("export-0-of-1", False),
        ("export-00000-of-00001.h5", False),
        ("xexport-00000-of-00001", False),
        ("export-00000-of-00001\n", False),
        ("export-٠٠٠٠٠-of-00001", False),
    ],
)
def test_shard_names(name: str, is_shard: bool) -> None:
    assert layout.is_shard_name(name) is is_shard


def test_shard_names_that_are_made_are_shard_names() -> None:
    assert layout.shard_name(0, 1) == "export-00000-of-00001"
    assert all(layout.is_shard_name(layout.shard_name(i, 12)) for i in range(12))


@pytest.mark.parametrize(
    ("directories", "expected"),
    [
        (["00000001", "00000002"], {1: "00000001", 2: "00000002"}),
        (["1", "00000001"], {1: "00000001"}),
        (["10", "9"], {9: "9", 10: "10"}),
        ([".tmp-abc", "notes", "3"], {3: "3"}),
        ([], {}),
    ],
)
def test_versions_of_a_base_path(tmp_path: Path, directories: list[str], expected: dict[int, str]) -> None:
    for name in directories:
        (tmp_path / name).mkdir()
    (tmp_path / "00000099").write_text("a file is no version")
    assert {v: p.name for v, p in layout.versions(tmp_path).items()} == expected
    assert list(layout.versions(tmp_path)) == sorted(expected)


def test_a_base_path_stands_for_its_newest_version(mlp: ModelProto, base: Path) -> None:
    for number in (9, 10, 2):
        mserve.export(mlp, base, version=number, golden=0)
    assert open_bundle(base).version == 10
    assert open_bundle(base / "00000002").version == 2
    shutil.copytree(base / "00000002", base / "candidate")
    assert open_bundle(base / "candidate").version == 0, "a name that is no number counts as version 0"


@pytest.mark.parametrize(
    ("make", "what", "hint"),
    [
        (lambda p: None, "no such bundle", "give a version directory or a base path"),
        (lambda p: p.write_text(""), "a bundle is a directory", "give a version directory"),
        (lambda p: p.mkdir(), "neither a version directory nor a base path", "mserve export"),
        (lambda p: (p / "a" / "b").mkdir(parents=True), "neither a version directory", "mserve export"),
        (
            lambda p: (p / "1").mkdir(parents=True),
            "the version has no export.meta",
            "is the copy still running?",
        ),
    ],
)
def test_what_is_not_a_bundle(tmp_path: Path, make: Any, what: str, hint: str) -> None:
    path = tmp_path / "x"
    make(path)
    with pytest.raises(NotABundle, match=what) as caught:
        open_bundle(path)
    assert str(path) in str(caught.value)
    assert hint in caught.value.hint


def test_an_onnx_file_is_not_a_bundle_and_the_error_says_how_to_make_one(mlp_file: Path) -> None:
    with pytest.raises(NotABundle) as caught:
        open_bundle(mlp_file)
    assert caught.value.hint == f"export it first: mserve export {mlp_file} BASE_PATH"


@given(st.text())
def test_dataset_names_round_trip(name: str) -> None:
    dataset = shards.dataset_name(name)
    assert shards.tensor_name(dataset) == name
    assert "/" not in dataset
    assert "\0" not in dataset
    assert dataset != "."


@pytest.mark.parametrize(
    ("tensor", "dataset"),
    [
        ("w", "w"),
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        (".", "%2E"),
        ("..", ".."),
        ("a.b", "a.b"),
        ("é", "é"),
    ],
)
def test_dataset_names(tensor: str, dataset: str) -> None:
    assert shards.dataset_name(tensor) == dataset


# --- shards -----------------------------------------------------------------------------------

MIB = 1 << 20


def tensor(name: str, size: int) -> shards.Tensor:
    return shards.Tensor(name, "uint8", (size,), lambda: [bytes(size)])


@pytest.mark.parametrize(
    ("tensors", "limit", "expected", "why"),
    [
        ([], 100, [[]], "a model without large constants has one empty shard"),
        ([("b", 1), ("a", 1)], 100, [["a", "b"]], "tensors stand in order of name"),
        (
            [("a", 60), ("b", 40), ("c", 1)],
            100,
            [["a", "b"], ["c"]],
            "a shard is filled to the limit, not over",
        ),
        ([("a", 200), ("b", 1)], 100, [["a"], ["b"]], "a tensor over the limit is not split"),
        ([("a", 64 * MIB), ("b", 1)], 1 << 30, [["b"], ["a"]], "64 MiB own a shard, after the others"),
        ([("a", 64 * MIB)], 1 << 30, [["a"]], "no empty shard beside it"),
        ([("a", 64 * MIB - 1), ("b", 64 * MIB - 1)], 1 << 30, [["a", "b"]], "just below, they share"),
        ([("a", 64 * MIB), ("b", 65 * MIB)], 1 << 30, [["a"], ["b"]], "each its own"),
    ],
)
def test_the_shard_plan(
    tensors: list[tuple[str, int]], limit: int, expected: list[list[str]], why: str
) -> None:
    groups = shards.plan([tensor(name, size) for name, size in tensors], limit)
    assert [[t.name for t in group] for group in groups] == expected, why


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 500)), st.integers(1, 1000))
def test_every_tensor_is_planned_once(sizes: dict[str, int], limit: int) -> None:
    groups = shards.plan([tensor(name, size) for name, size in sizes.items()], limit)
    assert [t.name for group in groups for t in group] == sorted(sizes)
    for group in groups[1:]:
        assert group
    for group in groups:
        assert len(group) <= 1 or sum(t.byte_size for t in group) <= limit


def test_alignment_and_layout_of_a_shard(tmp_path: Path) -> None:
    """Small tensors start at multiples of 64, large ones at pages; nothing overlaps."""
    sizes = {f"t{i:02d}": size for i, size in enumerate([4096, 65535, 65536, 100_001, 5000, 70_000, 4097])}
    path = tmp_path / "export-00000-of-00001"
    record, placed = shards.write_shard(path, [tensor(name, size) for name, size in sizes.items()])
    assert record.size == path.stat().st_size
    assert record.sha256 == file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    spans = sorted((p.offset, p.offset + p.length) for p in placed.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert spans[-1][1] <= record.size
    for name, size in sizes.items():
        assert placed[name].offset % (64 if size < 65536 else 4096) == 0
        assert placed[name].sha256 == range_digest(path, placed[name].offset, size)
    with h5py.File(path) as file:
        assert sorted(file) == sorted(sizes)
        for name in sizes:
            assert file[name].id.get_offset() == placed[name].offset
            assert file[name].chunks is None
            assert file[name].compression is None


def test_a_tensor_whose_bytes_are_not_its_size_is_not_written(tmp_path: Path) -> None:
    short = shards.Tensor("w", "float32", (10,), lambda: [bytes(39)])
    with pytest.raises(ValueError, match="w: 39 bytes, not 40"):
        shards.write_shard(tmp_path / "s", [short])


def test_range_digest_says_where_a_file_ends(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    with pytest.raises(EOFError, match="ends 2 bytes early"):
        range_digest(tmp_path / "f", 1, 4)


# --- dtypes -----------------------------------------------------------------------------------

STORED = [name for name in DTYPES if name != "string"]
ELEMENTS = 9001  # odd, so that the last byte of a 4-bit tensor is half used, and over 4096 bytes for all


def decoded(dtype: str, raw: bytes, shape: tuple[int, ...]) -> builders.Array:
    """The values that stored bytes stand for, without mserve and onnx."""
    if DTYPES[dtype].bits == 4:
        packed = np.frombuffer(raw, np.uint8)
        halves = np.stack([packed & 15, packed >> 4], axis=1).ravel()[: int(np.prod(shape))]
        signed = np.where(halves > 7, halves.astype(int) - 16, halves) if dtype == "int4" else halves
        return np.asarray(signed).reshape(shape)
    kind = np.dtype(getattr(ml_dtypes, DTYPES[dtype].numpy, DTYPES[dtype].numpy))
    return np.frombuffer(raw, kind).reshape(shape)


def same(a: Any, b: Any) -> bool:
    return bool(np.array_equal(np.asarray(a).astype(np.float64), np.asarray(b).astype(np.float64)))


@pytest.mark.parametrize("dtype", STORED)
def test_a_stored_dtype_reads_alike_everywhere(dtype: str, base: Path) -> None:
    raw = builders.raw_bytes(dtype, ELEMENTS)
    expected = decoded(dtype, raw, (ELEMENTS,))
    version = mserve.export(builders.holder(dtype, (ELEMENTS,), raw), base).path
    (own,) = open_bundle(version).graph.weights
    assert (own.name, own.dtype, own.shape, own.shard) == ("w", dtype, (ELEMENTS,), "export-00000-of-00001")
    stored = (version / own.shard).read_bytes()[own.offset : own.offset + own.length]
    assert stored == raw, "our own reader finds the bytes"
    assert own.sha256 == hashlib.sha256(raw).hexdigest()
    (loaded,) = onnx.load(version / "export.meta").graph.initializer
    assert same(numpy_helper.to_array(loaded), expected), "onnx.load"
    assert same(builders.plain(version / "export.meta", {})[0], expected.astype(np.float32)), "onnxruntime"
    assert same(mserve.load(version).run({})["y"], expected.astype(np.float32)), "mserve.load"
    with h5py.File(version / own.shard) as file:
        dataset = file["w"]
        assert dataset.attrs["onnx_dtype"] == dtype
        assert dataset.id.get_offset() == own.offset
        if DTYPES[dtype].bits == 4:
            assert dataset[:].tobytes() == raw
            assert list(dataset.attrs["onnx_shape"]) == [ELEMENTS]
        elif dtype.startswith("float8"):
            assert dataset[:].tobytes() == raw
        else:
            assert same(dataset[:], expected), "h5py reads real values"


@pytest.mark.parametrize("dtype", [d for d in STORED if d not in ("float32", "float64", "int64", "uint64")])
def test_values_of_typed_fields_are_stored_like_raw_ones(dtype: str, base: Path) -> None:
    raw = builders.raw_bytes(dtype, ELEMENTS)
    field = "uint64_data" if dtype == "uint32" else "int32_data"
    proto = builders.holder(dtype, (ELEMENTS,), raw, field=field)
    (own,) = open_bundle(mserve.export(proto, base).path).graph.weights
    assert own.sha256 == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize(
    ("dtype", "field"),
    [
        ("float32", "float_data"),
        ("float64", "double_data"),
        ("int64", "int64_data"),
        ("uint64", "uint64_data"),
    ],
)
def test_values_of_wide_typed_fields_are_stored_like_raw_ones(dtype: str, field: str, base: Path) -> None:
    raw = builders.raw_bytes(dtype, ELEMENTS)
    proto = builders.holder(dtype, (ELEMENTS,), raw, field=field)
    (own,) = open_bundle(mserve.export(proto, base).path).graph.weights
    assert own.sha256 == hashlib.sha256(raw).hexdigest()


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,), (3, 1)])
def test_small_values_stay_in_the_graph(dtype: str, shape: tuple[int, ...], base: Path) -> None:
    elements = int(np.prod(shape))
    raw = builders.raw_bytes(dtype, elements)
    version = mserve.export(builders.holder(dtype, shape, raw), base).path
    (own,) = open_bundle(version).graph.weights
    assert (own.dtype, own.shape, own.shard, own.length) == (dtype, shape, "", len(raw))
    expected = decoded(dtype, raw, shape).astype(np.float32)
    assert same(mserve.load(version).run({})["y"], expected)
    with h5py.File(version / "export-00000-of-00001") as file:
        assert list(file) == [], "the one shard is there, and empty"


@pytest.mark.parametrize("shape", [(90, 101), (2, 3, 1500), (9090, 1)])
def test_shapes_of_stored_tensors(shape: tuple[int, ...], base: Path) -> None:
    raw = builders.raw_bytes("int4", int(np.prod(shape)))
    version = mserve.export(builders.holder("int4", shape, raw), base).path
    assert same(mserve.load(version).run({})["y"], decoded("int4", raw, shape))
    with h5py.File(version / "export-00000-of-00001") as file:
        assert tuple(file["w"].attrs["onnx_shape"]) == shape


def test_string_weights_stay_in_the_graph(base: Path) -> None:
    words = [f"word-{i}" for i in range(2000)]
    tensor = helper.make_tensor("w", builders.STRING, [2000], [w.encode() for w in words])
    proto = builders.model(
        [helper.make_node("Identity", ["w"], ["y"])], [], [("y", builders.STRING, [2000])], [tensor]
    )
    version = mserve.export(proto, base).path
    (own,) = open_bundle(version).graph.weights
    assert (own.dtype, own.shard) == ("string", "")
    assert list(mserve.load(version).run({})["y"]) == words


# --- other tools ------------------------------------------------------------------------------


def test_every_onnx_tool_opens_a_bundle_as_it_is(mlp: ModelProto, version: Path) -> None:
    meta, x = version / "export.meta", {"x": builders.floats(3, 784)}
    assert np.array_equal(builders.plain(meta, x)[0], builders.plain(mlp, x)[0])
    onnx.checker.check_model(str(meta), full_check=True)
    loaded = {t.name: numpy_helper.to_array(t) for t in onnx.load(meta).graph.initializer}
    for original in mlp.graph.initializer:
        assert np.array_equal(loaded[original.name], numpy_helper.to_array(original))
    with h5py.File(version / "export-00000-of-00002") as a, h5py.File(version / "export-00001-of-00002") as b:
        assert (list(a), list(b)) == (["w0"], ["w1"])
        assert np.array_equal(a["w0"][:], loaded["w0"])


def test_files_are_read_only_and_complete(version: Path) -> None:
    assert sorted(builders.tree(version)) == [
        "assets/mserve/golden.npz",
        "assets/words.txt",
        "export-00000-of-00002",
        "export-00001-of-00002",
        "export.meta",
    ]
    assert {p.stat().st_mode & 0o777 for p in version.rglob("*") if p.is_file()} == {0o444}
    assert version.stat().st_mode & 0o777 == 0o755
    bundle = open_bundle(version)
    for record in bundle.metagraph.files():
        assert file_digest(bundle.file(record)) == record.sha256
    assert bundle.byte_size == sum(len(data) for data in builders.tree(version).values())


def test_the_graph_is_described_without_onnx(version: Path, mlp: ModelProto) -> None:
    graph = open_bundle(version).graph
    assert (graph.ir_version, graph.opsets, graph.nodes) == (10, {"ai.onnx": 21, "ai.onnx.ml": 3}, 3)
    assert graph.operators == {"Gemm": 2, "Relu": 1}
    assert graph.parameters == 784 * 128 + 128 + 128 * 10 + 10
    assert [w.name for w in graph.weights] == [t.name for t in mlp.graph.initializer]
    assert graph.metadata == {}


# --- digests ----------------------------------------------------------------------------------


def test_the_same_model_gives_the_same_bytes(mlp_file: Path, base: Path) -> None:
    first, second = (mserve.export(mlp_file, base, name="digits") for _ in range(2))
    assert (first.version, second.version) == (1, 2)
    assert builders.tree(first.path) == builders.tree(second.path)
    assert first.metagraph == second.metagraph


def test_the_identity_is_the_sha256_of_the_bytes_before_the_last_record(version: Path) -> None:
    data = (version / "export.meta").read_bytes()
    metagraph = open_bundle(version).metagraph
    assert metagraph.identity == hashlib.sha256(data[:-83]).hexdigest()
    assert TRAILER_BYTES == 83
    assert data[-83:] == b"\x72\x51\x0a\x0dmserve.sha256\x12\x40" + metagraph.identity.encode()
    last = ModelProto.FromString(data).metadata_props[-1]
    assert (last.key, last.value) == ("mserve.sha256", metagraph.identity)


def bundle_of(proto: ModelProto, base: Path, **options: Any) -> Bundle:
    return open_bundle(mserve.export(proto, base, **options).path)


@pytest.mark.parametrize(
    ("change", "options", "same_content"),
    [
        ("nothing", {}, True),
        ("name", {"name": "other"}, True),
        ("provenance", {"meta": {"run": "7"}}, True),
        ("golden samples", {"golden": 5}, True),
        ("no golden samples", {"golden": 0}, True),
        ("version", {"version": 1234}, True),
        ("a weight", {}, False),
        ("the graph", {}, False),
        ("an asset", {"assets": ["words.txt"]}, False),
        ("the placement of weights", {"shard_bytes": 5000}, False),
    ],
)
def test_the_content_digest(
    change: str,
    options: dict[str, Any],
    same_content: bool,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("one")
    proto = builders.mlp()
    before = bundle_of(proto, base).metagraph
    if change == "a weight":
        proto.graph.initializer[1].CopyFrom(builders.weight("b0", builders.floats(128, seed=99)))
    if change == "the graph":
        proto.graph.node[1].op_type = "Tanh"
    after = bundle_of(proto, base, **options).metagraph
    assert (after.content == before.content) is same_content
    assert (after.identity == before.identity) is (change in ("nothing", "version"))


def test_the_content_digest_can_be_computed_from_the_stored_bytes(version: Path) -> None:
    bundle = open_bundle(version)
    assert content_digest(bundle.meta) == bundle.metagraph.content


def test_a_bundle_exported_again_has_the_same_content(version: Path, base: Path) -> None:
    again = mserve.export(
        version / "export.meta", base, assets=[version / "assets/words.txt"], shard_bytes=100_000
    )
    assert again.metagraph.content == open_bundle(version).metagraph.content
    assert again.metagraph.name == "", "what the first export said of itself does not travel"


def test_metadata_of_the_source_is_kept(base: Path) -> None:
    proto = builders.mlp()
    proto.metadata_props.add(key="characters", value="abc")
    proto.metadata_props.add(key="mserve.name", value='"forged"')
    bundle = bundle_of(proto, base, name="true")
    assert bundle.graph.metadata == {"characters": "abc"}
    assert bundle.metagraph.name == "true"


def test_unknown_entries_and_keys_are_ignored(version: Path) -> None:
    """What a later release adds to format 1 does not stop this one."""
    before = open_bundle(version).metagraph

    def later(proto: ModelProto) -> None:
        builders.set_prop(proto, "mserve.later", "[1, 2")
        builders.set_json(proto, "mserve.shards", lambda records: [r | {"later": 1} for r in records])
        builders.set_json(proto, "mserve.signatures", lambda s: {k: v | {"later": {}} for k, v in s.items()})

    builders.reseal(version, later)
    after = open_bundle(version).metagraph
    assert (after.signatures, after.shards, after.assets) == (before.signatures, before.shards, before.assets)
    assert after.identity != before.identity


def test_what_a_metagraph_says_is_read_back(version: Path) -> None:
    bundle = open_bundle(version)
    stored = builders.props(ModelProto.FromString(bundle.meta))
    assert {k: stored[k] for k in bundle.metagraph.props()} == bundle.metagraph.props()
    assert set(stored) - set(bundle.metagraph.props()) == {"mserve.content", "mserve.sha256"}


@given(st.dictionaries(st.text(), st.text(), max_size=3))
def test_sealing_any_metadata_gives_a_file_that_carries_its_digest(entries: dict[str, str]) -> None:
    proto = builders.elementwise(helper.make_node("Relu", ["x"], ["y"]))
    fixed = {
        "mserve.format": "1",
        "mserve.name": '"n"',
        "mserve.provenance": "{}",
        "mserve.assets": "[]",
        "mserve.shards": '[{"name":"export-00000-of-00001","size":1,"sha256":"%s"}]' % ("0" * 64),
        "mserve.signatures": '{"s":{"method":"predict","inputs":{},"outputs":'
        '{"y":{"tensor":"y","dtype":"float32","shape":null}}}}',
    }
    for key, value in ({k: v for k, v in entries.items() if not k.startswith("mserve.")} | fixed).items():
        proto.metadata_props.add(key=key, value=value)
    sealed = seal(proto.SerializeToString())
    assert parse(sealed, "x").identity == hashlib.sha256(sealed[:-TRAILER_BYTES]).hexdigest()
    assert parse(sealed, "x").content == content_digest(sealed)


# --- golden samples ---------------------------------------------------------------------------


def test_golden_samples_lie_under_signature_side_and_alias(base: Path) -> None:
    bundle = bundle_of(builders.strings(), base, golden=4)
    assert bundle.metagraph.golden is not None
    path = bundle.file(bundle.metagraph.golden)
    arrays = read_npz(path)
    assert sorted(arrays) == [
        "serving_default/inputs/word",
        "serving_default/outputs/echo",
        "serving_default/outputs/value",
    ]
    assert arrays["serving_default/inputs/word"].dtype.kind == "U"
    golden = unpack(path, bundle.metagraph.signatures)["serving_default"]
    assert golden.inputs["word"].dtype == object
    assert list(golden.outputs["echo"]) == list(golden.inputs["word"])
    expected = builders.plain(builders.strings(), {"word": golden.inputs["word"]})[0]
    assert np.array_equal(golden.outputs["value"], expected)


@pytest.mark.parametrize("dtype", ["float16", "int8", "uint64", "bool", "float64"])
def test_golden_inputs_keep_their_dtype(dtype: str, base: Path) -> None:
    kind = DTYPES[dtype].onnx
    proto = builders.model(
        [helper.make_node("Cast", ["x"], ["y"], to=builders.FLOAT)],
        [("x", kind, ["N", 2])],
        [("y", builders.FLOAT, ["N", 2])],
    )
    bundle = bundle_of(proto, base, golden=3)
    assert bundle.metagraph.golden is not None, "the model ran on made-up inputs"
    golden = unpack(bundle.file(bundle.metagraph.golden), bundle.metagraph.signatures)["serving_default"]
    assert golden.inputs["x"].dtype == DTYPES[dtype].to_numpy()
    assert np.array_equal(golden.inputs["x"].astype(np.float32), golden.outputs["y"])
