"""Assets: lines that were inserted, removed and moved; labels; other files; metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mserve
from mserve.compare import diff
from mserve.compare.assets import compare, differing
from mserve.compare.change import Change
from mserve.compare.model import Asset, Model
from mserve.tensors import Signature, TensorSpec

LINES = [
    ("nothing", "abc", "abc", [], [], [], 0),
    ("appended", "abc", "abcd", [], [3], [], 0),
    ("inserted in front: all others have another number", "abc", "dabc", [], [0], [], 3),
    ("inserted in the middle", "abc", "abdc", [], [2], [], 1),
    ("removed from the end", "abc", "ab", [2], [], [], 0),
    ("removed from the front", "abc", "bc", [0], [], [], 2),
    ("replaced", "abc", "axc", [1], [1], [], 0),
    ("moved to the end", "abcd", "bcda", [], [], [3], 3),
    ("a line that stands twice loses one", "aab", "ab", [1], [], [], 1),
    ("everything else", "ab", "cd", [0, 1], [0, 1], [], 0),
    ("from nothing", "", "ab", [], [0, 1], [], 0),
]


@pytest.mark.parametrize(
    ("why", "old", "new", "removed", "inserted", "moved", "shifted"), LINES, ids=[x[0] for x in LINES]
)
def test_lines(
    why: str, old: str, new: str, removed: list[int], inserted: list[int], moved: list[int], shifted: int
) -> None:
    found = differing(list(old), list(new))
    assert (found.removed, found.inserted, found.moved, found.shifted) == (
        removed,
        inserted,
        moved,
        shifted,
    ), why


@given(st.lists(st.sampled_from("abcdefgh"), max_size=30), st.lists(st.sampled_from("abcdefgh"), max_size=30))
def test_every_line_is_accounted_for(old: list[str], new: list[str]) -> None:
    """What is kept in order, with what was inserted and moved, is the new file; and none of it is lost."""
    found = differing(old, new)
    assert len(old) - len(found.removed) == len(new) - len(found.inserted)
    assert sorted(x for i, x in enumerate(old) if i not in set(found.removed)) == sorted(
        x for i, x in enumerate(new) if i not in set(found.inserted)
    )
    if old == new:
        assert (found.removed, found.inserted, found.moved, found.shifted) == ([], [], [], 0)


def asset(path: Path, data: bytes) -> Asset:
    path.write_bytes(data)
    return Asset(len(data), path)


def changes(tmp_path: Path, old: dict[str, bytes], new: dict[str, bytes], labels: str = "") -> list[Change]:
    outputs = {"y": TensorSpec("y", "float32", ("N", 2), labels=labels)}
    sides = []
    for side, files in (("old", old), ("new", new)):
        (tmp_path / side).mkdir()
        assets = {name: asset(tmp_path / side / name.split("/")[-1], data) for name, data in files.items()}
        sides.append(Model(tmp_path, "bundle", {"s": Signature("predict", {}, outputs)}, {}, assets))
    return list(compare(*sides).changes)


FILES = [
    ("equal", {"assets/a": b"x\n"}, {"assets/a": b"x\n"}, "", []),
    ("a new file", {}, {"assets/a": b"x\n"}, "", ["asset-added"]),
    ("a file is gone", {"assets/a": b"x\n"}, {}, "", ["asset-removed"]),
    ("a vocabulary grew", {"assets/a": b"x\n"}, {"assets/a": b"x\ny\n"}, "", ["lines-appended"]),
    ("a line in between", {"assets/a": b"x\ny\n"}, {"assets/a": b"x\nz\ny\n"}, "", ["lines-changed"]),
    ("labels that grew", {"assets/a": b"x\n"}, {"assets/a": b"x\ny\n"}, "a", ["lines-appended"]),
    (
        "labels that moved break clients",
        {"assets/a": b"x\ny\n"},
        {"assets/a": b"y\nx\n"},
        "a",
        ["labels-moved"],
    ),
    ("a label that was replaced", {"assets/a": b"x\ny\n"}, {"assets/a": b"x\nz\n"}, "a", ["labels-moved"]),
    ("bytes that are no text", {"assets/a": b"\xff\x00"}, {"assets/a": b"\xff\x01"}, "", ["asset-changed"]),
    ("other line ends", {"assets/a": b"x\ny\n"}, {"assets/a": b"x\r\ny\r\n"}, "", ["lines-appended"]),
]


@pytest.mark.parametrize(("why", "old", "new", "labels", "rules"), FILES, ids=[f[0] for f in FILES])
def test_files(
    tmp_path: Path, why: str, old: dict[str, bytes], new: dict[str, bytes], labels: str, rules: list[str]
) -> None:
    assert [c.rule for c in changes(tmp_path, old, new, labels)] == rules, why


def test_metadata_and_golden_samples_are_no_matter(mlp_file: Path, tmp_path: Path) -> None:
    """Two exports of one model that say other things of themselves."""
    old = mserve.export(mlp_file, tmp_path / "m", golden=2, meta={"run": "1"}).path
    new = mserve.export(mlp_file, tmp_path / "m", golden=3, meta={"run": "2"}).path
    found = diff(old, new)
    assert {c.rule for c in found.changes} == {"golden-changed", "metadata"}
    assert found.verdict() == "equal"
