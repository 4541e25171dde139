"""Versions that change while a server is measured: windows, what is inside, and real swaps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from bench_targets_tools import opened
from bench_tools import MS, FakeServer, at_once, bench_json, phase_of, refused, run_bench
from server_tools import Running, serving

import mserve
from mserve.bench.load.publishers import BasePath, Repository, open_publisher
from mserve.bench.load.reload import Reload, Swap, Window, judged, windows
from mserve.bench.targets.endpoint import Endpoint, locate, parse_url
from mserve.errors import EnvironmentProblem, InputError, UsageError

GUARDED = """
[server]
port = 0
grpc_port = 0
admin = true
[tls]
cert = "{folder}/server.pem"
key = "{folder}/server.pem"
[auth]
tokens = "{folder}/clients"
admin_tokens = "{folder}/admins"
[models.mnist]
base_path = "{base}"
"""


@pytest.fixture
def base(mlp_file: Path, tmp_path: Path) -> Path:
    return mserve.export(mlp_file, tmp_path / "models" / "mnist", golden=2).path.parent


@pytest.fixture
def server(base: Path, tmp_path: Path) -> Iterator[Running]:
    with serving(base, tmp_path / "log.txt", "--admin") as running:
        yield running


@pytest.mark.parametrize(
    ("swaps", "seen", "expected", "why"),
    [
        (
            [Swap(100, 110, b"2")],
            {b"1": (0, 150), b"2": (140, 900)},
            [(100, 150, True)],
            "the last old one",
        ),
        ([Swap(100, 110, b"2")], {b"1": (0, 90), b"2": (140, 900)}, [(100, 140, True)], "a gap of nobody"),
        ([Swap(100, 110, b"2")], {b"1": (0, 900)}, [(100, 900, False)], "the new one was never seen"),
        ([Swap(100, 170)], {b"1": (0, 900)}, [(100, 170, True)], "a call that returned"),
        (
            [Swap(100, 110, b"2"), Swap(500, 510, b"3")],
            {b"1": (0, 150), b"2": (140, 560), b"3": (550, 900)},
            [(100, 150, True), (500, 560, True)],
            "one after the other",
        ),
        (
            [Swap(100, 110, b"2"), Swap(500, 510, b"3")],
            {b"1": (0, 600), b"2": (590, 650), b"3": (640, 900)},
            [(100, 500, True), (500, 650, True)],
            "the second began before the first had ended",
        ),
        ([Swap(100, 110, b"10")], {b"9": (0, 150), b"10": (140, 900)}, [(100, 150, True)], "by number"),
        ([], {b"1": (0, 900)}, [], "none"),
    ],
)
def test_windows(swaps: list[Swap], seen: Any, expected: list[tuple[int, int, bool]], why: str) -> None:
    assert windows(swaps, seen, 900) == [Window(*one) for one in expected]


def test_who_was_on_the_way_in_a_window_is_inside() -> None:
    """Due every millisecond; 100 ms in which answers take 50 ms instead of 1, and one of them fails."""
    latencies = np.ones(3000)
    latencies[1000:1100] = 50.0
    outcomes = np.zeros(3000, dtype=int)
    outcomes[1050] = 503
    recorder = phase_of(latencies, outcomes=outcomes).recorder
    swap = Swap(1000 * MS, 1001 * MS, b"2")
    seen = {b"1": (0, 1100 * MS), b"2": (1050 * MS, 3000 * MS)}
    found = judged(Reload(_Nothing(), 1.0, [swap]), recorder, seen)
    assert found.inside.requests == 100
    assert found.outside.requests == 2900
    assert (found.inside.failed, found.outside.failed) == (1, 0)
    assert found.seconds == pytest.approx(0.1)
    p99 = found.inside.percentiles[1]
    assert p99.value_ns is None, "100 requests carry no p99"
    assert found.inside.percentiles[0].value_ns == 50 * MS
    assert found.outside.percentiles[1].value_ns == MS
    document = found.to_json()
    assert document["inside"]["percentiles"][1]["refused"] == "needs 1000 samples"


class _Nothing:
    def publish(self) -> Swap:
        raise EnvironmentProblem("nothing to publish")

    def restore(self) -> None: ...


def test_copies_are_published_whole_and_removed_again(base: Path) -> None:
    before = sorted(path.name for path in base.iterdir())
    publisher = BasePath(base)
    swaps = [publisher.publish() for _ in range(4)]
    assert [swap.version for swap in swaps] == [b"2", b"3", b"4", b"5"]
    assert all(swap.begin_ns <= swap.done_ns for swap in swaps)
    assert sorted(path.name for path in base.iterdir()) == [*before, "00000004", "00000005"]
    mserve.load(base / "00000005")
    publisher.restore()
    assert sorted(path.name for path in base.iterdir()) == before


def test_given_versions_are_published_in_turn(base: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(base / "00000001", tmp_path / name)
        (tmp_path / name / "mark").write_text(name)
    publisher = BasePath(base, [tmp_path / "a", tmp_path / "b"])
    for expected in ("a", "b", "a"):
        number = int(publisher.publish().version)
        assert (base / f"{number:08}" / "mark").read_text() == expected
    publisher.restore()


def test_other_people_s_names_have_no_zeros(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    publisher = BasePath(tmp_path)
    publisher.publish()
    assert (tmp_path / "2").is_dir()
    publisher.restore()


def test_what_cannot_be_published_is_said(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without a version"):
        BasePath(tmp_path / "models" / "mnist" / "00000001")
    with pytest.raises(InputError, match="not a base path"):
        BasePath(tmp_path / "nothing")
    with pytest.raises(InputError, match="not a version's directory"):
        BasePath(base, [tmp_path / "nothing"])
    with pytest.raises(UsageError, match="needs a server"):
        open_publisher(str(base), (), opened(base / "00000001"))
    with pytest.raises(UsageError, match="for a base path"):
        open_publisher("load", [base], FakeTarget(parse_url("http://h")[0]))


class FakeTarget(FakeServer):
    """A target that only says where it is."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(at_once)
        self.endpoint = endpoint


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_api_is_called(scheme: str, server: Running) -> None:
    url = server.url if scheme == "http" else f"grpc://127.0.0.1:{server.grpc_port}"
    for word in ("load", "cycle"):
        swap = open_publisher(word, (), opened(url)).publish()
        assert swap.begin_ns < swap.done_ns
        assert server.version("mnist") == "1"
    text = {"http": "status 404", "grpc": "NOT_FOUND"}[scheme]
    with pytest.raises(EnvironmentProblem, match=text):
        Repository(locate(parse_url(url)[0]), "other", "load").publish()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_the_api_is_called_behind_tls_with_a_token(scheme: str, base: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    for name in ("clients", "admins"):
        (tmp_path / name).write_text(f"{name}-0123456789\n")
    (tmp_path / "mserve.toml").write_text(GUARDED.format(base=base, folder=tmp_path))
    with serving(f"--config={tmp_path / 'mserve.toml'}", tmp_path / "log", ready=False) as running:
        running.wait_until(lambda: "available" in running.log())
        port = running.grpc_port if scheme == "grpcs" else running.port
        url = f"{scheme}://localhost:{port}/{'' if scheme == 'grpcs' else 'v1/models/'}mnist"
        trust = ("--ca", tmp_path / "ca.pem")
        rhythm = ("--qps", 100, "--duration", 1.5, "--during-reload", "load", "--reload-every", 0.4)
        [report] = bench_json(url, *trust, "--token-file", tmp_path / "admins", *rhythm)["reports"]
        assert report["swaps"]["problem"] is None
        assert report["swaps"]["seen"] == report["swaps"]["swaps"] > 0
        [report] = bench_json(url, *trust, "--token-file", tmp_path / "clients", *rhythm)["reports"]
        assert "forbids the call" in report["swaps"]["problem"]


@pytest.mark.parametrize("protocol", ["tfs", "grpc"])
@pytest.mark.parametrize("where", ["load", "base"])
@pytest.mark.slow
def test_a_server_of_our_own_is_reloaded(where: str, protocol: str, base: Path) -> None:
    """It is started so that it can be: with --admin, or with the policy that takes the newest."""
    rhythm = ("--during-reload", base if where == "base" else where, "--reload-every", 0.5)
    load = ("--qps", 100, "--duration", 2.5, "--protocol", protocol)
    [report] = bench_json(base / "00000001", "--spawn", *load, *rhythm)["reports"]
    assert report["swaps"]["problem"] is None
    assert report["swaps"]["seen"] > 0
    assert (len(report["versions"]) > 1) == (where == "base")
    assert sorted(path.name for path in base.iterdir()) == ["00000001"]


def test_a_server_of_our_own_looks_at_one_base_path(base: Path, tmp_path: Path) -> None:
    elsewhere = opened_error(base / "00000001", tmp_path)
    assert "looks elsewhere" in elsewhere
    BasePath(base).publish()
    assert "after the newest one" in opened_error(base / "00000001", base)


def opened_error(bundle: Path, reload: Path) -> str:
    with pytest.raises(UsageError) as error:
        opened(bundle, spawn=True, reload=str(reload))
    return str(error.value)


@pytest.mark.parametrize("generators", [1, 2])
def test_versions_that_are_published_under_load(server: Running, base: Path, generators: int) -> None:
    rhythm = ("--during-reload", base, "--reload-every", 0.6)
    load = ("--qps", 200, "--duration", 3, "--warmup", 0.2, "--generators", generators)
    [report] = bench_json(server.url, *load, *rhythm)["reports"]
    swaps = report["swaps"]
    assert swaps["problem"] is None
    assert swaps["swaps"] >= 2
    assert swaps["seen"] >= 1
    assert swaps["inside"]["requests"] + swaps["outside"]["requests"] == report["requests"]["total"]
    assert swaps["inside"]["requests"] > 0
    assert swaps["inside"]["failed"] + swaps["outside"]["failed"] == 0
    assert len(report["versions"]) >= 2
    assert sorted(path.name for path in base.iterdir()) == ["00000001"]


def test_a_server_that_refuses_to_reload(base: Path, tmp_path: Path) -> None:
    with serving(base, tmp_path / "log.txt") as running:
        load = ("--qps", 100, "--duration", 1, "--warmup", 0.1)
        done = run_bench(running.url, *load, "--during-reload", "load", "--reload-every", 0.3)
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("\t", 1) for line in done.stdout.splitlines() if "\t" in line)
    assert rows["swaps"] == "0"
    assert "forbids the call" in rows["swapping ended"]
    assert "--admin" in rows["swapping ended"]
    assert refused(base, "--qps", 10, "--during-reload", base).returncode == 2
