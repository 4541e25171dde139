"""The server's side of an HTTP/2 connection: bytes in, events and bytes out (RFC 9113).

No socket and no clock: `receive` is given what has arrived and what time it is, and
returns events; what is to be sent gathers until `take` is asked for it. Nothing that
arrives raises: what a stream does wrong ends the stream, what the connection does wrong
ends the connection, after which `ended` holds and nothing is read any more.

An event is (kind, stream, data, last): a HEAD comes with what the block reader made of
the header block, now in `stream.head`; DATA with bytes; RESET, with its code if the other
side said so, when the stream ended before its time; PONG when a ping was answered. `last`
tells that all of the stream was sent. Events are handled after all bytes were read, so a
stream of an event may have `gone` by then.

Windows. The connection's is filled up as it is used; what a client makes the server hold
is counted elsewhere. A stream's is filled up, too, unless it is `paused`. What the
client's windows do not let through waits in the stream, and streams that may send take
turns, a frame each.

Everything a client may send at no cost to itself, such as pings, resets or empty frames,
is paid from one allowance, which time fills up again, and every answer that was asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from .header_blocks import BadBlock, BlockReader, Bomb, Field, TooLarge
from .http2_frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FRAME_DEFAULT,
    FRAME_LIMIT,
    HEADER,
    HEADER_BYTES,
    PADDED,
    PAIR,
    PREFACE,
    PRIORITIZED,
    STREAM_MAX,
    TABLE_DEFAULT,
    WINDOW_MAX,
    Code,
    ConnectionFault,
    Kind,
    Malformed,
    Setting,
    StreamFault,
    block_of,
    frame,
    number,
    unpadded,
)
from .http2_out import Outgoing
from .http2_streams import FRAME_MAX, STATES, STREAM_WINDOW, STREAMS_MAX, TAKE, Stream

BLOCK_BYTES_MAX = 32 << 10
# Ranges of stream numbers that a client passed over, as far as they are remembered.
SKIPPED_MAX = 100

HEAD, DATA, RESET, PONG = range(4)
Event = tuple[int, Any, Any, bool]


class Http2(Outgoing):
    """One connection.

    `read_head(fields)` makes a head of a request's fields, or raises Malformed; a head has
    `length`, the value of content-length or None. Where the fields are over the limit, the
    head is the error TooLarge. `readers` take frames, by type.
    """

    readers: ClassVar[tuple[Callable[[Any, int, int, bytes], None], ...]]

    def __init__(self, read_head: Callable[[list[Field]], Any], now_ns: int) -> None:
        super().__init__(now_ns)
        self.ended = False
        self.leaving = False  # the client will open no more streams
        self.streams_taken = STREAM_MAX  # how many the other side takes at once
        self._blocks = BlockReader(read_head)
        self._partial = b""
        self._started = False
        self.settled = False  # the client has introduced itself
        self.shut_off = False  # no stream is taken any more
        self._block: bytearray | None = None
        self._block_of = (0, 0)
        self._last = 0
        self._limit = STREAM_MAX  # the last stream that is still taken
        self._skipped: deque[range] = deque(maxlen=SKIPPED_MAX)
        self._events: list[Event] = []

    def receive(self, data: bytes, now_ns: int) -> list[Event]:
        """Read what has arrived; never raises."""
        self._now = now_ns
        if self._partial:
            data = self._partial + data
        events: list[Event] = []
        self._events = events
        if self.ended:
            return events
        try:
            self._partial = data[self._frames(data) :]
        except ConnectionFault as fault:
            self._partial = b""
            self.goaway(fault.code, str(fault))
        return events

    def _frames(self, data: bytes) -> int:
        """Read whole frames; returns where the rest begins."""
        at, end, readers = 0, len(data), self.readers
        if not self._started:
            if data[: len(PREFACE)] != PREFACE[:end]:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "this port speaks HTTP/2 only")
            if end < len(PREFACE):
                return 0
            self._started, at = True, len(PREFACE)
        while end - at >= HEADER_BYTES:
            high, low, kind, flags, identity = HEADER.unpack_from(data, at)
            size = (high << 16) | low
            if size > FRAME_MAX:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a frame over the limit")
            begin, until = at + HEADER_BYTES, at + HEADER_BYTES + size
            if until > end:
                break
            at = until
            if self._block is not None and kind != Kind.CONTINUATION:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a header block was not finished")
            if not self.settled and kind != Kind.SETTINGS:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            if kind < len(readers):
                try:
                    readers[kind](self, flags, identity & STREAM_MAX, data[begin:until])
                except StreamFault as fault:
                    self._allowance.spend(self._now)
                    self._fail(identity & STREAM_MAX, fault.code)
            else:
                self._allowance.spend(self._now)
        return at

    def _data(self, flags: int, identity: int, payload: bytes) -> None:
        size = len(payload)
        self._charge(size)
        stream = self.streams.get(identity)
        if stream is None or stream.ended:
            self._stateful(Kind.DATA, identity)
            return
        stream.room -= size
        if stream.room < 0:
            raise StreamFault(Code.FLOW_CONTROL_ERROR, "more than the stream's window")
        if flags & PADDED:
            payload = unpadded(payload)
        last = bool(flags & END_STREAM)
        if last:
            stream.ended = True
        elif not payload:
            self._allowance.spend(self._now)
        elif stream.room < STREAM_WINDOW // 2:
            self.refill(stream)
        if stream.left is not None:
            stream.left -= len(payload)
            if stream.left < 0 or (last and stream.left):
                raise StreamFault(Code.PROTOCOL_ERROR, "content-length is wrong")
        self._events.append((DATA, stream, payload, last))

    def _headers(self, flags: int, identity: int, payload: bytes) -> None:
        if flags & (PADDED | PRIORITIZED):
            payload = block_of(flags, payload)
        if flags & END_HEADERS and len(payload) <= BLOCK_BYTES_MAX:
            self._block_read(identity, payload, bool(flags & END_STREAM))
        else:
            self._block, self._block_of = bytearray(), (identity, flags)
            self._append(payload)

    def _continuation(self, flags: int, identity: int, payload: bytes) -> None:
        if self._block is None or identity != self._block_of[0]:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a continuation of nothing")
        self._allowance.spend(self._now)
        block = self._append(payload)
        if flags & END_HEADERS:
            self._block = None
            self._block_read(identity, bytes(block), bool(self._block_of[1] & END_STREAM))

    def _append(self, piece: bytes) -> bytearray:
        assert self._block is not None
        self._block += piece
        if len(self._block) > BLOCK_BYTES_MAX:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "a header block over the limit")
        return self._block

    def _block_read(self, identity: int, block: bytes, last: bool) -> None:
        """A whole header block: a request's head, or its trailers, which are read and dropped."""
        if identity <= self._last or not identity & 1:
            self._trailers(identity, block, last)
            return
        if identity > self._last + 2:
            self._skipped.append(range(self._last + 1, identity))
        self._last = identity
        if identity > self._limit or len(self.streams) >= STREAMS_MAX:
            self._decode(block, self._blocks.fields)
            self._cut_off(identity)
            if identity <= self._limit:
                raise StreamFault(Code.REFUSED_STREAM, "too many streams at once")
            return
        head = self._decode(block, self._blocks.read)
        if isinstance(head, Malformed):
            raise StreamFault(Code.PROTOCOL_ERROR, str(head))
        stream = self.streams[identity] = Stream(identity, head, last, self._window_of_stream)
        if not isinstance(head, TooLarge) and head.length is not None:
            stream.left = head.length
            if last and stream.left:
                raise StreamFault(Code.PROTOCOL_ERROR, "content-length is wrong")
        self._events.append((HEAD, stream, None, last))

    def _trailers(self, identity: int, block: bytes, last: bool) -> None:
        if not identity & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a stream with an even number")
        if any(identity in skipped for skipped in self._skipped):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a stream number that was passed over")
        stream = self.streams.get(identity)
        found = self._decode(block, self._blocks.fields)
        fields: list[Field] = [] if isinstance(found, TooLarge) else found
        if stream is None or stream.ended:
            self._stateful(Kind.HEADERS, identity)
        elif not last or stream.left or b":" in {name[:1] for name, _ in fields}:
            raise StreamFault(Code.PROTOCOL_ERROR, "these are no trailers")
        else:
            stream.ended = True
            self._events.append((DATA, stream, b"", True))

    def _decode(self, block: bytes, read: Callable[[bytes], Any]) -> Any:
        try:
            return read(block)
        except (TooLarge, Malformed) as error:
            return error
        except BadBlock as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, str(error)) from error
        except Bomb as error:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, str(error)) from error

    def _priority(self, flags: int, identity: int, payload: bytes) -> None:
        self._allowance.spend(self._now)
        if not identity:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a priority of the connection")
        if len(payload) != 5:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "not a priority")

    def _rst_stream(self, flags: int, identity: int, payload: bytes) -> None:
        self._allowance.spend(self._now)
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "not a code")
        if self._stateful(Kind.RST_STREAM, identity):
            stream = self.streams[identity]
            self._drop(stream)
            self._events.append((RESET, stream, payload, True))

    def _settings(self, flags: int, identity: int, payload: bytes) -> None:
        if identity:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "settings of a stream")
        if len(payload) % 6 or (flags & ACK and payload):
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "not settings")
        if flags & ACK:
            return
        self._allowance.spend(self._now)
        self.settled = True
        window = -1
        for key, value in PAIR.iter_unpack(payload):
            if key == Setting.INITIAL_WINDOW_SIZE:
                if value > WINDOW_MAX:
                    raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window over the limit")
                window = value  # of many the last one counts: to change a thousand streams is work
            elif key == Setting.MAX_FRAME_SIZE:
                if not FRAME_DEFAULT <= value <= FRAME_LIMIT:
                    raise ConnectionFault(Code.PROTOCOL_ERROR, "a size of frames out of bounds")
                self._frame_max = min(value, FRAME_MAX)
            elif key == Setting.MAX_CONCURRENT_STREAMS:
                self.streams_taken = value
            elif key == Setting.ENABLE_PUSH and value > 1:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "neither push nor none")
            elif key == Setting.HEADER_TABLE_SIZE and value < TABLE_DEFAULT:
                self._limit_table()
        if window >= 0:
            self._resize_windows(window)
        self._out.append(frame(Kind.SETTINGS, ACK, 0))

    def _resize_windows(self, size: int) -> None:
        more, self._window_of_stream = size - self._window_of_stream, size
        for stream in self.streams.values():
            stream.out += more
            if stream.out > WINDOW_MAX:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window over the limit")
            self._wake(stream)

    def _push_promise(self, flags: int, identity: int, payload: bytes) -> None:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a client cannot push")

    def _ping(self, flags: int, identity: int, payload: bytes) -> None:
        if identity:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a ping of a stream")
        if len(payload) != 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "not a ping")
        self._allowance.spend(self._now)
        if flags & ACK:
            self._events.append((PONG, None, payload, False))
        else:
            self._out.append(frame(Kind.PING, ACK, 0, payload))

    def _goaway(self, flags: int, identity: int, payload: bytes) -> None:
        if identity:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a stream is told to go away")
        if len(payload) < 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "too short for its fields")
        self._allowance.spend(self._now)
        self.leaving = True

    def _window_update(self, flags: int, identity: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "not a window")
        more = int.from_bytes(payload, "big") & WINDOW_MAX
        if not identity:
            if not more:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a window that does not grow")
            self._window += more
            if self._window > WINDOW_MAX:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window over the limit")
        elif self._stateful(Kind.WINDOW_UPDATE, identity):
            stream = self.streams[identity]
            if not more:
                raise StreamFault(Code.PROTOCOL_ERROR, "a window that does not grow")
            stream.out += more
            if stream.out > WINDOW_MAX:
                raise StreamFault(Code.FLOW_CONTROL_ERROR, "a window over the limit")
            self._wake(stream)

    def state(self, identity: int) -> str:
        """The state that a stream is in, as STATES names it."""
        stream = self.streams.get(identity)
        if stream is not None:
            return "half-closed" if stream.ended else "open"
        if identity > self._last or not identity & 1:
            return "idle"
        return "cut" if identity in self._cut else "closed"

    def _stateful(self, kind: Kind, identity: int) -> bool:
        """Whether a frame is to be taken; raises ConnectionFault and StreamFault by STATES."""
        verdict = STATES[self.state(identity)][kind]
        if isinstance(verdict, ConnectionFault):
            raise ConnectionFault(verdict.code, str(verdict))
        if isinstance(verdict, Code):
            raise StreamFault(verdict, "the client had ended the stream")
        return bool(verdict == TAKE)

    def _fail(self, identity: int, code: Code) -> None:
        """End a stream that did something wrong."""
        stream = self.streams.get(identity)
        self._out.append(frame(Kind.RST_STREAM, 0, identity, number(code)))
        self._cut_off(identity)
        if stream is not None:
            self._drop(stream)
            self._events.append((RESET, stream, None, True))

    def goaway(self, code: Code, text: str = "") -> None:
        """End the connection: nothing is read any more, and every stream is gone."""
        if not self.ended:
            self.ended = True
            self._say_goodbye(self._last, code, text)
            for stream in list(self.streams.values()):
                self._drop(stream)
                self._events.append((RESET, stream, None, True))

    def shut(self, *, final: bool) -> None:
        """Ask the client to open no more streams; with `final` none that comes later is taken.

        What it sends before it has heard of that is still taken: a ping tells when it has.
        """
        if self.ended or self.shut_off:
            return
        if final:
            self._limit, self.shut_off = self._last, True
            self._say_goodbye(self._last, Code.NO_ERROR)
        else:
            self._say_goodbye(STREAM_MAX, Code.NO_ERROR)
            self.ping()


Http2.readers = (
    Http2._data,
    Http2._headers,
    Http2._priority,
    Http2._rst_stream,
    Http2._settings,
    Http2._push_promise,
    Http2._ping,
    Http2._goaway,
    Http2._window_update,
    Http2._continuation,
)
