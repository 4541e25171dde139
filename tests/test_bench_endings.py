"""How runs end: by Ctrl-C, with a server that dies, with one that never answers well, in every mode."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench_tools import canned, command, eventually, refused, run_bench
from server_tools import Running, serving

import mserve

pytestmark = pytest.mark.slow

# Each mode as the options that make it one, long enough to be in the middle of it.
MODES: dict[str, tuple[object, ...]] = {
    "closed": ("--duration", 60, "--warmup", 0),
    "closed, several widths": ("--concurrency", "1:3:1", "--duration", 60, "--warmup", 0),
    "open": ("--qps", 100, "--duration", 60, "--warmup", 0),
    "sweep": ("--qps", "100:300:100", "--duration", 60, "--warmup", 0),
    "warm-up": ("--qps", 100, "--warmup", 60),
    "search": ("--duration", 20, "--slo", "p50=5s", "--qps"),
    "stream": ("--scenario", "single-stream", "--duration", 60, "--warmup", 0),
    "offline": ("--scenario", "offline", "--duration", 60, "--warmup", 0.3, "--queries", 200_000),
    "server": ("--scenario", "server", "--qps", 100, "--slo", "p99=1s", "--duration", 60, "--warmup", 0),
    "comparison": ("--aa",),
    "two generators": ("--qps", 100, "--duration", 60, "--warmup", 0, "--generators", 2),
    "swaps": ("--qps", 100, "--duration", 60, "--warmup", 0, "--during-reload", "load"),
}
GONE = {name: MODES[name] for name in MODES if name != "warm-up"}


@pytest.fixture(scope="module")
def bundle(mlp_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mserve.export(mlp_file, tmp_path_factory.mktemp("endings") / "mnist", golden=4).path


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(bundle.parent, tmp_path_factory.mktemp("log") / "log.txt", "--admin") as running:
        yield running


def family(pid: int) -> set[int]:
    """A process's children, and theirs."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found |= {child} | family(child)
    return found


def runs(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@contextmanager
def measuring(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command in the middle of its work; nothing that it started is left at the end."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while not re.search(r"loop|searching|MLPerf|warming", process.stderr.readline()):
            assert process.poll() is None
        time.sleep(1.2)
        children = family(process.pid)
        yield process
        assert process.poll() is not None
        eventually(lambda: not any(runs(child) for child in children))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("mode", [*MODES, "spawned", "spawned search", "in process"])
def test_ctrl_c_prints_what_there_is_and_leaves_nothing(mode: str, server: Running, bundle: Path) -> None:
    own = {
        "spawned": (bundle, "--spawn", *MODES["closed"]),
        "spawned search": (bundle, "--spawn", *MODES["search"]),
        "in process": (bundle, *MODES["open"]),
    }
    line = own[mode] if mode in own else (server.url, *MODES[mode])
    with measuring(*line) as process:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "stopped: interrupted" in out.lower()


@pytest.mark.parametrize("mode", GONE)
def test_a_server_that_dies_in_the_middle(mode: str, bundle: Path, tmp_path: Path) -> None:
    """Exit 4, and what was measured until then."""
    with serving(bundle.parent, tmp_path / "log.txt", "--admin") as running:
        comparing = mode == "comparison"
        csv = () if comparing else ("--csv", tmp_path / "f.csv")
        with measuring(running.url, *GONE[mode], *csv) as process:
            running.process.kill()
            out, err = process.communicate(timeout=60)
    assert process.returncode == 4, out + err
    assert "Traceback" not in err
    assert "gone" in out
    if csv and mode != "search":  # a search may be in a warm-up, of which no report is left
        rows = (tmp_path / "f.csv").read_text().splitlines()
        assert sum(row.endswith(",ok") for row in rows) > 10


def test_a_spawned_server_that_dies_in_the_middle(bundle: Path) -> None:
    with measuring(bundle, "--spawn", *MODES["open"]) as process:
        os.kill(min(family(process.pid)), signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert "the server is gone" in out
    assert "the server stopped with exit code -9" in err


UNREADY = {"model_version_status": [{"version": "1", "state": "LOADING", "status": {}}]}
LISTED = {"models": [{"name": "m"}]}
BROKEN = {
    "GET /v1/models": (200, LISTED),
    "GET /v1/models/m": (200, {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}),
    "GET /v1/models/m/example": (200, b'{"instances": [1]}'),
    "POST /v1/models/m:predict": (503, {"error": "out of order"}),
}
QUICK = ("--duration", 0.5, "--warmup", 0.1)


@pytest.mark.parametrize(
    ("pages", "options", "code", "text"),
    [
        ({**BROKEN, "GET /v1/models/m": (200, UNREADY)}, QUICK, 4, r"(?s)not ready.*LOADING"),
        (BROKEN, QUICK, 1, r"every request failed: status 503.*out of order"),
        (BROKEN, ("--qps", 50, *QUICK), 1, r"every request failed: status 503"),
        (BROKEN, ("--qps", "50:100:50", *QUICK), 1, r"every request failed: status 503"),
        (BROKEN, (*QUICK, "--qps"), 1, r"every request failed: status 503"),
        (BROKEN, ("--scenario", "single-stream", *QUICK), 1, r"INVALID:.*requests failed"),
        (BROKEN, ("--aa",), 1, r"(?s)every request to A failed.*out of order"),
    ],
    ids=["not ready", "closed", "open", "sweep", "search", "stream", "comparison"],
)
def test_servers_that_give_no_answers(
    pages: Mapping[str, tuple[int, object]], options: tuple[object, ...], code: int, text: str
) -> None:
    with canned(pages) as url:
        done = run_bench(url, *options)
    assert done.returncode == code, done.stdout + done.stderr
    assert re.search(text, done.stdout + done.stderr)


def test_grpc_where_http_listens(server: Running) -> None:
    done = refused(server.url.replace("http://", "grpc://"))
    assert done.returncode == 4
    assert "did you mean http://" in done.stderr


def test_a_rate_that_nobody_can_make_is_invalid_and_says_what_to_do(server: Running) -> None:
    done = run_bench(server.url, "--qps", 400_000, "--duration", 0.5, "--warmup", 0, "--timeout", 2)
    assert re.search("verdict: (INVALID: the client itself was late|UNSTABLE)", done.stdout), done.stdout
    if "INVALID" in done.stdout:
        assert "from another machine, or at a lower rate" in done.stdout


def test_objectives_that_nothing_can_meet(bundle: Path) -> None:
    done = run_bench(bundle, "--duration", 0.5, "--warmup", 0.2, "--slo", "p50=1us", "--json", "--qps")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)["search"]
    assert found["rate"] is None
    assert "the fastest of" in found["limit"]
