"""ModelInferRequests whose bytes came before, but for the id and the tensors: read without protobuf.

A client asks for the same model with the same names, datatypes and shapes again and again.
The bytes of a message without its id and its raw tensors are the key; what they mean was
worked out by protobuf when they came first. A message whose bytes are anything unusual, or
that spells its tensors out, is always read by protobuf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from . import oip_proto
from .oip import InferRequest
from .protobuf import Malformed, varint

KNOWN_MAX = 64
KEY_BYTES_MAX = 2 << 10
# What no JSON begins with: a version's plans are kept by the bytes of both.
_MARK = b"\0"
_ID, _RAW = 0x1A, 0x3A
_ONE_BYTE, _LENGTH = 0x80, 2


@dataclass(frozen=True, slots=True)
class Known:
    """What a key means: a model, a version as text, and a request that lacks id and tensors."""

    model: str
    version: str
    bare: InferRequest


@dataclass(slots=True)
class Asked:
    """A request as it was read. Without a `key` the whole request is `known.bare`."""

    known: Known
    id: str
    key: bytes
    raw: Sequence[bytes]

    def message(self) -> InferRequest:
        """The whole request."""
        bare = self.known.bare
        if not self.key:
            return bare
        inputs = [replace(given, raw=raw) for given, raw in zip(bare.inputs, self.raw, strict=True)]
        return replace(bare, inputs=inputs, id=self.id or None)


class Parts(NamedTuple):
    """A message's key, id and raw tensors; `last` is where its only tensor begins, if nothing follows."""

    key: bytes
    id: str
    raw: list[bytes]
    last: int


class Reader:
    """Reads requests, and knows some of them; may be used on several threads."""

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}
        # By what stands before the one tensor of a message, which is the last thing in it: the
        # same message without walking through it. By the message's size: where the tensor begins.
        self._starts: dict[bytes, tuple[Known, str, bytes]] = {}
        self._begins: dict[int, int] = {}

    def read(self, body: bytes) -> Asked:
        """A message's bytes as a request. Raises RequestError."""
        begin = self._begins.get(len(body))
        if begin and (start := self._starts.get(body[:begin])):
            return Asked(*start, (body[begin:],))
        parts = split(body)
        asked = self._read(body, parts)
        if asked.key and parts is not None and 0 < parts.last <= KEY_BYTES_MAX:
            for memo in (self._starts, self._begins):
                if len(memo) >= KNOWN_MAX:
                    memo.clear()
            self._begins[len(body)] = parts.last
            self._starts[body[: parts.last]] = asked.known, asked.id, asked.key
        return asked

    def _read(self, body: bytes, parts: Parts | None) -> Asked:
        if parts is not None:
            key, identity, raw, _ = parts
            known = self._known.get(key)
            if known is not None and len(known.bare.inputs) == len(raw):
                return Asked(known, identity, key, raw)
        asked = oip_proto.decode("ModelInferRequest", body)
        message = oip_proto.request(asked)
        known = Known(asked.model_name, asked.model_version, message)
        if parts is None or not message.inputs or any(given.raw is None for given in message.inputs):
            return Asked(known, asked.id, b"", ())
        bare = replace(message, inputs=[replace(given, raw=None) for given in message.inputs], id=None)
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[key] = known = replace(known, bare=bare)
        return Asked(known, identity, key, raw)


def split(body: bytes) -> Parts | None:
    """The parts of a message; None where its bytes are anything unusual."""
    pieces, raw, identity = [_MARK], list[bytes](), b""
    at, start, end, last = 0, 0, len(body), 0
    try:
        while at < end:
            tag, size, begin = body[at], body[at + 1], at + 2
            if tag >= _ONE_BYTE or tag & 7 != _LENGTH:
                return None
            if size >= _ONE_BYTE:
                size, begin = varint(body, at + 1, end)
            until, last = begin + size, 0
            if tag in (_ID, _RAW):
                pieces.append(body[start:at])
                start = until
                if tag == _RAW:
                    raw.append(body[begin:until])
                    last = begin
                else:
                    identity = body[begin:until]
            if until - start > KEY_BYTES_MAX or len(pieces) > KEY_BYTES_MAX:
                return None  # what remains would not be a key, and may be millions of records
            at = until
        text = identity.decode()
    except (IndexError, Malformed, UnicodeDecodeError):
        return None
    pieces.append(body[start:])
    key = b"".join(pieces)
    if at > end or len(key) > KEY_BYTES_MAX:
        return None
    return Parts(key, text, raw, last if len(raw) == 1 else 0)
