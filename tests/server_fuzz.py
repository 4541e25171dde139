"""Damaged requests, by the thousand: what is sent, and what must not come back.

`Http` sends raw bytes and reads statuses; `Grpc` sends raw messages to named methods.
Both take everything random from one `random.Random`, so that a seed is a whole round.
`check` tells whether a server has stood it: no 500, no bug of ours in its log, and the
answers to good requests as they were.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import select
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Protocol

from mserve.wire.messages import message, methods

# Statuses that no request may get, whatever it says.
BAD_HTTP = {500, 502}
BAD_GRPC = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
ANSWER_S = 40.0
# What is good, in both protocols: method, path, body.
ROW = {"a": 1.0, "b": [2, 3]}
MIXED = {"x": {"ids": [3, 9], "values": [1, 0.5]}, "d": [1, 2, 3], "r": [[1, 2], [3, 4]]}
GOOD: list[tuple[str, str, Any]] = [
    ("POST", "/v1/models/flowers:predict", {"instances": [ROW]}),
    ("POST", "/v1/models/flowers/versions/1:predict", {"inputs": {"a": [1], "b": [[2, 3]]}}),
    ("POST", "/v1/models/flowers:classify", {"signature_name": "ranked", "examples": [ROW, ROW]}),
    ("POST", "/v1/models/flowers:regress", {"context": {"b": [1, 2]}, "examples": [{"a": 1}]}),
    ("POST", "/v1/models/flowers:predict", {"signature_name": "words", "instances": ["é", {"b64": "eA=="}]}),
    ("POST", "/v1/models/pick:predict", {"instances": [0, 9]}),
    ("POST", "/v1/models/words:predict", {"instances": ["a", "é"]}),
    ("POST", "/v1/models/scalar:predict", {"inputs": 1.5}),
    ("POST", "/v1/models/sparse:predict", {"instances": [MIXED, {**MIXED, "x": "3:1 9:0.5"}]}),
    ("POST", "/v1/models/sparse:predict", {"inputs": {"x": ["3:1"], "d": [[1, 2, 3]], "r": [[[1, 2]]]}}),
    ("GET", "/v1/models/flowers/labels/stable/metadata", None),
    ("GET", "/v1/models/words/versions/1", None),
    ("GET", "/v1/models", None),
    ("GET", "/v2/models/flowers/versions/1", None),
    ("GET", "/v2/models/flowers/config", None),
    ("GET", "/v2/models/stats", None),
    ("GET", "/openapi.json", None),
    ("GET", "/metrics", None),
    ("POST", "/v2/repository/index", {"ready": True}),
    ("POST", "/v2/repository/models/pick/load", {"parameters": {"x": 1}}),
    ("POST", "/v2/repository/models/pick/unload", {}),
]


def _tensor(name: str, datatype: str, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **more}


AB = [_tensor("a", "FP32", [1], data=[1]), _tensor("b", "FP32", [1, 2], data=[2, 3])]
PARTS = [
    _tensor("x.ids", "INT64", [2], data=[3, 9]),
    _tensor("x.lengths", "INT64", [2], data=[2, 0]),
    _tensor("d", "FP32", [2, 3], data=[1, 2, 3, 4, 5, 6]),
    _tensor("r.values", "FP32", [1, 2], data=[1, 2]),
    _tensor("r.lengths", "INT64", [2], data=[0, 1]),
]
_CLASSES = [{"name": "row", "parameters": {"classification": 1}}]
GOOD += [
    ("POST", "/v2/models/flowers/infer", {"id": "x", "inputs": AB, "outputs": [{"name": "scores"}]}),
    ("POST", "/v2/models/flowers/infer", {"inputs": AB, "parameters": {"signature_name": "price"}}),
    (
        "POST",
        "/v2/models/pick/infer",
        {"inputs": [_tensor("index", "INT64", [2], data=[1, 2])], "outputs": _CLASSES},
    ),
    ("POST", "/v2/models/sparse/infer", {"inputs": PARTS}),
    ("POST", "/v2/models/words/infer", {"inputs": [_tensor("key", "BYTES", [1], data=["a"])]}),
]
RAW = struct.pack("<3q", 1, 2, 3)
RAW_HEAD = json.dumps(
    {"inputs": [_tensor("index", "INT64", [3], parameters={"binary_data_size": 24})]}
).encode()

# What is put into JSON, paths and headers in place of something else.
TOKENS = [
    *(b"NaN", b"Infinity", b"-Infinity"),
    *(b"null", b"true", b"[]", b"{}", b"[[]]", b'""', b"-0", b"1e999", b"-1"),
    *(b"9" * 400, b"1" * 5000, b"0.1e-400", b"18446744073709551616", b"-9223372036854775809", b"4294967296"),
    *(b'"\\ud800"', b'"\\u0000"', "\"\U0001f600\"".encode(), b'"\xff\xfe"', b'{"b64":"////"}', b'{"b64":1}'),
    *(b"[" * 2000, b'{"a":' * 1500, b"[" * 70 + b"]" * 70, b'"' + b"x" * 70_000 + b'"'),
    *(b"INT64", b"FP16", b"BYTES", b"index", b"serving_default", b"classification", b"binary_data_size"),
    *(b"triton_x", b"shared_memory_region", b"instances", b"inputs", b"outputs", b"examples", b"context"),
    *(b"/versions/99999999999999999999", b"/labels/x", b"%00", b"%ff", b"/../", b":predict", b"?a=b", b"#"),
    *(b"\r\n", b"\r\n\r\n", b"\0", b"\xc3", b"\xe2\x80\xae", b",", b":", b"}", b"]"),
]  # fmt: skip
HEADERS = [
    *(b"Content-Encoding: gzip", b"Content-Encoding: deflate", b"Content-Encoding: br"),
    *(b"Accept-Encoding: gzip", b"Content-Length: 5"),
    *(b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length:"),
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity"),
    *(b"Expect: 100-continue", b"Connection: close", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"),
    *(b"Inference-Header-Content-Length: 0", b"Inference-Header-Content-Length: 99", b"Content-Type: x/\xff"),
    *(b"mserve-timeout-ms: 1", b"mserve-timeout-ms: 99999999999999", b"x-envoy-expected-rq-timeout-ms: 0"),
    *(b"x-request-id: \xff\xfe", b"x-request-id: abc", b"traceparent: 00-zz", b"Authorization: Bearer \xff"),
    *(b"X: " + b"y" * 40_000, b": novalue", b"no colon", b" folded", b"Host: a"),
    b"Inference-Header-Content-Length: x",
]  # fmt: skip


class Served(Protocol):
    """A server process under attack."""

    port: int

    @property
    def grpc_port(self) -> int: ...

    def log(self) -> str: ...


def bend(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes with something wrong: cut, spliced, flipped, repeated, or with a token in some place."""
    at, end = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1:
            other = rng.choice(others)
            return data[:at] + other[rng.randint(0, len(other)) :]
        case 2:
            flipped = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                if flipped:
                    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 3:
            return data[:at] + data[at:end] * rng.choice((0, 2, 3, 50)) + data[end:]
        case 4:
            return data[:at] + rng.randbytes(rng.randint(1, 12)) + data[end:]
        case 5 | 6:
            return _swap(rng, data)
        case _:
            return data[:at] + rng.choice(TOKENS) + data[at:]


def _swap(rng: random.Random, data: bytes) -> bytes:
    """One word, number or string of a text, replaced by a token."""
    words = list(re.finditer(rb'"[^"]*"|-?\d+(?:\.\d+)?|\w+', data))
    if not words:
        return data
    word = rng.choice(words)
    return data[: word.start()] + rng.choice(TOKENS) + data[word.end() :]


def _bent(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        data = bend(rng, data, others)
    return data[:200_000]


@cache
def _bomb(megabytes: int) -> bytes:
    """A little gzip that becomes so many MB of blanks."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b" " * (1 << 20)) for _ in range(megabytes)) + packer.flush()


class Http:
    """Attacks over HTTP."""

    def __init__(self, server: Served, rng: random.Random, seen: Counter[str]) -> None:
        self.server, self.rng, self.seen = server, rng, seen
        self.bodies = [json.dumps(body).encode() for _, _, body in GOOD if body is not None] + [
            RAW_HEAD + RAW
        ]

    def request(self) -> bytes:
        """One request, most likely wrong somewhere."""
        rng = self.rng
        method, path, body = rng.choice(GOOD)
        data = b"" if body is None else json.dumps(body).encode()
        headers = [b"Host: x"]
        if rng.random() < 0.08:
            path, data = "/v2/models/pick/infer", RAW_HEAD + _bent(rng, RAW, self.bodies)
            headers.append(b"Inference-Header-Content-Length: %d" % len(RAW_HEAD))
        where = path.encode()
        if rng.random() < 0.2:
            where = bend(rng, where, [good[1].encode() for good in GOOD]) or b"/"
        if rng.random() < 0.8:
            data = _bent(rng, data, self.bodies)
        data = self._encoded(data, headers)
        headers += [rng.choice(HEADERS) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
        verb = (
            rng.choice((b"PUT", b"HEAD", b"OPTIONS", b"get", b"PRI", b"\xff", b""))
            if rng.random() < 0.05
            else method.encode()
        )
        version = (
            rng.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"")) if rng.random() < 0.04 else b"HTTP/1.1"
        )
        raw = b"%s %s %s\r\n%s\r\n\r\n" % (verb, where, version, b"\r\n".join(headers)) + self._framed(
            data, headers
        )
        return _bent(rng, raw, [raw]) if rng.random() < 0.15 else raw

    def _encoded(self, data: bytes, headers: list[bytes]) -> bytes:
        """A body in a content encoding, perhaps a wrong one; framing headers are added."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.02:
            headers.append(b"Content-Encoding: gzip")
            data = _bomb(rng.choice((1, 10, 70)))
        elif kind < 0.08:
            headers.append(b"Content-Encoding: " + rng.choice((b"gzip", b"deflate", b"GZIP", b"identity")))
            data = rng.choice((gzip.compress, zlib.compress))(data)
            data = _bent(rng, data, [data]) if rng.random() < 0.5 else data
        framing = rng.random()
        if framing < 0.15:
            headers.append(b"Transfer-Encoding: chunked")
        else:
            wrong = rng.choice((-1, 1, 7, 100)) if framing > 0.95 else 0
            headers.append(b"Content-Length: %d" % max(0, len(data) + wrong))
        return data

    def _framed(self, data: bytes, headers: list[bytes]) -> bytes:
        rng = self.rng
        if b"Transfer-Encoding: chunked" not in headers:
            return data
        chunks, at = b"", 0
        while at < len(data):
            piece = data[at : at + rng.randint(1, 1 + len(data) // 3)]
            size = b"%x" % (len(piece) + rng.choice((0, 0, 0, 0, 0, 0, 0, 1, -1, 2**70)) % 2**71)
            chunks += size + rng.choice((b"", b"", b";x=y", b";" + b"z" * 999)) + b"\r\n" + piece + b"\r\n"
            at += len(piece)
        return chunks + rng.choice((b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n", b"", b"zz\r\n"))

    def round(self, count: int) -> None:
        """Send `count` messages: single ones, pipelines, garbage, in pieces. Raises AssertionError."""
        for _ in range(count):
            kind = self.rng.random()
            if kind < 0.75:
                data = self.request()
            elif kind < 0.95:
                data = b"".join(self.request() for _ in range(self.rng.randint(2, 20)))
            elif kind < 0.97:
                upgrade = b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: a\r\nConnection: upgrade\r\n\r\n"
                data = upgrade * self.rng.choice((1, 3, 300))
            else:
                data = self.rng.randbytes(self.rng.randint(1, 5000))
            self.send(data)

    def send(self, data: bytes) -> None:
        """Send bytes on a connection of their own, whole or in pieces, and count the answers' statuses."""
        received = self._exchange(data)
        for status in re.findall(rb"(?:^|\n|[^\n])HTTP/1\.1 (\d{3}) [A-Z]", received):
            self.seen[f"http {int(status)}"] += 1
            if int(status) in BAD_HTTP:
                raise AssertionError(f"{received[:2000]!r}\nanswers\n{data[:6000]!r}")
        if not received:
            self.seen["http closed without an answer"] += 1

    def _exchange(self, data: bytes) -> bytes:
        """What comes back before the server closes. Raises AssertionError when it never does."""
        rng, received = self.rng, b""
        pieces = [data]
        if rng.random() < 0.1:
            cuts = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(1, 8)))
            pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=ANSWER_S) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with suppress(ConnectionError):  # cut off: what came before counts
                for piece in pieces:
                    link.sendall(piece)
                    if len(pieces) > 1:
                        select.select([link], [], [], 0.002)
                if rng.random() < 0.05:  # leaves without a look at the answer
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.seen["http client left"] += 1
                    return b" "
                link.shutdown(socket.SHUT_WR)
            try:
                while chunk := link.recv(65536):
                    received += chunk
            except TimeoutError as error:
                raise AssertionError(f"no answer in {ANSWER_S} s to {data[:6000]!r}") from error
            except ConnectionError:
                pass
        return received


def _fields(name: str, /, **fields: Any) -> Any:
    return message(name)(**fields)


def _predict_request() -> Any:
    request = _fields("tensorflow.serving.PredictRequest")
    request.model_spec.name = "flowers"
    for alias, sizes, values in (("a", [1], [1.0]), ("b", [1, 2], [2.0, 3.0])):
        request.inputs[alias].dtype = 1
        for size in sizes:
            request.inputs[alias].tensor_shape.dim.add(size=size)
        request.inputs[alias].float_val.extend(values)
    return request


def _on_examples(name: str) -> Any:
    request = _fields(f"tensorflow.serving.{name}")
    request.model_spec.name = "flowers"
    example = request.input.example_list.examples.add()
    example.features.feature["a"].float_list.value.append(1)
    example.features.feature["b"].float_list.value.extend([2, 3])
    return request


def _multi() -> Any:
    request = _fields("tensorflow.serving.MultiInferenceRequest")
    for method, signature in (("classify", "ranked"), ("regress", "price")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "flowers", signature
    request.input.CopyFrom(_on_examples("ClassificationRequest").input)
    return request


def _about(name: str, /, **more: Any) -> Any:
    request = _fields(f"tensorflow.serving.{name}", **more)
    request.model_spec.name = "flowers"
    request.model_spec.version.value = 1
    return request


def _infer(model: str, raw: bytes | None = None) -> Any:
    request = _fields("inference.ModelInferRequest", model_name=model, id="x")
    port = request.inputs.add(name="index", datatype="INT64", shape=[3])
    if raw is None:
        port.contents.int64_contents.extend([1, 2, 3])
    else:
        request.raw_input_contents.append(raw)
    request.outputs.add(name="row").parameters["classification"].int64_param = 1
    return request


def good_messages() -> list[tuple[str, bytes]]:
    """A good message for each method, by full name; several for some."""
    served, inference = "tensorflow.serving.PredictionService/", "inference.GRPCInferenceService/"
    made: list[tuple[str, Any]] = [
        (served + "Predict", _predict_request()),
        (served + "Classify", _on_examples("ClassificationRequest")),
        (served + "Regress", _on_examples("RegressionRequest")),
        (served + "MultiInference", _multi()),
        (served + "GetModelMetadata", _about("GetModelMetadataRequest", metadata_field=["signature_def"])),
        ("tensorflow.serving.ModelService/GetModelStatus", _about("GetModelStatusRequest")),
        (
            "tensorflow.serving.ModelService/HandleReloadConfigRequest",
            _fields("tensorflow.serving.ReloadConfigRequest"),
        ),
        (inference + "ModelInfer", _infer("pick")),
        (inference + "ModelInfer", _infer("pick", RAW)),
        (inference + "ModelStreamInfer", _infer("pick", RAW)),
        ("grpc.health.v1.Health/Check", _fields("grpc.health.v1.HealthCheckRequest", service="pick")),
    ]
    kinds = methods(inference.rstrip("/"))
    for name in sorted(kinds.keys() - {"ModelInfer", "ModelStreamInfer"}):
        request = message(f"inference.{kinds[name].input_type.name}")()
        field = {f.name for f in request.DESCRIPTOR.fields} & {"name", "model_name"}
        for known in field:
            setattr(request, known, "pick")
        made.append((inference + name, request))
    return [(name, request.SerializeToString()) for name, request in made]


METADATA: list[tuple[str, str | bytes]] = [
    ("authorization", "Bearer x"),
    ("x-request-id", "a" * 3000),
    ("x-request-id", "abc"),
    ("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),
    ("odd-bin", b"\xff\0"),
    ("authorization-bin", b"\xff"),
]


class Grpc:
    """Attacks over gRPC."""

    def __init__(self, server: Served, rng: random.Random, seen: Counter[str]) -> None:
        import grpc

        self.rng, self.seen, self.grpc = rng, seen, grpc
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self.messages = good_messages()
        self.bodies = [body for _, body in self.messages]

    def round(self, count: int) -> None:
        """Make `count` calls, several at once. Raises AssertionError."""
        calls: list[tuple[str, bytes, Any]] = []
        for _ in range(count):
            calls.append(self._start())
            if len(calls) == 8:
                self._finish(calls)
                calls = []
        self._finish(calls)

    def close(self) -> None:
        self.channel.close()

    def _start(self) -> tuple[str, bytes, Any]:
        rng = self.rng
        name, body = rng.choice(self.messages)
        body = rng.randbytes(rng.randint(0, 300)) if rng.random() < 0.05 else _bent(rng, body, self.bodies)
        odd = rng.random()
        if odd < 0.05:
            name = rng.choice(self.messages)[0]
        elif odd < 0.08:
            name = rng.choice(
                (
                    "x/y",
                    "inference.GRPCInferenceService/No",
                    "a/b/c",
                    name + "x",
                    "grpc.health.v1.Health/Watch",
                )
            )
        metadata = [rng.choice(METADATA)] if rng.random() < 0.1 else []
        timeout = rng.choice((0.001, 0.5, 3e8)) if rng.random() < 0.1 else ANSWER_S
        if "Watch" in name:
            timeout = 0.05
        options = {"timeout": timeout, "metadata": metadata}
        if "Stream" in name or "Watch" in name:
            more = rng.randint(0, 20) if "Stream" in name else 0
            bodies = iter([body, *(_bent(rng, body, self.bodies) for _ in range(more))])
            return name, body, self.channel.stream_stream("/" + name)(bodies, **options)
        return name, body, self.channel.unary_unary("/" + name).future(body, **options)

    def _finish(self, calls: list[tuple[str, bytes, Any]]) -> None:
        for name, body, call in calls:
            try:
                if "Stream" in name or "Watch" in name:
                    for _ in call:
                        pass
                else:
                    call.result()
                code = "OK"
            except self.grpc.RpcError as error:
                code = error.code().name
                text = f"{name} {body[:4000]!r}: {error.details()}"
                if code in BAD_GRPC:
                    raise AssertionError(f"{code} answers {text}") from error
            self.seen[f"grpc {code}"] += 1


def known(ask: Callable[[str, str, bytes | None], tuple[int, bytes]]) -> Iterator[tuple[str, int, bytes]]:
    """The answers to good inference requests, which never change: path, status, body."""
    for method, path, body in GOOD:
        if body is not None and "repository" not in path:
            yield (path, *ask(method, path, json.dumps(body).encode()))


def trouble(log: str) -> str:
    """The first line of a server's log that no client should be able to cause, with what follows; else ""."""
    found = re.search(r".*(?:our bug|Traceback|Fatal error|Exception in|Task exception|never retrieved)", log)
    return log[found.start() :][:3000] if found else ""
