"""One keep-alive HTTP/1.1 connection that sends requests which were serialised beforehand.

One write sends a request, and llhttp (httptools) reads the answers. Nearly every answer
has the bytes of one that was read before, and is then not read again: `Seen` keeps some
answers to each request that arrived in one read, were read to their end, were good and,
where answers are verified, right. So what is left of Python for most requests is one
comparison of bytes, and one core offers more than the servers under test can take.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import httptools

from .recorder import CONNECTION, NOT_HTTP, OK, WRONG

VERSION_HEADER = b"mserve-model-version"
LENGTH_HEADER = b"inference-header-content-length"
_LENGTHS = frozenset((len(VERSION_HEADER), len(LENGTH_HEADER)))
_MESSAGE_BYTES_MAX = 400
# An answer that is longer has no end.
ANSWER_BYTES_MAX = 1 << 30
# What is kept of answers: for each request, for all, and the longest one.
SEEN_VARIANTS = 4
SEEN_BYTES = 64 << 20
SEEN_ANSWER_BYTES = 256 << 10

# What is wrong with the body of an answer to the request of a number, "" if nothing is;
# the bytes of it that are a JSON head, None where the answer does not say.
Check = Callable[[int, bytes, bytes | None], str]


class Connection(Protocol):
    """A way to have one request at a time answered.

    `first_ns` is when the first byte of the latest answer came, of `time.perf_counter_ns`;
    0 where there was none, or answers are not made of bytes.
    """

    index: int
    usable: bool
    first_ns: int

    def send(self, index: int, done: Done) -> None:
        """Send the request of that index; `done(self, outcome, message)` follows once, never from within."""

    def abort(self) -> None:
        """Give up on the answer and close; `done` is not called any more."""


Done = Callable[[Connection, int, str], None]


def request_bytes(
    host: str, path: str, body: bytes, headers: Sequence[tuple[str, str]] = (), kind: str = "application/json"
) -> bytes:
    """A POST, ready to be written."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: mserve-bench\r\nAccept: */*\r\n"
        f"Content-Type: {kind}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("latin-1") + body


class Seen:
    """Answers to so many requests that the connections of a process know; `check` looks at new ones."""

    def __init__(self, requests: int, check: Check | None = None) -> None:
        self.check = check
        self.known: list[list[tuple[bytes, bytes]]] = [[] for _ in range(requests)]
        self._left = SEEN_BYTES

    def learn(self, number: int, raw: bytes, version: bytes) -> None:
        """Keep a good answer to a request and the version that gave it, the newest first."""
        known = self.known[number]
        if len(raw) > min(SEEN_ANSWER_BYTES, self._left):
            return
        self._left -= len(raw)
        if len(known) == SEEN_VARIANTS:
            self._left += len(known.pop()[0])
        known.insert(0, (raw, version))


class HttpConnection(asyncio.Protocol):
    """Request i of a run is number i, from the beginning again after the last one.

    Counts the versions that answered in `versions`, a count by header value.
    """

    def __init__(
        self, requests: bytes | Sequence[bytes], versions: dict[bytes, int], seen: Seen | None = None
    ) -> None:
        self.index = -1
        self.usable = False
        self.first_ns = 0
        self._requests = (requests,) if isinstance(requests, bytes) else requests
        self._count = len(self._requests)
        self._versions = versions
        self._seen = seen or Seen(self._count)
        self._number = 0
        self._done: Done | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._forget()

    def _forget(self) -> None:
        self._raw: bytes | None = None  # the answer, as long as it came in one read
        self._body: list[bytes] = []
        self._size = 0
        self._status = 0
        self._version = b""
        self._json_bytes: bytes | None = None
        self._extra = False

    def send(self, index: int, done: Done) -> None:
        """Send a request; `done` is called when its answer is complete, or can never be."""
        self.index = index
        self.first_ns = 0
        self._done = done
        self._number = number = index % self._count
        self._transport.write(self._requests[number])  # type: ignore[union-attr]

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
        done = self._done
        if done is None:  # an answer that nobody asked for
            self.abort()
            return
        if self.first_ns:
            self._raw = None
        else:
            self.first_ns = time.perf_counter_ns()
            for raw, version in self._seen.known[self._number]:
                if raw == data:
                    if version:
                        self._versions[version] = self._versions.get(version, 0) + 1
                    self._done = None
                    done(self, OK, "")
                    return
            self._raw = data
        self._read(data)

    def _read(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__ if isinstance(error, httptools.HttpParserCallbackError) else None
            if cause is not None:  # our own bug, not the server's
                raise cause from None
            if not self._status:
                self._break(NOT_HTTP, f"{error}: {data[:80]!r}")
                return
            self._extra = True
        if self._status:
            self._end()

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

    def _end(self) -> None:
        """The answer is complete."""
        status, version, raw = self._status, self._version, self._raw
        self.usable = self.usable and not self._extra
        outcome, message = self._judge(status)
        if version:
            self._versions[version] = self._versions.get(version, 0) + 1
        if outcome == OK and raw is not None and self.usable:
            self._seen.learn(self._number, raw, version)
        if not self.usable:
            self._transport.close()  # type: ignore[union-attr]
        self._forget()
        done, self._done = self._done, None
        if done is not None:
            done(self, outcome, message)

    def _judge(self, status: int) -> tuple[int, str]:
        body = b"".join(self._body)
        if status >= 300:
            return status, body.decode("utf-8", "replace")
        if self._seen.check is None:
            return OK, ""
        wrong = self._seen.check(self._number, body, self._json_bytes)
        return (WRONG, wrong) if wrong else (OK, "")

    # httptools' callbacks

    def on_message_begin(self) -> None:
        self._extra = bool(self._status)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) in _LENGTHS and not self._status:
            name = name.lower()
            if name == VERSION_HEADER:
                self._version = value
            elif name == LENGTH_HEADER:
                self._json_bytes = value

    def on_body(self, body: bytes) -> None:
        whole = self._seen.check is not None and self._parser.get_status_code() < 300
        if self._size < (ANSWER_BYTES_MAX if whole else _MESSAGE_BYTES_MAX) and not self._status:
            if not whole:
                body = body[:_MESSAGE_BYTES_MAX] if self._parser.get_status_code() >= 300 else b""
            self._body.append(body)
            self._size += len(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self._status:
            self._status = status
            self.usable = self._parser.should_keep_alive()
