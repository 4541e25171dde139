"""The flight recorder: where the time of one request went. A real server, and the command."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import builders
import grpc
import pytest
from server_tools import Running, serving

import mserve
from mserve.server import recorder
from mserve.wire.messages import message

CONFIG = """
[models.digits]
base_path = "digits"
[batching]
delay_ms = 300
max_batch = 8
allowed_batch = [4, 8]
"""
ROW = [0.5] * 784


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("explain")
    mserve.export(builders.mlp(), root / "digits", version=3)
    (root / "mserve.toml").write_text(CONFIG)
    with serving(f"--config={root / 'mserve.toml'}", root / "log") as running:
        yield running


def send(server: Running, request_id: str, rows: int = 1) -> int:
    body = json.dumps({"instances": [ROW] * rows}).encode()
    path = "/v1/models/digits:predict"
    return server.ask("POST", path, body, {"x-request-id": request_id}).status


def explain(server: Running, request_id: str, *options: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "mserve", "explain", server.url, request_id, *options]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def page(server: Running, request_id: str) -> dict[str, Any]:
    answer = server.get(f"/debug/requests/{request_id}")
    assert answer.status == 200, answer.body
    return answer.json()  # type: ignore[no-any-return]


def test_a_request_that_waited_for_the_delay(server: Running) -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda n: send(server, f"late-{n}"), range(3))) == [200] * 3
    pages = [page(server, f"late-{n}") for n in range(3)]
    for found in pages:
        (batch,) = found["batches"]
        assert (found["model"], found["version"], found["protocol"], found["code"]) == (
            "digits",
            3,
            "tfs-rest",
            "200",
        )
        assert batch["closed"] == "due"
        assert batch["rows"] + batch["padding"] == 4
        assert batch["requests"] == len(batch["members"]) == batch["rows"]
        phases = sum(found["ms"][p] for p in ("parse", "queue", "compute", "encode"))
        assert phases == pytest.approx(found["ms"]["total"], abs=0.01)
        assert found["ms"]["compute"] == pytest.approx(batch["took_ms"], abs=0.01)
    assert max(p["ms"]["queue"] for p in pages) >= 300


def test_the_command_says_it_in_words(server: Running) -> None:
    assert send(server, "full/up", 8) == 200
    done = explain(server, "full/up")
    assert done.returncode == 0, done.stderr
    assert "digits version 3 serving_default over tfs-rest: 200" in done.stderr
    phases = {line.split("\t")[0]: line.split("\t") for line in done.stdout.splitlines()}
    assert list(phases) == ["parse", "queue", "compute", "encode", "total"]
    assert "1 requests, 8 rows; closed because it was full; ran " in phases["compute"][2]
    document = json.loads(explain(server, "full/up", "--json").stdout)
    assert document["kind"] == "explain"
    assert document["request_id"] == "full/up"


def test_a_request_in_parts_and_one_that_failed(server: Running) -> None:
    assert send(server, "large", 20) == 200
    found = page(server, "large")
    assert (found["rows"], [b["rows"] for b in found["batches"]]) == (20, [4])
    server.ask("POST", "/v1/models/digits:predict", b'{"instances": [[1]]}', {"x-request-id": "bad"})
    failed = page(server, "bad")
    assert (failed["code"], failed["batches"]) == ("400", [])
    assert "wrong shape" in failed["error"]
    assert "400 (input 'x' has the wrong shape)" in explain(server, "bad").stderr


def test_a_call_over_grpc(server: Running) -> None:
    request = message("inference.ModelInferRequest")()
    request.model_name = "digits"
    tensor = request.inputs.add()
    tensor.name, tensor.datatype = "x", "FP32"
    tensor.shape.extend([1, 784])
    request.raw_input_contents.append(bytes(4 * 784))
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        call(request.SerializeToString(), metadata=(("x-request-id", "rpc-1"),), timeout=30)
    found = page(server, "rpc-1")
    assert (found["protocol"], found["code"], found["rows"]) == ("oip-grpc", "OK", 1)


def test_what_the_server_does_not_remember(server: Running) -> None:
    done = explain(server, "nobody")
    assert done.returncode == 3
    assert "does not remember" in done.stderr


def test_the_last_batches(server: Running) -> None:
    """In the order in which they ended, the last first: numbers are given as they start."""
    assert send(server, "any", 8) == 200
    batches = server.get("/debug/batches").json()["batches"]
    numbers = [b["batch"] for b in batches]
    assert numbers[0] == max(numbers)
    assert len(set(numbers)) == len(numbers)
    assert {"closed", "members", "padding", "run_ms", "thread"} <= batches[0].keys()
    assert len(batches) <= recorder.BATCHES


def test_memory_is_bounded() -> None:
    """Ids and batches without end: the youngest are kept."""

    class Call:
        protocol, model, signature, parsed_ns = "p", "m", "s", 1
        entries = ()

        def __init__(self, request_id: str) -> None:
            self.context = type("Context", (), {"request_id": request_id, "start_ns": 0})()

        def code(self, _: object) -> str:
            return "200"

    kept = recorder.Recorder()
    for number in range(recorder.REQUESTS + 10):
        kept.on_call(Call(f"r{number}"), None, 2)  # type: ignore[arg-type]
    kept.on_call(Call("r10"), None, 3)  # type: ignore[arg-type]
    assert kept.explain("r9") is None
    assert kept.explain("r10") is not None
    assert len(kept._answered) == recorder.REQUESTS


def test_of_several_processes_the_one_that_answered_remembers(tmp_path: Path) -> None:
    mserve.export(builders.mlp(), tmp_path / "digits", version=3)
    with serving(tmp_path / "digits", tmp_path / "log", "--processes", "2") as server:
        for number in range(6):  # on connections of their own, so that both have some
            assert send(server, f"r{number}") == 200
        for number in range(6):
            assert page(server, f"r{number}")["version"] == 3
        assert server.get("/debug/requests/nobody").status == 404
        assert len(server.get("/debug/batches").json()["batches"]) == 6
