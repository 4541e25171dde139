"""Publishing: whenever a writer dies, only whole versions are visible, and the next writer tidies up."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import builders
import numpy as np
import pytest
from onnx import ModelProto
from writers import Writers

import mserve
from mserve.errors import EnvironmentProblem, UsageError
from mserve.format import layout, open_bundle
from mserve.format.collector import collect
from mserve.format.digests import file_digest
from mserve.format.locks import acquire
from mserve.format.writer import stage

KILLS = int(os.environ.get("MSERVE_KILLS", "8"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some megabytes, so that writing takes a while."""
    proto = builders.mlp(hidden=1024)
    return builders.save(proto, tmp_path_factory.mktemp("publish") / "m.onnx")


def left_behind(base: Path) -> list[Path]:
    return sorted(base.glob(layout.TEMP_PREFIX + "*")) if base.exists() else []


def whole_versions(base: Path) -> list[int]:
    """The versions that readers see; each is complete to the last byte."""
    if not base.exists():
        return []
    for path in layout.versions(base).values():
        bundle = open_bundle(path)
        for record in bundle.metagraph.files():
            assert file_digest(bundle.file(record)) == record.sha256
            assert bundle.file(record).stat().st_mode & 0o777 == 0o444
    strangers = [p.name for p in base.iterdir() if layout.parse_version(p.name) is None]
    assert all(name.startswith(layout.TEMP_PREFIX) for name in strangers)
    return list(layout.versions(base))


def check_and_go_on(base: Path, writers: Writers, source: Path) -> None:
    """After a kill: nothing half done is visible, and one more export leaves no trace of it."""
    before = whole_versions(base)
    assert len(before) <= 1
    assert len(left_behind(base)) <= 1 - len(before)
    ended = writers.export(source, base, golden=0)
    assert (ended.error, ended.version) == ("", len(before) + 1)
    assert left_behind(base) == []
    assert whole_versions(base) == [*before, ended.version]


def test_a_writer_killed_at_a_random_moment(writers: Writers, source: Path, tmp_path: Path) -> None:
    """Moments are spread over what a whole export takes here, and a little more."""
    usual = sorted(writers.export(source, tmp_path / f"usual-{i}").seconds for i in range(3))[1]
    rng = random.Random(0)
    for i in range(KILLS):
        base = tmp_path / f"base-{i}"
        child = writers.start(source, base)
        time.sleep(usual * 1.2 * (i + rng.random()) / KILLS)
        os.kill(child, signal.SIGKILL)
        writers.wait(child)
        check_and_go_on(base, writers, source)


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_writer_killed_at_every_step(writers: Writers, mlp_file: Path, tmp_path: Path, stride: int) -> None:
    """A step is each time that the export opens, makes, locks, renames, changes or removes something."""
    source = mlp_file
    whole = writers.export(source, tmp_path / "whole")
    assert whole.version == 1
    published = []
    steps = range(1, whole.steps + 1)
    # The first steps only import and read; those around the writing are taken one by one where there is time.
    for step in [*steps[: -60 : 10 * stride], *steps[-60:-1:stride], steps[-1]]:
        base = tmp_path / f"base-{step}"
        ended = writers.export(source, base, die_at=step)
        assert ended.killed
        published.append(bool(whole_versions(base)))
        check_and_go_on(base, writers, source)
    assert published == sorted(published), "once the version is visible, it stays"
    assert published[0] is False
    assert published[-1] is True


def test_a_killed_writer_leaves_a_directory_that_the_next_export_removes(
    writers: Writers, source: Path, tmp_path: Path
) -> None:
    base, whole = tmp_path / "base", writers.export(source, tmp_path / "whole")
    for back in range(1, whole.steps):
        writers.export(source, base, die_at=whole.steps - back)
        if left_behind(base) and not whole_versions(base):
            break
    (temporary,) = left_behind(base)
    assert (temporary / "export.meta").exists(), "all but the rename was done"
    mserve.export(source, base)
    assert not temporary.exists()
    assert whole_versions(base) == [1]


def test_the_directory_of_a_living_writer_is_not_removed(mlp: ModelProto, tmp_path: Path) -> None:
    base = tmp_path / "base"
    with stage(base, None) as staging:
        (staging.path / "half").write_bytes(b"x")
        assert mserve.export(mlp, base).version == 1
        assert (staging.path / "half").exists()
    assert not staging.path.exists(), "a writer that gives up removes its own"
    assert whole_versions(base) == [1]


def at_rest(base: Path) -> bool:
    """Whether no process holds the base path's lock."""
    try:
        acquire(base).release()
    except BlockingIOError:
        return False
    return True


def test_the_directory_of_a_stopped_writer_is_not_removed(
    writers: Writers, source: Path, tmp_path: Path
) -> None:
    """A process that is suspended is alive: it goes on later and publishes."""
    base = tmp_path / "base"
    child = writers.start(source, base)
    while not left_behind(base) and not whole_versions(base):
        time.sleep(0.0005)
    os.kill(child, signal.SIGSTOP)
    while not at_rest(base):  # in the moment in which nobody else may look: others would wait for it
        os.kill(child, signal.SIGCONT)
        time.sleep(0.0005)
        os.kill(child, signal.SIGSTOP)
    try:
        staged = left_behind(base)
        mserve.export(source, base, golden=0, version=50)
        assert left_behind(base) == staged
    finally:
        os.kill(child, signal.SIGCONT)
    ended = writers.wait(child)
    assert ended.error == ""
    assert whole_versions(base) == sorted([ended.version, 50])
    assert left_behind(base) == []


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"

    def fail() -> None:
        with stage(base, 3) as staging:
            staging.add_file(b"x", "assets/x")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert list(base.iterdir()) == []


def test_a_version_that_appears_meanwhile_is_not_overwritten(mlp: ModelProto, tmp_path: Path) -> None:
    base = tmp_path / "base"
    with stage(base, 3) as staging:
        mserve.export(mlp, base, version=3)
        with pytest.raises(UsageError, match="version 3 exists already"):
            staging.publish(3)
    assert whole_versions(base) == [3]
    assert left_behind(base) == []


def test_other_peoples_files_in_a_base_path_are_left_alone(mlp: ModelProto, tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "notes").mkdir(parents=True)
    (base / "README").write_text("ours")
    mserve.export(mlp, base)
    assert sorted(p.name for p in base.iterdir()) == ["00000001", "README", "notes"]


def test_a_reader_of_an_old_version_is_not_disturbed_by_a_new_one(mlp: ModelProto, tmp_path: Path) -> None:
    base = tmp_path / "base"
    old = mserve.load(mserve.export(mlp, base).path)
    mserve.export(builders.mlp(seed=50), base)
    x = {"x": builders.floats(2, 784)}
    assert np.array_equal(old.run(x)["y"], builders.plain(mlp, x)[0])
    assert not np.array_equal(old.run(x)["y"], mserve.load(base).run(x)["y"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 8 MB; needs the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "mserve-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_publishes_nothing_and_says_what_was_needed(
    source: Path, small_disk: Path, writers: Writers
) -> None:
    """Versions are written until one does not fit; it leaves no trace, and removing one makes room."""
    base = small_disk / "base"
    model = source.stat().st_size
    for _ in range(8_000_000 // model):
        mserve.export(source, base)
    before = whole_versions(base)
    with pytest.raises(
        EnvironmentProblem, match=r"the disk is full.*export-00000-of-00001.*room for \d+ bytes"
    ):
        mserve.export(source, base)
    assert whole_versions(base) == before
    assert left_behind(base) == []
    collect(base, keep=1)
    assert writers.export(source, base).error == ""
