"""What gRPC puts into HTTP/2: statuses, and messages with a length in front.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import struct
from urllib.parse import quote

from .header_blocks import literal

# Whether a message is compressed, and its length.
PREFIX = struct.Struct(">BI")
PREFIX_BYTES = PREFIX.size
_STATUSES = """
OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED
RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS
UNAUTHENTICATED
""".split()
STATUS = {name: number for number, name in enumerate(_STATUSES)}
# Printable ASCII goes as it is, but for what introduces the others.
_PLAIN = bytes(c for c in range(0x20, 0x7F) if c != ord("%")).decode()

# `:status: 200`, which has a number of its own.
_OK = b"\x88"
_TYPE = literal(b"content-type", b"application/grpc")
HEAD = _OK + _TYPE
HEAD_GZIP = HEAD + literal(b"grpc-encoding", b"gzip")
TRAILERS = literal(b"grpc-status", b"0")
# What a refusal of an encoding has to tell.
ACCEPTED = literal(b"grpc-accept-encoding", b"identity,deflate,gzip")


def status(name: str, text: str) -> bytes:
    """The fields of an error's status."""
    fields = literal(b"grpc-status", b"%d" % STATUS[name])
    return fields + literal(b"grpc-message", quote(text, safe=_PLAIN).encode())


def refusal(http_status: int) -> bytes:
    """A whole answer to what is no call of gRPC."""
    return literal(b":status", b"%d" % http_status) + literal(b"content-length", b"0")


def framed(message: bytes, compressed: bool = False) -> bytes:
    """A message as it goes into DATA."""
    return PREFIX.pack(compressed, len(message)) + message
