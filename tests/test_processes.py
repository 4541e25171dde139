"""Several serving processes behind the same ports: one server, whichever process a client meets."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from server_tools import Answer, Running, serving

import mserve
from mserve.errors import ModelRefused, NotFound, Overloaded
from mserve.server.app import limits_of
from mserve.server.config import Source, from_tables, parse, to_tables
from mserve.server.control import HEAD_BYTES_MAX, Frames, Malformed, Message, error_head, error_of, pack
from mserve.server.shares import Shares, shared_memory

ROW = json.dumps({"instances": [[1.0]]}).encode()
PREDICT = "/v1/models/m:predict"
MANY = 24


def publish(folder: Path, version: int) -> Path:
    """A version of the model m that answers with its own number."""
    return mserve.export(builders.constant(version), folder / "m", version=version, golden=0).path


@contextmanager
def several(folder: Path, tables: str = "", *flags: str, ready: bool = True) -> Iterator[Running]:
    """A server of two processes with the model m, and the given tables of mserve.toml."""
    if not (folder / "m").exists():
        publish(folder, 1)
    config = folder / "mserve.toml"
    config.write_text(f'[models.m]\nbase_path = "m"\n\n{tables}\n')
    with serving(f"--config={config}", folder / "log", "--processes", "2", *flags, ready=ready) as server:
        if ready:
            server.wait_until(lambda: "m version 1: available" in server.log())
        yield server
        ended = server.process.poll() is not None
    if not ended:
        wait_gone(pids(server))


def pids(server: Running) -> dict[int, int]:
    """The latest process id of each serving process, by number."""
    found = re.findall(r"serving process (\d+): pid (\d+)", server.log())
    return {int(number): int(pid) for number, pid in found}


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_gone(processes: dict[int, int]) -> None:
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in processes.values()):
        assert time.monotonic() < deadline, "a serving process outlives its parent"
        time.sleep(0.02)


def taken(port: int) -> str:
    """Why nobody else can listen on a port, "" if one can."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        return str(error)
    return ""


def sample(server: Running, name: str, **labels: str) -> float:
    """The sum of a metric over the series that have these labels."""
    total = 0.0
    for line in server.get("/metrics").body.decode().splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
            total += float(value)
    return total


class Client:
    """A connection that is kept, and so stays with one process."""

    def __init__(self, server: Running) -> None:
        self.link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    def ask(self, method: str = "POST", path: str = PREDICT, body: bytes | None = ROW) -> Answer:
        self.link.request(method, path, body)
        response = self.link.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())

    def close(self) -> None:
        self.link.close()


@contextmanager
def clients(server: Running, count: int = MANY) -> Iterator[list[Client]]:
    """Open connections, spread over the processes as it happens."""
    opened = [Client(server) for _ in range(count)]
    try:
        yield opened
    finally:
        for client in opened:
            client.close()


class Load:
    """Connections that ask without a pause, each on a thread; `results` are what each saw."""

    def __init__(self, server: Running, count: int = 6) -> None:
        self.results: list[list[Answer | Exception]] = [[] for _ in range(count)]
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server, r)) for r in self.results]

    def _ask(self, server: Running, results: list[Answer | Exception]) -> None:
        client = Client(server)
        try:
            while not self._over.is_set():
                results.append(answer := client.ask())
                if answer.headers.get("Connection") == "close":
                    return
        except Exception as error:
            results.append(error)
        finally:
            client.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        while not all(self.results):
            time.sleep(0.01)
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def sent(self) -> int:
        return sum(isinstance(a, Answer) for answers in self.results for a in answers)

    def errors(self) -> list[Exception]:
        return [a for answers in self.results for a in answers if isinstance(a, Exception)]

    def failures(self) -> list[Answer]:
        return [a for answers in self.results for a in answers if isinstance(a, Answer) and a.status != 200]

    def versions(self) -> list[list[int]]:
        """The versions that answered, connection by connection."""
        return [
            [int(a.headers["mserve-model-version"]) for a in answers if isinstance(a, Answer)]
            for answers in self.results
        ]


# The channel


@given(
    st.lists(st.tuples(st.dictionaries(st.text(), st.integers(-(2**53), 2**53)), st.binary(max_size=200))),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_messages_arrive_whole_however_they_are_cut(sent: list[tuple[Any, bytes]], cuts: list[int]) -> None:
    data = b"".join(pack(head, body) for head, body in sent)
    frames, found, at = Frames(), [], 0
    for turn in range(len(data) + 1):
        size = cuts[turn % len(cuts)]
        found += frames.feed(data[at : at + size])
        at += size
    assert found == [Message(head, body) for head, body in sent]


HOSTILE = [
    ("a head over the limit", struct.pack(">II", HEAD_BYTES_MAX + 1, 0)),
    ("a body over the limit", struct.pack(">II", 2, 0xFFFFFFFF)),
    ("both at their largest", b"\xff" * 8),
    ("a head that is not JSON", struct.pack(">II", 3, 0) + b"{]}"),
    ("a head that is a list", struct.pack(">II", 2, 0) + b"[]"),
    ("no head", struct.pack(">II", 0, 3) + b"abc"),
    ("a head that is not UTF-8", struct.pack(">II", 4, 0) + b'"\xff\xfe"'),
]


@pytest.mark.parametrize(("why", "data"), HOSTILE, ids=[why for why, _ in HOSTILE])
def test_what_is_no_message_is_refused_before_its_length_is_believed(why: str, data: bytes) -> None:
    with pytest.raises(Malformed):
        list(Frames().feed(data))


@given(st.binary(max_size=64))
def test_any_bytes_are_messages_or_refused(data: bytes) -> None:
    try:
        for head, body in Frames().feed(data):
            assert isinstance(head, dict)
            assert len(body) <= len(data)
    except Malformed:
        pass


ERRORS = [
    NotFound("no such model", expected="a, b", found="'c'"),
    ModelRefused("ONNX Runtime does not accept the model", where="/m/1", hint="look"),
    Overloaded("the queue is full"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.code)
def test_errors_keep_their_kind_and_words(error: Any) -> None:
    again = error_of(json.loads(json.dumps(error_head(error))))
    assert type(again) is type(error)
    assert (str(again), again.to_json()) == (str(error), error.to_json())
    assert getattr(again, "retry_after_s", 0) == getattr(error, "retry_after_s", 0)


# One server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with several(tmp_path_factory.mktemp("several"), "", "--admin") as running:
        yield running


def test_every_process_answers_and_the_metrics_are_their_sum(server: Running) -> None:
    before = sample(server, "mserve_requests_total", code="200")
    with clients(server) as opened:
        for _ in range(3):
            assert [c.ask().json() for c in opened] == [{"predictions": [[1.0]]}] * MANY
        assert sample(server, "mserve_requests_total", code="200") == before + 3 * MANY
        by_process = [sample(server, "mserve_process_requests_total", process=str(n)) for n in (0, 1)]
        assert all(by_process)
        assert sum(by_process) >= 3 * MANY
        assert sample(server, "mserve_process_connections") >= MANY
    count = sample(server, "mserve_request_seconds_count", model="m")
    assert count == sample(server, "mserve_requests_total", model="m", code="200")
    stats = server.get("/v2/models/m/stats").json()["model_stats"][0]
    assert stats["inference_count"] == sample(server, "mserve_batch_rows_sum", model="m")
    assert stats["inference_stats"]["success"]["count"] == count


def test_connections_that_come_at_once_are_shared_out(server: Running) -> None:
    """Else the process that is awake first would take nearly all of them."""
    links = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(MANY)]
    try:
        server.wait_until(lambda: sample(server, "mserve_process_connections") >= MANY)
        mine = [sample(server, "mserve_process_connections", process=str(n)) for n in (0, 1)]
        assert min(mine) >= MANY // 3
    finally:
        for link in links:
            link.close()


PAGES = [
    ("GET", "/readyz", 200),
    ("GET", "/livez", 200),
    ("GET", "/v2/health/live", 200),
    ("GET", "/v2/health/ready", 200),
    ("GET", "/v1/models", 200),
    ("GET", "/v1/models/m", 200),
    ("GET", "/v1/models/m/metadata", 200),
    ("GET", "/v1/models/m/example", 200),
    ("GET", "/v2/models/m", 200),
    ("GET", "/v2/models/m/config", 200),
    ("GET", "/openapi.json", 200),
    ("POST", "/v2/repository/index", 200),
    ("GET", "/v1/models/other", 404),
    ("GET", "/nothing", 404),
    ("POST", "/readyz", 405),
    ("GET", "/v1/models/m:predict", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), PAGES, ids=[p for _, p, _ in PAGES])
def test_pages_are_the_same_from_every_process(server: Running, method: str, path: str, status: int) -> None:
    with clients(server, 8) as opened:
        answers = [c.ask(method, path, b"" if method == "POST" else None) for c in opened]
        assert {a.status for a in answers} == {status}
        assert len({a.body for a in answers}) == 1


def test_a_request_keeps_its_identity_on_the_way_to_the_parent(server: Running) -> None:
    for path in ("/v1/models/m", "/metrics", "/v1/models/other"):
        answer = server.ask("GET", path, headers={"X-Request-Id": "abc-1"})
        assert answer.headers["x-request-id"] == "abc-1"
    answer = server.ask("HEAD", "/v1/models/m")
    assert (answer.status, answer.body) == (200, b"")


def test_load_and_unload_reach_every_process_before_they_are_answered(server: Running) -> None:
    with clients(server) as opened:
        for _ in range(3):
            assert opened[0].ask("POST", "/v2/repository/models/m/unload", b"").status == 200
            refused = [c.ask() for c in opened]
            assert {a.status for a in refused} == {503}
            assert all("it was unloaded" in a.error for a in refused)
            assert server.get("/readyz").status == 200, "it was unloaded on purpose"
            assert opened[1].ask("POST", "/v2/repository/models/m/load", b"").status == 200
            assert {c.ask().status for c in opened} == {200}
    assert sample(server, "mserve_version_state", state="available") == 1
    assert server.get("/livez").status == 200


def test_counters_go_on_across_a_reload(server: Running) -> None:
    before = server.get("/v2/models/m/stats").json()["model_stats"][0]["inference_count"]
    assert server.ask("POST", "/v2/repository/models/m/unload", b"").status == 200
    assert server.ask("POST", "/v2/repository/models/m/load", b"").status == 200
    assert server.predict("m", ROW).status == 200
    assert server.get("/v2/models/m/stats").json()["model_stats"][0]["inference_count"] == before + 1


def test_one_process_is_one_process(tmp_path: Path) -> None:
    """The default starts no other process, and shows no metrics of any."""
    publish(tmp_path, 1)
    with serving(tmp_path / "m", tmp_path / "log") as running:
        children = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
        assert children.read_text() == ""
        assert b"mserve_process_up" not in running.get("/metrics").body


# Versions


def test_a_version_published_under_load_fails_nothing_and_never_goes_back(tmp_path: Path) -> None:
    with several(tmp_path) as running:
        with Load(running) as load:
            for version in (2, 3, 4):
                publish(tmp_path, version)
                running.wait_until(lambda v=version: running.version("m") == str(v))
                with clients(running, 8) as opened:  # whoever is told of a version finds it
                    assert {c.ask().headers["mserve-model-version"] for c in opened} == {str(version)}
            running.wait_until(lambda: all(v[-1] == 4 for v in load.versions()))
        assert (load.errors(), load.failures()) == ([], [])
        for versions in load.versions():
            assert versions == sorted(versions)
        assert set().union(*load.versions()) == {1, 2, 3, 4}
        assert sample(running, "mserve_requests_total", code="200") == load.sent() + 24
        running.wait_until(lambda: running.log().count(": unloaded") == 3)


def test_a_broken_version_is_loaded_by_nobody(tmp_path: Path) -> None:
    """Its error, which only loading finds, is shown once, and what serves goes on."""
    with several(tmp_path) as running:
        path = mserve.export(builders.mlp(), tmp_path / "broken", version=2, golden=0).path
        (shard,) = path.glob("export-0*")
        builders.overwrite(shard, b"\0" * shard.stat().st_size)
        path.rename(tmp_path / "m" / path.name)

        def status() -> Any:
            return running.get("/v1/models/m").json()["model_version_status"][0]

        running.wait_until(lambda: status()["version"] == "2" and status()["status"]["error_message"])
        assert "a shard is not the one that was exported" in status()["status"]["error_message"]
        with clients(running) as opened:
            assert {c.ask().headers["mserve-model-version"] for c in opened} == {"1"}
        assert running.log().count("serving process") == 2, "none has ended"


def test_labels_move_in_every_process(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    publish(tmp_path, 2)
    with several(tmp_path, "[models.m.labels]\nstable = 1") as running:
        stable = "/v1/models/m/labels/stable:predict"
        with clients(running, 8) as opened:
            assert {c.ask(path=stable).headers["mserve-model-version"] for c in opened} == {"1"}
            config = tmp_path / "mserve.toml"
            config.write_text(config.read_text().replace("stable = 1", "stable = 2"))
            running.wait_until(lambda: "label stable: 1 -> 2" in running.log())
            assert opened[0].ask("GET", "/v1/models/m").json()["labels"] == {"stable": 2}
            assert {c.ask(path=stable).headers["mserve-model-version"] for c in opened} == {"2"}
            missing = opened[0].ask(path="/v1/models/m/labels/other:predict")
            assert (missing.status, "Unrecognized" in missing.error) == (400, True)


# Life and death


def test_a_process_that_is_killed_comes_back_and_its_neighbour_does_not_notice(tmp_path: Path) -> None:
    with several(tmp_path) as running:
        with Load(running, 8) as load:
            before, killed = sample(running, "mserve_requests_total"), pids(running)[0]
            os.kill(killed, signal.SIGKILL)
            running.wait_until(lambda: pids(running)[0] != killed)
            assert running.get("/readyz").status == 200
            assert sample(running, "mserve_requests_total") >= before
        assert load.failures() == []
        assert 0 < len(load.errors()) < 8, "connections of the other process go on"
        assert "was ended by SIGKILL; starting another" in running.log()
        running.wait_until(lambda: sample(running, "mserve_process_up") == 2)
        with clients(running) as opened:
            assert {c.ask().status for c in opened} == {200}
        assert sample(running, "mserve_process_starts_total", process="0") == 2
        assert sample(running, "mserve_process_requests_total", process="0") > 0


def test_a_process_comes_back_with_the_versions_of_now_though_their_files_are_gone(tmp_path: Path) -> None:
    """Until it can load them it takes no connections; the other one goes on."""
    with several(tmp_path) as running:
        hidden = tmp_path / "hidden"
        (tmp_path / "m" / "00000001").rename(hidden)
        (tmp_path / "m").rmdir()
        first = pids(running)
        os.kill(first[1], signal.SIGKILL)
        running.wait_until(lambda: "serving process 1 lacks a version" in running.log())
        with clients(running) as opened:
            assert {c.ask().status for c in opened} == {200}
        (tmp_path / "m").mkdir()
        hidden.rename(tmp_path / "m" / "00000001")
        running.wait_until(lambda: sample(running, "mserve_process_up") == 2)


def test_a_parent_that_is_killed_takes_its_children_along(tmp_path: Path) -> None:
    with several(tmp_path) as running:
        children = pids(running)
        assert len(children) == 2
        running.process.kill()
        running.process.wait()
        wait_gone(children)
        deadline = time.monotonic() + 20
        while (why := taken(running.port)) and time.monotonic() < deadline:
            time.sleep(0.02)  # the last thread of a process that is gone lets go of it
        assert why == ""


def test_sigterm_answers_what_was_accepted(tmp_path: Path) -> None:
    """Under load nobody sees a reset: answers are whole, and the last one says that the connection ends."""
    with several(tmp_path) as running:
        with Load(running, 8) as load:
            assert running.stop() == 0
        assert (load.errors(), load.failures()) == ([], [])
        assert all(answers[-1].headers["Connection"] == "close" for answers in load.results)  # type: ignore[union-attr]
        assert "was ended" not in running.log()
        wait_gone(pids(running))


def test_a_slow_request_is_finished_and_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    """A batch that waits two seconds for others holds up the end; a second signal does not care."""
    with several(tmp_path, "[batching]\ndelay_ms = 2000\n") as running, clients(running, 2) as opened:
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda c=c: answers.append(c.ask().status)) for c in opened]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert running.stop() == 0
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
    with several(tmp_path, "[batching]\ndelay_ms = 20000\n") as running, clients(running, 1) as opened:
        opened[0].link.request("POST", PREDICT, ROW)
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        running.wait_until(lambda: "stopping" in running.log())
        assert running.stop() == 130
        wait_gone(pids(running))


def test_the_processes_answer_while_the_parent_hangs(tmp_path: Path) -> None:
    with several(tmp_path) as running:
        running.process.send_signal(signal.SIGSTOP)
        try:
            with clients(running, 8) as opened:
                assert {c.ask().status for c in opened} == {200}
                assert {c.ask("GET", "/livez", None).status for c in opened} == {200}
        finally:
            running.process.send_signal(signal.SIGCONT)
        assert running.get("/readyz").status == 200


# Configuration, tokens and certificates


def test_a_new_configuration_reaches_every_process(tmp_path: Path) -> None:
    nan = b'{"instances": [[NaN]]}'
    with several(tmp_path) as running, clients(running, 8) as opened:
        assert {c.ask(body=nan).status for c in opened} == {200}
        config = tmp_path / "mserve.toml"
        config.write_text(config.read_text() + "[server]\nstrict_json = true\n")
        running.process.send_signal(signal.SIGHUP)
        running.wait_until(lambda: "took a new configuration" in running.log())
        assert running.get("/readyz").status == 200
        assert {c.ask(body=nan).status for c in opened} == {400}
        config.write_text("[server]\nnonsense = 1\n")
        running.wait_until(lambda: sample(running, "mserve_configuration_refused") == 1)
        assert {c.ask(body=nan).status for c in opened} == {400}


def test_a_configuration_travels_and_keeps_what_only_a_restart_changes() -> None:
    written = """
[server]
port = 1
grpc_port = "off"
poll = 0.5
[limits]
body = "1MiB"
timeout = 2.0
[log]
access = "requests.log"
[request_log]
path = "sample.jsonl"
redact = ["x"]
[models.m]
base_path = "m"
"""
    started = parse(Source(Path("a/mserve.toml")), written)
    now = parse(Source(Path("a/mserve.toml")), written.replace("2.0", "3.0").replace("1MiB", "2MiB"))
    told = from_tables(json.loads(json.dumps(to_tables(now, started))))
    for table in ("server", "batching", "limits", "log", "request_log"):
        wanted = getattr(now, table)
        if table == "limits":
            wanted = replace(wanted, body=1 << 20)
        assert getattr(told, table) == wanted
    assert told.models == {}


@pytest.mark.parametrize(
    ("written", "soft"),
    [
        pytest.param("", True, id="nobody has set a limit"),
        pytest.param("[batching]\nmax_batch = 128", False, id="somebody has set the default"),
    ],
)
def test_children_know_whether_the_limit_of_a_batch_was_set(written: str, soft: bool) -> None:
    config = parse(Source(Path("a/mserve.toml")), "[models.m]\nbase_path = 'm'\n" + written)
    assert limits_of(config).soft is soft
    assert limits_of(from_tables(json.loads(json.dumps(to_tables(config, config))))).soft is soft


def test_tokens_hold_in_every_process_and_follow_their_file(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first\n")

    def statuses(token: str) -> set[int]:
        headers = {"Authorization": f"Bearer {token}"}
        pages = [("POST", PREDICT, ROW), ("GET", "/v1/models/m", None)]
        return {running.ask(m, p, body, headers).status for m, p, body in pages for _ in range(6)}

    with several(tmp_path, '[auth]\ntokens = "tokens"\n') as running:
        assert (statuses("first"), statuses("second")) == ({200}, {401})
        tokens.write_text("second\n")
        running.wait_until(lambda: "1 tokens" in running.log())
        running.wait_until(lambda: statuses("second") == {200})
        assert statuses("first") == {401}
        killed = pids(running)[0]
        os.kill(killed, signal.SIGKILL)
        running.wait_until(lambda: pids(running)[0] != killed)
        assert statuses("second") == {200}


def certificate(folder: Path, authority: trustme.CA) -> None:
    pair = authority.issue_cert("127.0.0.1")
    (folder / "new.key").write_bytes(pair.private_key_pem.bytes())
    (folder / "new.pem").write_bytes(pair.cert_chain_pems[0].bytes())
    (folder / "new.key").replace(folder / "server.key")
    (folder / "new.pem").replace(folder / "server.pem")


def test_tls_in_every_process_with_a_certificate_that_is_replaced(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate(tmp_path, authority)
    context = ssl.create_default_context()
    authority.configure_trust(context)

    def shown() -> set[bytes | None]:
        found = set()
        for _ in range(8):
            link = http.client.HTTPSConnection("127.0.0.1", running.port, context=context, timeout=30)
            link.request("POST", PREDICT, ROW)
            assert link.getresponse().status == 200
            found.add(link.sock.getpeercert(True))  # type: ignore[union-attr]
            link.close()
        return found

    tls = '[server]\npoll = 0.05\n[tls]\ncert = "server.pem"\nkey = "server.key"\n'
    with several(tmp_path, tls, ready=False) as running:
        running.wait_until(lambda: "m version 1: available" in running.log())
        old = shown()
        assert len(old) == 1
        certificate(tmp_path, authority)
        running.wait_until(lambda: shown().isdisjoint(old))
        now = shown()
        assert len(now) == 1
        (tmp_path / "server.pem").write_text("nonsense")
        running.wait_until(lambda: "keeping the certificate in use" in running.log())
        killed = pids(running)[0]
        os.kill(killed, signal.SIGKILL)
        running.wait_until(lambda: pids(running)[0] != killed)
        assert shown() == now, "a process that starts takes the certificate in use"


def test_logs_of_all_processes_have_whole_lines(tmp_path: Path) -> None:
    tables = """
[log]
format = "json"
access = true
[request_log]
path = "requests.jsonl"
sample = 1.0
max_bytes = 4000
"""
    with several(tmp_path, tables, ready=False) as running:
        running.wait_until(lambda: "m version 1: available" in running.log())
        with clients(running, 8) as opened:
            tries = 0

            def all_know() -> bool:
                nonlocal tries
                tries += 1
                return {c.ask().status for c in opened} == {200}

            running.wait_until(all_know)  # the parent knows of a version a moment before its processes do
            for _ in range(25):
                assert {c.ask().status for c in opened} == {200}
        assert running.stop() == 0
    lines = [json.loads(line) for line in running.log().splitlines()]
    assert sum(line.get("path") == PREDICT for line in lines) == 8 * (25 + tries)
    files = [p.read_text().splitlines() for p in sorted(tmp_path.glob("requests.jsonl*"))]
    assert all(json.loads(line)["model"] == "m" for lines in files for line in lines)
    assert files
    assert sum(map(len, files)) > 10


def test_whose_turn_it_is_to_accept() -> None:
    """Who has no more than any other that accepts; those that do not accept do not count."""
    fd = shared_memory(3)
    first, second = Shares(fd, 3, 0), Shares(fd, 3, 1)
    assert first.turn(5), "nobody else accepts"
    assert second.turn(0)
    assert not first.turn(5)
    assert first.turn(0)
    second.note(7)
    assert first.turn(7)
    assert not first.turn(8)
    first.leave(1)
    assert first.turn(8)
    os.close(fd)


def test_a_models_own_batching_holds_in_every_process(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    more = '[models.other]\nbase_path = "m"\nbatching = { max_batch = 8, allowed_batch = [4, 8] }\n'
    with several(tmp_path, more) as server:
        body = b'{"instances": [[1], [2], [3], [4], [5]]}'
        for model, padding in (("m", 0), ("other", 3)):
            answer = server.ask("POST", f"/v1/models/{model}:predict", body, {"x-request-id": model})
            assert answer.status == 200, answer.body
            (batch,) = server.get(f"/debug/requests/{model}").json()["batches"]
            assert batch["padding"] == padding


def test_many_models_load_at_once_and_again_after_a_kill(tmp_path: Path) -> None:
    """Several threads of a fresh process load: none of them may be the first to import an engine."""
    publish(tmp_path, 1)
    more = "".join(f'[models.m{n}]\nbase_path = "m"\n' for n in range(7))
    with several(tmp_path, more) as server:
        for _ in range(3):
            killed = pids(server)[0]
            os.kill(killed, signal.SIGKILL)
            server.wait_until(lambda: pids(server).get(0, killed) != killed)  # noqa: B023
        server.wait_until(lambda: sample(server, "mserve_process_up", process="0") == 1)
        assert "import" not in server.log()
