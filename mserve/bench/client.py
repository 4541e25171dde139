"""One keep-alive HTTP/1.1 connection that sends the same bytes again and again.

The request is serialised once, one write sends it, and llhttp (httptools) reads the
answers: what is left of Python for each request is a handful of callbacks, so that one
core offers more than the servers under test can take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

import httptools

from .recorder import CONNECTION, NOT_HTTP, OK

VERSION_HEADER = b"mserve-model-version"
_VERSION_HEADER_LENGTH = len(VERSION_HEADER)
_MESSAGE_BYTES_MAX = 400


class Connection(Protocol):
    """A way to have one request at a time answered."""

    index: int
    usable: bool
    # When the first byte of the answer came, in ns of `time.perf_counter_ns`; 0 before.
    first_ns: int

    def send(self, index: int, done: Done) -> None:
        """Send the request; `done(self, outcome, message)` follows once, never from within."""

    def abort(self) -> None:
        """Give up on the answer and close; `done` is not called any more."""


Done = Callable[[Connection, int, str], None]


def request_bytes(host: str, path: str, body: bytes) -> bytes:
    """A POST of a JSON body, ready to be written."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: mserve-bench\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("latin-1") + body


class HttpConnection(asyncio.Protocol):
    """Counts the versions that answered in `versions`, a count by header value."""

    def __init__(self, request: bytes, versions: dict[bytes, int]) -> None:
        self.index = -1
        self.usable = False
        self.first_ns = 0
        self._request = request
        self._versions = versions
        self._done: Done | None = None
        self._text = b""
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)

    def send(self, index: int, done: Done) -> None:
        """Send the request; `done` is called when its answer is complete, or can never be."""
        self.index = index
        self._done = done
        self.first_ns = 0
        self._transport.write(self._request)  # type: ignore[union-attr]

    def abort(self) -> None:
        """Give up on the answer and close."""
        self._done = None
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.usable = True

    def data_received(self, data: bytes) -> None:
        if self._done is None:  # an answer that nobody asked for
            self.abort()
            return
        if not self.first_ns:
            self.first_ns = time.perf_counter_ns()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
            if cause is not None:  # our own bug, not the server's
                raise cause from None
            self._break(NOT_HTTP, f"{error}: {data[:80]!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f"connection lost: {exc}" if exc else "the server closed the connection without an answer"
        self._break(CONNECTION, reason)
        self._transport = None

    def _break(self, outcome: int, message: str) -> None:
        done, self._done = self._done, None
        self.usable = False
        if self._transport is not None:
            self._transport.abort()
        if done is not None:
            done(self, outcome, message)

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == _VERSION_HEADER_LENGTH and name.lower() == VERSION_HEADER:
            self._versions[value] = self._versions.get(value, 0) + 1

    def on_body(self, body: bytes) -> None:
        if len(self._text) < _MESSAGE_BYTES_MAX and self._parser.get_status_code() >= 300:
            self._text += body[:_MESSAGE_BYTES_MAX]

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self.usable = self._parser.should_keep_alive()
        done, self._done = self._done, None
        if done is None:
            return
        if not self.usable:
            self._transport.close()  # type: ignore[union-attr]
        if status < 300:
            done(self, OK, "")
            return
        text, self._text = self._text, b""
        done(self, status, text.decode("utf-8", "replace"))
