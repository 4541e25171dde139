"""The head of a gRPC call: what the fields of an HTTP/2 request ask for.

Fields that differ in every call, its identity and its place in a trace, are taken out first;
what the others mean is remembered by their values, so a call with an identity of its own
costs little more than one without.

Sources: RFC 9113, section 8.3; https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import RequestError, Unimplemented
from .header_blocks import Field
from .http2_frames import Malformed

KNOWN_MAX = 8
KNOWN_FIELDS_MAX = 32
# What differs from call to call, as it stands for the others.
_VARYING = {name: (name, b"") for name in (b"x-request-id", b"traceparent", b"grpc-timeout")}
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
_OF_CONNECTIONS = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_CONTENT_TYPE = re.compile(rb"application/grpc(\+proto)? *(;.*)?")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600 * 10**9, b"M": 60 * 10**9, b"S": 10**9, b"m": 10**6, b"u": 1000, b"n": 1}
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_BAD_VALUE = re.compile(rb"[\0\r\n]|\A[ \t]|[ \t]\Z")
Problem = tuple[type[RequestError], str]
ENCODINGS = (b"identity", b"gzip", b"deflate")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks for, but for its identity.

    `method` is its path without the first slash. `http_status` is other than 200 where this is no
    call of gRPC; `problem` says why it is refused otherwise. `metadata` has the last value of
    each name; those of "-bin" are bytes.
    """

    method: str = ""
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)
    length: int | None = None
    encoding: bytes = b"identity"
    takes_gzip: bool = False
    http_status: int = 200
    problem: Problem | None = None


class Head:
    """The head of one call; `timeout_ns` is 0 where there is none."""

    __slots__ = ("asked", "identified", "length", "problem", "request_id", "timeout_ns", "traceparent")

    def __init__(self, asked: Asked, varying: Mapping[bytes, bytes]) -> None:
        self.asked = asked
        self.length = asked.length
        self.problem = asked.problem
        self.request_id = varying.get(b"x-request-id", b"").decode("latin-1")
        self.traceparent = varying.get(b"traceparent", b"").decode("latin-1")
        self.identified = bool(self.request_id or self.traceparent)
        self.timeout_ns = 0
        if b"grpc-timeout" in varying:
            self.timeout_ns = _timeout_ns(varying[b"grpc-timeout"])
            if not self.timeout_ns:
                self.problem = RequestError, "bad grpc-timeout"


class HeadReader:
    """Makes heads of fields, for one connection."""

    def __init__(self) -> None:
        self._known: dict[tuple[Field, ...], Asked] = {}

    def __call__(self, fields: Sequence[Field]) -> Head:
        """The head that the fields stand for. Raises Malformed."""
        varying: dict[bytes, bytes] = {}
        rest: list[Field] = []
        for one in fields:
            if (same := _VARYING.get(one[0])) is None:
                rest.append(one)
            else:
                rest.append(same)
                varying[one[0]] = one[1]
                if _BAD_VALUE.search(one[1]):
                    raise Malformed("a value with a line break or an outer space")
        key = tuple(rest)
        asked = self._known.get(key)
        if asked is None:
            asked = read(key)
            if len(key) <= KNOWN_FIELDS_MAX:
                if len(self._known) >= KNOWN_MAX:
                    self._known.clear()
                self._known[key] = asked
        return Head(asked, varying)


def read(fields: Sequence[Field]) -> Asked:
    """What fields ask for. Raises Malformed where they are no request of HTTP/2."""
    pseudo, regular = _split(fields)
    if any(name not in pseudo for name in (b":method", b":scheme", b":path")) or not pseudo[b":path"]:
        raise Malformed("a request without method, scheme or path")
    values = dict(regular)
    length = _length([value for name, value in regular if name == b"content-length"])
    status = 200
    if pseudo[b":method"] != b"POST":
        status = 405
    elif not _CONTENT_TYPE.fullmatch(values.get(b"content-type", b"").lower()):
        status = 415
    metadata, problem = _metadata(regular)
    encoding = values.get(b"grpc-encoding", b"identity")
    if encoding not in ENCODINGS:
        problem = Unimplemented, f"the encoding {encoding[:32].decode('latin-1')!r} is not known"
    accepted = [part.strip() for part in values.get(b"grpc-accept-encoding", b"").split(b",")]
    method = pseudo[b":path"].decode("utf-8", "replace").removeprefix("/")
    return Asked(method, metadata, length, encoding, b"gzip" in accepted, status, problem)


def _split(fields: Sequence[Field]) -> tuple[dict[bytes, bytes], list[Field]]:
    """Pseudo-fields by name, and the others. Raises Malformed."""
    pseudo: dict[bytes, bytes] = {}
    regular: list[Field] = []
    for name, value in fields:
        if _BAD_VALUE.search(value):
            raise Malformed("a value with a line break or an outer space")
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or regular:
                raise Malformed("a pseudo-field that is unknown, doubled or late")
            pseudo[name] = value
            continue
        if not _NAME.fullmatch(name) or name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
            raise Malformed("a field that HTTP/2 does not have")
        regular.append((name, value))
    return pseudo, regular


def _length(values: Sequence[bytes]) -> int | None:
    if not values:
        return None
    if len(set(values)) > 1 or not values[0].isdigit() or len(values[0]) > 18:
        raise Malformed("a bad content-length")
    return int(values[0])


def _timeout_ns(value: bytes) -> int:
    """Nanoseconds, at least one; 0 for what is no timeout."""
    found = _TIMEOUT.fullmatch(value)
    return max(1, int(found[1]) * _UNITS[found[2]]) if found else 0


def _metadata(
    fields: Sequence[Field],
) -> tuple[dict[str, str | bytes], Problem | None]:
    """What a caller sent along, and what is wrong with it."""
    metadata: dict[str, str | bytes] = {}
    problem = None
    for name, value in fields:
        if name.startswith(b"grpc-") or name in (b"te", b"content-type", b"content-length"):
            continue
        key = name.decode("ascii")
        if key == "authorization" and key in metadata:
            problem = RequestError, "the call has more than one authorization"
        if name.endswith(b"-bin"):
            try:
                metadata[key] = base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
            except binascii.Error:
                problem = RequestError, f"the metadata {key[:100]} is not base64"
        else:
            metadata[key] = _text(value)
    return metadata, problem


def _text(value: bytes) -> str:
    """A value whose UTF-8 gives the same bytes, wherever there is one."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
