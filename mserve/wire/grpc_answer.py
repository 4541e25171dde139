"""What the header blocks of a gRPC answer say: its head, and the trailers behind it.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from .grpc_wire import STATUS
from .header_blocks import Field
from .http2_frames import Malformed

STATUS_NAMES = tuple(STATUS)
MISSING = -1
# What an HTTP status means where there is no status of gRPC.
_OF_HTTP = {
    400: "INTERNAL",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "UNIMPLEMENTED",
    429: "UNAVAILABLE",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}


@dataclass(frozen=True, slots=True)
class Fields:
    """One header block. `status` is HTTP's, 0 in trailers; `code` is gRPC's, MISSING where it is not told."""

    status: int = 0
    code: int = MISSING
    message: str = ""
    encoding: bytes = b"identity"
    content_type: bytes = b""


def read(fields: Sequence[Field]) -> Fields:
    """What a header block says. Raises Malformed."""
    values = dict(fields)
    status, code = values.get(b":status", b"0"), values.get(b"grpc-status", b"-1")
    if not (status.isdigit() and len(status) <= 3 and code.lstrip(b"-").isdigit() and len(code) <= 9):
        raise Malformed("a status that is no number")
    return Fields(
        int(status),
        int(code),
        unquote(values.get(b"grpc-message", b"").decode("latin-1"), errors="replace"),
        values.get(b"grpc-encoding", b"identity"),
        values.get(b"content-type", b""),
    )


def outcome(head: Fields, tail: Fields | None) -> tuple[int, str]:
    """The status of a call by its head and trailers, and its message; a status that is missing is made up."""
    told = tail if tail is not None and tail.code != MISSING else head
    if told.code != MISSING:
        return told.code, told.message
    if head.status != 200:
        return STATUS[_OF_HTTP.get(head.status, "UNKNOWN")], f"HTTP status {head.status}, and none of gRPC"
    return STATUS["UNKNOWN"], "the answer has no grpc-status"


def status_name(code: int) -> str:
    """A status by name."""
    return STATUS_NAMES[code] if 0 <= code < len(STATUS_NAMES) else f"code {code}"
