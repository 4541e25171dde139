"""`--spawn`: a server of bench's own, started, pinned, asked, stopped, and never left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench_targets_tools import drive, opened
from bench_tools import bench_json, command, eventually, run_bench

import mserve
from mserve.bench.load.placement import EVERYWHERE, cpus, place
from mserve.bench.load.recorder import OK
from mserve.bench.requests.codecs import CODECS
from mserve.errors import EnvironmentProblem, UsageError

QUICK = ("--duration", 0.3, "--warmup", 0.1)


@pytest.fixture(scope="module")
def bundle(mlp_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mserve.export(mlp_file, tmp_path_factory.mktemp("spawn") / "mnist", golden=4).path


@pytest.fixture(autouse=True)
def same_cpus() -> Iterator[None]:
    """The test process keeps its CPUs: a target in it takes some for itself."""
    cpus = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, cpus)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("protocol", ["auto", *CODECS])
def test_a_server_is_started_for_each_protocol_and_stopped(protocol: str, bundle: Path) -> None:
    notes: list[str] = []
    target = opened(bundle, spawn=True, protocol=protocol, verify=True, note=notes.append)
    facts = target.describe()
    pid = facts["spawned"]["process"]
    assert alive(pid)
    assert drive(target, 12, 3).counts() == {OK: 12}
    assert not alive(pid)
    assert notes[-1] == "the server stopped with exit code 0"
    assert facts["verified"] == "golden outputs"


def test_client_and_server_have_cpus_of_their_own(bundle: Path) -> None:
    placement = place(1, cpus())
    target = opened(bundle, spawn=True, placement=placement)
    try:
        facts = target.describe()["spawned"]
        own, others = placement.own, placement.server
        assert facts["cpus"] == {"generator": sorted(own), "server": sorted(others)}
        if placement != EVERYWHERE:
            assert os.sched_getaffinity(0) == own
            assert os.sched_getaffinity(facts["process"]) == others
            assert not own & others
    finally:
        drive(target, 1)


def test_the_command_reports_the_server_and_its_end(bundle: Path) -> None:
    done = run_bench("--spawn", bundle, "--protocol", "grpc", "--serve-flag=--max-batch=4", *QUICK)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"started a server: grpc://127\.0\.0\.1:\d+, process \d+, (CPUs|on the same)", done.stderr
    )
    assert "the server stopped with exit code 0" in done.stderr
    [report] = bench_json(bundle, "--spawn", *QUICK)["reports"]
    spawned = report["target"]["spawned"]
    assert spawned["process"] > 0
    assert not set(spawned["cpus"]["generator"]) & set(spawned["cpus"]["server"])
    assert bool(spawned["cpus"]["server"]) == (len(cpus()) > 1)
    assert report["server"]["batches"] > 0


def test_an_older_version_is_served_when_it_is_named(mlp_file: Path, tmp_path: Path) -> None:
    first = mserve.export(mlp_file, tmp_path / "m", golden=2).path
    mserve.export(mlp_file, tmp_path / "m", golden=2)
    target = opened(first, spawn=True)
    assert drive(target, 4).counts() == {OK: 4}
    assert target.versions == {b"1": 4}


@pytest.mark.parametrize(
    ("flags", "text"),
    [(("--nonsense",), "did not start.*exit code 2.*nonsense"), (("--max-batch=0",), "did not start.*max")],
)
def test_a_server_that_does_not_start_says_why(flags: tuple[str, ...], text: str, bundle: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=f"(?s){text}"):
        opened(bundle, spawn=True, serve_flags=flags)


def test_nothing_is_left_where_the_server_cannot_be_asked(bundle: Path) -> None:
    before = children()
    with pytest.raises(UsageError, match="without gRPC"):
        opened(bundle, spawn=True, protocol="grpc", serve_flags=("--grpc-port=off",))
    assert children() == before


def children() -> set[str]:
    """Processes of this one."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_bench_whatever_ends_bench(number: int, bundle: Path) -> None:
    with running_bench_of_a_server(bundle) as (process, pid):
        os.kill(process.pid, number)
        process.wait(30)
        eventually(lambda: not alive(pid))
        if number == signal.SIGINT:
            assert process.returncode == 130


@contextmanager
def running_bench_of_a_server(bundle: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command in the middle of a run, and its server's process id."""
    line = command(bundle, "--spawn", "--duration", 30, "--warmup", 0.1)
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = re.search(r"process (\d+)", process.stderr.readline())
        assert found
        assert "loop" in process.stderr.readline()
        time.sleep(0.5)
        yield process, int(found[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
