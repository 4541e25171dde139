"""The streams of an HTTP/2 connection: what a frame means to one by its state, and what is free of charge."""

from __future__ import annotations

from typing import Any

from .http2_frames import Code, ConnectionFault, Kind

# What a client may do, as it is told when it connects.
STREAMS_MAX = 1000
STREAM_WINDOW = 1 << 20
CONNECTION_WINDOW = 16 << 20
FRAME_MAX = 64 << 10
ALLOWANCE = 1000
ALLOWANCE_A_SECOND = 200

TAKE, IGNORE = "take", "ignore"
_CLOSED = ConnectionFault(Code.STREAM_CLOSED, "a frame for a closed stream")
_IDLE = ConnectionFault(Code.PROTOCOL_ERROR, "a frame for a stream that was never opened")
_FRAMES = (Kind.DATA, Kind.HEADERS, Kind.RST_STREAM, Kind.WINDOW_UPDATE)
# What a frame means by the state that its stream is in (RFC 9113, section 5.1): it is taken
# or ignored, or an error of the stream or of the connection. A stream that is "cut" was ended
# from here, and its client may not know yet.
STATES: dict[str, dict[Kind, str | Code | ConnectionFault]] = {
    "idle": dict(zip(_FRAMES, (_IDLE, TAKE, _IDLE, _IDLE), strict=True)),
    "open": dict(zip(_FRAMES, (TAKE, TAKE, TAKE, TAKE), strict=True)),
    "half-closed": dict(zip(_FRAMES, (Code.STREAM_CLOSED, Code.STREAM_CLOSED, TAKE, TAKE), strict=True)),
    "cut": dict(zip(_FRAMES, (IGNORE, IGNORE, IGNORE, IGNORE), strict=True)),
    "closed": dict(zip(_FRAMES, (Code.STREAM_CLOSED, _CLOSED, IGNORE, IGNORE), strict=True)),
}


class Stream:
    """A request that is not wholly answered yet. `of` is for whoever carries the connection."""

    __slots__ = (
        "ended",  # the client has sent all of it
        "gone",  # nothing more is sent or expected
        "head",
        "headed",  # the head of the answer was sent
        "id",
        "left",  # bytes that are still to come, None where the head does not say
        "of",
        "out",  # bytes that the client takes
        "paused",  # the client is not to send more than it may already
        "queued",  # its turn to send will come
        "room",  # bytes that the client may send
        "since_ns",  # when what waits began to wait, or last moved
        "trailers",  # what ends the answer, behind what waits
        "waiting",  # bytes of the answer that wait, None where nothing does
    )

    def __init__(self, number: int, head: Any, ended: bool, out: int) -> None:
        self.id = number
        self.head = head
        self.ended = ended
        self.gone = self.headed = self.paused = self.queued = False
        self.left: int | None = None
        self.room = STREAM_WINDOW
        self.out = out
        self.waiting: bytearray | None = None
        self.trailers: bytes | None = None
        self.since_ns = 0
        self.of: Any = None


class Allowance:
    """What is free for a client, up to a limit."""

    def __init__(self, now_ns: int) -> None:
        self._left = float(ALLOWANCE)
        self._at = now_ns

    def spend(self, now_ns: int) -> None:
        """Pay for one frame. Raises ConnectionFault when there is nothing left."""
        more = (now_ns - self._at) * ALLOWANCE_A_SECOND * 1e-9
        self._left, self._at = min(ALLOWANCE, self._left + more) - 1, now_ns
        if self._left < 0:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames that ask for nothing")

    def earn(self) -> None:
        """A request was answered."""
        self._left += 1
