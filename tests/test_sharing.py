"""Versions that share shards, tables in parts, and the removal of old versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from server_tools import serving
from test_commands import run

import mserve
from mserve.errors import InputError, UsageError
from mserve.format.collector import collect
from mserve.format.layout import versions

ROWS = 300_000  # 300,000 x 64 float32: 73 MiB, a shard of its own


def ranker(dense: float) -> onnx.ModelProto:
    """A table that only lookups read, and a dense part that is trained again for each version."""
    table = (np.arange(ROWS * 64, dtype=np.float32) % 1000).reshape(ROWS, 64)
    weight = np.full((64, 32), dense, np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["e"]), helper.make_node("MatMul", ["e", "W"], ["y"])],
        "ranker",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "W")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("sharing") / "ranker"
    mserve.export(ranker(1.0), base)
    result = mserve.export(ranker(2.0), base, dedup=True)
    assert result.shared == ("export-00001-of-00002",)
    return base


def test_only_the_changed_shard_costs_anything(shared: Path) -> None:
    table = [p / "export-00001-of-00002" for p in versions(shared).values()]
    assert table[0].samefile(table[1])
    dense = [p / "export-00000-of-00002" for p in versions(shared).values()]
    assert not dense[0].samefile(dense[1])
    facts = json.loads(run("list", shared, "--json").stdout)["versions"]
    assert [v["shared_bytes"] for v in facts] == [0, table[0].stat().st_size]


def test_versions_that_share_are_valid_and_answer_for_themselves(shared: Path) -> None:
    ids = np.array([3, 5])
    answers = [mserve.load(p).run({"ids": ids})["y"] for p in versions(shared).values()]
    assert np.array_equal(answers[0] * 2, answers[1])
    for path in versions(shared).values():
        assert run("validate", path).returncode == 0


def test_what_is_damaged_is_not_shared(tmp_path: Path) -> None:
    base = tmp_path / "mlp"
    shard = mserve.export(builders.mlp(), base).path / "export-00000-of-00001"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    result = mserve.export(builders.mlp(), base, dedup=True)
    assert result.shared == ()
    assert run("validate", result.path).returncode == 0


def test_without_dedup_nothing_is_shared(tmp_path: Path) -> None:
    paths = [mserve.export(builders.mlp(), tmp_path / "mlp").path / "export-00000-of-00001" for _ in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert not paths[0].samefile(paths[1])


# Tables in parts


def in_parts(directory: Path, counts: list[int], width: int = 4, kind: str = "npy") -> np.ndarray:
    """Write rows in parts named so that text order is not number order; return the whole."""
    whole = np.arange(sum(counts) * width, dtype=np.float32).reshape(-1, width)
    at = 0
    for index, count in enumerate(counts):
        part = whole[at : at + count]
        at += count
        if kind == "npy":
            np.save(directory / f"part-{index}.npy", part)
        else:
            np.savez(directory / f"part-{index}.npz", rows=part)
    return whole


def lookup(rows: int, width: int, *, as_input: bool = False) -> onnx.ModelProto:
    """y = table[i]; the table is an input, or its external file does not exist."""
    inputs = [helper.make_tensor_value_info("i", TensorProto.INT64, ["N"])]
    weights = []
    if as_input:
        inputs.append(helper.make_tensor_value_info("table", TensorProto.FLOAT, ["rows", width]))
    else:
        table = TensorProto(name="table", data_type=1, dims=[rows, width], data_location=TensorProto.EXTERNAL)
        table.external_data.add(key="location", value="nowhere.bin")
        weights.append(table)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "lookup",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("as_input", [False, True])
def test_parts_become_one_tensor(tmp_path: Path, kind: str, as_input: bool) -> None:
    """Twelve parts, in the order of their numbers, into one dataset of one shard."""
    counts = [100 + i for i in range(12)]
    whole = in_parts(tmp_path, counts, kind=kind)
    onnx.save(lookup(len(whole), 4, as_input=as_input), tmp_path / "m.onnx")
    done = run(
        "export", tmp_path / "m.onnx", tmp_path / "base", "--partitioned", f"table={tmp_path}/part-*.{kind}"
    )
    assert done.returncode == 0, done.stderr
    assert run("validate", tmp_path / "base").returncode == 0
    model = mserve.load(tmp_path / "base")
    assert list(model.signatures["serving_default"].inputs) == ["i"]
    assert np.array_equal(model.run({"i": np.arange(len(whole))})["y"], whole)


PARTS_BAD = [
    ("no file matches", [], "no part of the weight was found"),
    ("the rows do not add up", [5, 6], r"do not add up.*\[12, 4\].*\[11, 4\]"),
]


@pytest.mark.parametrize(("what", "counts", "message"), PARTS_BAD, ids=[p[0] for p in PARTS_BAD])
def test_bad_parts(tmp_path: Path, what: str, counts: list[int], message: str) -> None:
    in_parts(tmp_path, counts)
    with pytest.raises(InputError, match=message):
        mserve.export(lookup(12, 4), tmp_path / "base", partitioned={"table": f"{tmp_path}/part-*"})


def test_parts_of_different_width_and_unknown_names(tmp_path: Path) -> None:
    in_parts(tmp_path, [6, 6])
    with pytest.raises(InputError, match="no weight or input has the partitioned name"):
        mserve.export(lookup(12, 4), tmp_path / "base", partitioned={"tables": f"{tmp_path}/part-*"})
    np.save(tmp_path / "part-2.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(InputError, match=r"a part does not fit the others.*part-2\.npy"):
        mserve.export(lookup(12, 4), tmp_path / "base", partitioned={"table": f"{tmp_path}/part-*"})
    np.save(tmp_path / "part-2.npy", np.array([{}], object))
    with pytest.raises(InputError, match="cannot read a part"):
        mserve.export(lookup(12, 4), tmp_path / "base", partitioned={"table": f"{tmp_path}/part-*"})


# Removing


@pytest.fixture
def five(tmp_path: Path) -> Path:
    base = tmp_path / "five"
    for _ in range(5):
        mserve.export(builders.mlp(), base)
    return base


def kept(base: Path) -> list[int]:
    return list(versions(base))


def test_gc_keeps_the_newest(five: Path) -> None:
    done = run("gc", five, "--keep", 2)
    assert done.returncode == 0
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["removed"] * 3 + ["kept"] * 2
    assert kept(five) == [4, 5]
    assert sorted(os.listdir(five)) == ["00000004", "00000005"]


def test_gc_can_only_say(five: Path) -> None:
    facts = json.loads(run("gc", five, "--keep", 1, "--dry-run", "--json").stdout)
    assert [v["removed"] for v in facts["versions"]] == [True] * 4 + [False]
    assert kept(five) == [1, 2, 3, 4, 5]


def test_gc_counts_whole_versions_only(five: Path) -> None:
    """Two newest versions that are still arriving do not push out the last good ones."""
    for version in (4, 5):
        (five / f"{version:08d}" / "export-00000-of-00001").unlink()
    collect(five, keep=1)
    assert kept(five) == [3, 4, 5]


def test_gc_keeps_pinned_versions(five: Path) -> None:
    assert run("gc", five, "--keep", 1, "--pin", 2).returncode == 0
    assert kept(five) == [2, 5]


def test_gc_removes_what_dead_writers_left(five: Path) -> None:
    (five / ".tmp-dead").mkdir()
    collect(five, keep=5)
    assert not (five / ".tmp-dead").exists()


def test_gc_never_removes_what_a_server_has_loaded(five: Path, tmp_path: Path) -> None:
    with serving(five, tmp_path / "log", "--latest", "3") as server:
        server.wait_until(
            lambda: server.get("/metrics").body.count(b'state="available",version="') == 5 or True
        )
        server.wait_until(
            lambda: all(
                server.get(f"/v1/models/five/versions/{v}").json()["model_version_status"][0]["state"]
                == "AVAILABLE"
                for v in (3, 4, 5)
            )
        )
        verdicts = {v.version: v for v in collect(five, keep=1)}
        assert [v for v, x in verdicts.items() if x.removed] == [1, 2]
        assert verdicts[3].reason == "loaded by a running process"
        server.process.kill()
        server.process.wait()
    collect(five, keep=1)
    assert kept(five) == [5]


def test_gc_never_removes_what_this_process_or_another_holds(five: Path) -> None:
    code = "import sys, mserve; m = mserve.load(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(five / "00000001")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        mine = mserve.load(five / "00000002")
        collect(five, keep=1)
        assert kept(five) == [1, 2, 5]
        mine.close()
        other.communicate(b"")
    collect(five, keep=1)
    assert kept(five) == [5]


def test_gc_refuses_to_remove_everything(five: Path) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        collect(five, keep=0)
    assert run("gc", five / "nope", "--keep", 1).returncode == 2
