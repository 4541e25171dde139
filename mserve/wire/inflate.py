"""Compressed bodies and messages, taken out of their encoding within a limit."""

from __future__ import annotations

import zlib
from collections.abc import Callable

from ..errors import PayloadTooLarge, RequestError

# What zlib calls the two forms: with gzip's frame, and with its own.
WINDOWS = {b"gzip": 31, b"deflate": 15}
_PIECE = 64 << 10


def inflate(data: bytes, encoding: bytes, limit: int, charge: Callable[[int], None]) -> bytearray:
    """The bytes that a compressed body stands for; `charge` is told of each piece as it comes out.

    Raises PayloadTooLarge (more than `limit` bytes come out), RequestError (not what it says it is,
    or bytes behind its end), and what `charge` raises.
    """
    inflater, out, rest = zlib.decompressobj(WINDOWS[encoding]), bytearray(), data
    try:
        while not inflater.eof:
            piece = inflater.decompress(rest, _PIECE)
            charge(len(piece))
            out += piece
            rest = inflater.unconsumed_tail
            if len(out) > limit:
                raise PayloadTooLarge("the body is too large", expected=f"at most {limit} bytes inflated")
            if not piece and not rest and not inflater.eof:
                raise RequestError("the compressed body ends too early", found=encoding.decode())
    except zlib.error as error:
        raise RequestError("the body is not compressed as it says it is", found=error) from error
    if inflater.unused_data:
        raise RequestError("bytes follow the compressed body", found=f"{len(inflater.unused_data)} bytes")
    return out


def deflate(data: bytes, encoding: bytes) -> bytes:
    """Bytes in an encoding, made quickly rather than small."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, WINDOWS[encoding])
    return deflater.compress(data) + deflater.flush()
