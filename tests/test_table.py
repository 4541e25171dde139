"""Tables: exported, loaded, looked up, checked, and served."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from builders import Array, overwrite, tree, words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from server_tools import serving

import mserve
from mserve.checks import validate
from mserve.errors import (
    InputError,
    RequestError,
)
from mserve.format import open_bundle
from mserve.loader.servable import Servable
from mserve.runtime import table as engine

WORDS = ["b", "", "é", "a long key, longer than eight bytes", "a"]
COLUMNS: dict[str, Array] = {
    "f4": np.array([1.5, np.nan, np.inf, -0.0, 1e-45], np.float32),
    "f8": np.linspace(0, 1, 5),
    "f2": np.arange(5).astype(np.float16),
    "bfloat16": np.arange(5).astype(ml_dtypes.bfloat16),
    "i8": np.array([0, -1, 2**63 - 1, -(2**63), 5]),
    "i1": np.arange(5, dtype=np.int8) - 2,
    "u8": np.array([0, 1, 2**64 - 1, 3, 4], np.uint64),
    "yes": np.array([True, False, True, True, False]),
    "big_endian": np.arange(5, dtype=">i4"),
    "text": np.array(["x", "", "é\0z", "y" * 300, "\U0001f600"], object),
    "bytes": np.array([b"x", b"", "é".encode(), b"z", b"0"]),
    "vector": np.arange(10, dtype=np.float32).reshape(5, 2),
    "matrix": np.arange(30).reshape(5, 2, 3),
    "word_pairs": np.array([[f"{i}{j}" * i for j in "ab"] for i in range(5)]),
}  # fmt: skip


def exported(source: Any, base: Path, **options: Any) -> Servable:
    return mserve.load(mserve.export(source, base, **options).path)


# --- export, load, look up ------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    "keys", [np.array([7, -3, 2**63 - 1, 0, -(2**63)]), np.array(WORDS)], ids=["int", "str"]
)
def test_every_dtype_comes_back(name: str, keys: Array, tmp_path: Path) -> None:
    column = COLUMNS[name]
    servable = exported({"key": keys, "value": column}, tmp_path / "base")
    answer = servable.run({"key": keys[::-1]})
    expected = np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column
    assert np.array_equal(answer["value"], expected[::-1], equal_nan=column.dtype.kind == "f")
    assert answer["found"].tolist() == [True] * 5
    if column.dtype.kind in "biuf":
        assert answer["value"].dtype == column.dtype.newbyteorder("=")
    missing = servable.run({"key": np.array([1]) if keys.dtype.kind == "i" else ["nowhere"]})
    zero = "" if column.dtype.kind in "OUS" else 0
    assert (missing["value"] == zero).all()
    assert missing["value"].shape == (1, *column.shape[1:])
    assert missing["found"].tolist() == [False]


@pytest.mark.parametrize(
    ("keys", "asked", "rows"),
    [
        (np.array([10, 20, 30]), np.array([], np.int64), []),
        (np.array([10, 20, 30]), np.array([20, 20, 5, 31, 10]), [1, 1, None, None, 0]),
        (np.array([10], np.uint8), np.array([10, 11]), [0, None]),
        (np.array([2**63 - 1], np.uint64), np.array([2**63 - 1, -1]), [0, None]),
        (words("a", "b"), words(), []),
        (words("a", "b"), words("b", "c", "", "b"), [1, None, None, 1]),
        (words(""), words("", "a"), [0, None]),
        (words("a", "a\0", "a\0\0"), words("a\0", "a", "\0"), [1, 0, None]),
        (words("\ud7ff"), words("\ud800", "\ud7ff"), [None, 0]),
    ],
    ids=[
        "empty",
        "repeated-and-absent",
        "uint8",
        "uint64",
        "no-words",
        "words",
        "empty-key",
        "nul",
        "surrogate",
    ],
)
def test_what_is_found(keys: Array, asked: Array, rows: list[int | None], tmp_path: Path) -> None:
    value = np.arange(len(keys), dtype=np.float32) + 1
    answer = exported({"key": keys, "value": value}, tmp_path / "base").run({"key": asked})
    assert answer["found"].tolist() == [row is not None for row in rows]
    assert answer["value"].tolist() == [0.0 if row is None else row + 1.0 for row in rows]
    assert answer["value"].dtype == np.float32


def test_the_signature(tmp_path: Path) -> None:
    table = {"sku": np.array(["a"]), "emb": np.zeros((1, 3), np.float32), "title": np.array(["A"])}
    metagraph = mserve.export(table, tmp_path / "base", key="sku").metagraph
    (signature,) = metagraph.signatures.values()
    ports = {**signature.inputs, **signature.outputs}
    assert {name: str(spec) for name, spec in ports.items()} == {
        "key": "string [batch]",
        "emb": "float32 [batch, 3]",
        "title": "string [batch]",
        "found": "bool [batch]",
    }
    assert (signature.method, signature.batch_axis) == ("predict", 0)
    assert signature.inputs["key"].doc == "the column 'sku'"


@pytest.mark.parametrize(
    ("inputs", "error", "said"),
    [
        ({"key": np.array([1])}, RequestError, "expected: string; found: int64"),
        ({"key": np.array([["a"]])}, RequestError, "expected: [batch]; found: [1, 1]"),
        ({}, RequestError, "missing 'key'"),
        ({"key": np.array([b"\xff"])}, RequestError, "not UTF-8"),
    ],
)
def test_bad_requests(inputs: dict[str, Array], error: type[Exception], said: str, tmp_path: Path) -> None:
    servable = exported({"key": np.array(["a"]), "v": np.array([1])}, tmp_path / "base")
    with pytest.raises(error) as caught:
        servable.run(inputs)
    assert said in str(caught.value)


@pytest.mark.parametrize("bits", [0, 2, 8])
def test_keys_whose_hashes_collide_are_told_apart(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hash of so few bits, every key and every absent key has neighbours of its hash."""
    whole = engine.hash_words
    monkeypatch.setattr(engine, "hash_words", lambda keys: whole(keys) & np.uint64(2**bits - 1))
    count = engine.MAX_SAME_HASH if bits == 0 else 100
    keys = words(*(f"key {i}" for i in range(count)))
    servable = exported({"key": keys, "value": np.arange(count)}, tmp_path / "base")
    answer = servable.run({"key": words(*keys[::-1], *(f"none {i}" for i in range(50)))})
    assert answer["value"].tolist() == [*range(count)][::-1] + [0] * 50
    assert answer["found"].tolist() == [True] * count + [False] * 50
    with pytest.raises(InputError, match=f"rows 3 and {count}"):
        mserve.export({"key": words(*keys, "key 3")}, tmp_path / "base")


def test_more_equal_hashes_than_a_table_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "hash_words", lambda keys: np.zeros(len(keys), np.uint64))
    keys = words(*(str(i) for i in range(engine.MAX_SAME_HASH + 1)))
    with pytest.raises(InputError, match="too many keys have one hash"):
        mserve.export({"key": keys}, tmp_path / "base")


def test_the_hash_is_the_specified_one() -> None:
    """BLAKE2b-64 of the empty text is e4a6a0577479b2b4, as any other implementation says."""
    assert engine.hash_words([b""]).tolist() == [int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little")]


def test_a_table_of_keys_alone_tells_whether_they_are_there(tmp_path: Path) -> None:
    answer = exported({"key": np.array([3, 1])}, tmp_path / "base").run({"key": np.array([1, 2, 3])})
    assert {name: x.tolist() for name, x in answer.items()} == {"found": [True, False, True]}


VALUES = st.one_of(
    st.tuples(st.just(np.dtype(np.int64)), st.just(st.integers(-(2**63), 2**63 - 1))),
    st.tuples(st.just(np.dtype(np.float32)), st.just(st.floats(width=32, allow_nan=False))),
    st.tuples(st.just(np.dtype(bool)), st.just(st.booleans())),
    st.tuples(st.just(np.dtype(object)), st.just(st.text(max_size=5))),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_table_answers_as_a_dict_does(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    a_key, kind = data.draw(
        st.sampled_from([(st.integers(-(2**63), 2**63 - 1), np.int64), (st.text(max_size=4), object)])
    )
    keys = data.draw(st.lists(a_key, min_size=1, max_size=30, unique=True))
    columns: dict[str, Array] = {}
    for name in ("p", "q"):
        dtype, a_value = data.draw(VALUES)
        columns[name] = np.empty(len(keys), dtype)
        columns[name][:] = data.draw(st.lists(a_value, min_size=len(keys), max_size=len(keys)))
    asked = data.draw(st.lists(st.one_of(st.sampled_from(keys), a_key), max_size=40))
    source, query = np.empty(len(keys), kind), np.empty(len(asked), kind)
    source[:], query[:] = keys, asked
    servable = exported({"key": source, **columns}, tmp_path_factory.mktemp("table"))
    answer = servable.run({"key": query})
    servable.close()
    for name, column in columns.items():
        expected = dict(zip(keys, column.tolist(), strict=True))
        default = "" if column.dtype == object else column.dtype.type(0).item()
        assert answer[name].tolist() == [expected.get(key, default) for key in asked]
    assert answer["found"].tolist() == [key in set(keys) for key in asked]


# --- the bundle -----------------------------------------------------------------------------------


def large(rows: int = 3000) -> dict[str, Array]:
    """A table whose weights all lie in a shard."""
    return {
        "key": np.array([f"key {i}" for i in range(rows)]),
        "emb": np.arange(rows * 4, dtype=np.float32).reshape(rows, 4),
        "yes": np.arange(rows * 2) .reshape(rows, 2) % 2 == 0,
        "title": np.array([f"title {i}" for i in range(rows)]),
    }  # fmt: skip


def test_the_order_of_the_rows_leaves_the_bundle_the_same(tmp_path: Path) -> None:
    table = large()
    order = np.random.default_rng(0).permutation(3000)
    shuffled = {name: column[order] for name, column in table.items()}
    one = mserve.export(table, tmp_path / "one", golden=0).path
    two = mserve.export(shuffled, tmp_path / "two", golden=0).path
    assert tree(one) == tree(two)


def test_others_can_open_it(tmp_path: Path) -> None:
    path = mserve.export(large(), tmp_path / "base").path
    model = onnx.load(path / "export.meta")
    onnx.checker.check_model(path / "export.meta")
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert list(stored) == [
        *("key:hashes", "key:offsets", "key:bytes", "emb:values", "yes:values"),
        *("title:offsets", "title:bytes"),
    ]
    assert (np.diff(stored["key:hashes"].astype(object)) > 0).all()
    assert all(w.shard for w in open_bundle(path).graph.weights)
    assert bytes(stored["title:bytes"][: stored["title:offsets"][1]]).startswith(b"title ")


def test_golden_samples_are_keys_that_are_there_and_one_that_is_not(tmp_path: Path) -> None:
    for keys, absent in ((np.array([0, 1, 3, 9, 4, 5]), 2), (words(*"abcdef"), "no such key 0")):
        servable = exported({"key": keys, "v": np.arange(6) + 1}, tmp_path / "base")
        sample = servable.golden["serving_default"]
        asked = sample.inputs["key"].tolist()
        assert asked[-1] == absent
        assert len(asked) == 5
        assert sample.outputs["found"].tolist() == [True] * 4 + [False]
        assert sample.outputs["v"].tolist() == [keys.tolist().index(k) + 1 for k in asked[:-1]] + [0]
        assert servable.example()["key"].tolist() == asked[:1]
    assert mserve.export({"key": keys}, tmp_path / "base", golden=0).metagraph.golden is None
    two = exported({"key": keys}, tmp_path / "base", golden=2).golden["serving_default"]
    assert two.outputs["found"].tolist() == [True, False]
    given = exported({"key": keys}, tmp_path / "base", golden={"key": words("f", "f")})
    assert given.golden["serving_default"].inputs["key"].tolist() == ["f", "f"]


def test_an_absent_key_is_absent_even_if_it_is_taken(tmp_path: Path) -> None:
    taken = words("no such key 0", "no such key 1", "a")
    sample = exported({"key": taken}, tmp_path / "base").golden["serving_default"]
    assert sample.inputs["key"].tolist()[-1] == "no such key 2"


def test_rows_that_an_npz_archive_cannot_hold_are_not_recorded(tmp_path: Path) -> None:
    servable = exported({"key": words("a\0", "b"), "v": words("x", "y\0")}, tmp_path / "base")
    assert servable.golden["serving_default"].inputs["key"].tolist() == ["no such key 0"]
    assert servable.run({"key": words("a\0", "b")})["v"].tolist() == ["x", "y\0"]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("make", [large, lambda: {"key": np.array([3, 1]), "v": np.array([1.5, np.nan])}])
def test_validate_finds_nothing_wrong(
    full: bool, make: Callable[[], dict[str, Array]], tmp_path: Path
) -> None:
    findings = validate(open_bundle(mserve.export(make(), tmp_path / "base").path), full=full)
    allowed = {"not-a-number"} if full and "v" in make() else set()
    assert {f.code for f in findings} == allowed


def test_validate_finds_what_was_changed(tmp_path: Path) -> None:
    path = mserve.export(large(), tmp_path / "base").path
    weight = next(w for w in open_bundle(path).graph.weights if w.name == "title:bytes")
    data = bytearray((path / weight.shard).read_bytes())
    data[weight.offset : weight.offset + 5] = b"TITLE"
    overwrite(path / weight.shard, bytes(data))
    codes = {f.code: f.where for f in validate(open_bundle(path))}
    assert {"file-digest", "tensor-digest"} <= set(codes)
    assert codes["tensor-digest"] == "title:bytes"
    weight = next(w for w in open_bundle(path).graph.weights if w.name == "key:offsets")
    data[weight.offset : weight.offset + 8] = b"\xff" * 8
    overwrite(path / weight.shard, bytes(data))
    assert "load" in {f.code for f in validate(open_bundle(path))}


def test_two_versions_share_what_is_equal(tmp_path: Path) -> None:
    table = large(9 << 11)
    table["emb"] = np.zeros((9 << 11, 1 << 10), np.float32)  # 72 MiB: a shard of its own
    one = mserve.export(table, tmp_path / "base")
    table["title"] = np.array([f"other {i}" for i in range(9 << 11)])
    two = mserve.export(table, tmp_path / "base", dedup=True)
    assert two.shared == ("export-00001-of-00002",)
    assert (one.path / two.shared[0]).samefile(two.path / two.shared[0])
    assert two.metagraph.content != one.metagraph.content


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_million_keys_load_without_their_values(tmp_path: Path) -> None:
    rows = 1_000_000
    values = np.ones((rows, 17), np.float32)  # 68 MB: a shard of its own
    path = mserve.export({"key": np.arange(rows) * 3, "emb": values}, tmp_path / "base").path
    gc.collect()
    servable = mserve.load(path)
    weight = next(w for w in servable.bundle.graph.weights if w.name == "emb:values")
    assert not servable.private_memory
    assert resident(path / weight.shard) < 4 << 20
    assert servable.run({"key": np.array([3, 4])})["emb"][:, 16].tolist() == [1.0, 0.0]
    assert resident(path / weight.shard) < 4 << 20
    servable.close()


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's page tables."""
    found, size = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            found = line.endswith(str(path))
        elif found and line.startswith("Rss:"):
            size += int(line.split()[1]) << 10
    assert f"{path}\n" in Path("/proc/self/maps").read_text()
    return size


# --- served, and on the command line --------------------------------------------------------------


def test_a_server_answers_and_takes_a_new_version(root: Path, tmp_path: Path) -> None:
    base, source = tmp_path / "prices", root / "samples/prices/prices.csv"
    mserve.export(source, base)
    with serving(base, tmp_path / "log") as server:
        rows = server.predict("prices", {"instances": ["A-1003", "Z-9"]}).json()["predictions"]
        chair = {"price": 129.0, "stock": 14, "active": True, "title": "Office chair", "found": True}
        nothing = {"price": 0.0, "stock": 0, "active": False, "title": "", "found": False}
        assert rows == [chair, nothing]
        assert server.predict("prices", {"instances": [{"key": "A-1003"}]}).json()["predictions"] == [chair]
        columns = server.predict("prices", {"inputs": {"key": ["B-2002", "A-1003"]}}).json()["outputs"]
        assert columns["title"] == ["Crème de mains", "Office chair"]
        assert columns["found"] == [True, True]
        example = server.get("/v1/models/prices/example")
        assert server.predict("prices", example.body).json()["predictions"][0]["found"]
        assert server.predict("prices", {"instances": [7]}).status == 400
        with ThreadPoolExecutor(8) as threads:
            keys = [["A-1003", "B-2002"][i % 2] for i in range(64)]
            answers = threads.map(lambda key: server.predict("prices", {"instances": [key]}).json(), keys)
            prices = [answer["predictions"][0]["price"] for answer in answers]
        assert prices == [129.0, 12.5] * 32
        changed_table = tmp_path / "prices.csv"
        changed_table.write_text(source.read_text().replace("A-1003,129,14", "A-1003,99,13"))
        mserve.export(changed_table, base)
        server.wait_until(lambda: server.version("prices") == "2")
        row = server.predict("prices", {"instances": ["A-1003"]}).json()["predictions"][0]
        assert (row["price"], row["stock"]) == (99.0, 13)
        assert server.stop() == 0


def test_the_commands_know_tables(root: Path, tmp_path: Path) -> None:
    def mserve_does(*arguments: str) -> str:
        command = [sys.executable, "-m", "mserve", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    base, source = str(tmp_path / "prices"), str(root / "samples/prices/prices.csv")
    mserve_does("export", source, base, "--from", "table", "--key", "sku")
    facts = json.loads(mserve_does("inspect", base, "--weights", "--graph", "--json"))
    assert facts["graph"]["operators"] == {"mserve.Lookup": 1}
    assert facts["graph"]["opsets"] == {"mserve": 1}
    assert facts["provenance"]["source"]["file"] == "prices.csv"
    assert {w["name"] for w in facts["weights"]} == set(facts["nodes"][0]["inputs"]) - {"key"}
    request = tmp_path / "request.json"
    request.write_text('{"inputs": ["C-3003"]}')
    answer = json.loads(mserve_does("run", base, "--inputs", str(request), "--json"))
    assert answer["outputs"]["title"]["data"] == ['Notebook "A5"']
    assert "0 error(s)" in mserve_does("validate", base, "--full")
    mserve_does("export", source, base, "--dedup")
    listed = json.loads(mserve_does("list", base, "--json"))
    assert [v["version"] for v in listed["versions"]] == [1, 2]
    mserve_does("gc", base, "--keep", "1")
    assert [p.name for p in sorted((tmp_path / "prices").iterdir()) if p.is_dir()] == ["00000002"]
