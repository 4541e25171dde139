"""Bundles that are cut, changed or made to harm: each is refused, by its own error, naming the file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builders
import numpy as np
import onnx
import pytest
from builders import drop_prop, overwrite, point, reseal, set_json, set_prop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

import mserve
from mserve.errors import (
    BundleError,
    BundleIncomplete,
    DigestMismatch,
    DuplicateMetadata,
    FormatUnsupported,
    MetaGraphMalformed,
    ModelRefused,
    MserveError,
    NotABundle,
    NotAFile,
    UnsafePath,
)
from mserve.format import open_bundle
from mserve.format.golden import Golden, pack
from mserve.format.metagraph import TRAILER_BYTES, seal
from mserve.wire import protobuf

META, SHARD = "export.meta", "export-00000-of-00002"
Spoil = Callable[[Path], object]
Case = tuple[str, Spoil, type[BundleError], str]


def refused(version: Path, error: type[BundleError], said: str, why: str, named: Path | None = None) -> None:
    """Opening the version raises exactly this error, which names the version's path."""
    with pytest.raises(BundleError) as caught:
        open_bundle(version)
    assert type(caught.value) is error, f"{why}: {caught.value!r}"
    assert caught.value.exit_code == 3
    assert said in str(caught.value)
    assert str(named or version) in str(caught.value)
    assert len(str(caught.value)) < 2000, "a message that a person can read"


def meta(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of export.meta."""
    return lambda v: overwrite(v / META, change((v / META).read_bytes()))


def body(change: Callable[[bytes], bytes]) -> Spoil:
    """Change the bytes of export.meta, and close it with proper digests again."""

    def spoil(version: Path) -> None:
        data = (version / META).read_bytes()
        records = [
            (f, data[f.record_start : f.end])
            for f in protobuf.fields(data)
            if b"mserve.content" not in data[f.record_start : f.end][:20]
        ]
        overwrite(version / META, seal(change(b"".join(r for _, r in records[:-1]))))

    return spoil


def raw_seal(change: Callable[[bytes], bytes]) -> Spoil:
    """As `body`, for bytes that are no message, of which `seal` could not make a content digest."""

    def spoil(version: Path) -> None:
        data = change((version / META).read_bytes()[:-TRAILER_BYTES])
        overwrite(version / META, data + seal(data[:0])[-TRAILER_BYTES:-64] + _sha(data))

    return spoil


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def prop(key: str, text: str) -> Spoil:
    """Replace one metadata entry by the given text."""
    return lambda v: reseal(v, lambda m: set_prop(m, key, text))


def edit(key: str, change: Callable[[Any], Any]) -> Spoil:
    """Replace the JSON of one metadata entry."""
    return lambda v: reseal(v, lambda m: set_json(m, key, change))


def record(key: str, **changes: object) -> Spoil:
    """Change the first file record of a list."""
    return edit(key, lambda records: [records[0] | changes, *records[1:]])


def signature(**changes: object) -> Spoil:
    return edit("mserve.signatures", lambda s: {"serving_default": s["serving_default"] | changes})


def port(side: str, value: object) -> Spoil:
    """Replace the description of every tensor of one side."""
    return edit(
        "mserve.signatures",
        lambda s: {"serving_default": s["serving_default"] | {side: dict.fromkeys("ab", value)}},
    )


def weight(name: str, change: Callable[[TensorProto], object]) -> Spoil:
    """Change one initializer of the graph."""

    def spoil(model: ModelProto) -> None:
        change(next(t for t in model.graph.initializer if t.name == name))

    return lambda v: reseal(v, spoil)


def moved(**entries: object) -> Spoil:
    """Give w0 other external data entries."""
    return lambda v: reseal(v, lambda m: point(m, "w0", **({"location": SHARD} | entries)))


def dims(*sizes: int) -> Spoil:
    def change(tensor: TensorProto) -> None:
        tensor.dims[:] = sizes

    return weight("w0", change)


def link(name: str, *, to_directory: bool = False) -> Spoil:
    """Replace a file, or a directory, of the version by a symbolic link to a copy outside."""

    def spoil(version: Path) -> None:
        outside = version.parent.parent / "outside"
        shutil.move(version / name, outside)
        (version / name).symlink_to(outside, target_is_directory=to_directory)

    return spoil


def fifo(name: str) -> Spoil:
    def spoil(version: Path) -> None:
        (version / name).unlink()
        os.mkfifo(version / name)

    return spoil


def directory(name: str) -> Spoil:
    def spoil(version: Path) -> None:
        (version / name).unlink()
        (version / name).mkdir()

    return spoil


def resized(name: str, by: int) -> Spoil:
    def spoil(version: Path) -> None:
        size = (version / name).stat().st_size
        (version / name).chmod(0o644)
        os.truncate(version / name, size + by)

    return spoil


def twice(key: str) -> Spoil:
    def spoil(model: ModelProto) -> None:
        model.metadata_props.add(key=key, value=builders.props(model)[key])

    return lambda v: reseal(v, spoil)


def last_tensor_of_two(version: Path) -> None:
    """A second, empty record of the tensor's location: the two readings must not differ."""

    def change(data: bytes) -> bytes:
        model = ModelProto.FromString(data)
        point(model, "w0", location="other.bin", offset=0, length=4)
        tensor = model.graph.initializer[0].SerializeToString()
        # data_location once more, as a string: other readers skip it, being of the wrong wire type
        doubled = tensor + protobuf.encode_bytes(14, b"")
        graph = model.graph.SerializeToString().replace(
            protobuf.encode_bytes(5, tensor), protobuf.encode_bytes(5, doubled)
        )
        model.ClearField("graph")
        return model.SerializeToString() + protobuf.encode_bytes(7, graph)

    body(change)(version)


# Short names, so that a case fits into a line.
BAD, SHORT, SUM, TWICE = MetaGraphMalformed, BundleIncomplete, DigestMismatch, DuplicateMetadata
LATER, PATH, KIND = FormatUnsupported, UnsafePath, NotAFile
RECORD = "not {name, size, sha256}"
W0 = 784 * 128 * 4


def tensor_port(side: str, dtype: object, shape: object) -> Spoil:
    return port(side, {"tensor": "x", "dtype": dtype, "shape": shape})


TRAILER: list[Case] = [
    (
        "a flipped bit in the first byte",
        meta(lambda d: bytes([d[0] ^ 1]) + d[1:]),
        SUM,
        "was changed",
    ),
    (
        "a flipped bit in the middle",
        meta(lambda d: d[:900] + bytes([d[900] ^ 128]) + d[901:]),
        SUM,
        "was changed",
    ),
    (
        "a flipped bit of the digest",
        meta(lambda d: d[:-1] + bytes([d[-1] ^ 1])),
        SUM,
        "was changed",
    ),
    ("a digest that is no text", meta(lambda d: d[:-64] + b"\xff" * 64), SUM, "was changed"),
    ("the digest of other bytes", meta(lambda d: d[:-64] + b"0" * 64), SUM, "was changed"),
    ("no trailer", meta(lambda d: d[:-TRAILER_BYTES]), SUM, "does not end in its digest"),
    (
        "the digest under another key",
        meta(lambda d: d.replace(b"mserve.sha256", b"mserve.sha255")),
        SUM,
        "",
    ),
    ("a byte after the trailer", meta(lambda d: d + b"\0"), SUM, "does not end in its digest"),
    ("a record after the trailer", meta(lambda d: d + b"\x08\x0a"), SUM, "does not end"),
    ("an empty file", meta(lambda d: b""), SUM, "0 bytes"),
    ("only a trailer", meta(lambda d: d[-TRAILER_BYTES:]), SUM, "was changed"),
    (
        "a plain ONNX model",
        lambda v: overwrite(v / META, builders.mlp().SerializeToString()),
        SUM,
        "",
    ),
]

METADATA: list[Case] = [
    ("bytes that are no message", raw_seal(lambda d: b"\xff" * 20), BAD, "not a protobuf message"),
    ("a message with a cut record", raw_seal(lambda d: d[:-1]), BAD, "not a protobuf message"),
    ("a metadata entry that is a number", raw_seal(lambda d: d + b"\x70\x01"), BAD, "not a message"),
    (
        "a metadata key that is not UTF-8",
        raw_seal(lambda d: d + b"\x72\x03\x0a\x01\xff"),
        BAD,
        "not UTF-8",
    ),
    ("the format twice", twice("mserve.format"), TWICE, "mserve.format"),
    ("the signatures twice", twice("mserve.signatures"), TWICE, "mserve.signatures"),
    ("a second digest before the last", lambda v: reseal(v, lambda m: set_prop(m, "mserve.sha256", "0" * 64)),
     TWICE, "mserve.sha256"),
    ("an unknown key twice", lambda v: reseal(v, lambda m: [
        m.metadata_props.add(key="mserve.x") for _ in "ab"]), TWICE, "mserve.x"),
    ("format 3", prop("mserve.format", "3"), LATER, "expected: 1 or 2; found: 3"),
    ("format 0", prop("mserve.format", "0"), LATER, "found: 0"),
    ("a format that is text", prop("mserve.format", '"1"'), LATER, "found: 1"),
    ("a format that is true", prop("mserve.format", "true"), LATER, "found: True"),
    ("a later format with entries of its own", lambda v: reseal(v, lambda m: [
        set_prop(m, "mserve.format", "3"), drop_prop(m, "mserve.shards")]), LATER, "upgrade mserve"),
    *(
        (f"no {key}", lambda v, k=key: reseal(v, lambda m: drop_prop(m, k)), BAD, key)
        for key in (
            f"mserve.{name}" for name in ("format", "name", "signatures", "shards", "assets", "provenance")
        )
    ),
    ("no content digest", raw_seal(lambda d: d.replace(b"mserve.content", b"mserve.kontent")), BAD,
     "mserve.content"),
    ("JSON that ends early", prop("mserve.shards", "[{"), BAD, "not JSON"),
    ("an empty entry", prop("mserve.name", ""), BAD, "not JSON"),
    ("JSON that is nested too deeply", prop("mserve.provenance", "[" * 200_000), BAD, "not JSON"),
    ("a number of too many digits", prop("mserve.format", "1" * 5000), BAD, "not JSON"),
    ("a name that is a number", prop("mserve.name", "1"), BAD, "wrong type"),
    ("a provenance that is a list", prop("mserve.provenance", "[]"), BAD, "wrong type"),
    ("a content digest that is null", raw_seal(
        lambda d: d[:-66] + b"null" + b" " * 62), BAD, "wrong type"),
    ("signatures that are a list", prop("mserve.signatures", "[]"), BAD, "mserve.signatures"),
    ("no signatures", prop("mserve.signatures", "{}"), BAD, "mserve.signatures"),
]  # fmt: skip

SIGNATURES: list[Case] = [
    ("a signature that is text", prop("mserve.signatures", '{"s": "x"}'), BAD, "signature s"),
    ("an unknown method", signature(method="guess"), BAD, "bad method"),
    ("a method that is a list", signature(method=[]), BAD, "bad method"),
    ("a batch axis of 1", signature(batch_axis=1), BAD, "bad batch_axis"),
    ("a batch axis of false", signature(batch_axis=False), BAD, "bad batch_axis"),
    ("a batch axis that is text", signature(batch_axis="0"), BAD, "bad batch_axis"),
    ("inputs that are a list", signature(inputs=[]), BAD, "no inputs"),
    ("no outputs", signature(outputs={}), BAD, "no outputs"),
    ("outputs that are null", signature(outputs=None), BAD, "no outputs"),
    ("an input that is text", port("inputs", "x"), BAD, "serving_default.inputs.a"),
    ("an output without a tensor", port("outputs", {"dtype": "int8", "shape": []}), BAD, "no tensor name"),
    ("an unknown dtype", tensor_port("inputs", "float", []), BAD, "dtype"),
    ("a dtype that is a list", tensor_port("inputs", [], []), BAD, "dtype"),
    ("a shape that is text", tensor_port("inputs", "int8", "N"), BAD, "shape"),
    ("a negative size", tensor_port("inputs", "int8", [-1]), BAD, "shape"),
    ("a size of 1.5", tensor_port("inputs", "int8", [1.5]), BAD, "shape"),
    ("an output of no graph", port("outputs", {"tensor": "nowhere", "dtype": "int8", "shape": []}),
     BAD, "not among the graph's outputs"),
    ("an input that is a weight", port("inputs", {"tensor": "w0", "dtype": "float32", "shape": []}), BAD,
     "not among the graph's inputs"),
    ("an empty symbol", tensor_port("inputs", "int8", [""]), BAD, "shape"),
    ("a size of true", tensor_port("inputs", "int8", [True]), BAD, "shape"),
]  # fmt: skip

RECORDS: list[Case] = [
    ("no shard", prop("mserve.shards", "[]"), BAD, "no shard is listed"),
    ("shards that are an object", prop("mserve.shards", "{}"), BAD, "not a list"),
    ("a shard that is text", prop("mserve.shards", '["x"]'), BAD, RECORD),
    ("a size that is text", record("mserve.shards", size="1"), BAD, RECORD),
    ("a size of true", record("mserve.shards", size=True), BAD, RECORD),
    ("a negative file size", record("mserve.shards", size=-1), BAD, RECORD),
    ("a short digest", record("mserve.shards", sha256="00"), BAD, RECORD),
    ("a digest that is not hexadecimal", record("mserve.shards", sha256="z" * 64), BAD, RECORD),
    ("a gigantic size", record("mserve.shards", size=10**30), SHORT, "wrong size"),
    ("an empty shard", record("mserve.shards", size=0), BAD, "a shard is empty"),
    ("a file listed twice", edit("mserve.assets", lambda a: a * 2), BAD, "listed twice"),
    ("a shard listed twice", edit("mserve.shards", lambda a: a * 2), BAD, "listed twice"),
    ("many files listed twice", edit("mserve.assets", lambda a: [
        a[0] | {"name": f"assets/{i}"} for i in range(20_000)] * 2), BAD, "listed twice"),
    ("a shard of another name", record("mserve.shards", name="weights.bin"), BAD, "wrong name"),
    ("a shard among the assets", record("mserve.assets", name="words.txt"), BAD, "lies elsewhere"),
    ("golden samples elsewhere", edit("mserve.golden", lambda g: g | {"name": "golden.npz"}), BAD,
     "lies elsewhere"),
    ("golden samples that are a list", edit("mserve.golden", lambda g: [g]), BAD, RECORD),
    ("golden samples that are null", prop("mserve.golden", "null"), BAD, RECORD),
    ("export.meta as an asset", record("mserve.assets", name="export.meta"), BAD, "lies elsewhere"),
    ("a shard above the bundle", record("mserve.shards", name="../x"), PATH, "leads out"),
    ("a shard at an absolute path", record("mserve.shards", name="/etc/hostname"), PATH, "leads out"),
    ("an asset above the bundle", record("mserve.assets", name="assets/../../x"), PATH, "leads out"),
    ("an asset at an absolute path", record("mserve.assets", name="/etc/hostname"), PATH, "leads out"),
    ("an asset in another spelling", record("mserve.assets", name="assets/./words.txt"), PATH, "leads out"),
    ("an asset named for Windows", record("mserve.assets", name="assets\\..\\x"), PATH, "leads out"),
    ("golden samples above the bundle", edit("mserve.golden", lambda g: g | {"name": "../g"}), PATH, "leads"),
    ("an asset without bytes for a name", record("mserve.assets", name="assets/\ud800"), PATH, "leads out"),
    ("an asset with a NUL in its name", record("mserve.assets", name="assets/a\0b"), PATH, "leads out"),
    ("an asset with a name of 300 letters", record("mserve.assets", name="assets/" + "a" * 300), SHORT,
     "missing"),
]  # fmt: skip

FILES: list[Case] = [
    ("no export.meta", lambda v: (v / META).unlink(), NotABundle, "the version has no export.meta"),
    ("export.meta is a link", link(META), KIND, "are not followed"),
    ("export.meta is a fifo", fifo(META), KIND, "not a regular file"),
    ("export.meta is a directory", directory(META), KIND, "not a regular file"),
    ("a shard is missing", lambda v: (v / SHARD).unlink(), SHORT, "missing"),
    ("a shard is short by a byte", resized(SHARD, -1), SHORT, "wrong size"),
    ("a shard is long by a byte", resized(SHARD, 1), SHORT, "wrong size"),
    ("a shard is a link", link(SHARD), KIND, "are not followed"),
    ("a shard is a fifo", fifo(SHARD), KIND, "not a regular file"),
    ("a shard is a directory", directory(SHARD), KIND, "not a regular file"),
    ("an asset is missing", lambda v: (v / "assets/words.txt").unlink(), SHORT, "missing"),
    ("an asset is a link", link("assets/words.txt"), KIND, "are not followed"),
    ("the directory of assets is a link", link("assets", to_directory=True), KIND, "are not followed"),
    ("all assets are missing", lambda v: shutil.rmtree(v / "assets"), SHORT, "missing"),
    ("a file in the place of assets", lambda v: [shutil.rmtree(v / "assets"), (v / "assets").write_text("")],
     SHORT, "missing"),
    ("the golden samples are missing", lambda v: (v / "assets/mserve/golden.npz").unlink(), SHORT, "golden"),
]  # fmt: skip

BIG = 2**62
TENSORS: list[Case] = [
    ("a tensor in a file that is not listed", moved(location="other.bin", offset=0, length=W0),
     BAD, "not a listed shard"),
    ("a tensor in an asset", moved(location="assets/words.txt", offset=0, length=W0), BAD,
     "not a listed shard"),
    ("a tensor above the bundle", moved(location="../x", offset=0, length=W0), BAD, "not a listed"),
    ("a tensor at an absolute path", moved(location="/etc/hostname", offset=0, length=W0), BAD,
     "not a listed shard"),
    ("an external tensor that names no file", moved(location="", offset=0, length=W0), BAD,
     "names no file"),
    ("a tensor with two kinds of location", last_tensor_of_two, BAD, "field 14 is not an integer"),
    ("a tensor with two files", weight("w0", lambda t: t.external_data.add(key="location", value="x")), BAD,
     "'location' stands twice"),
    ("an unknown location kind", weight("w0", lambda t: t.ParseFromString(
        t.SerializeToString() + b"\x70\x02")), BAD, "data location 2"),
    ("a tensor that ends behind its shard", moved(offset=W0, length=W0), BAD, "ends behind"),
    ("a gigantic offset", moved(offset=2**63, length=W0), BAD, "ends behind"),
    ("a negative offset", moved(offset=-1, length=W0), BAD, "not a number"),
    ("no offset", moved(length=W0), BAD, "external offset '' is not a number"),
    ("an offset in another script", moved(offset="٣", length=W0), BAD, "not a number"),
    ("a length that is text", moved(offset=2048, length="all"), BAD, "not a number"),
    ("a length of 5000 digits", moved(offset=2048, length="1" * 5000), BAD, "not a number"),
    ("a length that is short", moved(offset=2048, length=401404), BAD, "does not fit its shape"),
    ("a shape that needs more", dims(784, 129), BAD, "does not fit its shape"),
    ("a negative dimension", dims(-784, -128), BAD, "negative size"),
    ("gigantic dimensions", dims(BIG, BIG), BAD, "does not fit its shape"),
    ("gigantic dimensions whose product wraps to the right size", dims(2**32 + 784, 2**32 * 128),
     BAD, "does not fit its shape"),
    ("more dimensions than a tensor has", dims(*[BIG] * 400), BAD, "dimensions"),
    ("very many dimensions", dims(*[BIG] * 200_000), BAD, "dimensions"),
    ("a negative dimension of a tensor in the graph", weight("b0", lambda t: t.dims.append(-1)), BAD,
     "negative size"),
    ("an external tensor of strings", weight("w0", lambda t: setattr(t, "data_type", 8)), BAD,
     "dtype cannot lie in a shard"),
    ("an external tensor of an unknown dtype", weight("w0", lambda t: setattr(t, "data_type", 99)),
     BAD, "onnx:99"),
    ("a graph that is no message", body(lambda d: d + b"\x3a\x02\x0a\x05"), BAD, "not a protobuf"),
    ("an operator with a name that is not UTF-8", body(lambda d: d + b"\x3a\x05\x0a\x03\x22\x01\xff"),
     BAD, "not UTF-8"),
]  # fmt: skip


def table(*groups: list[Case]) -> Any:
    cases = [case for group in groups for case in group]
    return pytest.mark.parametrize(
        ("why", "spoil", "error", "said"), cases, ids=[why.replace(" ", "-") for why, *_ in cases]
    )


@table(TRAILER, METADATA, SIGNATURES, RECORDS, FILES, TENSORS)
def test_a_spoilt_bundle_is_refused(
    why: str, spoil: Spoil, error: type[BundleError], said: str, version: Path
) -> None:
    open_bundle(version)
    spoil(version)
    refused(version, error, said, why)


def test_the_helpers_of_this_table_keep_a_bundle_good(version: Path) -> None:
    """Every refusal above is due to what its case changes, not to how."""
    for spoil in (
        body(lambda d: d),
        raw_seal(lambda d: d),
        record("mserve.shards"),
        weight("w0", lambda t: None),
    ):
        spoil(version)
        open_bundle(version)
    assert builders.tree(version)


def test_only_a_version_that_may_still_arrive_says_so() -> None:
    waiting = {NotABundle, BundleIncomplete, DigestMismatch}
    assert {e for e in BundleError.__subclasses__() if e.may_complete} == waiting
    assert {e.exit_code for e in BundleError.__subclasses__()} == {3}


def test_every_error_class_has_a_hostile_case() -> None:
    covered = {
        error
        for group in (TRAILER, METADATA, SIGNATURES, RECORDS, FILES, TENSORS)
        for _, _, error, _ in group
    }
    assert covered | {ModelRefused} == set(BundleError.__subclasses__())


# --- cut and mutated files --------------------------------------------------------------------


def boundaries(data: bytes) -> list[int]:
    """Where the records of a model, of its graph and of its metadata entries begin."""
    found = {0}
    for f in protobuf.fields(data):
        found |= {f.record_start, f.start}
        if f.number in (7, 14):
            found |= {inner.record_start for inner in protobuf.fields(data, f.start, f.end)}
    return sorted(found)


def test_a_file_cut_at_any_field_boundary_is_refused(version: Path) -> None:
    data = (version / META).read_bytes()
    cuts = boundaries(data)
    assert len(cuts) > 40
    for cut in cuts:
        overwrite(version / META, data[:cut])
        refused(version, DigestMismatch, "does not end in its digest", f"cut at {cut}")


def test_a_file_cut_at_any_field_boundary_and_sealed_again_is_refused(version: Path) -> None:
    """A writer that stops early cannot be told by the digest; what is missing is named."""
    data = (version / META).read_bytes()[:-TRAILER_BYTES]
    (content,) = [f for f in protobuf.fields(data) if data[f.start + 2 : f.end].startswith(b"mserve.content")]
    for cut in (c for c in boundaries(data) if c <= content.record_start):
        raw_seal(lambda d, n=cut: data[:n])(version)
        refused(version, MetaGraphMalformed, "", f"cut at {cut}")


def test_a_half_copied_version_is_incomplete_until_the_last_byte(version: Path, tmp_path: Path) -> None:
    """Whatever the order of copying, every state before the last says that it may complete."""
    names = sorted(builders.tree(version))
    for order in (names, names[::-1]):
        copy = tmp_path / f"copy-{order[0].replace('/', '-')}" / "00000001"
        copy.mkdir(parents=True)
        for name in order:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            data = (version / name).read_bytes()
            for part in (data[:0], data[: len(data) // 2], data[:-1], data):
                with pytest.raises(BundleError) as caught:
                    open_bundle(copy)
                assert caught.value.may_complete, f"{name}, {len(part)} bytes: {caught.value!r}"
                (copy / name).write_bytes(part)
        assert open_bundle(copy).metagraph == open_bundle(version).metagraph


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_random_damage_raises_nothing_but_bundle_errors(data: st.DataObject, mutable: Path) -> None:
    good = mutable.with_name("good").read_bytes()
    bad = bytearray(good[: data.draw(st.integers(0, len(good)) | st.just(len(good)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if bad:
            bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    (mutable / META).write_bytes(bad)
    if bytes(bad) == good:
        open_bundle(mutable)
        return
    with pytest.raises(DigestMismatch):
        open_bundle(mutable)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_random_damage_under_a_good_digest_raises_nothing_but_bundle_errors(
    data: st.DataObject, mutable: Path
) -> None:
    """As a hostile writer would make it: the bytes are wrong and the digest is right."""
    good = mutable.with_name("good").read_bytes()[:-TRAILER_BYTES]
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(bad) - 1))
        bad[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    sealed = bytes(bad) + seal(b"")[-TRAILER_BYTES:-64] + _sha(bytes(bad))
    (mutable / META).write_bytes(sealed)
    try:
        bundle = open_bundle(mutable)
    except BundleError:
        return
    assert bundle.meta == sealed
    json.dumps(bundle.metagraph.props())
    assert bundle.graph.parameters >= 0


@pytest.fixture(scope="module")
def mutable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small version whose export.meta is rewritten by every example; `good` is beside it."""
    base = tmp_path_factory.mktemp("mutable")
    version = mserve.export(builders.mlp(hidden=16), base, name="digits").path
    (base / "good").write_bytes((version / META).read_bytes())
    (version / META).chmod(0o644)
    return version


# --- what opens and does not load -------------------------------------------------------------


def unloadable(version: Path, why: str, error: type[BundleError] = ModelRefused) -> str:
    open_bundle(version)
    with pytest.raises(BundleError) as caught:
        mserve.load(version)
    assert type(caught.value) is error, f"{why}: {caught.value!r}"
    assert caught.value.exit_code == 3
    assert str(version) in str(caught.value)
    return str(caught.value)


def test_a_graph_that_the_runtime_refuses(version: Path) -> None:
    reseal(version, lambda m: setattr(m.graph.node[0], "op_type", "NoSuchOperator"))
    assert "NoSuchOperator" in unloadable(version, "an unknown operator")


def test_golden_samples_that_are_no_archive(version: Path) -> None:
    path = version / "assets/mserve/golden.npz"
    overwrite(path, b"x" * path.stat().st_size)
    assert "golden" in unloadable(version, "the size is right, the bytes are not", MetaGraphMalformed)


def test_golden_samples_of_another_model(version: Path, base: Path) -> None:
    other = mserve.export(builders.strings(), base, version=7).path / "assets/mserve/golden.npz"
    data = overwrite(version / "assets/mserve/golden.npz", other.read_bytes()).read_bytes()
    edit("mserve.golden", lambda g: g | {"size": len(data)})(version)
    assert "fit no signature" in unloadable(version, "aliases differ", MetaGraphMalformed)


def test_golden_samples_that_the_model_fails_on(version: Path) -> None:
    sample = Golden({"x": np.zeros((1, 3), np.float32)}, {"y": np.zeros((1, 10), np.float32)})
    data = pack({"serving_default": sample})
    overwrite(version / "assets/mserve/golden.npz", data)
    edit("mserve.golden", lambda g: g | {"size": len(data)})(version)
    assert "golden" in unloadable(version, "the recorded inputs have the wrong shape")


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/hostname"])
def test_a_constant_inside_the_graph_cannot_reach_another_file(version: Path, location: str) -> None:
    """mserve never writes external constants there; the runtime refuses those that lead out."""
    (version.parent / "outside.bin").write_bytes(bytes(40))

    def spoil(model: ModelProto) -> None:
        tensor = TensorProto(name="c", data_type=1, dims=[10], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", "40")):
            tensor.external_data.add(key=key, value=value)
        constant = helper.make_node("Constant", [], ["c"], value=tensor)
        kept = [constant, *model.graph.node[:2], helper.make_node("Gemm", ["r", "w1", "c"], ["y"])]
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    reseal(version, spoil)
    unloadable(version, location)


def test_a_golden_archive_with_more_than_arrays(version: Path) -> None:
    """A member without numpy's header comes back as bytes."""
    import zipfile

    from mserve.errors import InputError
    from mserve.format.golden import read_npz

    path = version / "odd.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serving_default/inputs/x.npy", b"no array")
    with pytest.raises(InputError, match=r"holds more than arrays.*inputs/x"):
        read_npz(path)


def test_a_golden_archive_that_unpacks_to_gigabytes(version: Path) -> None:
    """Two megabytes that hold two gigabytes of zeros are refused by their table of contents."""
    import zipfile

    from mserve.errors import InputError
    from mserve.format.golden import read_npz

    path = version / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(1100):
            member.write(bytes(1 << 20))
    with pytest.raises(InputError, match="unpacks to too much"):
        read_npz(path)


def test_an_archive_of_values_without_bytes_is_refused(tmp_path: Path) -> None:
    """A header of 100 bytes may announce a million million texts of no characters."""
    from mserve.format.golden import read_npz

    head = b"{'descr': '<U0', 'fortran_order': False, 'shape': (1099511627776,)}\n"
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head)
    with pytest.raises(MserveError, match="values of no bytes"):
        read_npz(tmp_path / "m.npz")
