"""The server as clients meet it: a real process, a real socket."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from server_tools import Running, serving

import mserve

SAMPLES = Path(__file__).parent.parent / "samples"
DIGITS = SAMPLES / "digits" / "digits.onnx"
HELD_OUT = json.loads((SAMPLES / "digits" / "heldout.json").read_bytes())


def constant_model(value: float, rows: str | int = "N") -> onnx.ModelProto:
    """y = 0 * x + value: answers say which version gave them."""
    nodes = [helper.make_node("Mul", ["x", "zero"], ["z"]), helper.make_node("Add", ["z", "value"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 2])],
        [numpy_helper.from_array(np.float32(0), "zero"), numpy_helper.from_array(np.float32(value), "value")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("digits")
    mserve.export(DIGITS, root / "digits")
    with serving(root / "digits", root / "log", "--max-body", "1MiB") as server:
        yield server


def one(value: object) -> dict[str, object]:
    return {"instances": [value]}


ROW = HELD_OUT["instances"][0]

BAD_REQUESTS = [
    ("text that is not JSON", b"{nope", 400, ["not valid JSON", "byte"]),
    ("an empty body", b"", 400, ["not valid JSON"]),
    ("JSON that is not an object", b"[1,2]", 400, ["not a JSON object", "a list"]),
    ("neither instances nor inputs", b"{}", 400, ["exactly one of", "neither"]),
    ("both instances and inputs", {"instances": [ROW], "inputs": [ROW]}, 400, ["exactly one of", "both"]),
    ("a wrong input name", {"inputs": {"pixel": [ROW]}}, 400, ["missing 'pixels'", "unknown 'pixel'"]),
    ("a wrong input name in a row", one({"pixel": ROW}), 400, ["instance 0", "unknown 'pixel'"]),
    ("too few values in a row", one(ROW[:-1]), 400, ["'pixels'", "[batch, 64]", "[1, 63]"]),
    ("one nesting level too few", {"instances": ROW}, 400, ["'pixels'", "[batch, 64]", "[64]"]),
    ("one nesting level too many", one([ROW]), 400, ["'pixels'", "[1, 1, 64]"]),
    ("rows of different lengths", {"instances": [ROW, ROW[:3]]}, 400, ["ragged", "a list of 3"]),
    ("a string among numbers", one(["a", *ROW[1:]]), 400, ["float32", '"a" (a string)']),
    ("a boolean among numbers", one([True, *ROW[1:]]), 400, ["float32", "a boolean"]),
    ("null among numbers", one([None, *ROW[1:]]), 400, ["float32", "null"]),
    (
        "an unknown signature",
        {"signature_name": "x", **one(ROW)},
        400,
        ["signature", '"x"', "serving_default"],
    ),
    ("a signature name that is no string", {"signature_name": 1, **one(ROW)}, 400, ["signature_name"]),
    ("a million brackets", b'{"instances":' + b"[" * 1_000_000, 400, ["not valid JSON"]),
    ("a hundred levels of nesting", b'{"instances":' + b"[" * 100 + b"]" * 100 + b"}", 400, ["too deeply"]),
    ("a body over the limit", b" " * (1 << 20) + b"{}", 413, ["too large", "1048576"]),
]


@pytest.mark.parametrize(
    ("what", "request_body", "status", "parts"), BAD_REQUESTS, ids=[r[0] for r in BAD_REQUESTS]
)
def test_bad_request(digits: Running, what: str, request_body: object, status: int, parts: list[str]) -> None:
    """Each is answered with its reason, and the next good request is answered as if nothing had been."""
    answer = digits.predict("digits", request_body)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
    assert set(answer.json()) == {"error"}
    for part in parts:
        assert part in answer.error, (what, answer.error)
    assert digits.predict("digits", one(ROW)).status == 200


PAGES = [
    (
        "an unknown model",
        "POST",
        "/v1/models/nope:predict",
        404,
        "Servable not found for request: Latest(nope)",
    ),
    ("an unknown version", "POST", "/v1/models/digits/versions/7:predict", 404, "Specific(digits, 7)"),
    ("a version beyond int64", "POST", f"/v1/models/digits/versions/{2**63}:predict", 400, "to numeric"),
    ("a huge version number", "GET", f"/v1/models/digits/versions/{'9' * 5000}", 400, "to numeric"),
    ("an unknown label", "POST", "/v1/models/digits/labels/canary:predict", 400, "label: canary"),
    ("an unknown verb", "POST", "/v1/models/digits:sing", 404, ":sing"),
    ("GET on a call", "GET", "/v1/models/digits:predict", 405, "POST"),
    ("POST on a page", "POST", "/v1/models/digits/metadata", 405, "GET"),
    ("PUT on a model", "PUT", "/v1/models/digits", 405, "GET"),
    ("an unknown page", "GET", "/v1/models/digits/secrets", 404, "/v1/models/digits/secrets"),
    ("no such path", "GET", "/nowhere", 404, "/nowhere"),
    ("status of an unknown version", "GET", "/v1/models/digits/versions/9", 404, "Could not find version 9"),
    ("status of an unknown model", "GET", "/v1/models/nope", 404, "nope"),
    ("a path of parent directories", "GET", "/v1/models/../../etc/passwd", 404, "no such page"),
]


@pytest.mark.parametrize(("what", "method", "path", "status", "part"), PAGES, ids=[p[0] for p in PAGES])
def test_wrong_address(digits: Running, what: str, method: str, path: str, status: int, part: str) -> None:
    answer = digits.ask(method, path, b"{}" if method != "GET" else None)
    assert answer.status == status, what
    assert part in answer.error


def test_predictions_are_those_of_the_original_model(digits: Running) -> None:
    """Row form, column form, named and bare inputs give what ONNX Runtime gives on the source file."""
    import onnxruntime as ort

    pixels = np.array(HELD_OUT["instances"], np.float32)
    expected = ort.InferenceSession(DIGITS).run(None, {"pixels": pixels})
    rows = digits.predict("digits", {"instances": HELD_OUT["instances"]}).json()["predictions"]
    named = digits.predict("digits", {"instances": [{"pixels": r} for r in HELD_OUT["instances"]]}).json()
    columns = digits.predict("digits", {"inputs": {"pixels": HELD_OUT["instances"]}}).json()["outputs"]
    bare = digits.predict("digits", {"inputs": HELD_OUT["instances"]}).json()["outputs"]
    assert named["predictions"] == rows
    assert bare == columns
    for got in ([r["probabilities"] for r in rows], columns["probabilities"]):
        assert np.array_equal(np.array(got, np.float32), expected[0])
    assert [r["label"] for r in rows] == columns["label"] == expected[1].tolist()
    right = sum(a == b for a, b in zip(columns["label"], HELD_OUT["labels"], strict=True))
    assert right >= 48


def test_no_rows_give_no_predictions(digits: Running) -> None:
    answer = digits.predict("digits", {"inputs": {"pixels": np.empty((0, 64)).tolist()}})
    assert answer.status == 400  # an empty list does not say that its rows have 64 values
    assert "[0]" in answer.error


def test_status_metadata_and_list(digits: Running) -> None:
    status = digits.get("/v1/models/digits").json()
    entry = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert status == {"model_version_status": [entry]}
    assert digits.get("/v1/models/digits/versions/1").json() == status
    assert digits.get("/v1/models").json() == {"models": [{"name": "digits", **status}]}
    metadata = digits.get("/v1/models/digits/metadata").json()
    assert metadata["model_spec"] == {"name": "digits", "signature_name": "", "version": "1"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["pixels"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {
            "dim": [{"size": "-1", "name": "batch"}, {"size": "64", "name": ""}],
            "unknown_rank": False,
        },
        "name": "pixels",
    }
    assert signature["outputs"]["label"]["dtype"] == "DT_INT64"


def test_the_example_page_can_be_posted(digits: Running) -> None:
    example = digits.get("/v1/models/digits/example")
    answer = digits.predict("digits", example.body)
    assert answer.status == 200
    assert answer.headers["mserve-model-version"] == "1"


def test_the_last_line_of_the_start_up_message_works_when_pasted(digits: Running) -> None:
    digits.wait_until(lambda: "curl" in digits.log())
    line = next(line for line in digits.log().splitlines() if line.strip().startswith("curl"))
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=30, check=True)
    assert "predictions" in json.loads(done.stdout)
    assert shlex.split(line)[0] == "curl"


def test_metrics_count_requests_and_batches(digits: Running) -> None:
    def values() -> dict[str, float]:
        lines = digits.get("/metrics").body.decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}

    before = values()
    for _ in range(5):
        digits.predict("digits", {"instances": HELD_OUT["instances"][:3]})
    digits.predict("digits", b"{}")
    after = values()

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0)

    labels = '{model="digits",version="1"}'
    series = 'model="digits",protocol="tfs-rest",signature="serving_default",version="1"'
    assert grew(f'mserve_requests_total{{code="200",{series}}}') == 5
    nothing = series.replace("serving_default", "")
    assert grew(f'mserve_requests_total{{code="400",{nothing}}}') == 1
    assert grew(f"mserve_request_seconds_count{{{series}}}") == 5
    for phase in ("parse", "queue", "compute", "encode"):
        assert grew(f'mserve_phase_seconds_count{{model="digits",phase="{phase}",{series[15:]}}}') == 5
    assert grew(f"mserve_batch_rows_sum{labels}") == 15
    assert grew(f"mserve_batch_rows_count{labels}") == 5
    assert after[f"mserve_in_flight{labels}"] == 0


def exchange(server: Running, data: bytes, pause_s: float = 0.0) -> bytes:
    """Send raw bytes, one by one if a pause is given, and read until the server is done."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as link:
        for piece in [data] if not pause_s else [data[i : i + 1] for i in range(len(data))]:
            link.sendall(piece)
            time.sleep(pause_s)
        link.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := link.recv(65536):
            received += chunk
    return received


GOOD = json.dumps(one(ROW)).encode()
POST = b"POST /v1/models/digits:predict HTTP/1.1\r\nHost: x\r\n"
PLAIN = POST + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD
CHUNKED = (
    POST
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"%x\r\n%s\r\n" % (len(GOOD[i : i + 50]), GOOD[i : i + 50]) for i in range(0, len(GOOD), 50))
    + b"0\r\n\r\n"
)

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk"

FRAMINGS = [
    ("one request", PLAIN, [b"200"]),
    ("a chunked body", CHUNKED, [b"200"]),
    ("forty pipelined requests", PLAIN * 40, [b"200"] * 40),
    (
        "a bad request between good ones",
        PLAIN + PLAIN.replace(b"instances", b"instancez") + PLAIN,
        [b"200", b"400", b"200"],
    ),
    (
        "Connection: close ends after its answer",
        PLAIN.replace(b"Host: x", b"Connection: close") + PLAIN,
        [b"200"],
    ),
    ("HTTP/1.0", PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"), [b"200"]),
    ("Expect: 100-continue", PLAIN.replace(b"Host: x", b"Expect: 100-continue"), [b"100", b"200"]),
    ("garbage", b"\x16\x03\x01\x02\x00\x01\x00", [b"400"]),
    ("two content lengths", POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", [b"400"]),
    ("a negative content length", POST + b"Content-Length: -5\r\n\r\n", [b"400"]),
    (
        "length and chunked together",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        [b"400"],
    ),
    ("40 KB of headers", POST + b"X: " + b"a" * 40_000 + b"\r\n\r\n", [b"431"]),
    (
        "a thousand headers",
        POST + b"X-%d: %s\r\n" * 1000 % tuple(v for i in range(1000) for v in (i, b"a" * 30)) + b"\r\n",
        [b"431"],
    ),
    ("an offer to upgrade is declined", PLAIN.replace(b"Host: x", OFFER) + PLAIN, [b"200", b"200"]),
    ("an announced body over the limit", POST + b"Content-Length: 99999999\r\n\r\n", [b"413"]),
    ("a compressed body", POST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", [b"415"]),
]


@pytest.mark.parametrize(("what", "data", "statuses"), FRAMINGS, ids=[f[0] for f in FRAMINGS])
def test_framing(digits: Running, what: str, data: bytes, statuses: list[bytes]) -> None:
    received = exchange(digits, data)
    found = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert found == statuses, (what, received[:2000])


@pytest.mark.parametrize("size", [20_000, 32_768, 40_000, 100_000, 300_000, 900_000])
@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_large_bodies_leave_the_connection_usable(digits: Running, size: int, pieces: int) -> None:
    """Several requests on one connection, sent whole or in pieces: each is answered, and nothing else."""
    body = GOOD + b" " * (size - len(GOOD))
    request = POST + b"Content-Length: %d\r\n\r\n" % size + body
    with socket.create_connection(("127.0.0.1", digits.port), timeout=10) as link:
        for _ in range(4):
            step = -(-len(request) // pieces)
            for at in range(0, len(request), step):
                link.sendall(request[at : at + step])
                time.sleep(0.002 if pieces > 1 else 0)
            received = b""
            while not received.endswith(b"]}"):
                received += link.recv(65536)
            assert received.count(b"HTTP/1.1") == 1
            assert received.startswith(b"HTTP/1.1 200")


def test_a_head_in_pieces_is_limited(digits: Running) -> None:
    """Also behind a large request, and when no line of it ever ends."""
    with socket.create_connection(("127.0.0.1", digits.port), timeout=10) as link:
        link.sendall(PLAIN)
        assert link.recv(65536).startswith(b"HTTP/1.1 200")
        for _ in range(30):
            link.sendall(b"GET /" + b"a" * 8192 if _ == 0 else b"a" * 8192)
            time.sleep(0.001)
            link.settimeout(0.01)
            try:
                answer = link.recv(65536)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 431")


def test_a_request_in_single_bytes_is_put_together(digits: Running) -> None:
    assert exchange(digits, PLAIN, pause_s=0.0002).startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_disturbs_nobody(digits: Running) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", digits.port)) as link:
            link.sendall(PLAIN[: len(PLAIN) // 2])
        with socket.create_connection(("127.0.0.1", digits.port)) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            link.sendall(PLAIN)
    assert digits.predict("digits", one(ROW)).status == 200
    digits.wait_until(
        lambda: b'mserve_in_flight{model="digits",version="1"} 0.0' in digits.get("/metrics").body
    )


def test_a_client_that_never_reads_is_not_read_from(digits: Running) -> None:
    """Its requests stop being accepted instead of filling the server's memory with answers."""
    with socket.create_connection(("127.0.0.1", digits.port)) as link:
        link.settimeout(1.0)
        sent = 0
        try:
            while sent < 1 << 26:
                sent += link.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        except TimeoutError:
            pass
        assert sent < 1 << 26
        assert digits.predict("digits", one(ROW)).status == 200


# Versions


def publish(base: Path, value: float, version: int | str = "auto") -> Path:
    return mserve.export(constant_model(value), base, version=version).path


X = {"instances": [[1.0, 2.0]]}


def test_ten_thousand_requests_while_three_versions_are_published(tmp_path: Path) -> None:
    """No request fails, each answer comes from exactly one version, the newest serves at the end."""
    base = tmp_path / "constant"
    publish(base, 1.0)
    with serving(base, tmp_path / "log") as server:
        answers: Counter[tuple[int, str, str]] = Counter()
        lock = threading.Lock()
        left = iter(range(10_000))

        def client() -> None:
            import http.client

            link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            body = json.dumps(X)
            for _ in left:
                link.request("POST", "/v1/models/constant:predict", body)
                response = link.getresponse()
                key = (response.status, response.headers["mserve-model-version"], response.read().decode())
                with lock:
                    answers[key] += 1
            link.close()

        threads = [threading.Thread(target=client) for _ in range(16)]
        for thread in threads:
            thread.start()
        for value in (2.0, 3.0, 4.0):
            enough = sum(answers.values()) + 1000
            server.wait_until(lambda n=enough: sum(answers.values()) > n)
            publish(base, value)
            server.wait_until(lambda v=value: server.version("constant") == str(int(v)))
        for thread in threads:
            thread.join()
        assert server.version("constant") == "4"
        assert sum(answers.values()) == 10_000
        for status, version, body in answers:
            assert status == 200
            assert json.loads(body) == {"predictions": [[float(version), float(version)]]}
        assert {version for _, version, _ in answers} == {"1", "2", "3", "4"}
        server.wait_until(
            lambda: (
                [v["state"] for v in server.get("/v1/models/constant").json()["model_version_status"]]
                == ["AVAILABLE", "END", "END", "END"]
            )
        )


def test_a_version_that_arrives_slowly_waits_until_it_is_complete(tmp_path: Path) -> None:
    """Copied file by file, in pieces and in any order, it is waiting with its reason, then served."""
    base, other = tmp_path / "constant", tmp_path / "other"
    publish(base, 1.0)
    source = publish(other, 2.0, version=2)
    files = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    with serving(base, tmp_path / "log") as server:
        target = base / "2"
        target.mkdir()

        def status() -> dict[str, object]:
            found = server.get("/v1/models/constant").json()["model_version_status"]
            return next((v for v in found if v["version"] == "2"), {"state": None})

        server.wait_until(lambda: status()["state"] == "START")
        for name in reversed(files):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            data = (source / name).read_bytes()
            with (target / name).open("wb") as file:
                for at in range(0, len(data), max(1, len(data) // 3)):
                    assert server.predict("constant", X).headers["mserve-model-version"] == "1"
                    file.write(data[at : at + max(1, len(data) // 3)])
                    file.flush()
                    time.sleep(0.15)
            seen = status()
            assert name == files[0] or seen["state"] == "START", seen
        server.wait_until(lambda: server.version("constant") == "2")
        assert server.predict("constant", X).json() == {"predictions": [[2.0, 2.0]]}


def test_a_broken_newest_version_leaves_the_older_one_serving(tmp_path: Path) -> None:
    base = tmp_path / "constant"
    publish(base, 1.0)
    broken = publish(base, 2.0)
    meta = broken / "export.meta"
    meta.chmod(0o644)
    meta.write_bytes(meta.read_bytes().replace(b"mserve.shards", b"mserve.shardz"))
    with serving(base, tmp_path / "log") as server:
        assert server.predict("constant", X).json() == {"predictions": [[1.0, 1.0]]}
        newest = server.get("/v1/models/constant").json()["model_version_status"][0]
        assert newest["version"] == "2"
        assert "changed after it was written" in newest["status"]["error_message"]
        publish(base, 3.0)
        server.wait_until(lambda: server.version("constant") == "3")


def test_nothing_to_serve_is_said_and_mended_without_a_restart(tmp_path: Path) -> None:
    base = tmp_path / "constant"
    base.mkdir()
    with serving(base, tmp_path / "log", ready=False) as server:
        server.wait_until(lambda: "nothing to serve yet" in server.log())
        assert server.get("/livez").status == 200
        assert server.get("/readyz").status == 503
        assert "holds no version yet" in server.get("/readyz").body.decode()
        answer = server.predict("constant", X)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "holds no version yet" in answer.error
        publish(base, 1.0)
        server.wait_ready()
        assert server.predict("constant", X).status == 200
        server.wait_until(lambda: "curl" in server.log())


def test_an_emptied_base_path_keeps_the_last_good_version(tmp_path: Path) -> None:
    base = tmp_path / "constant"
    publish(base, 1.0)
    with serving(base, tmp_path / "log") as server:
        shutil.rmtree(base)
        server.wait_until(lambda: "keeping what is loaded" in server.log())
        assert server.predict("constant", X).json() == {"predictions": [[1.0, 1.0]]}
        assert "problem" in server.get("/v1/models/constant").json()


def test_a_version_replaced_under_its_number_is_reported_and_not_picked_up(tmp_path: Path) -> None:
    base = tmp_path / "constant"
    path = publish(base, 1.0)
    with serving(base, tmp_path / "log") as server:
        shutil.rmtree(path)
        shutil.copytree(publish(tmp_path / "other", 2.0), path)

        def message() -> str:
            return server.get("/v1/models/constant").json()["model_version_status"][0]["status"][
                "error_message"
            ]

        server.wait_until(lambda: "changed under this version's number" in message())
        assert server.predict("constant", X).json() == {"predictions": [[1.0, 1.0]]}


@pytest.mark.parametrize("name", ["export.meta", "export-00000-of-00001"])
def test_a_file_overwritten_in_place_is_reported(tmp_path: Path, name: str) -> None:
    """The answers of a small model do not change: its weights were read when it was loaded."""
    base = tmp_path / "digits"
    file = mserve.export(DIGITS, base).path / name
    with serving(base, tmp_path / "log") as server:
        before = server.predict("digits", one(ROW)).body
        file.chmod(0o644)
        with file.open("r+b") as target:
            target.write(bytes(file.stat().st_size))

        def message() -> str:
            status = server.get("/v1/models/digits").json()["model_version_status"]
            return str(status[0]["status"]["error_message"])

        server.wait_until(lambda: "changed under this version's number" in message())
        assert server.predict("digits", one(ROW)).body == before


def test_a_directory_of_base_paths_serves_them_all(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        publish(tmp_path / "models" / name, value)
    with serving(tmp_path / "models", tmp_path / "log") as server:
        for name, value in (("a", 1.0), ("b", 2.0)):
            assert server.predict(name, X).json() == {"predictions": [[value, value]]}
        assert [m["name"] for m in server.get("/v1/models").json()["models"]] == ["a", "b"]


def test_several_of_the_newest_versions(tmp_path: Path) -> None:
    base = tmp_path / "constant"
    for value in (1.0, 2.0, 3.0):
        publish(base, value)
    with serving(base, tmp_path / "log", "--latest", "2") as server:
        server.wait_until(
            lambda: (
                server.get("/v1/models/constant/versions/2").json()["model_version_status"][0]["state"]
                == "AVAILABLE"
            )
        )
        body = json.dumps(X).encode()
        assert server.ask("POST", "/v1/models/constant/versions/2:predict", body).json() == {
            "predictions": [[2.0, 2.0]]
        }
        assert server.ask("POST", "/v1/models/constant/versions/1:predict", body).status == 404


# Stopping


def slow_model() -> onnx.ModelProto:
    """A model that takes some tenths of a second: a chain of large matrix products."""
    size = 1024
    nodes = [helper.make_node("Expand", ["x", "shape"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(12)]
    nodes.append(helper.make_node("ReduceMean", ["m12"], ["y"], keepdims=0, axes=[0, 1]))
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.array([size, size], np.int64), "shape")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_sigterm_finishes_what_was_accepted(tmp_path: Path) -> None:
    """The answers under way arrive, new connections are refused, the exit code is 0."""
    mserve.export(slow_model(), tmp_path / "slow", golden=0)
    with serving(tmp_path / "slow", tmp_path / "log") as server:
        results: list[int] = []

        def client() -> None:
            results.append(server.predict("slow", {"inputs": [[0.001]]}).status)

        threads = [threading.Thread(target=client) for _ in range(6)]
        for thread in threads:
            thread.start()
        server.wait_until(lambda: b'in_flight{model="slow",version="1"} 6.0' in server.get("/metrics").body)
        assert server.stop() == 0
        for thread in threads:
            thread.join()
        assert results == [200] * 6
        with pytest.raises(ConnectionRefusedError):
            server.get("/livez")


def test_a_deadline_is_kept_while_the_model_is_busy(tmp_path: Path) -> None:
    mserve.export(slow_model(), tmp_path / "slow", golden=0)
    with serving(tmp_path / "slow", tmp_path / "log", "--timeout", "0.15") as server:
        threads = [
            threading.Thread(target=server.predict, args=("slow", {"inputs": [[0.001]]})) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        answer = server.predict("slow", {"inputs": [[0.001]]})
        for thread in threads:
            thread.join()
        assert answer.status == 504
        assert "deadline" in answer.error
        assert server.get("/livez").status == 200


def test_a_full_queue_says_so(tmp_path: Path) -> None:
    mserve.export(slow_model(), tmp_path / "slow", golden=0)
    with serving(tmp_path / "slow", tmp_path / "log", "--max-queue", "2") as server:
        statuses: list[tuple[int, str | None]] = []

        def client() -> None:
            answer = server.predict("slow", {"inputs": [[0.001]]})
            statuses.append((answer.status, answer.headers.get("Retry-After")))

        threads = [threading.Thread(target=client) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {(200, None), (429, "1")}


def test_sigint_stops_too(tmp_path: Path) -> None:
    publish(tmp_path / "constant", 1.0)
    with serving(tmp_path / "constant", tmp_path / "log") as server:
        assert server.stop(signal.SIGINT) == 0


# Wrong starts

STARTS = [
    ("a file", ["{model}"], 2, ["mserve export {model}"]),
    ("a version directory", ["{base}/00000001"], 2, ["not a base path", "mserve serve"]),
    ("a taken port", ["{base}", "--port", "{port}"], 4, ["port is taken", "127.0.0.1:{port}", "--port 0"]),
    ("a bad log level", ["{base}", "--log-level", "loud"], 2, ["--log-level"]),
    ("a bad size", ["{base}", "--max-body", "big"], 2, ["--max-body", "big"]),
    ("an address that is not ours", ["{base}", "--host", "192.0.2.1"], 4, ["cannot listen", "192.0.2.1"]),
]


@pytest.mark.parametrize(("what", "arguments", "code", "parts"), STARTS, ids=[s[0] for s in STARTS])
def test_wrong_start(tmp_path: Path, what: str, arguments: list[str], code: int, parts: list[str]) -> None:
    base = tmp_path / "constant"
    publish(base, 1.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"base": base, "model": DIGITS, "port": taken.getsockname()[1]}
        command = [sys.executable, "-m", "mserve", "serve", *(a.format(**names) for a in arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    for part in parts:
        assert part.format(**names) in done.stderr
    assert "Traceback" not in done.stderr


def test_kill_9_leaves_nothing_that_hinders_the_next_start(tmp_path: Path) -> None:
    publish(tmp_path / "constant", 1.0)
    with serving(tmp_path / "constant", tmp_path / "log") as server:
        port = server.port
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with serving(tmp_path / "constant", tmp_path / "log", "--port", str(port)) as server:
        assert server.port == port
        assert server.predict("constant", X).status == 200
