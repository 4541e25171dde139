"""What the REST protocols share: bodies taken out of their encoding, calls whose answers are Responses."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import MserveError, RequestError, UnsupportedEncoding
from ..wire.http1 import JSON, Request, Response
from ..wire.inflate import WINDOWS, deflate, inflate
from .calls import Call
from .exchange import Reply, error_response

VERSION_HEADER = "mserve-model-version"
TIMEOUT_HEADER = b"mserve-timeout-ms"
# Envoy and Istio tell how long they will wait by this one.
_TIMEOUT_HEADERS = (TIMEOUT_HEADER, b"x-envoy-expected-rq-timeout-ms")
# A smaller answer is not worth the time that compressing takes.
COMPRESS_BYTES = 4 << 10


def context_of(request: Request) -> Request:
    """A request with its deadline noted. Raises RequestError for a timeout that is no number."""
    request.timeout_ns = _timeout_ns(request.headers)
    return request


def _timeout_ns(headers: Mapping[bytes, bytes]) -> int:
    for name in _TIMEOUT_HEADERS:
        value = headers.get(name)
        if value is None:
            continue
        if not value.isdigit() or not int(value[:12]) > 0 or len(value) > 12:
            raise RequestError(
                f"bad header {name.decode()}",
                expected="a whole number of milliseconds, above 0",
                found=value[:32].decode("latin-1"),
            )
        return int(value) * 1_000_000
    return 0


def content(request: Request, limit: int) -> bytes | bytearray:
    """The body, taken out of its Content-Encoding.

    What comes out is charged to the request as it does. Raises UnsupportedEncoding,
    PayloadTooLarge (more than `limit` bytes come out), Overloaded (the server holds too many) or
    RequestError (not what it says it is, or bytes behind its end).
    """
    encoding = request.headers.get(b"content-encoding", b"identity").lower()
    if encoding == b"identity":
        return request.body
    if encoding not in WINDOWS:
        raise UnsupportedEncoding(
            "the body is encoded", expected="identity, gzip or deflate", found=encoding.decode("latin-1")
        )
    return inflate(bytes(request.body), encoding, limit, request.charge)


class RestCall(Call):
    """A call that came over HTTP and is answered with a Response."""

    def __init__(self, request: Request, reply: Reply, limit: int) -> None:
        super().__init__(context_of(request), reply)
        self.request = request
        self._limit = limit
        self.slow = b"content-encoding" in request.headers

    def body(self) -> bytes | bytearray:
        """The request's body, decoded. Raises RequestError."""
        return content(self.request, self._limit)

    def respond(self, body: bytes, content_type: str = JSON, *headers: tuple[str, str]) -> Response:
        """A good answer, compressed where that is worth its while and the client takes it."""
        headers = ((VERSION_HEADER, str(self.servable.version)), *headers)
        encoding = _accepted(self.request.headers.get(b"accept-encoding", b""))
        if len(body) < COMPRESS_BYTES or not encoding:
            return Response(200, body, content_type, headers)
        return Response(
            200, deflate(body, encoding), content_type, (*headers, ("Content-Encoding", encoding.decode()))
        )

    def refuse(self, error: MserveError) -> Response:
        return error_response(error)

    def code(self, error: MserveError | None) -> str:
        return str(error.http_status) if error else "200"


def _accepted(header: bytes) -> bytes:
    """The first encoding of ours that an Accept-Encoding header takes, b"" if none."""
    if not header:
        return b""
    for part in header.lower().split(b","):
        name, _, weight = part.partition(b";")
        if name.strip() in WINDOWS and weight.replace(b" ", b"") not in (b"q=0", b"q=0.0"):
            return name.strip()
    return b""
