"""The client's side of an HTTP/2 connection, for requests that are one piece each (RFC 9113).

The same machine as the server's (`wire/http2.py`): frames, windows, tables and limits are
one for both. What differs is who opens streams, and what their header blocks mean. Events
are the server's, too: HEAD is the head of an answer, now in `stream.head`; DATA its bytes,
and with `last` its end, when `stream.tail` has what the trailers say; RESET what ended
early. Who handles the last event of a stream calls `over`.

Answers are remembered. A server that is asked the same gives nearly always the same bytes,
but for the number of the stream, which stands in three places: in front of the head, the
message and the trailers. An answer that was read the long way may be kept (`learn`) as the
four pieces around those places. What is put together of the same pieces then comes as one
event ANSWER, with what `learn` was told of it. Only header blocks that leave the table of
fields alone are kept, and all is forgotten when the table changes, for then the same
bytes mean something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from .header_blocks import LIST_BYTES_MAX, Field, TooLarge
from .http2 import DATA, HEAD, RESET, Http2
from .http2_frames import (
    END_HEADERS,
    END_STREAM,
    HEADER,
    HEADER_BYTES,
    PREFACE,
    STREAM_MAX,
    Code,
    ConnectionFault,
    Kind,
    Malformed,
    Setting,
    StreamFault,
    frame,
    number,
)
from .http2_streams import FRAME_MAX, STREAM_WINDOW, Stream

ANSWER = 4
# Answers that are kept for a request: enough for the ways in which batches round, few enough to compare.
KNOWN_MAX = 4
KNOWN_REQUESTS_MAX = 1024
KNOWN_BYTES = 16 << 10
# Heads with a status below are no answers yet.
FINAL = 200


class Request:
    """A request as bytes, but for the number of its stream: a header block and a body."""

    __slots__ = ("block", "body", "pieces", "size")

    def __init__(self, block: bytes, body: bytes) -> None:
        self.block, self.body, self.size = block, body, len(body)
        head = HEADER.pack(len(block) >> 16, len(block) & 0xFFFF, Kind.HEADERS, END_HEADERS, 0)
        data = HEADER.pack(self.size >> 16 & 0xFF, self.size & 0xFFFF, Kind.DATA, END_STREAM, 0)
        self.pieces = (head[:-4], block + data[:-4], body)


class Reply(Stream):
    """A request on its way, and its answer as far as it has come."""

    __slots__ = ("asked", "head_block", "tail", "tail_block")

    def __init__(self, number: int, out: int, asked: Request, of: Any) -> None:
        super().__init__(number, None, False, out)
        self.asked = asked
        self.tail: Any = None
        self.head_block = self.tail_block = b""
        self.of = of


class Http2Client(Http2):
    """One connection to a server; `read_head(fields)` makes heads of answers and trailers."""

    hello = PREFACE
    mine: ClassVar[dict[Setting, int]] = {
        Setting.ENABLE_PUSH: 0,
        Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        Setting.MAX_FRAME_SIZE: FRAME_MAX,
        Setting.MAX_HEADER_LIST_SIZE: LIST_BYTES_MAX,
    }

    def __init__(self, read_head: Callable[[list[Field]], Any], now_ns: int) -> None:
        super().__init__(read_head, now_ns)
        self._started = True  # only clients begin with words
        self._last = -1
        self._known: dict[Request, list[tuple[tuple[bytes, ...], int, Any]]] = {}
        self._known_changes = 0
        self.farewell = b""  # what the server said when it went away

    # requests

    def request(self, asked: Request, of: Any) -> Reply:
        """Send a request on a stream of its own; the caller has asked `full` before."""
        identity = self._last = self._last + 2
        stream = Reply(identity, self._window_of_stream, asked, of)
        self.streams[identity] = stream
        size = asked.size
        if size > self._window or size > stream.out or size > self._frame_max or self._prefix:
            self.send(stream, asked.block, asked.body)
            self.finish(stream, b"")
            return stream
        self._window -= size
        stream.out -= size
        name = number(identity)
        first, second, third = asked.pieces
        self._out.append(b"".join((first, name, second, name, third)))
        return stream

    @property
    def full(self) -> bool:
        """Whether no further stream may be opened now."""
        return self.ended or self.leaving or len(self.streams) >= self.streams_taken

    def finish(self, stream: Stream, trailers: bytes) -> None:
        """The end of a request, behind what waits; the answer is still to come."""
        if stream.gone:
            return
        if stream.waiting is not None:
            stream.trailers = trailers
        else:
            self._out.append(frame(Kind.DATA, END_STREAM, stream.id))

    def _say_goodbye(self, last: int, code: Code, text: str = "") -> None:
        super()._say_goodbye(0, code, text)  # the server has opened no stream

    # answers

    def _frames(self, data: bytes) -> int:
        """Read answers that are known, then whole frames; returns where the rest begins."""
        at, end = 0, len(data)
        while at < end and self._known and (after := self._known_answer(data, at)):
            at = after
        return at + super()._frames(data[at:] if at else data) if at < end else at

    def _known_answer(self, data: bytes, at: int) -> int:
        """Take an answer that begins there and is known; returns where it ends, 0 if it is not."""
        if self._known_changes != self._blocks.changes:
            self._known.clear()
            return 0
        name = data[at + 5 : at + HEADER_BYTES]
        stream: Any = self.streams.get(int.from_bytes(name, "big"))
        if stream is None or stream.head is not None or self._block is not None:
            return 0
        for pieces, size, told in self._known.get(stream.asked, ()):
            whole = name.join(pieces)
            if data.startswith(whole, at):
                self._charge(size)
                self._events.append((ANSWER, stream, told, True))
                return at + len(whole)
        return 0

    def learn(self, stream: Reply, body: bytes, told: Any) -> None:
        """Remember an answer whose DATA was one frame, and what to tell when it comes again."""
        head, tail, size = stream.head_block, stream.tail_block, len(body)
        if not (self._blocks.remembers(head) and self._blocks.remembers(tail)):
            return
        if size > min(self._frame_max, KNOWN_BYTES):
            return
        if self._known_changes != self._blocks.changes:
            self._known.clear()
            self._known_changes = self._blocks.changes
        if len(self._known) >= KNOWN_REQUESTS_MAX:
            self._known.clear()
        known = self._known.setdefault(stream.asked, [])
        del known[KNOWN_MAX - 1 :]
        first = HEADER.pack(0, len(head), Kind.HEADERS, END_HEADERS, 0)[:-4]
        second = HEADER.pack(0, size, Kind.DATA, 0, 0)[:-4]
        third = HEADER.pack(0, len(tail), Kind.HEADERS, END_HEADERS | END_STREAM, 0)[:-4]
        known.insert(0, ((first, head + second, body + third, tail), size, told))

    def over(self, stream: Stream) -> None:
        """An answer is complete; what was not sent of its request need not be."""
        self._allowance.earn()
        if stream.waiting is not None:
            self.reset(stream, Code.NO_ERROR)
        else:
            self._drop(stream)

    def _block_read(self, identity: int, block: bytes, last: bool) -> None:
        """A whole header block: the head of an answer, one to be passed over, or trailers."""
        found = self._decode(block, self._blocks.read)
        stream: Any = self.streams.get(identity)
        if self.state(identity) == "idle":
            raise ConnectionFault(Code.PROTOCOL_ERROR, "an answer to nothing")
        if stream is None or stream.ended:
            self._stateful(Kind.HEADERS, identity)
            return
        if isinstance(found, TooLarge | Malformed):
            raise StreamFault(Code.PROTOCOL_ERROR, str(found))
        if stream.head is not None:
            if not last:
                raise StreamFault(Code.PROTOCOL_ERROR, "trailers that do not end the stream")
            stream.tail, stream.tail_block, stream.ended = found, block, True
            self._events.append((DATA, stream, b"", True))
        elif found.status >= FINAL or last:
            stream.head, stream.head_block, stream.ended = found, block, last
            self._events.append((HEAD, stream, None, last))

    def _told_to_leave(self, flags: int, identity: int, payload: bytes) -> None:
        """The server goes away: streams beyond the last that it took were not begun."""
        Http2._goaway(self, flags, identity, payload)
        last = int.from_bytes(payload[:4], "big") & STREAM_MAX
        self.farewell = payload[8:]
        for stream in [s for s in self.streams.values() if s.id > last]:
            self._drop(stream)
            self._events.append((RESET, stream, number(Code.REFUSED_STREAM), True))

    def _pushed(self, flags: int, identity: int, payload: bytes) -> None:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a push, which was not allowed")


_OTHERS = {Kind.PUSH_PROMISE: Http2Client._pushed, Kind.GOAWAY: Http2Client._told_to_leave}
Http2Client.readers = tuple(_OTHERS.get(Kind(i), reader) for i, reader in enumerate(Http2.readers))
