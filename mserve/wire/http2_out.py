"""What one side of an HTTP/2 connection sends: frames that gather, within the windows of the other.

An answer that fits goes out at once, three frames in one piece. What does not fit waits
in its stream; streams that may send take turns, a frame each, and no more is gathered at
a time than a socket takes well.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar

from .header_blocks import LIST_BYTES_MAX
from .http2_frames import (
    END_HEADERS,
    END_STREAM,
    FRAME_DEFAULT,
    HEADER,
    WINDOW_DEFAULT,
    Code,
    ConnectionFault,
    Kind,
    Setting,
    frame,
    number,
    settings,
)
from .http2_streams import CONNECTION_WINDOW, FRAME_MAX, STREAM_WINDOW, STREAMS_MAX, Allowance, Stream

# Bytes that one `take` gathers from what waits.
TAKE_BYTES = 1 << 20
# Streams that were ended from here and may still be sent to, as far as they are remembered.
CUT_MAX = 1000
_HEADERS_END, _HEADERS_LAST = END_HEADERS, END_HEADERS | END_STREAM
# A change of the table's size to nothing: answers do not use it.
_NO_TABLE = b"\x20"


class Outgoing:
    """The sending half of a connection; `hello` and `mine` are what it introduces itself with."""

    hello = b""
    mine: ClassVar[dict[Setting, int]] = {
        Setting.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
        Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        Setting.MAX_FRAME_SIZE: FRAME_MAX,
        Setting.MAX_HEADER_LIST_SIZE: LIST_BYTES_MAX,
    }

    def __init__(self, now_ns: int) -> None:
        self.streams: dict[int, Stream] = {}
        self.hold = False  # the socket takes no more at present
        self.waiting = 0  # bytes that wait in streams
        self._now = now_ns
        self._allowance = Allowance(now_ns)
        grown = number(CONNECTION_WINDOW - WINDOW_DEFAULT)
        self._out = [self.hello + settings(self.mine), frame(Kind.WINDOW_UPDATE, 0, 0, grown)]
        self._room = CONNECTION_WINDOW
        self._window = WINDOW_DEFAULT
        self._window_of_stream = WINDOW_DEFAULT
        self._frame_max = FRAME_DEFAULT
        self._tableless = False
        self._prefix = b""
        self._ready: deque[Stream] = deque()
        self._cut: dict[int, None] = {}

    def more(self) -> bool:
        """Whether `take` has something to give."""
        return bool(self._out) or (bool(self._ready) and not self.hold and self._window > 0)

    def take(self) -> bytes:
        """What is to be sent now. When it was sent there may be more."""
        if self._ready and not self.hold:
            self._gather()
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        return data

    def answer(self, stream: Stream, head: bytes, body: bytes, trailers: bytes) -> None:
        """A whole answer: blocks for its head and trailers, and what lies between."""
        size = len(body)
        if stream.gone:
            return
        if size > self._window or size > stream.out or size > self._frame_max or self.hold or self._prefix:
            self.send(stream, head, body)
            self.finish(stream, trailers)
            return
        self._window -= size
        identity, pack = stream.id, HEADER.pack
        self._out.append(
            b"".join(
                (
                    pack(0, len(head), Kind.HEADERS, _HEADERS_END, identity),
                    head,
                    pack(size >> 16, size & 0xFFFF, Kind.DATA, 0, identity),
                    body,
                    pack(0, len(trailers), Kind.HEADERS, _HEADERS_LAST, identity),
                    trailers,
                )
            )
        )
        self._over(stream)

    def send(self, stream: Stream, head: bytes | None, body: bytes = b"") -> None:
        """A part of an answer: the block of its head if that was not sent, and bytes."""
        if stream.gone:
            return
        if head is not None:
            self._out.append(frame(Kind.HEADERS, _HEADERS_END, stream.id, self._prefix + head))
            self._prefix, stream.headed = b"", True
        if body:
            if stream.waiting is None:
                stream.waiting, stream.since_ns = bytearray(), self._now
            stream.waiting += body
            self.waiting += len(body)
            self._wake(stream)

    def finish(self, stream: Stream, trailers: bytes) -> None:
        """The end of an answer, behind what waits: the block of its trailers, or of its only head."""
        if stream.gone:
            return
        if stream.waiting is not None:
            stream.trailers = trailers
            return
        block, self._prefix = self._prefix + trailers, b""
        self._out.append(frame(Kind.HEADERS, _HEADERS_LAST, stream.id, block))
        self._over(stream)

    def reset(self, stream: Stream, code: Code) -> None:
        """End a stream before its time."""
        if not stream.gone:
            self._out.append(frame(Kind.RST_STREAM, 0, stream.id, number(code)))
            self._cut_off(stream.id)
            self._drop(stream)

    def refill(self, stream: Stream) -> None:
        """Let the client send as much as a stream's window has, unless the stream is paused or all came."""
        if not (stream.paused or stream.ended or stream.gone) and stream.room < STREAM_WINDOW // 2:
            self._grow(stream.id, STREAM_WINDOW - stream.room)
            stream.room = STREAM_WINDOW

    def ping(self) -> None:
        """Ask the client whether it is there."""
        self._out.append(frame(Kind.PING, 0, 0, bytes(8)))

    def _say_goodbye(self, last: int, code: Code, text: str = "") -> None:
        self._out.append(frame(Kind.GOAWAY, 0, 0, number(last) + number(code) + text.encode()))

    def _charge(self, size: int) -> None:
        """Count bytes of DATA against the connection's window, and fill that up. Raises ConnectionFault."""
        self._room -= size
        if self._room < CONNECTION_WINDOW // 2:
            if self._room < 0:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "more than the connection's window")
            self._grow(0, CONNECTION_WINDOW - self._room)
            self._room = CONNECTION_WINDOW

    def _grow(self, identity: int, more: int) -> None:
        self._out.append(frame(Kind.WINDOW_UPDATE, 0, identity, number(more)))

    def _over(self, stream: Stream) -> None:
        """The answer is complete; a client that still sends is told to save itself the rest."""
        self._allowance.earn()
        if stream.ended:
            self._drop(stream)
        else:
            self.reset(stream, Code.NO_ERROR)

    def _drop(self, stream: Stream) -> None:
        stream.gone = True
        self.streams.pop(stream.id, None)
        if stream.waiting is not None:
            self.waiting -= len(stream.waiting)
            stream.waiting = None

    def _cut_off(self, identity: int) -> None:
        self._cut[identity] = None
        if len(self._cut) > CUT_MAX:
            del self._cut[next(iter(self._cut))]

    def _limit_table(self) -> None:
        """The client's table shrinks: the next block tells it, as it must, that none is used."""
        if not self._tableless:
            self._tableless, self._prefix = True, _NO_TABLE

    def _wake(self, stream: Stream) -> None:
        """Put a stream in the queue for sending, if it waits and may send."""
        if stream.waiting is not None and stream.out > 0 and not stream.queued:
            stream.queued = True
            self._ready.append(stream)

    def _gather(self) -> None:
        """Make frames of what waits, as far as the windows go."""
        room = TAKE_BYTES
        while self._ready and room > 0 and self._window > 0:
            stream = self._ready.popleft()
            stream.queued = False
            waiting = stream.waiting
            if waiting is None:
                continue
            size = min(len(waiting), stream.out, self._window, self._frame_max)
            if size > 0:
                self._out.append(frame(Kind.DATA, 0, stream.id, bytes(waiting[:size])))
                del waiting[:size]
                self._window -= size
                stream.out -= size
                self.waiting -= size
                room -= size
                stream.since_ns = self._now
            if waiting:
                self._wake(stream)
                continue
            stream.waiting = None
            if stream.trailers is not None:
                self.finish(stream, stream.trailers)
