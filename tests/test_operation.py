"""Running a server: compressed bodies, deadlines, connections, labels in the status, the process itself."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import pytest
from server_tools import Running, serving

import mserve
from mserve.errors import ExecutionFailed
from mserve.loader.plan import ModelConfig
from mserve.loader.reconciler import Model
from mserve.loader.servable import Servable, load
from mserve.runtime.memory import LARGE_BYTES, VARIABLE, give_back, tunables
from mserve.server.calls import Call
from mserve.server.metrics import Metrics
from mserve.wire.context import Context

PREDICT = "/v1/models/m:predict"
ROW = json.dumps({"instances": [[1.0]]}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Model m, version 7 and label stable; at most 5 connections, bodies of at most 64 KiB."""
    folder = tmp_path_factory.mktemp("operation")
    mserve.export(builders.constant(7), folder / "m", version=7, golden=0)
    config = folder / "mserve.toml"
    config.write_text(
        '[models.m]\nbase_path = "m"\nlabels = { stable = 7, later = 8 }\n'
        '[limits]\nconnections = 5\nbody = "64KiB"\ntimeout = 5.0\n'
    )
    with serving(f"--config={config}", folder / "log") as running:
        running.wait_until(lambda: running.get("/v1/models/m/labels/stable").status == 200)
        yield running


BODIES = [
    ("gzip", "gzip", gzip.compress(ROW), 200, ""),
    ("deflate", "deflate", zlib.compress(ROW), 200, ""),
    ("identity", "identity", ROW, 200, ""),
    ("the name in capitals", "GZIP", gzip.compress(ROW), 200, ""),
    ("an encoding we do not read", "br", ROW, 415, "identity, gzip or deflate"),
    ("not gzip at all", "gzip", ROW, 400, "not compressed as it says"),
    ("a gzip that ends early", "gzip", gzip.compress(ROW)[:-9], 400, "ends too early"),
    ("bytes behind the gzip", "gzip", gzip.compress(ROW) + b"xx", 400, "bytes follow"),
    ("an empty gzip body", "gzip", b"", 400, "ends too early"),
    ("a gzip bomb", "gzip", gzip.compress(b" " * 5_000_000), 413, "at most 65536 bytes"),
]


@pytest.mark.parametrize(("what", "encoding", "body", "status", "part"), BODIES, ids=[b[0] for b in BODIES])
def test_compressed_requests(
    server: Running, what: str, encoding: str, body: bytes, status: int, part: str
) -> None:
    answer = server.ask("POST", PREDICT, body, {"Content-Encoding": encoding})
    assert answer.status == status, answer.body
    if part:
        assert part in answer.error
    else:
        assert answer.json() == {"predictions": [[7.0]]}


ACCEPTS = [
    ("nothing is said", 2000, {}, None),
    ("gzip is taken", 2000, {"Accept-Encoding": "gzip, deflate"}, "gzip"),
    ("deflate is taken", 2000, {"Accept-Encoding": "br, deflate;q=0.5"}, "deflate"),
    ("gzip is refused", 2000, {"Accept-Encoding": "gzip;q=0"}, None),
    ("a small answer is not worth it", 2, {"Accept-Encoding": "gzip"}, None),
]


@pytest.mark.parametrize(("what", "rows", "headers", "encoding"), ACCEPTS, ids=[a[0] for a in ACCEPTS])
def test_compressed_answers(
    server: Running, what: str, rows: int, headers: dict[str, str], encoding: str | None
) -> None:
    answer = server.ask("POST", PREDICT, json.dumps({"instances": [[1.0]] * rows}).encode(), headers)
    assert answer.headers.get("Content-Encoding") == encoding
    window = {"gzip": 31, "deflate": 15}.get(encoding or "")
    body = zlib.decompress(answer.body, window) if window else answer.body
    assert json.loads(body) == {"predictions": [[7.0]] * rows}


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "9" * 13])
def test_a_timeout_that_is_no_number_is_refused(server: Running, value: str) -> None:
    answer = server.ask("POST", PREDICT, ROW, {"mserve-timeout-ms": value})
    assert (answer.status, "milliseconds" in answer.error) == (400, True)


@pytest.mark.parametrize("name", ["mserve-timeout-ms", "x-envoy-expected-rq-timeout-ms"])
def test_a_timeout_that_suffices_changes_nothing(server: Running, name: str) -> None:
    assert server.ask("POST", PREDICT, ROW, {name: "4000"}).status == 200


def test_the_status_shows_what_labels_name_now(server: Running) -> None:
    """A label whose version is not there yet is not shown; asking for it says why."""
    assert server.get("/v1/models/m").json()["labels"] == {"stable": 7}
    assert server.get("/v1/models").json()["models"][0]["labels"] == {"stable": 7}
    answer = server.ask("POST", "/v1/models/m/labels/later:predict", ROW)
    assert (answer.status, "version 8 is not in" in answer.error) == (503, True)


def test_one_connection_too_many_is_refused_and_the_others_go_on(server: Running) -> None:
    links = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=20) for _ in range(5)]
    try:
        for link in links:
            link.request("POST", PREDICT, ROW)
            assert link.getresponse().read()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as extra:
            assert b" 503 " in extra.recv(1 << 16).split(b"\r\n")[0]
        links[0].request("POST", PREDICT, ROW)
        assert links[0].getresponse().status == 200
    finally:
        for link in links:
            link.close()
    server.wait_until(lambda: server.get("/livez").status == 200)


HUGE, LARGE, ARENAS = "hugetlb=1", f"mmap_threshold={LARGE_BYTES}", "arena_max=4"
TUNABLES = [
    ("nothing is set", [], [HUGE, LARGE, ARENAS]),
    ("a user's settings stand", ["hugetlb=0", "arena_max=9"], ["hugetlb=0", "arena_max=9", LARGE]),
]


@pytest.mark.parametrize(("what", "given", "expected"), TUNABLES)
def test_the_allocator_is_set_up_once(what: str, given: list[str], expected: list[str]) -> None:
    before, after = (":".join(f"glibc.malloc.{name}" for name in names) for names in (given, expected))
    assert tunables(before, 4) == after
    assert tunables(after, 4) == after, "so a process starts itself again only once"


def test_a_server_runs_with_its_settings_under_its_first_process_id(server: Running) -> None:
    environment = Path(f"/proc/{server.process.pid}/environ").read_bytes()  # glibc cuts it at each colon
    assert VARIABLE.encode() in environment
    assert b"glibc.malloc.mmap_threshold=" in environment
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    soft = next(line.split()[3] for line in limits.splitlines() if line.startswith("Max open files"))
    assert soft == "unlimited" or int(soft) >= 500


def test_the_engine_reports_to_nobody(tmp_path: Path) -> None:
    """Importing ONNX Runtime through mserve leaves nothing of its telemetry behind."""
    import subprocess
    import sys

    code = (
        "from mserve.runtime.tiny import doubling; import onnxruntime as o;"
        "o.InferenceSession(doubling(), providers=['CPUExecutionProvider'])"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


class _Answered(Call):
    """A call that failed, as metrics see it."""

    protocol = "test"

    def parse(self) -> None: ...
    def queries(self) -> Any: ...
    def encode(self, results: Any) -> Any: ...
    def refuse(self, error: Any) -> Any: ...
    def code(self, error: Any) -> str:
        return "500"


def test_series_end_with_their_versions_and_names_from_requests_make_none(tmp_path: Path) -> None:
    servable: Servable = load(mserve.export(builders.constant(1), tmp_path / "m", golden=0).path)
    model = Model(ModelConfig("m", tmp_path))
    metrics = Metrics({"m": model}, lambda _: 0)
    for version in range(1, 200):
        call = _Answered(Context(0), lambda _: None)
        call.model, call.servable = "m", servable
        servable.version = version
        model.ended = [version]
        metrics.observe(call, ExecutionFailed("x"), 1)
        unknown = _Answered(Context(0), lambda _: None)
        unknown.model = f"made-up-{version}"
        metrics.observe(unknown, ExecutionFailed("x"), 1)
    assert len(metrics.series) <= 3
    servable.close()
    give_back()


def test_an_access_log_whose_directory_is_gone_costs_lines_and_no_answers(tmp_path: Path) -> None:
    mserve.export(builders.constant(7), tmp_path / "m", golden=0)
    folder = tmp_path / "logs"
    folder.mkdir()
    config = tmp_path / "mserve.toml"
    config.write_text(f'[models.m]\nbase_path = "m"\n[log]\naccess = "{folder}/access.log"\n')
    with serving(f"--config={config}", tmp_path / "log") as running:
        assert running.ask("POST", PREDICT, ROW).status == 200
        (folder / "access.log").unlink()
        folder.rmdir()
        for _ in range(5):
            assert running.ask("POST", PREDICT, ROW).status == 200
        assert running.log().count("the access log loses lines") == 1
        folder.mkdir()
        running.wait_until(lambda: running.get("/livez").status == 200 and (folder / "access.log").exists())


def test_json_of_too_many_values_is_refused_before_it_is_read(tmp_path: Path) -> None:
    mserve.export(builders.constant(7), tmp_path / "m", golden=0)
    with serving(tmp_path / "m", tmp_path / "log") as running:
        body = b'{"instances":[' + b"[]," * 4_000_000 + b"[]]}"
        answer = running.ask("POST", PREDICT, body)
        assert (answer.status, "2,000,000" in answer.error) == (413, True)
        head = {"Inference-Header-Content-Length": str(len(body))}
        assert running.ask("POST", "/v2/models/m/infer", body, head).status == 413
