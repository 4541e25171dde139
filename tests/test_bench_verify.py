"""`--verify`: a server that answers fast and wrong is not fast."""

from __future__ import annotations

import asyncio
import json
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import uvloop
from bench_targets_tools import Answers, ask_all, drive, grpcio_server, opened
from bench_tools import run_bench
from hypothesis import given, settings
from hypothesis import strategies as st

from mserve.bench.load.client import SEEN_ANSWER_BYTES, SEEN_VARIANTS, Seen
from mserve.bench.load.connectors import HttpConnector, connector
from mserve.bench.load.recorder import OK, WRONG
from mserve.bench.requests.codecs import CODECS, version_of
from mserve.bench.requests.verify import Checker, difference
from mserve.bench.targets.endpoint import Endpoint
from mserve.errors import MserveError
from mserve.numerics import ATOL
from mserve.wire.messages import message

Y = {"y": np.array([[1.0, 2.0]], np.float32)}


def infer(values: np.ndarray[Any, Any]) -> bytes:
    """A ModelInferResponse."""
    made = message("inference.ModelInferResponse")(model_name="m", model_version="3")
    made.outputs.add(name="y", datatype="FP32", shape=values.shape)
    made.raw_output_contents.append(values.astype(np.float32).tobytes())
    return bytes(made.SerializeToString())


# the comparison


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"y": np.array([[1.0, 2.0]], np.float32)}, ""),
        ({"y": np.array([[1.0, 2.0 + ATOL / 2]], np.float64)}, ""),
        ({"": np.array([[1.0, 2.0]])}, ""),
        ({"y": np.array([[1.0, 2.5]], np.float32)}, "expected 2.0, found 2.5"),
        ({"y": np.array([[1.0, np.nan]], np.float32)}, "found nan"),
        ({"y": np.array([1.0, 2.0], np.float32)}, "shape [2], not [1, 2]"),
        ({"z": np.array([[1.0, 2.0]], np.float32)}, "'y' is missing: the answer has 'z'"),
        ({}, "is missing"),
        ({"y": np.array([["a", "b"]], object)}, "string, not float32"),
    ],
)
def test_outputs_are_compared_within_tolerances(found: Any, text: str) -> None:
    said = difference(Y, found)
    assert (said == "") == (text == "")
    assert text in said


def test_whole_numbers_and_text_must_be_equal() -> None:
    ids = {"i": np.array([1, 2**53 + 1]), "t": np.array(["a", "b"], object)}
    assert difference(ids, {"i": np.array([1, 2**53 + 1]), "t": np.array(["a", "b"], object)}) == ""
    assert "expected 9007199254740993" in difference(ids, {**ids, "i": np.array([1, 2**53])})
    assert "expected b, found c" in difference(ids, {**ids, "t": np.array(["a", "c"], object)})
    assert "float64, not int64" in difference({"i": np.array([1])}, {"i": np.array([1.5])})


@pytest.mark.parametrize("protocol", CODECS)
@given(data=st.binary(max_size=300), header=st.none() | st.binary(max_size=5))
@settings(max_examples=100, deadline=None)
def test_an_answer_of_any_bytes_is_read_or_called_wrong(
    protocol: str, data: bytes, header: bytes | None
) -> None:
    said = Checker(protocol, [Y])(0, data, header)
    assert said, "bytes that were drawn are not the expected answer"
    assert version_of(data) is not None
    with suppress(MserveError):
        CODECS[protocol].decode(data, header)


@pytest.mark.parametrize(
    ("protocol", "body", "header"),
    [
        ("tfs", b'{"predictions": [[1.0, 2.0]]}', None),
        ("tfs", b'{"outputs": [[1, 2]]}', None),
        ("tfs", b'{"predictions": [{"y": [1.0, 2.0]}]}', None),
        ("tfs", b'{"outputs": {"y": [[1.0, 2.0]]}}', None),
        ("oip", b'{"outputs": [{"name":"y","datatype":"FP32","shape":[1,2],"data":[1.0, 2.0]}]}', None),
        (
            "oip-binary",
            b'{"outputs": [{"name":"y","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}'
            + Y["y"].tobytes(),
            b"95",
        ),
        ("grpc", infer(Y["y"]), None),
    ],
)
def test_right_answers_in_their_forms(protocol: str, body: bytes, header: bytes | None) -> None:
    header = b"%d" % (len(body) - 8) if header else None
    assert Checker(protocol, [Y])(0, body, header) == ""
    wrong = {"y": Y["y"] + 1}
    assert "expected" in Checker(protocol, [wrong])(0, body, header)


# over connections


@pytest.mark.parametrize("wrong_every", [1, 3])
def test_wrong_answers_are_found_among_right_ones(wrong_every: int) -> None:
    """Each request has an answer of its own, so one request's right answer is another's wrong one."""
    turn = 0

    def answer(body: bytes, _: Any) -> bytes:
        nonlocal turn
        turn += 1
        number = float(body) + (turn % wrong_every == 0)
        return infer(np.full((1, 2), number))

    expected = [{"y": np.full((1, 2), float(i), np.float32)} for i in range(4)]
    with grpcio_server({"inference.GRPCInferenceService/ModelInfer": answer}) as server:
        endpoint = Endpoint(server.url, "grpc", "127.0.0.1", server.port, "127.0.0.1")
        source = connector(endpoint, "grpc", [b"%d" % i for i in range(4)], Checker("grpc", expected), 4)
        answers = uvloop.run(ask_all(source, 60))
    assert answers.counts() == {WRONG: 60 // wrong_every} | ({OK: 40} if wrong_every == 3 else {})
    text = next(m for i, m in answers.messages.items() if answers.outcomes[i] == WRONG)
    assert "output 'y'" in text
    assert "expected" in text


class Http:
    """A server that answers over HTTP what a function says of the number of a request."""

    def __init__(self, body_of: Callable[[int], bytes]) -> None:
        self.body_of = body_of
        self.count = 0

    async def run(self, expected: list[Any], count: int, pieces: int = 1) -> Answers:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ended.append(asyncio.get_running_loop().create_future())
            over = ended[-1]
            while await reader.read(4096):
                body = self.body_of(self.count)
                self.count += 1
                data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                for at in range(pieces):
                    writer.write(data[at * len(data) // pieces : (at + 1) * len(data) // pieces])
                    await writer.drain()
                    await asyncio.sleep(0.001 if pieces > 1 else 0)
            writer.close()
            over.set_result(None)

        ended: list[asyncio.Future[None]] = []
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        endpoint = Endpoint(f"http://127.0.0.1:{port}", "http", "127.0.0.1", port, "127.0.0.1")
        request = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
        source = HttpConnector(endpoint, [request] * len(expected), Checker("tfs", expected))
        try:
            return await ask_all(source, count)
        finally:
            server.close()
            await asyncio.gather(*ended)


@pytest.mark.parametrize("pieces", [1, 3])
def test_http_answers_are_checked_whether_they_come_whole_or_in_pieces(pieces: int) -> None:
    def body(number: int) -> bytes:
        return b'{"predictions": [[1.0, 2.%d]]}' % (9 if number % 4 == 3 else 0)

    answers = uvloop.run(Http(body).run([Y], 20, pieces))
    assert [answers.outcomes[i] for i in range(20)] == [OK, OK, OK, WRONG] * 5


def test_an_answer_that_is_right_for_one_request_is_not_for_another() -> None:
    expected = [{"y": np.array([[float(i)]])} for i in range(3)]
    same = uvloop.run(Http(lambda _: b'{"predictions": [[1.0]]}').run(expected, 9))
    assert [same.outcomes[i] for i in range(9)] == [WRONG, OK, WRONG] * 3
    right = uvloop.run(Http(lambda n: b'{"predictions": [[%d.0]]}' % (n % 3)).run(expected, 9))
    assert right.counts() == {OK: 9}


def test_answers_that_are_remembered_are_few_and_small() -> None:
    seen = Seen(2)
    for i in range(10):
        seen.learn(0, b"%d" % i, b"1")
    assert [raw for raw, _ in seen.known[0]] == [b"9", b"8", b"7", b"6"]
    assert len(seen.known[0]) == SEEN_VARIANTS
    seen.learn(1, bytes(SEEN_ANSWER_BYTES + 1), b"1")
    assert seen.known[1] == []


# the command


def test_a_server_that_gives_wrong_results_fails_the_run(tmp_path: Any) -> None:
    """Right until the load begins, wrong now and then from there."""
    dice = random.Random(1)
    asked = 0

    def answer(body: bytes, _: Any) -> bytes:
        nonlocal asked
        asked += 1
        x = np.frombuffer(
            message("inference.ModelInferRequest").FromString(body).raw_input_contents[0], np.float32
        )
        return infer(x[None] + (asked > 40 and dice.random() < 0.5))

    def ready(name: str) -> Any:
        return lambda body, _: message(f"inference.{name}Response")(ready=True).SerializeToString()

    service = "inference.GRPCInferenceService/"
    methods = {service + n: ready(n) for n in ("ServerReady", "ModelReady")} | {
        service + "ModelInfer": answer
    }
    np.savez(tmp_path / "x.npz", x=np.array([1, 2], np.float32))
    with grpcio_server(methods) as server:
        line = (
            f"{server.url}/m", "--verify", "--inputs", tmp_path / "x.npz",
            *("--qps", 200, "--duration", 0.5, "--warmup", 0.2),
        )  # fmt: skip
        done = run_bench(*line, "--junit", tmp_path / "j.xml", "--slo", "errors=99%")
        document = run_bench(*line, "--json")
    assert (done.returncode, document.returncode) == (1, 1), done.stdout + done.stderr
    assert "failed: wrong result" in done.stdout
    assert "expected 1.0, found 2.0" in done.stdout
    assert re.search(r"warning: \d+ of \d+ answers are wrong: output 'y'.* found 2.0", done.stderr)
    assert "answers are wrong" in json.loads(document.stdout)["notes"][0]
    [failure] = ET.parse(tmp_path / "j.xml").findall("testcase[@classname='verify']/failure")
    assert "answers are wrong" in failure.attrib["message"]


def test_a_bundle_in_process_is_verified(mlp_file: Any, tmp_path: Any) -> None:
    import mserve

    golden = mserve.export(mlp_file, tmp_path / "golden", golden=3).path
    target = opened(golden, verify=True)
    assert drive(target, 30).counts() == {OK: 30}
    assert target.describe()["verified"] == "golden outputs"
    bare = opened(mserve.export(mlp_file, tmp_path / "bare", golden=0).path, verify=True, distinct=3)
    assert drive(bare, 30).counts() == {OK: 30}
    assert bare.describe()["verified"] == "the model alone"
    spoiled = opened(golden, verify=True)
    assert drive(opened(golden, verify=True), 9, 1).counts() == {OK: 9}
    spoiled.expected[1] = {"y": spoiled.expected[1]["y"] + 1}  # type: ignore[attr-defined]
    answers = drive(spoiled, 9, 1)
    assert answers.counts() == {OK: 6, WRONG: 3}
