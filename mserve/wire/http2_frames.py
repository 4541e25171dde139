"""HTTP/2 frames: their names, codes and bytes (RFC 9113, sections 4, 6 and 7)."""

from __future__ import annotations

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Length (a high byte and two low ones), type, flags, stream.
HEADER = struct.Struct(">BHBBI")
HEADER_BYTES = HEADER.size
# A setting and its value.
PAIR = struct.Struct(">HI")
WINDOW_MAX = 2**31 - 1
STREAM_MAX = 2**31 - 1
WINDOW_DEFAULT = 65_535
FRAME_DEFAULT = 16_384
FRAME_LIMIT = 2**24 - 1
TABLE_DEFAULT = 4096
PRIORITY_BYTES = 5

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20


class Kind(IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(IntEnum):
    """Parameters of a SETTINGS frame."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class ConnectionFault(Exception):
    """What the other side did ends the connection, with this code."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class StreamFault(Exception):
    """What the other side did ends one stream, with this code."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


class Malformed(Exception):
    """The fields of a request are not those of HTTP."""


def frame(kind: Kind, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame. The payload is within the limit of whoever receives it."""
    size = len(payload)
    return HEADER.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def number(value: int) -> bytes:
    """Four bytes, as windows and codes take them."""
    return value.to_bytes(4, "big")


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    payload = b"".join(PAIR.pack(key, value) for key, value in values.items())
    return frame(Kind.SETTINGS, 0, 0, payload)


def unpadded(payload: bytes) -> bytes:
    """The payload of a padded frame without its padding. Raises ConnectionFault."""
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(Code.PROTOCOL_ERROR, "more padding than there is payload")
    return payload[1 : len(payload) - payload[0]]


def block_of(flags: int, payload: bytes) -> bytes:
    """The piece of a header block in a frame that is padded or has a priority. Raises ConnectionFault."""
    if flags & PADDED:
        payload = unpadded(payload)
    if flags & PRIORITIZED:
        if len(payload) < PRIORITY_BYTES:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "too short for a priority")
        payload = payload[PRIORITY_BYTES:]
    return payload
