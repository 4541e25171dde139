"""The circumstances of a measurement, and when two are the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from mserve.bench.results.environment import (
    COMPARABLE,
    Ticks,
    differences,
    disturbances,
    interference,
    network,
    stamp,
)


def test_a_stamp_says_what_a_reader_needs() -> None:
    found = stamp(["bench", "a b", "--qps"], seed=7, target="http://127.0.0.1:1")
    assert found["command"] == "mserve bench 'a b' --qps"
    assert found["seed"] == 7
    assert found["network"] == "loopback"
    assert "CPUExecutionProvider" in found["providers"]
    assert found["cpus"] >= 1
    assert found["memory_bytes"] > 1 << 20
    assert set(COMPARABLE) <= set(found)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("target", "between"),
    [
        ("models/m", "in process"),
        ("/a/b", "in process"),
        ("http://localhost:1", "loopback"),
        ("https://127.1.2.3/v1", "loopback"),
        ("http://[::1]:1/", "loopback"),
        ("grpc://127.0.0.1:9", "loopback"),
        ("http://example.org", "network"),
    ],
)
def test_what_lies_between(target: str, between: str) -> None:
    assert network(target) == between


def test_the_revision_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert stamp([])["git"] is None
    commands = ("init -q", "config user.email a@b", "config user.name a", "commit -q --allow-empty -m x")
    for command in commands:
        subprocess.run(["git", *command.split()], check=True, cwd=tmp_path)
    assert len(stamp([])["git"]) == 40
    monkeypatch.setenv("PATH", "")
    assert stamp([])["git"] is None


def test_stamps_differ_only_in_what_counts() -> None:
    ours = stamp(["bench"])
    assert differences(ours, stamp(["other"], seed=9)) == []
    [text] = differences(ours, {**ours, "cpu": "another"})
    assert text.startswith("cpu: 'another' then")
    assert len(differences(ours, {})) >= 5


def test_what_disturbed_a_run() -> None:
    seen = interference(Ticks.now(), jitter_ns=3_000_000)
    assert seen["involuntary_switches"] >= 0
    assert seen["timer_jitter_ms"] == 3.0
    assert disturbances({"steal_share": None, "timer_jitter_ms": None}) == []
    notes = disturbances({"steal_share": 0.05, "timer_jitter_ms": 3.0})
    assert "5.0%" in notes[0]
    assert "3.0 ms" in notes[1]
