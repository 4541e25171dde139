"""Damaged requests to a real server, and what such requests once broke.

A short run of the attack that `benchmarks/fuzz_server.py --minutes 30` makes at length.
"""

from __future__ import annotations

import json
import random
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_models
import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_fuzz import Grpc, Http, known, trouble
from server_tools import Running, serving

import mserve
from mserve.wire.messages import message


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("fuzz")
    with serving(fuzz_models.publish(root / "models"), root / "log") as running:
        yield running


def answers(server: Running) -> list[tuple[str, int, bytes]]:
    """The answers to good requests."""

    def ask(method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        answer = server.ask(method, path, body)
        return answer.status, answer.body

    return list(known(ask))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_damaged_requests_over_http(server: Running, seed: int) -> None:
    seen: Counter[str] = Counter()
    Http(server, random.Random(seed), seen).round(20)
    assert seen
    assert not trouble(server.log())


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_damaged_messages_over_grpc(server: Running, seed: int) -> None:
    seen: Counter[str] = Counter()
    attack = Grpc(server, random.Random(seed), seen)
    attack.round(20)
    attack.close()
    assert seen.total() == 20
    assert not trouble(server.log())


def test_good_requests_are_answered_as_before_an_attack(server: Running) -> None:
    before = answers(server)
    assert {status for _, status, _ in before} == {200}
    Http(server, random.Random(1), Counter()).round(40)
    assert answers(server) == before


# What was found


def infer(model: str, *inputs: Any, **more: Any) -> tuple[str, bytes]:
    return f"/v2/models/{model}/infer", json.dumps({"inputs": inputs, **more}).encode()


def tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> Any:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


CLASSES = [{"name": "row", "parameters": {"classification": 1}}]
LONE = b'{"signature_name":"words","instances":["\\ud800"],"x":NaN}'
FOUND = [
    ("no rows, as classes", *infer("pick", tensor("index", "INT64", [0], []), outputs=CLASSES), 200, "[0,1]"),
    ("an index out of range", "/v1/models/pick:predict", b'{"instances":[10]}', 400, "refuses these inputs"),
    ("half a character beside NaN", "/v1/models/flowers:predict", LONE, 400, "not valid JSON"),
]


@pytest.mark.parametrize(("why", "path", "body", "status", "said"), FOUND, ids=[f[0] for f in FOUND])
def test_what_was_once_a_server_error(
    server: Running, why: str, path: str, body: bytes, status: int, said: str
) -> None:
    answer = server.ask("POST", path, body)
    assert (answer.status, said in answer.body.decode()) == (status, True), (why, answer.body)
    assert not trouble(server.log())


def test_an_index_out_of_range_is_the_clients_over_grpc_too(server: Running) -> None:
    request = message("inference.ModelInferRequest")(model_name="pick")
    request.inputs.add(name="index", datatype="INT64", shape=[1]).contents.int64_contents.append(10)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(request.SerializeToString(), timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_rows_without_elements_do_not_overflow_the_counters(tmp_path: Path) -> None:
    """Rows of no elements cost nothing; the sum of a few requests' rows was more than statistics can hold."""
    from builders import model
    from onnx import TensorProto, helper

    ports = [(name, TensorProto.BOOL, ["N", "M"]) for name in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    servable = mserve.load(mserve.export(model([node], ports[:1], ports[1:]), tmp_path / "m").path)
    with pytest.raises(mserve.errors.RequestError, match="too many rows"):
        servable.run({"x": np.empty((2**60, 0), bool)})


def exchange(server: Running, data: bytes) -> bytes:
    """What the server says to bytes behind which the client says no more."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as link:
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := link.recv(65536):
            received += chunk
        return received


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %s HTTP/1.1" % path, b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_offers_to_upgrade_without_end_are_all_declined(server: Running) -> None:
    """Each was read again by a call inside the call for the one before it."""
    offer = b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n"
    assert exchange(server, offer * 2500).count(b"HTTP/1.1 200") == 2500


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose answers take a while, and which holds few bytes of bodies."""
    root = tmp_path_factory.mktemp("slow")
    mserve.export(fuzz_models.pick(), root / "pick")
    (root / "mserve.toml").write_text(
        '[models.pick]\nbase_path = "pick"\n[limits]\nbody = 1000000\nbuffered = 2000000\n'
        "[batching]\ndelay_ms = 500\n"
    )
    with serving(f"--config={root / 'mserve.toml'}", root / "log") as running:
        yield running


PICK = post(b"/v1/models/pick:predict", b'{"instances":[1]}')
LAST = PICK.replace(b"Host: x", b"Connection: close")
BEHIND = [
    ("garbage behind slow requests", PICK * 3 + b"\0garbage\r\n\r\n", 3, 1),
    ("a slow request to close behind a slow one", PICK + LAST, 2, 0),
    ("a request behind one to close", LAST + PICK, 1, 1),
]


@pytest.mark.parametrize(("why", "data", "good", "bad"), BEHIND, ids=[b[0] for b in BEHIND])
def test_what_was_accepted_is_answered_before_the_connection_closes(
    slow: Running, why: str, data: bytes, good: int, bad: int
) -> None:
    received = exchange(slow, data)
    assert received.count(b"HTTP/1.1 200") == good, why
    assert received.count(b"HTTP/1.1 400") <= bad
    assert not trouble(slow.log())


def test_a_client_that_leaves_does_not_widen_the_budget_of_bodies(slow: Running) -> None:
    """A body behind an unanswered request was given back when it was answered, and again at the end."""
    junk = post(b"/v1/models/pick:predict", b"x" * 200_000)
    for _ in range(30):
        with socket.create_connection(("127.0.0.1", slow.port), timeout=30) as link:
            link.sendall(PICK + junk)
            time.sleep(0.03)  # the second request is answered, behind the first, which is not
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    head = b"POST /v1/models/pick:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n"
    links = [socket.create_connection(("127.0.0.1", slow.port), timeout=10) for _ in range(6)]
    try:
        for link in links:
            link.sendall(head + b"x" * 900_000)
        slow.wait_until(lambda: len(_readable(links)) == 4)  # two fit; which ones is chance
        assert {link.recv(12) for link in _readable(links)} == {b"HTTP/1.1 429"}
    finally:
        for link in links:
            link.close()


def _readable(links: list[socket.socket]) -> list[socket.socket]:
    return select.select(links, [], [], 0)[0]
