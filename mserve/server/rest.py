"""What the REST protocols share: bodies taken out of their encoding, calls whose answers are Responses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from ..errors import MserveError, RequestError, UnsupportedEncoding
from ..wire.http1 import JSON, TIMEOUT_HEADERS, Request, Response, answer_head
from ..wire.inflate import WINDOWS, deflate, inflate
from .calls import Call
from .exchange import Reply, error_response

VERSION_HEADER = "mserve-model-version"
# Source: Triton's extension for binary tensor data.
JSON_BYTES_HEADER = "Inference-Header-Content-Length"
# A smaller answer is not worth the time that compressing takes.
COMPRESS_BYTES = 4 << 10


def context_of(request: Request) -> Request:
    """A request with its deadline noted. Raises RequestError for a timeout that is no number."""
    request.timeout_ns = _timeout_ns(request.headers)
    return request


def _timeout_ns(headers: Mapping[bytes, bytes]) -> int:
    for name in TIMEOUT_HEADERS:
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
        self.context = self.request = request
        self.reply = reply
        self._limit = limit
        head = request.head
        if head.timed:
            context_of(request)
        if head.coded:
            self.slow = True

    def body(self) -> bytes | bytearray:
        """The request's body, decoded. Raises RequestError."""
        request = self.request
        return content(request, self._limit) if request.head.coded else request.body

    def respond(self, body: bytes, content_type: str = JSON, json_bytes: str = "") -> Response:
        """A good answer, compressed where that is worth its while and the client takes it.

        `json_bytes` is how many bytes of a binary answer are JSON.
        """
        headers, head = good(self.servable.version, content_type, json_bytes)
        if len(body) < COMPRESS_BYTES or not (encoding := self.accepted()):
            return Response(200, body, content_type, headers, head)
        return compressed(body, content_type, headers, encoding)

    def accepted(self) -> bytes:
        """The encoding in which the client takes a large answer, b"" if none."""
        return _accepted(self.request.headers.get(b"accept-encoding", b""))

    def refuse(self, error: MserveError) -> Response:
        return error_response(error)

    def code(self, error: MserveError | None) -> str:
        return str(error.http_status) if error else "200"


def compressed(
    body: bytes, content_type: str, headers: tuple[tuple[str, str], ...], encoding: bytes
) -> Response:
    """A good answer in a Content-Encoding."""
    headers = (*headers, ("Content-Encoding", encoding.decode()))
    return Response(200, deflate(body, encoding), content_type, headers)


@lru_cache(maxsize=1024)
def good(version: int, content_type: str, json_bytes: str) -> tuple[tuple[tuple[str, str], ...], bytes]:
    """The headers of a good answer, and what its head begins with."""
    headers: tuple[tuple[str, str], ...] = ((VERSION_HEADER, str(version)),)
    if json_bytes:
        headers += ((JSON_BYTES_HEADER, json_bytes),)
    return headers, answer_head(200, content_type, headers)


def _accepted(header: bytes) -> bytes:
    """The first encoding of ours that an Accept-Encoding header takes, b"" if none."""
    if not header:
        return b""
    for part in header.lower().split(b","):
        name, _, weight = part.partition(b";")
        if name.strip() in WINDOWS and weight.replace(b" ", b"") not in (b"q=0", b"q=0.0"):
            return name.strip()
    return b""
