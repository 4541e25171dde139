"""Calls of gRPC, asked one at a time over a plain socket before anything is measured."""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import closing
from typing import Any

from ...errors import EnvironmentProblem
from ...wire.grpc_answer import outcome, read
from ...wire.grpc_wire import PREFIX_BYTES, STATUS
from ...wire.http2 import PONG, RESET
from ...wire.http2_client import Http2Client
from ...wire.messages import message
from ..load.grpc_client import call
from .endpoint import ASK_TIMEOUT_S, Endpoint, refused_entry, unknown_protocol, unreachable

READ_BYTES = 1 << 16
ANSWER_BYTES_MAX = 64 << 20
UNIMPLEMENTED, OK = STATUS["UNIMPLEMENTED"], STATUS["OK"]
OIP = "inference.GRPCInferenceService"
TFS = "tensorflow.serving.PredictionService"


def ask(
    endpoint: Endpoint, method: str, asked: Any, answer: str, timeout_s: float = ASK_TIMEOUT_S
) -> tuple[int, Any]:
    """Call "service/method" with a message; returns the status, and the message named `answer` or a text.

    Raises EnvironmentProblem: not reached, or no gRPC; Unauthenticated, Forbidden.
    """
    code, body, text = _exchange(endpoint, method, asked.SerializeToString(), timeout_s)
    if code in (STATUS["UNAUTHENTICATED"], STATUS["PERMISSION_DENIED"]):
        raise refused_entry(endpoint, code == STATUS["PERMISSION_DENIED"], text)
    if code != OK:
        return code, text
    from google.protobuf.message import DecodeError

    try:
        return code, message(answer).FromString(body[PREFIX_BYTES:])
    except DecodeError as error:
        raise unknown_protocol(endpoint, method, f"no {answer}: {str(error)[:80]}") from error


def _exchange(endpoint: Endpoint, method: str, body: bytes, timeout_s: float) -> tuple[int, bytes, str]:
    """One call on a connection of its own: status, what came as DATA, message."""
    try:
        with closing(_connect(endpoint)) as link:
            link.settimeout(timeout_s)
            return _unary(endpoint, link, method, body)
    except ssl.SSLCertVerificationError as error:
        raise unreachable(endpoint, error) from error
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError) as error:
        raise unknown_protocol(endpoint, method, f"{type(error).__name__}: {str(error)[:80]}") from error
    except OSError as error:
        raise unreachable(endpoint, error) from error


def _connect(endpoint: Endpoint) -> socket.socket:
    link = socket.create_connection((endpoint.address or endpoint.host, endpoint.port), ASK_TIMEOUT_S)
    tls = endpoint.tls()
    if tls is None:
        return link
    try:
        secured = tls.wrap_socket(link, server_hostname=endpoint.host)
    except BaseException:
        link.close()
        raise
    if secured.selected_alpn_protocol() != "h2":
        secured.close()
        raise unknown_protocol(endpoint, "TLS", "the server does not agree to HTTP/2 (ALPN h2)")
    return secured


def _unary(endpoint: Endpoint, link: socket.socket, method: str, body: bytes) -> tuple[int, bytes, str]:
    http2 = Http2Client(read, time.perf_counter_ns())
    secure, token = endpoint.scheme == "grpcs", endpoint.token
    stream = http2.request(call(endpoint.authority, f"/{method}", body, secure=secure, token=token), None)
    parts: list[bytes] = []
    first = b""
    while True:
        while http2.more():
            link.sendall(http2.take())
        data = link.recv(READ_BYTES)
        first = first or data[:80]
        for kind, of, piece, last in http2.receive(data, time.perf_counter_ns()):
            if of is not stream or kind == PONG:
                continue
            if kind == RESET:
                _no_answer(endpoint, method, http2, first)
            parts.append(piece or b"")
            if last:
                return (*_whole(stream, parts),)
        if not data or http2.ended or sum(map(len, parts)) > ANSWER_BYTES_MAX:
            _no_answer(endpoint, method, http2, first)


def _whole(stream: Any, parts: list[bytes]) -> tuple[int, bytes, str]:
    code, text = outcome(stream.head, stream.tail)
    return code, b"".join(parts), text


def _no_answer(endpoint: Endpoint, method: str, http2: Http2Client, first: bytes) -> None:
    """The call ended without an answer. Raises EnvironmentProblem."""
    if not http2.settled:
        raise unknown_protocol(endpoint, method, f"{first!r}" if first else "the connection was closed")
    raise EnvironmentProblem(
        "the server broke off a call",
        where=f"{endpoint.url}: {method}",
        found=http2.farewell.decode("latin-1"),
    )
