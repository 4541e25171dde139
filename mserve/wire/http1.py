"""HTTP/1.1 messages: a request, a response, and the bytes of a response. Parsing is llhttp's (httptools).

A client sends nearly the same head with every request. HeadMemo keeps the heads of one
connection that llhttp has read, by their bytes, so that the same bytes are read once.
What a client, or a proxy, changes from request to request is cut out first: the body's
length, its id, its place in a trace. A memo must never know more than llhttp does; so it keeps only
heads of the plainest kind (see `_is_plain`), and the lines that it cuts out must be plain
as well. Everything else goes the long way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import orjson

from .context import Context

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"

_REASONS = {status.value: status.phrase for status in HTTPStatus}
MEMO_HEADS = 4
MEMO_HEAD_BYTES = 4 << 10
LENGTH_DIGITS = 18
CONTENT_LENGTH = b"content-length"
REQUEST_ID = b"x-request-id"
TRACEPARENT = b"traceparent"
TIMEOUT_HEADER = b"mserve-timeout-ms"
# Envoy and Istio tell how long they will wait by this one.
TIMEOUT_HEADERS = (TIMEOUT_HEADER, b"x-envoy-expected-rq-timeout-ms")
# What proxies and tracers add to each request anew, and the server does not read.
_UNREAD = (
    *(b"tracestate", b"baggage", b"x-forwarded-for", b"x-real-ip", b"date"),
    *(b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid", b"b3", b"uber-trace-id"),
    *(b"x-amzn-trace-id", b"x-cloud-trace-context", b"sentry-trace"),
    *(b"x-datadog-trace-id", b"x-datadog-parent-id", b"x-datadog-tags"),
)
_CUT = (CONTENT_LENGTH, REQUEST_ID, TRACEPARENT, *_UNREAD)
_UNUSUAL = (b"transfer-encoding", b"expect", b"upgrade")


@dataclass(slots=True)
class Head:
    """What the head of a request says. Header names are lower case; of a doubled header the last
    value stands (a doubled Authorization does not get here).
    `coded` and `timed` tell whether it has a Content-Encoding, and how long the client waits.
    `begin` is what the server does with such a request, and `lane` a shorter way of doing so,
    once that is known.
    """

    method: str
    target: bytes
    headers: Mapping[bytes, bytes]
    keep_alive: bool = True
    path: bytes = b""
    coded: bool = False
    timed: bool = False
    begin: Any = None
    lane: Any = None

    def __post_init__(self) -> None:
        self.path = self.target.split(b"?", 1)[0]
        self.coded = b"content-encoding" in self.headers
        self.timed = any(name in self.headers for name in TIMEOUT_HEADERS)


# A head that is known, and its request's own: the body's length, id and traceparent, "" where it has none.
Known = tuple[Head, int, str, str]


class HeadMemo:
    """The latest heads of one connection, by their bytes without the lines that change."""

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}
        # How this client writes the lines that are cut out, up to their values, if it does.
        self._lines: dict[bytes, bytes] = {}
        self._length = self._request_id = self._trace = b""
        self._unread: tuple[bytes, ...] = ()

    def find(self, raw: bytes) -> Known | None:
        """The head with these bytes; None if unknown."""
        if not self._heads:
            return None
        request_id = trace = ""
        raw, length = _cut(raw, self._length)
        if not length.isdigit() or len(length) > LENGTH_DIGITS:
            return None
        if self._request_id:
            raw, request_id = _cut(raw, self._request_id)
        if self._trace:
            raw, trace = _cut(raw, self._trace)
        for line in self._unread:
            raw, _ = _cut(raw, line)
        head = self._heads.get(raw)
        return None if head is None else (head, int(length), request_id, trace)

    def learn(self, raw: bytes, head: Head) -> None:
        """Keep a head that llhttp has read from these bytes, if it is of the plain kind."""
        if not _is_plain(raw, head):
            return
        lines = {}
        for name in [name for name in _CUT if name in head.headers]:
            small = raw.lower()
            lines[name] = _line(raw, small, name)
            raw, value = _cut(raw, lines[name])
            if not value or small.count(b"\n%b:" % name) != 1:
                return  # it stands there twice, or in a way that is not cut out
        self._lines |= lines
        found = self._lines.get
        self._length, self._request_id = found(CONTENT_LENGTH, b""), found(REQUEST_ID, b"")
        self._trace = found(TRACEPARENT, b"")
        self._unread = tuple(self._lines[name] for name in _UNREAD if name in self._lines)
        if len(self._heads) >= MEMO_HEADS:
            self._heads.clear()
        headers = {name: value for name, value in head.headers.items() if name not in _CUT}
        self._heads[raw] = Head(head.method, head.target, headers)


def _is_plain(raw: bytes, head: Head) -> bool:
    """Whether nothing but the bytes of the head tells where the request ends and what is behind it.

    A body length, no other framing, lines that end in CRLF and go on in no other, and a
    connection that stays open.
    """
    if len(raw) > MEMO_HEAD_BYTES or not raw[:1].isalpha() or not head.keep_alive:
        return False
    if b"\r\n " in raw or b"\r\n\t" in raw or raw.count(b"\n") != raw.count(b"\r\n"):
        return False
    if not head.headers.get(CONTENT_LENGTH, b"").isdigit():
        return False
    return not any(name in head.headers for name in _UNUSUAL)


def _line(raw: bytes, small: bytes, name: bytes) -> bytes:
    """The end of one line and what the next, of a header that is there, begins with; `small` is `raw`
    in lower case.
    """
    at = small.find(b"\r\n%b:" % name)
    end = at + len(name) + 3
    return raw[at : end + (raw[end : end + 1] == b" ")]


def _cut(raw: bytes, line: bytes) -> tuple[bytes, str]:
    """A head without the line that begins so, and the line's value; all of it where that is not plain."""
    at = raw.find(line)
    if at < 0:
        return raw, ""
    end = raw.find(b"\r\n", at + 2)
    value = raw[at + len(line) : end].decode("latin-1")
    if not (value.isascii() and value.isprintable()) or value != value.strip() or not value:
        return raw, ""
    return raw[:at] + raw[end:], value


class Request(Context):
    """One parsed request. `client` is its client's address, `echo` are header lines for its answer.

    What few requests have is an attribute of the class until it is set.
    """

    echo = b""

    def __init__(self, head: Head, body: bytes | bytearray, start_ns: int = 0, client: str = "") -> None:
        self.start_ns = start_ns
        self.head = head
        self.body = body
        self.client = client

    @property
    def method(self) -> str:
        """GET for HEAD, too: the answers differ on the wire only."""
        return "GET" if self.head.method == "HEAD" else self.head.method

    @property
    def target(self) -> bytes:
        """Path and query."""
        return self.head.target

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """Values by lower-case name."""
        return self.head.headers

    def charge(self, size: int) -> None:
        """Count bytes that are held for the request besides its body. Raises MserveError: too many."""


@dataclass(slots=True)
class Response:
    """One response; `headers` come in addition to Content-Type and Content-Length.

    `head` is what `answer_head` makes of all that, for who keeps it; b"" where nobody did.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = field(default=())
    head: bytes = b""

    def encode(self, *, keep_alive: bool, head_only: bool = False, echo: bytes = b"") -> bytes:
        """The bytes on the wire, with `echo` as further header lines; the answer to HEAD has no body."""
        head = keep_alive and self.head
        if not head:
            head = answer_head(self.status, self.content_type, self.headers, keep_alive)
        return b"%bContent-Length: %d\r\n%b\r\n%b" % (
            head,
            len(self.body),
            echo,
            b"" if head_only else self.body,
        )


@lru_cache(maxsize=1024)
def answer_head(
    status: int, content_type: str, headers: tuple[tuple[str, str], ...], keep_alive: bool = True
) -> bytes:
    """What an answer's head begins with; few differ, so they are kept."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers)
    close = "" if keep_alive else "Connection: close\r\n"
    reason = _REASONS.get(status, "Unknown")
    return f"HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n{extra}{close}".encode("latin-1")


def json_response(value: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """A response whose body is a value as JSON."""
    try:
        body = orjson.dumps(value)
    except TypeError:  # text that has no UTF-8 form, such as a lone surrogate
        body = json.dumps(value).encode()
    return Response(status, body, JSON, headers)


def declined(method: bytes, target: bytes, headers: dict[bytes, bytes]) -> bytes:
    """The head of a request without its offer to upgrade; the names of `headers` are in small letters."""
    offered = (b"upgrade", b"http2-settings")
    wishes = [w.strip() for w in headers.get(b"connection", b"").lower().split(b",")]
    kept = {name: value for name, value in headers.items() if name not in offered}
    kept[b"connection"] = b", ".join(w for w in wishes if w not in offered) or b"keep-alive"
    lines = b"".join(b"%s: %s\r\n" % pair for pair in kept.items())
    return b"%s %s HTTP/1.1\r\n%s\r\n" % (method, target, lines)
