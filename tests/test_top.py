"""`mserve top`: the arithmetic of counters, and the live view of a real server."""

from __future__ import annotations

import http.client
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from server_tools import Running, serving
from test_commands import run
from test_security import SECRET, configured, write_pair

import mserve
from mserve.errors import EnvironmentProblem, InputError, MserveError, Unauthenticated, UsageError
from mserve.server import metrics, rates
from mserve.server.exposition import Family
from mserve.server.remote import Remote, read_token

DIGITS = Path(__file__).parent.parent / "samples" / "digits" / "digits.onnx"
FAST, SLOW = {"1.0": 0.0, "2.0": 4.0, "+Inf": 4.0}, {"1.0": 0.0, "2.0": 0.0, "+Inf": 4.0}

QUANTILES = [
    ("no request", {}, 0.5, None),
    ("buckets without a request", {"1.0": 0.0, "+Inf": 0.0}, 0.5, None),
    ("the middle of a bucket", FAST, 0.5, (1.5, "")),
    ("the end of a bucket", FAST, 1.0, (2.0, "")),
    ("the first bucket has no lower bound", {"1.0": 4.0, "2.0": 4.0, "+Inf": 4.0}, 0.5, (1.0, "<")),
    ("nothing is above the last bucket", SLOW, 0.5, (2.0, ">")),
    ("an empty bucket is stepped over", {"1.0": 1.0, "2.0": 1.0, "4.0": 3.0, "+Inf": 3.0}, 0.5, (2.5, "")),
    ("on the edge of two buckets", {"1.0": 0.0, "2.0": 2.0, "4.0": 4.0, "+Inf": 4.0}, 0.5, (2.0, "")),
    ("only part is above", {"1.0": 0.0, "2.0": 3.0, "+Inf": 4.0}, 0.99, (2.0, ">")),
    ("only the endless bucket", {"+Inf": 3.0}, 0.5, (0.0, ">")),
]


@pytest.mark.parametrize(("why", "buckets", "p", "found"), QUANTILES, ids=[q[0] for q in QUANTILES])
def test_quantile(why: str, buckets: dict[str, float], p: float, found: tuple[float, str] | None) -> None:
    result = rates.quantile(buckets, p)
    assert (result and (pytest.approx(result.seconds), result.bound)) == found


@given(st.lists(st.floats(1e-6, 100), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(seconds: list[float], p: float) -> None:
    histogram = metrics.Histogram()
    histogram.observe(np.array([int(value * 1e9) for value in seconds]))
    family = Family("seconds", "histogram", "", metrics.LATENCY_BUCKETS)
    family.add_histogram("", histogram.counts, 0.0)
    (read,) = text_string_to_metric_families(family.text())
    buckets = {s.labels["le"]: s.value for s in read.samples if s.name.endswith("_bucket")}
    found = rates.quantile(buckets, p)
    assert found is not None
    rank = max(1, -(-round(p * len(seconds) * 1e9) // 10**9))
    true = int(sorted(seconds)[rank - 1] * 1e9) / 1e9
    bounds = (0.0, *metrics.LATENCY_BUCKETS)
    if found.bound == "<":
        assert true <= found.seconds == bounds[1]
    elif found.bound == ">":
        assert true >= found.seconds == bounds[-1]
    else:
        upper = next(i for i, b in enumerate(bounds) if b * (1 + 1e-9) >= found.seconds)
        assert bounds[upper - 1] - 1e-8 <= true <= bounds[upper] + 1e-8


DELTAS = [
    ("counters grow", {"a": 1.0}, {"a": 3.0}, {"a": 2.0}),
    ("one is new", {"a": 1.0}, {"a": 1.0, "b": 2.0}, {"a": 0.0, "b": 2.0}),
    ("all are new", {}, {"a": 3.0}, {"a": 3.0}),
    ("one fell, so all started anew", {"a": 5.0, "b": 1.0}, {"a": 2.0, "b": 1.0}, {"a": 2.0, "b": 1.0}),
    ("one has gone, so all started anew", {"a": 5.0, "b": 1.0}, {"b": 7.0}, {"b": 7.0}),
]


@pytest.mark.parametrize(("why", "before", "after", "found"), DELTAS, ids=[d[0] for d in DELTAS])
def test_delta(why: str, before: dict[str, float], after: dict[str, float], found: dict[str, float]) -> None:
    assert rates.delta(before, after) == found


def page(good: int, bad: int, rows: int, flight: int = 0) -> rates.Reading:
    """The metrics of model m, version 1: each good request took between 1 and 2 s, a tenth of it queued."""
    labels = 'model="m",version="1",signature="s",protocol="p"'
    return rates.read_metrics(
        f"""
mserve_requests_total{{{labels},code="200"}} {good}
mserve_requests_total{{{labels},code="429"}} {bad}
mserve_request_seconds_bucket{{{labels},le="1.0"}} 0
mserve_request_seconds_bucket{{{labels},le="2.0"}} {good}
mserve_request_seconds_bucket{{{labels},le="+Inf"}} {good}
mserve_phase_seconds_sum{{{labels},phase="queue"}} {good}
mserve_phase_seconds_sum{{{labels},phase="compute"}} {9 * good}
# TYPE mserve_batch_rows histogram
mserve_batch_rows_bucket{{model="m",version="1",le="+Inf"}} {good}
mserve_batch_rows_count{{model="m",version="1"}} {good}
mserve_batch_rows_sum{{model="m",version="1"}} {rows}
mserve_inline_batches_total{{model="m",version="1"}} {good // 2}
mserve_run_seconds_total{{model="m",version="1"}} {good / 10}
mserve_in_flight{{model="m",version="1"}} {flight}
mserve_version_bytes{{model="m",version="1"}} 500
mserve_version_state{{model="m",version="1",state="available"}} 1.0
mserve_version_state{{model="m",version="1",state="failed"}} 0.0
"""
    )


STATUS = rates.VersionStatus("m", "1", "AVAILABLE", "", ())


def test_a_view_of_two_readings() -> None:
    after = page(good=30, bad=5, rows=70, flight=3)
    assert after.states == {("m", "1"): "available"}
    view = rates.view(page(good=10, bad=5, rows=10), after, [STATUS], 2.0)
    (version,), (traffic,) = view.versions, view.traffic.values()
    assert (version.batches, version.mean_rows, version.inline_share) == (20, 3.0, 0.5)
    assert (version.in_flight, version.size, version.busy) == (3, 500, pytest.approx(1.0))
    assert (traffic.rate, traffic.errors) == (10.0, {})
    assert traffic.shares() == {"parse": 0.0, "queue": 0.1, "compute": 0.9, "encode": 0.0}
    assert view.total().to_json()["latency_ms"]["p50"] == {"value": 1500.0, "bound": "="}


def test_a_view_of_a_server_that_started_anew_counts_from_its_start() -> None:
    view = rates.view(page(good=100, bad=50, rows=100), page(good=4, bad=2, rows=8), [STATUS], 2.0)
    (traffic,) = view.traffic.values()
    assert (traffic.rate, traffic.errors) == (3.0, {"429": 1.0})
    assert view.versions[0].mean_rows == 2.0


def test_a_view_without_requests_has_no_series_and_no_nonsense() -> None:
    same = page(good=4, bad=2, rows=8)
    view = rates.view(same, same, [STATUS], 1.0)
    assert view.traffic == {}
    assert (view.versions[0].batches, view.versions[0].mean_rows, view.total().rate) == (0, None, 0)
    assert view.total().to_json()["latency_ms"] == {"p50": None, "p95": None, "p99": None}


def test_phases_are_those_that_the_server_counts() -> None:
    assert rates.PHASES == metrics.PHASES


@given(
    st.text()
    | st.text(alphabet='mserve_{}="\\\n#TYPEHL 0123456789.eNaInf+-,code').map("mserve_x 1\n".__add__)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(EnvironmentProblem):
        assert isinstance(rates.read_metrics(text), rates.Reading)


KEYS = "models name model_version_status version state labels status".split()


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=20,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_page_of_statuses_is_read_or_refused(body: bytes) -> None:
    with suppress(EnvironmentProblem):
        assert isinstance(rates.read_statuses(body), list)


def test_statuses_with_reasons_and_with_labels_where_there_are_any() -> None:
    failed = {"version": "2", "state": "START", "status": {"error_code": "X", "error_message": "why"}}
    entries = [failed, {"version": "1", "state": "AVAILABLE"}, {"version": "0", "state": "END"}]
    models = [
        {"name": "a", "labels": {"stable": 1, "beta": "2", "also": 1}, "model_version_status": entries},
        {"name": "b", "model_version_status": [], "problem": "no base path"},
    ]
    assert rates.read_statuses(json.dumps({"models": models}).encode()) == [
        ("a", "2", "START", "why", ("beta",)),
        ("a", "1", "AVAILABLE", "", ("also", "stable")),
        ("b", "", "NONE", "no base path", ()),
    ]


@pytest.mark.parametrize("value", ["NaN", "-1", "+Inf"])
def test_a_counter_that_cannot_be_one_is_refused(value: str) -> None:
    with pytest.raises(EnvironmentProblem, match="not an mserve server"):
        rates.read_metrics(f'mserve_requests_total{{model="m",code="200"}} {value}\n')


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A program that answers anything with the same bytes and closes; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            with link:
                link.recv(65536)
                link.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def response(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


STRANGERS = [
    ("closes at once", b"", "closed the connection"),
    ("speaks something else", b"SSH-2.0-x\r\n", "BadStatusLine"),
    ("has no such page", response("404 Not Found", b"no"), "status 404"),
    ("has an empty page", response("200 OK", b""), "an empty page"),
    ("has a page of its own", response("200 OK", b"<html>"), "ValueError"),
    ("has metrics of its own", response("200 OK", b"# TYPE go_x gauge\ngo_x 1\n"), "another program"),
    ("sends bytes that are no text", response("200 OK", bytes(range(128, 256))), "Error"),
    ("breaks off", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nmserve_", "IncompleteRead"),
]


@pytest.mark.parametrize(("what", "answer", "found"), STRANGERS, ids=[s[0] for s in STRANGERS])
def test_another_program_is_told_apart(what: str, answer: bytes, found: str) -> None:
    raising = pytest.raises(EnvironmentProblem, match="not an mserve server")
    with answering(answer) as url, closing(Remote(url)) as remote, raising as raised:
        remote.reading()
    assert found in raised.value.found


URLS = [
    ("127.0.0.1:8501", "did you mean http://127.0.0.1:8501"),
    ("ftp://h:1", "bad URL"),
    ("http://", "bad URL"),
    ("http://h:99999", "bad URL"),
    ("http://h:1/v1/models/m", "without more"),
    ("http://user@h:1", "without more"),
    ("http://a b:1", "bad URL"),
    ("http://" + "a" * 70 + ":1", "bad URL"),
]


@pytest.mark.parametrize(("url", "text"), URLS)
def test_a_url_that_is_not_a_servers_is_refused(url: str, text: str) -> None:
    with pytest.raises(UsageError) as raised:
        Remote(url)
    assert text in str(raised.value)


TOKENS = [
    ("", "no line"),
    ("# x\n\n", "no line"),
    ("a b\n", "other characters"),
    ("\xfc\n", "other characters"),
]


@pytest.mark.parametrize(("text", "found"), TOKENS)
def test_a_file_without_a_token_is_refused(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(text, encoding="latin-1")
    with pytest.raises(InputError) as raised:
        read_token(tmp_path / "t")
    assert raised.value.found == found


def test_nothing_listens_is_exit_4_and_json_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    done = run("top", url, "--once", "--json")
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["message"] == "nothing listens there"
    assert "mserve serve" in done.stderr


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("top")
    mserve.export(DIGITS, folder / "digits")
    with serving(folder / "digits", folder / "log") as running:
        yield running


@contextmanager
def watching(*arguments: str, first: Sequence[str] = (), **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`mserve top ARGUMENTS` as a process, killed at the end if it still runs; `first` makes its terminal."""
    command = [sys.executable, "-m", "mserve", "top", *arguments]
    prefix = [sys.executable, "-c", *first] if first else []
    with subprocess.Popen([*prefix, *command], **streams) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_the_intervals_add_up_to_what_was_sent(server: Running) -> None:
    """60 good requests of 3 rows and 20 bad ones: no interval misses one or counts one twice."""
    body = json.dumps({"instances": [[0.0] * 64] * 3}).encode()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with watching(server.url, "--interval", "0.2", "--json", **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = json.loads(process.stdout.readline())
        assert (first["schema"], first["kind"], first["ready"], first["url"]) == (1, "top", True, server.url)
        assert first["requests"] == []
        link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for index in range(80):
            link.request("POST", "/v1/models/digits:predict", b"{" if index % 4 == 3 else body)
            answer = link.getresponse()
            answer.read()
            assert answer.status == (400 if index % 4 == 3 else 200)
        link.close()
        codes, rows, batches = {"200": 0, "400": 0}, 0.0, 0
        while sum(codes.values()) < 80:
            found = json.loads(process.stdout.readline())
            (version,) = found["versions"]
            batches += version["batches"]
            rows += (version["mean_batch_rows"] or 0) * version["batches"]
            assert found["total"]["requests"] == sum(t["requests"] for t in found["requests"])
            for traffic in found["requests"]:
                _check_traffic(traffic, found["interval_s"])
                for code, count in traffic["codes"].items():
                    codes[code] += count
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == b""
    assert codes == {"200": 60, "400": 20}
    assert (batches, round(rows)) == (60, 180)


def _check_traffic(traffic: dict[str, Any], seconds: float) -> None:
    """One series of one interval: who it is, and figures that follow from its counts."""
    good = traffic["codes"].get("200", 0)
    assert (traffic["model"], traffic["protocol"]) == ("digits", "tfs-rest")
    assert (traffic["version"], traffic["signature"]) == ("1", "serving_default" if good else "")
    assert traffic["requests_per_s"] * seconds == pytest.approx(traffic["requests"])
    assert traffic["errors_per_s"] * seconds == pytest.approx(traffic["codes"].get("400", 0))
    if good:
        p50, p95, p99 = (traffic["latency_ms"][p]["value"] for p in ("p50", "p95", "p99"))
        assert 0 < p50 <= p95 <= p99
        assert sum(traffic["phase_shares"].values()) == pytest.approx(1)
    else:
        assert traffic["latency_ms"]["p50"] is None


def test_rows_where_no_terminal_is(server: Running) -> None:
    done = run("top", server.url, "--once", "--interval", "0.1")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in rows] == ["version", "total", "server"]
    assert rows[0][1:6] == ["digits", "1", "-", "AVAILABLE", "0"]
    assert rows[2] == ["server", "ready"]


def test_rows_of_traffic(server: Running) -> None:
    """One good request and one bad one: where each stands in the rows."""
    with watching(server.url, "--interval", "0.2", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        found: dict[tuple[str, str], list[str]] = {}
        server_rows = 0
        while len(found) < 4:
            row = process.stdout.readline().decode().rstrip("\n").split("\t")
            server_rows += row[0] == "server"
            if server_rows == 1 and row[0] == "server":  # the first interval is over
                assert server.predict("digits", {"instances": [[0.0] * 64]}).status == 200
                assert server.predict("digits", b"{").status == 400
            if row[0] in ("requests", "time"):
                found[row[0], row[3]] = row[1:]
    assert found["requests", "serving_default"][:4] == ["digits", "1", "serving_default", "tfs-rest"]
    assert found["requests", "serving_default"][5] == "0.0"
    assert all(float(cell.strip("<>")) > 0 for cell in found["requests", "serving_default"][6:9])
    assert found["requests", "-"][4] == found["requests", "-"][5] != "0.0"
    assert found["time", "-"][4:8] == ["-"] * 4
    assert found["time", "-"][8].startswith("400: ")
    assert all(cell.endswith("%") for cell in found["time", "serving_default"][4:8])


def test_a_server_that_is_not_ready_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with serving(tmp_path / "empty", tmp_path / "log", ready=False) as running:
        done = run("top", running.url, "--once", "--interval", "0.1", "--json")
        found = json.loads(done.stdout)
    assert found["ready"] is False
    assert "empty: " in found["reasons"][0]
    assert [(v["model"], v["state"]) for v in found["versions"]] == [("empty", "NONE")]


def test_tokens(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"# clients\n{SECRET}\n")
    (tmp_path / "wrong").write_text("guess\n")
    with configured(tmp_path, '[auth]\ntokens = "tokens"') as running:
        for files in ([], ["--token-file", str(tmp_path / "wrong")]):
            done = run("top", running.url, "--once", *files)
            assert done.returncode == Unauthenticated.exit_code
            assert "--token-file" in done.stderr
        remote = Remote(running.url, read_token(tmp_path / "tokens"))
        assert [s.model for s in remote.statuses()] == ["m"]
        remote.close()


def test_tls(tmp_path: Path) -> None:
    write_pair(trustme.CA(), tmp_path)
    with configured(tmp_path, '[tls]\ncert = "server.pem"\nkey = "server.key"') as running:
        url = running.url.replace("http", "https")
        done = run("top", url, "--once", "--interval", "0.1", "--ca", tmp_path / "ca.pem")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("version\tm\t1\t")
        problems = []
        for asked, ca in ((url, None), (running.url, None)):
            with pytest.raises(MserveError) as raised:
                Remote(asked, ca=ca).reading()
            problems.append(str(raised.value))
        assert "certificate is not trusted" in problems[0]
        assert "not an mserve server" in problems[1]
    with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as plain:
        with pytest.raises(EnvironmentProblem, match="does not speak TLS"):
            Remote(plain.replace("http", "https")).reading()
        with pytest.raises(UsageError, match="--ca is for https"):
            Remote(plain, ca=tmp_path / "ca.pem")
        with pytest.raises(InputError, match="certificates cannot be used"):
            Remote(plain.replace("http", "https"), ca=tmp_path / "log")


def test_a_connection_that_was_closed_meanwhile_is_made_again(tmp_path: Path) -> None:
    with configured(tmp_path, "[limits]\nidle = 0.05") as running:
        remote = Remote(running.url)
        remote.reading()
        assert remote._connection is not None
        old = remote._connection.sock
        assert old is not None
        assert select.select([old], [], [], 30)[0]  # the server has closed it
        assert ("m", "1") in remote.reading().versions
        remote.close()


# Makes a descriptor the terminal of this process, then becomes another program.
ON_TERMINAL = "import os, sys; os.login_tty(int(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"


class Screen:
    """A pseudo-terminal with `mserve top` on it."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 200))
        self.settings = termios.tcgetattr(slave)
        # These two would go before the terminal's own size.
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
        self.watching = watching(*arguments, env=env, pass_fds=[slave], first=[ON_TERMINAL, str(slave)])
        self.process = self.watching.__enter__()
        self.slave = slave  # kept open, so that what is left of the terminal can be looked at
        self.shown = b""

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Read until a text has been drawn since the last call."""
        start, deadline = len(self.shown), time.monotonic() + seconds
        while text.encode() not in self.shown[start:]:
            assert time.monotonic() < deadline, self.shown[start:].decode()
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 65536)

    def end(self, keys: bytes) -> int:
        """Press keys; the exit code."""
        os.write(self.master, keys)
        self.wait_for("\x1b[?1049l")
        return self.process.wait(timeout=30)

    def close(self) -> None:
        self.watching.__exit__(None, None, None)
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize(
    ("keys", "code"), [(b"\x03", 130), (b"q", 0), (b"xyq", 0)], ids=["Ctrl-C", "q", "others"]
)
def test_the_live_view_ends_on_keys_and_leaves_the_terminal_as_it_was(
    server: Running, keys: bytes, code: int
) -> None:
    screen = Screen(server.url, "--interval", "0.1")
    try:
        screen.wait_for("AVAILABLE")
        body = {"instances": [[0.0] * 64]}
        while b"serving_default" not in screen.shown:
            assert server.predict("digits", body).status == 200
            screen.wait_for("total: ")
        assert b"req/s" in screen.shown
        assert screen.end(keys) == code
        assert termios.tcgetattr(screen.slave) == screen.settings
        assert b"Abort" not in screen.shown
        assert b"Traceback" not in screen.shown
    finally:
        screen.close()


def test_the_live_view_outlives_its_server(tmp_path: Path) -> None:
    with configured(tmp_path, "") as running:
        screen = Screen(running.url, "--interval", "0.1")
        try:
            screen.wait_for("AVAILABLE")
            assert running.stop() == 0
            screen.wait_for("nothing listens there")
            port = str(running.port)
            command = [sys.executable, "-m", "mserve", "serve", str(tmp_path / "m"), "--port", port]
            with (tmp_path / "again").open("wb") as log:
                again = subprocess.Popen([*command, "--grpc-port", "off"], stderr=log)
            try:
                screen.wait_for("AVAILABLE")
            finally:
                again.kill()
                again.wait()
            assert screen.end(b"q") == 0
        finally:
            screen.close()
