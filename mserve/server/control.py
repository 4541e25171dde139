"""The channel between the parent of several serving processes and each of them.

A message is a head, a JSON object, and a body of bytes, each behind its length:

    u32 length of the head, u32 length of the body (both big-endian), head, body

Both sides may ask: the head of a question has an `id`, that of its answer `re` with the same
number; answers come in any order, messages arrive in the order in which they were sent.
No pickle: what arrives is data, and at most as long as the limits below.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson

from ..errors import EnvironmentProblem, MserveError

HEAD_BYTES_MAX = 64 << 20
BODY_BYTES_MAX = 2 << 30
_LENGTHS = struct.Struct(">II")

Head = dict[str, Any]


class Message(NamedTuple):
    """One message."""

    head: Head
    body: bytes = b""


class Malformed(Exception):
    """Bytes that are no message, or one over the limits; the channel cannot be used any more."""


class Closed(EnvironmentProblem):
    """The other side has ended."""


def pack(head: Mapping[str, Any], body: bytes | bytearray = b"") -> bytes:
    """A message's bytes. Raises Malformed when it is over the limits."""
    encoded = orjson.dumps(head)
    _check(len(encoded), len(body))
    return b"".join((_LENGTHS.pack(len(encoded), len(body)), encoded, body))


def _check(head: int, body: int) -> None:
    if head > HEAD_BYTES_MAX or body > BODY_BYTES_MAX:
        raise Malformed(f"a message of {head} and {body} bytes")


class Frames:
    """Bytes in, messages out. Nothing is allocated for a length before its bytes are there."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete now. Raises Malformed."""
        self._held += data
        while len(self._held) >= _LENGTHS.size:
            head, body = _LENGTHS.unpack_from(self._held)
            _check(head, body)
            end = _LENGTHS.size + head + body
            if len(self._held) < end:
                return
            with memoryview(self._held) as view:
                encoded = bytes(view[_LENGTHS.size : _LENGTHS.size + head])
                content = bytes(view[_LENGTHS.size + head : end])
            del self._held[:end]
            yield Message(_object(encoded), content)


def _object(encoded: bytes) -> Head:
    try:
        value = orjson.loads(encoded)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"a head that is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Malformed("a head that is no object")
    return value


class Channel(asyncio.Protocol):
    """One end of a channel on the event loop.

    `handle(message)` takes what is not an answer; `lost()` is called once, when the other side
    has ended or has sent what is no message.
    """

    def __init__(self, handle: Callable[[Message], None], lost: Callable[[], None]) -> None:
        self._handle = handle
        self._lost = lost
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._asked: dict[int, asyncio.Future[Message]] = {}
        self._last = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except Malformed:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for future in self._asked.values():
            if not future.done():
                future.set_exception(Closed("the serving process has ended", hint="it is started again"))
                future.exception()  # nobody may be waiting for it
        self._asked.clear()
        self._lost()

    def _take(self, message: Message) -> None:
        number = message.head.get("re")
        if number is None:
            self._handle(message)
        elif (future := self._asked.pop(number, None)) is not None and not future.done():
            future.set_result(message)

    def send(self, head: Mapping[str, Any], body: bytes | bytearray = b"") -> None:
        """Send a message; it is lost if the other side has ended. Raises Malformed (over the limits)."""
        data = pack(head, body)
        if self._transport is not None:
            self._transport.write(data)

    def ask(self, head: Mapping[str, Any], body: bytes | bytearray = b"") -> asyncio.Future[Message]:
        """Send a question. The future has its answer, or Closed when the other side ends first."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        if self._transport is None:
            future.set_exception(Closed("the serving process has ended", hint="it is started again"))
            future.exception()
            return future
        self._last += 1
        data = pack({**head, "id": self._last}, body)
        self._asked[self._last] = future
        self._transport.write(data)
        return future

    def close(self) -> None:
        """End the channel."""
        if self._transport is not None:
            self._transport.close()


def error_head(error: MserveError) -> Head:
    """An error as a part of a head."""
    return {**error.to_json(), "retry": getattr(error, "retry_after_s", 0)}


def error_of(head: Mapping[str, Any]) -> MserveError:
    """The error of such a part, of the same class."""
    kind = _KINDS.get(head["code"], MserveError)
    parts = {key: head.get(key, "") for key in ("where", "expected", "found", "hint")}
    error = kind(head["message"], **parts)
    if head.get("retry"):
        error.retry_after_s = head["retry"]  # type: ignore[attr-defined]
    return error


def _kinds(kind: type[MserveError]) -> Iterator[type[MserveError]]:
    for inner in kind.__subclasses__():
        yield from _kinds(inner)
    yield kind


# Every kind of error by its code; of two with one code the one further up.
_KINDS = {kind.code: kind for kind in _kinds(MserveError)}
