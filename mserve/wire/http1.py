"""HTTP/1.1 messages: a request, a response, and the bytes of a response. Parsing is llhttp's (httptools)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Request:
    """One parsed request. Header names are lower case; of a doubled header the last
    value stands (a doubled Authorization does not get here).

    `start_ns` is when its last byte arrived (monotonic); `admin` tells whether its
    client may make administrative calls; `client` is its address. `charge` counts bytes that
    are held for the request besides its body; it raises MserveError when they are too many.
    """

    method: str
    target: bytes
    headers: Mapping[bytes, bytes]
    body: bytes | bytearray
    start_ns: int = 0
    admin: bool = False
    client: str = ""
    request_id: str = ""
    traceparent: str = ""
    charge: Callable[[int], None] = lambda size: None


@dataclass(frozen=True, slots=True)
class Response:
    """One response; `headers` come in addition to Content-Type and Content-Length."""

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = field(default=())

    def encode(self, *, keep_alive: bool, head_only: bool = False) -> bytes:
        """The bytes on the wire; the answer to HEAD has no body."""
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        head = (
            f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Unknown')}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n{extra}"
            f"{'' if keep_alive else 'Connection: close' + chr(13) + chr(10)}\r\n"
        )
        return head.encode("latin-1") + (b"" if head_only else self.body)


def json_response(value: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """A response whose body is a value as JSON."""
    try:
        body = orjson.dumps(value)
    except TypeError:  # text that has no UTF-8 form, such as a lone surrogate
        body = json.dumps(value).encode()
    return Response(status, body, JSON, headers)
