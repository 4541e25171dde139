"""A client's side of HTTP/2 in bytes, and a look at what comes back."""

from __future__ import annotations

from typing import Any, NamedTuple

from hpack import Encoder

from mserve.wire.grpc_head import HeadReader
from mserve.wire.http2 import Http2
from mserve.wire.http2_frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADER_BYTES,
    PREFACE,
    Code,
    Kind,
    frame,
    number,
)

FIELDS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/a/b"),
    (":authority", "x"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)
SETTINGS = frame(Kind.SETTINGS, 0, 0)
HELLO = PREFACE + SETTINGS
S = 1_000_000_000


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frames(data: bytes) -> list[Frame]:
    """The frames of whole bytes; fails where one is cut short."""
    found, at = [], 0
    while at < len(data):
        high, low, kind, flags, stream = HEADER.unpack_from(data, at)
        until = at + HEADER_BYTES + (high << 16 | low)
        assert until <= len(data)
        found.append(Frame(kind, flags, stream, data[at + HEADER_BYTES : until]))
        at = until
    return found


def block(*fields: tuple[str | bytes, str | bytes]) -> bytes:
    """A header block that leaves the table alone."""
    return Encoder().encode([(*field, True) for field in fields or FIELDS])


def but(**changed: str | None) -> bytes:
    """The block of a good request with some fields other, gone (None), or more; `_` stands for `-`."""
    given = {name.replace("_", "-"): value for name, value in changed.items()}
    fields = []
    for name, usual in FIELDS:
        value = given.pop(name.strip(":"), usual)
        if value is not None:
            fields.append((name, value))
    return block(*fields, *((n, v) for n, v in given.items() if v is not None))


def headers(stream: int = 1, data: bytes = b"", *, last: bool = False, flags: int = END_HEADERS) -> bytes:
    return frame(Kind.HEADERS, flags | (END_STREAM if last else 0), stream, data or block())


def data(stream: int = 1, payload: bytes = b"x", *, last: bool = False, flags: int = 0) -> bytes:
    return frame(Kind.DATA, flags | (END_STREAM if last else 0), stream, payload)


def ended(stream: int, code: Code = Code.CANCEL) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream, number(code))


def window(stream: int, more: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream, number(more))


def setting(key: int, value: int) -> bytes:
    return frame(Kind.SETTINGS, 0, 0, key.to_bytes(2, "big") + number(value))


class Talk:
    """A connection of the core with a client that says what it is told to."""

    def __init__(self, hello: bytes = HELLO) -> None:
        self.http2 = Http2(HeadReader(), 0)
        self.now = 0
        self.opening = frames(self.http2.take())
        self.greeting = self.say(hello)

    def say(self, said: bytes) -> list[Frame]:
        """The frames that bytes are answered with."""
        self.events: list[Any] = self.http2.receive(said, self.now)
        return self.heard()

    def heard(self) -> list[Frame]:
        """The frames that wait to be sent."""
        found: list[Frame] = []
        while out := self.http2.take():
            found += frames(out)
        return found

    def verdict(self, said: bytes) -> str:
        """How bytes are taken: "goes on", or what ends and why."""
        for found in self.say(said):
            if found.kind == Kind.GOAWAY:
                return f"connection {Code(int.from_bytes(found.payload[4:8], 'big')).name}"
            if found.kind == Kind.RST_STREAM:
                return f"stream {found.stream} {Code(int.from_bytes(found.payload, 'big')).name}"
        return "goes on"


def acked(found: list[Frame]) -> bool:
    """Whether frames acknowledge settings."""
    return any(f.kind == Kind.SETTINGS and f.flags & ACK for f in found)
