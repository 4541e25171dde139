"""How many parts a protobuf message has, before any of them is made.

Two bytes can ask for an object of a hundred: an empty text, an empty message in a list. So
the records of repeated fields, which alone add up, are counted on the wire. A list of
numbers is one record, so that large tensors cost nothing here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from ..errors import PayloadTooLarge, RequestError
from . import protobuf
from .json_values import MAX_VALUES

_SMALLEST = 2  # bytes of a record


def check_parts(kind: Any, body: protobuf.Buffer) -> None:
    """Refuse a message, of a class `kind`, of too many parts. Raises PayloadTooLarge, RequestError.

    What is too small to have as many is not looked at.
    """
    if len(body) <= _SMALLEST * MAX_VALUES:
        return
    try:
        found = _count(kind.DESCRIPTOR, body)
    except protobuf.Malformed as error:
        raise RequestError(f"not a {kind.DESCRIPTOR.name} message", found=error) from error
    if found > MAX_VALUES:
        raise PayloadTooLarge(
            "the message has too many parts",
            expected=f"at most {MAX_VALUES:,} texts, examples and features in all",
            hint="send fewer rows in a request; numbers have no such limit",
        )


def _count(descriptor: Any, body: protobuf.Buffer) -> int:
    """The records of repeated fields on all levels, or some number above MAX_VALUES."""
    count, pending = 0, [(descriptor, 0, len(body))]
    while pending and count <= MAX_VALUES:
        kind, at, end = pending.pop()
        texts, known = _fields(kind)
        while at < end and count <= MAX_VALUES:
            # Most records are short texts in a list: their tag and length are a byte each.
            after = at + 2 + body[at + 1] if at + 1 < end and body[at + 1] < 0x80 else end + 1
            if body[at] in texts and after <= end:
                count, at = count + 1, after
                continue
            field = next(protobuf.fields(body, at, end))
            repeated, inner = known.get(field.number, (False, None))
            count, at = count + repeated, field.end
            if inner is not None and field.wire_type == protobuf.BYTES:
                pending.append((inner, field.start, field.end))
    return count


@cache
def _fields(descriptor: Any) -> tuple[frozenset[int], dict[int, tuple[bool, Any]]]:
    """One-byte tags of repeated texts; by number, whether a field is repeated, and its message or None."""
    known = {f.number: (f.is_repeated, f.message_type) for f in descriptor.fields}
    texts = [f for f in descriptor.fields if f.is_repeated and f.type in (f.TYPE_STRING, f.TYPE_BYTES)]
    return frozenset(f.number << 3 | protobuf.BYTES for f in texts if f.number < 16), known
