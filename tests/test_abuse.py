"""What was found by people who tried to break it; each was once a hang, a leak or a traceback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import builders
import numpy as np
import onnx
import pytest
from server_tools import Running, serving
from test_commands import DIGITS, run
from test_server import GOOD, PLAIN, POST, ROW, one

import mserve


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("abuse")
    mserve.export(DIGITS, root / "digits")
    with serving(root / "digits", root / "log") as server:
        yield server


def resident_mb(server: Running) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) // 1024


def talk(server: Running, data: bytes, seconds: float = 10.0) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as link:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := link.recv(65536):
            received += chunk
        return received


def body_of(text: str) -> bytes:
    return POST + b"Content-Length: %d\r\n\r\n" % len(text) + text.encode()


NESTED = '{"instances":[[1,' + '{"a":' * 900 + "1" + "}" * 900 + "]]}"
SURROGATE = '{"instances":[[NaN]],"signature_name":"\\ud800"}'
ODD = [
    (
        "text without a UTF-8 form in the error",
        body_of(SURROGATE),
        b"400",
    ),
    (
        "a thousand objects in each other",
        body_of(NESTED),
        b"400",
    ),
    ("CONNECT", b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
    ("a URL of 100 KB", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
    ("an encoding in capitals", PLAIN.replace(b"Host: x", b"Content-Encoding: Identity"), b"200"),
    ("NUL bytes in a body", body_of('{"instances":["\\u0000"]}'), b"400"),
]


@pytest.mark.parametrize(("what", "data", "status"), ODD, ids=[o[0] for o in ODD])
def test_odd_requests_are_answered(digits: Running, what: str, data: bytes, status: bytes) -> None:
    assert talk(digits, data).split(b" ", 2)[1] == status, what
    assert "Traceback" not in digits.log()


def test_an_offer_to_upgrade_does_not_hide_a_wish_to_close(digits: Running) -> None:
    head = b"Connection: close, Upgrade\r\nUpgrade: h2c"
    answer = talk(digits, PLAIN.replace(b"Host: x", head) + PLAIN)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"Connection: close" in answer


@pytest.mark.parametrize("path", [b"/v1/models", b"/nowhere", b"/v1/models/digits:predict"])
def test_the_answer_to_head_has_no_body(digits: Running, path: bytes) -> None:
    """The next answer on the connection begins right behind the head."""
    request = b"HEAD %s HTTP/1.1\r\nHost: x\r\n\r\n" % path
    first, second = talk(digits, request + PLAIN).split(b"HTTP/1.1 ")[1:]
    assert first.endswith(b"\r\n\r\n")
    assert second.startswith(b"200")


def test_announced_bodies_cost_nothing_until_they_come(digits: Running) -> None:
    before = resident_mb(digits)
    links = [socket.create_connection(("127.0.0.1", digits.port)) for _ in range(100)]
    for link in links:
        link.sendall(POST + b"Content-Length: 67108864\r\n\r\n{")
    time.sleep(0.5)
    assert digits.predict("digits", one(ROW)).status == 200
    assert resident_mb(digits) - before < 100
    for link in links:
        link.close()


def test_many_requests_in_one_read_wait_their_turn(digits: Running) -> None:
    """A client that sends ten thousand requests and reads no answer does not fill the memory."""
    before = resident_mb(digits)
    with socket.create_connection(("127.0.0.1", digits.port)) as link:
        link.settimeout(1.0)
        page = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        try:
            for _ in range(100):
                link.sendall(page * 100)
        except TimeoutError:
            pass
        assert digits.predict("digits", one(ROW)).status == 200
        assert resident_mb(digits) - before < 60


def test_pipelined_requests_are_all_answered_in_order(digits: Running) -> None:
    requests, labels = b"", []
    for i in range(60):
        row = [float(i % 17)] * 64
        body = json.dumps(one(row)).encode()
        requests += POST + b"Content-Length: %d\r\n\r\n" % len(body) + body
        labels.append(digits.predict("digits", one(row)).json()["predictions"][0]["label"])
    answers = talk(digits, requests).split(b"\r\n\r\n")[1:]
    found = [json.loads(a.split(b"HTTP/1.1")[0])["predictions"][0]["label"] for a in answers]
    assert found == labels


def test_a_large_body_does_not_hold_up_the_others(digits: Running) -> None:
    """While 9 MB of JSON are read, small requests are answered; then the large one is, too."""
    rows = b"[" + b",".join([json.dumps(ROW).encode()] * 30_000) + b"]"
    large = b'{"instances":' + rows + b"}"
    with socket.create_connection(("127.0.0.1", digits.port), timeout=60) as link:
        link.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(large) + large)
        answered = 0
        link.setblocking(False)
        while True:
            try:
                first = link.recv(65536)
                break
            except BlockingIOError:
                # Answered at once, if only that the large request's rows fill the queue.
                assert digits.predict("digits", one(ROW)).status in (200, 429)
                answered += 1
        assert first.startswith(b"HTTP/1.1 200")
        assert answered > 0


def test_sigterm_answers_everything_that_was_pipelined(tmp_path: Path) -> None:
    mserve.export(DIGITS, tmp_path / "digits")
    with serving(tmp_path / "digits", tmp_path / "log", "--batch-delay", "300") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as link:
            link.sendall(PLAIN * 5)
            server.wait_until(
                lambda: b'in_flight{model="digits",version="1"} 5.0' in server.get("/metrics").body
            )
            server.process.send_signal(signal.SIGTERM)
            received = b""
            while chunk := link.recv(65536):
                received += chunk
        assert received.count(b"HTTP/1.1 200") == 5
        assert received.count(b"Connection: close") == 1
        assert server.process.wait(timeout=20) == 0


# Files that are none


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("device", ["fifo", "/dev/zero"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "{f}", "{t}/b"],
        ["export", str(DIGITS), "{t}/b", "--golden", "{f}"],
        ["export", str(DIGITS), "{t}/b", "--signatures", "{f}"],
        ["run", "{t}/m", "--inputs", "{f}"],
        ["bench", "{t}/m", "--inputs", "{f}"],
        ["inspect", "{f}"],
    ],
    ids=lambda a: " ".join(a[:1] + a[-2:-1]),
)
def test_what_is_not_a_file_is_refused_at_once(
    tmp_path: Path, fifo: Path, device: str, arguments: list[str]
) -> None:
    mserve.export(DIGITS, tmp_path / "m")
    path = fifo if device == "fifo" else Path(device)
    done = run(*(a.format(f=path, t=tmp_path) for a in arguments))
    assert done.returncode in (2, 3), done.stderr
    assert str(path) in done.stderr


def test_a_fifo_among_the_versions_holds_up_nobody(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    os.mkfifo(tmp_path / "m" / ".tmp-x")
    assert run("export", DIGITS, tmp_path / "m").returncode == 0


# Output that cannot be written, text that cannot be encoded


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    python = f"{sys.executable} -m mserve"
    return subprocess.run(
        ["sh", "-c", command.replace("mserve", python, 1)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


def test_a_full_output_device_is_the_environment(tmp_path: Path) -> None:
    mserve.export(DIGITS, tmp_path / "m")
    done = shell(f"mserve list {tmp_path / 'm'} --json >/dev/full")
    assert done.returncode == 4, done.stderr
    assert "output cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_output_swallows(tmp_path: Path) -> None:
    mserve.export(DIGITS, tmp_path / "m")
    done = shell(f"mserve list {tmp_path / 'm'} >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_names_that_the_terminal_lacks_are_escaped(tmp_path: Path) -> None:
    model = builders.mlp()
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "gewicht-ü"
    onnx.save(model, tmp_path / "m.onnx")
    mserve.export(tmp_path / "m.onnx", tmp_path / "m")
    done = shell(f"mserve inspect --weights {tmp_path / 'm'}", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "gewicht-\\xfc" in done.stdout


def test_a_file_that_is_named_in_other_bytes(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/m\xff.onnx"
    with open(path, "wb") as file:
        file.write(DIGITS.read_bytes())
    command = [sys.executable, "-m", "mserve", "export", path, str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# Wrong arguments, and errors as JSON

ARGUMENTS = [
    (["export", str(DIGITS), "{t}/b", "--version", "9" * 5000], 2),
    (["export", str(DIGITS), "{t}/b", "--shard-size", "9" * 5000], 2),
    (["export", str(DIGITS), "{t}/b", "--golden", "9" * 20], 2),
    (["export", str(DIGITS), "{t}/b", "--name", "a/b"], 2),
    (["serve", "{t}/m", "--timeout", "inf"], 2),
    (["serve", "{t}/m", "--batch-delay", "1e300"], 2),
    (["serve", "{t}/m", "--name", "a/b"], 2),
    (["bench", "{t}/m", "--duration", "inf"], 2),
    (["bench", "http://a..b:80"], 2),
    (["bench", "{t}/m", "--concurrency", "100000"], 2),
]


@pytest.mark.parametrize(
    ("arguments", "code"), ARGUMENTS, ids=[" ".join(a[0][:1] + a[0][-2:])[:40] for a in ARGUMENTS]
)
def test_absurd_arguments_are_usage_errors(tmp_path: Path, arguments: list[str], code: int) -> None:
    mserve.export(DIGITS, tmp_path / "m")
    done = run(*(a.format(t=tmp_path) for a in arguments))
    assert done.returncode == code, done.stderr
    assert len(done.stderr) < 3000


def test_errors_are_json_where_that_was_asked_for(tmp_path: Path) -> None:
    done = run("validate", tmp_path / "nope", "--json")
    document = json.loads(done.stdout)
    assert (document["schema"], document["kind"], document["exit_code"]) == (1, "error", 3)
    assert document["error"]["code"] == "not-a-bundle"
    assert document["error"]["message"] == "no such bundle"
    assert document["error"]["where"] == str(tmp_path / "nope")
    assert "no such bundle" in done.stderr


def test_bundles_that_may_not_be_read(tmp_path: Path) -> None:
    """As a user without rights: exit 3 or 4, and the path."""
    if os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    mserve.export(DIGITS, tmp_path / "m")
    version = tmp_path / "m" / "00000001"
    good = tmp_path / "good"
    mserve.export(DIGITS, good)
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_uid == 0 and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o711)
    for spoiled in (version / "export-00000-of-00001", version, tmp_path / "m"):
        mode = spoiled.stat().st_mode
        spoiled.chmod(0)
        for command in ("validate", "inspect", "list"):
            target = version if command != "list" else tmp_path / "m"
            # The first run, with all rights and on a good bundle, reads every module needed.
            code = (
                "import os, sys; from contextlib import redirect_stdout\n"
                "import mserve.cli\n"
                "def run(path):\n"
                "    sys.argv = ['mserve', sys.argv[1], path]\n"
                "    try: mserve.cli.main()\n"
                "    except SystemExit as end: return end.code\n"
                "good, spoiled = sys.argv[2:]\n"
                "assert not run(good); os.setgid(65534); os.setuid(65534); sys.exit(run(spoiled))"
            )
            line = [sys.executable, "-c", code, command, str(good), str(target)]
            done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
            assert "Traceback" not in done.stderr, done.stderr
            # 2: Typer itself refuses a path argument that may not be read.
            assert done.returncode in (0, 1, 2, 3, 4), (command, spoiled, done.stderr)
        spoiled.chmod(mode)


def test_ctrl_c_at_any_time_is_130(tmp_path: Path) -> None:
    """Also while our own modules are still being read.

    What Python does when it is interrupted before our first line is not ours to say, so the
    signal is sent only after that line was reached.
    """
    code = "import mserve.__main__ as m; print('reached', flush=True); m.main()"
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 1.0):
        process = subprocess.Popen(
            [sys.executable, "-c", code, "bench", str(tmp_path), "--duration", "20"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "reached\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        if process.returncode == -2:  # between that line and the first instruction of main
            assert "in main" not in stderr, stderr
        else:  # 3 where it was quick enough to find that the directory holds no version
            assert process.returncode in (130, 3), stderr


def test_good_and_bad_bodies_in_turn(digits: Running) -> None:
    """Nothing of one request is left for the next."""
    assert GOOD
    for _ in range(20):
        assert digits.predict("digits", b"{").status == 400
        answer = digits.predict("digits", one(ROW))
        assert answer.status == 200
        assert np.isclose(sum(answer.json()["predictions"][0]["probabilities"]), 1)
